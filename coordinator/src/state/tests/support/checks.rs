//! What must hold after every event, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::ids::{
    GroupEpoch, GroupId, LeaseId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId,
};
use g2rl_common::rollout::Purpose;

use super::lie::LieDetector;
use super::memory;
use super::worker::response_tokens;
use crate::state::{
    Coordinator, Effect, Event, Outcome, Position, Record, ResponseSource, ResumeState, RunPlan, StepRecord,
    outlives_epoch, sender,
};

type Minibatch = (StepIndex, MinibatchIndex);

/// What records since a position name.
#[derive(Debug, Default)]
struct Known {
    accepted: BTreeSet<RolloutId>,
    verified: BTreeSet<RolloutId>,
    shaped: BTreeSet<GroupId>,
    dropped: BTreeSet<GroupId>,
    told: BTreeSet<Minibatch>,
    committed: BTreeSet<Minibatch>,
    skipped: BTreeSet<Minibatch>,
}

impl Known {
    fn from(records: &[Record]) -> Self {
        let mut known = Self::default();
        for record in records {
            match record {
                Record::RolloutAccepted { rollout, .. } => known.accepted.insert(*rollout),
                Record::RolloutVerified { rollout } => known.verified.insert(*rollout),
                Record::GroupShaped { group, .. } => known.shaped.insert(*group),
                Record::PromptSkipped { group } => known.dropped.insert(*group),
                Record::ApplyTold { step, minibatch, .. } => known.told.insert((*step, *minibatch)),
                Record::MinibatchDone { step, minibatch, .. } => known.committed.insert((*step, *minibatch)),
                Record::MinibatchSkipped { step, minibatch, .. } => known.skipped.insert((*step, *minibatch)),
                Record::Position { .. }
                | Record::EpochBegan { .. }
                | Record::StepBegan { .. }
                | Record::EvaluationBegan { .. } => continue,
            };
        }
        known
    }
}

#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) group_size: u32,
    /// Prompts of a step whose answers are generated, without replacements.
    prompts_per_step: usize,
    /// Most prompts of a step.
    refill_to: usize,
    per_minibatch: usize,
    evaluation_samples: u32,
    lies: LieDetector,
    finished: bool,
    /// As the machine says.
    policy: PolicyVersion,
    version: PolicyVersion,
    next_step: StepIndex,
    ranks: Vec<WorkerId>,
    slots: BTreeMap<WorkerId, u32>,
    /// Rollouts at a worker.
    outstanding: BTreeMap<RolloutId, (WorkerId, LeaseId)>,
    at_worker: BTreeMap<WorkerId, u32>,
    /// Rollouts that came back; true once they are verified.
    arrived: BTreeMap<RolloutId, bool>,
    dropped: BTreeSet<GroupId>,
    /// Groups whose response is given.
    given: BTreeSet<GroupId>,
    epoch: GroupEpoch,
    /// Groups with advantages once these are there: whether they are left out of the update.
    shaped: BTreeMap<GroupId, Option<bool>>,
    ready: BTreeSet<(GroupEpoch, WorkerId, Minibatch)>,
    told: BTreeSet<(GroupEpoch, WorkerId, Minibatch)>,
    /// By epoch: a mini-batch that was interrupted is divided again.
    trained: BTreeMap<Minibatch, BTreeMap<GroupEpoch, BTreeSet<RolloutId>>>,
    last_minibatch: Option<Minibatch>,
    committed: BTreeSet<Minibatch>,
    /// Mini-batches that a rank said are not finite, by epoch.
    spoiled: BTreeSet<(GroupEpoch, Minibatch)>,
    /// Mini-batches that nobody may apply.
    skipped: BTreeSet<Minibatch>,
    /// The checkpoint under way.
    saving: Option<StepIndex>,
}

impl Checks {
    pub(crate) fn new(plan: &RunPlan) -> Self {
        let from = plan.resume;
        Self {
            group_size: plan.group_size,
            prompts_per_step: match plan.responses {
                ResponseSource::Generated => plan.prompts_per_step as usize,
                ResponseSource::Given => 0,
            },
            refill_to: plan.refill_to.unwrap_or(0) as usize,
            per_minibatch: plan.sequences_per_minibatch as usize,
            evaluation_samples: plan.evaluation.as_ref().map_or(0, |evaluation| evaluation.samples),
            lies: LieDetector::default(),
            finished: false,
            policy: from.map_or(PolicyVersion(0), |state| state.policy_version),
            version: from.map_or(PolicyVersion(0), |state| state.policy_version),
            next_step: from.map_or(StepIndex(0), |state| state.steps_done),
            ranks: Vec::new(),
            slots: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            at_worker: BTreeMap::new(),
            arrived: BTreeMap::new(),
            dropped: BTreeSet::new(),
            given: BTreeSet::new(),
            epoch: GroupEpoch(0),
            shaped: BTreeMap::new(),
            ready: BTreeSet::new(),
            told: BTreeSet::new(),
            trained: BTreeMap::new(),
            last_minibatch: None,
            committed: BTreeSet::new(),
            spoiled: BTreeSet::new(),
            skipped: BTreeSet::new(),
            saving: None,
        }
    }

    /// `said` is an event, and whether it is a lie.
    pub(crate) fn after_event(&mut self, said: (&Event, bool), effects: &[Effect], machine: &Coordinator) {
        self.check_epoch(said.0, effects, machine);
        let committed = self.check_policy(machine, effects);
        self.before_death(said, effects);
        self.epoch = machine.members.epoch();
        self.lies.after_event(said, effects, committed);
        assert_eq!(machine.is_finished(), self.finished);
        assert_eq!(machine.next_deadline().is_none(), self.finished, "every wait has a deadline");
        if !self.finished {
            memory::check(machine, effects.len());
        }
    }

    /// Looks at effects after which the coordinator may die.
    pub(crate) fn before_death(&mut self, (event, _): (&Event, bool), effects: &[Effect]) {
        assert!(!self.finished || effects.is_empty(), "after the end of the run: {effects:?}");
        self.note(event);
        for effect in effects {
            assert!(!self.finished, "after the end of the run: {effect:?}");
            self.check(event, effect);
        }
    }

    /// What belongs to an epoch that is over, or to an earlier process, has no effect.
    fn check_epoch(&self, event: &Event, effects: &[Effect], machine: &Coordinator) {
        let Some((worker, epoch, _)) = sender(event).filter(|_| !matches!(event, Event::Heartbeat { .. }))
        else {
            return;
        };
        // A lease and a checkpoint are their rank's until it is lost.
        let own = outlives_epoch(event)
            && !matches!(event, Event::EpochFormed { .. } | Event::MinibatchApplied { .. });
        if epoch >= self.epoch || (own && epoch >= machine.first_epoch) || self.finished {
            return;
        }
        // Who says that it holds the policy that is sought may let the next epoch begin.
        let formed = |effect: &Effect| {
            matches!(effect, Effect::Record(Record::EpochBegan { .. }) | Effect::PrepareEpoch { .. })
        };
        let dropped = matches!(effects, [rest @ .., Effect::StaleMessage { .. }]
            if rest.is_empty() || (outlives_epoch(event) && rest.iter().all(formed)));
        // A policy that nobody can hold ends the run whenever it is named.
        let lie = matches!(effects.last(), Some(Effect::Finished(_))) && outlives_epoch(event);
        assert!(dropped || lie, "{worker} in epoch {} said {event:?}, which led to {effects:?}", self.epoch);
    }

    /// The policy grows by one with each mini-batch that is committed.
    fn check_policy(&mut self, machine: &Coordinator, effects: &[Effect]) -> bool {
        let done = |effect: &&Effect| matches!(effect, Effect::Record(Record::MinibatchDone { .. }));
        let done = effects.iter().filter(done).count();
        let (before, policy) = (self.policy, machine.policy_version);
        self.policy = policy;
        assert!(done <= 1, "one optimizer step at a time: {effects:?}");
        assert_eq!(policy.0, before.0 + done as u64, "one version a mini-batch: {effects:?}");
        done > 0
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::EpochFormed { worker, decode_slots, .. } => {
                self.slots.insert(worker.clone(), *decode_slots);
            }
            Event::GradientsReady { worker, epoch, step, minibatch, stats, gradient_norm, not_finite } => {
                self.ready.insert((*epoch, worker.clone(), (*step, *minibatch)));
                if !not_finite.is_empty() || !stats.is_finite() || !gradient_norm.is_finite() {
                    self.spoiled.insert((*epoch, (*step, *minibatch)));
                }
            }
            Event::RolloutVerified { rollout } => {
                self.arrived.insert(*rollout, true);
            }
            Event::GroupShaped { group, skipped, .. } => {
                self.shaped.insert(*group, Some(*skipped));
            }
            Event::Disconnected { worker, .. } | Event::WorkerFailed { worker, .. } => self.lost(worker),
            Event::Connected { hello } => self.lost(&hello.worker),
            Event::StopRequested | Event::JudgingFailed { .. } => self.given_up(),
            _ => {}
        }
    }

    fn lost(&mut self, worker: &WorkerId) {
        self.outstanding.retain(|_, (at, _)| at != worker);
        self.at_worker.remove(worker);
    }

    /// The rollouts under way are of no use any more.
    fn given_up(&mut self) {
        self.outstanding.clear();
        self.at_worker.clear();
    }

    fn leased(&mut self, rollout: RolloutId, worker: &WorkerId, lease: LeaseId) {
        assert!(!self.arrived.contains_key(&rollout), "rollout {rollout} was leased after it came back");
        let before = self.outstanding.insert(rollout, (worker.clone(), lease));
        assert!(before.is_none(), "rollout {rollout} is leased to two: {before:?}");
        *self.at_worker.entry(worker.clone()).or_insert(0) += 1;
    }

    fn all_verified(&self, group: GroupId, rollouts: u32) -> bool {
        (0..rollouts).all(|index| self.arrived.get(&RolloutId { group, index }) == Some(&true))
    }

    fn check(&mut self, event: &Event, effect: &Effect) {
        match effect {
            Effect::Refuse { worker, .. } => self.lost(worker),
            Effect::EpochStarted { epoch, ranks, .. } => {
                self.ranks = ranks.iter().map(|(_, worker)| worker.clone()).collect();
                assert_eq!(*epoch, self.epoch, "another epoch was prepared");
            }
            Effect::PrepareEpoch { epoch, .. } => {
                assert!(*epoch >= self.epoch, "epoch {epoch} after {}", self.epoch);
                self.epoch = *epoch;
            }
            Effect::Lease { worker, order, .. } => {
                assert_eq!(order.policy_version, self.version, "a lease of another policy");
                if order.source == ResponseSource::Given {
                    assert_eq!((order.first_rollout, order.rollouts), (0, 1), "a prompt has one solution");
                    self.given.insert(order.group);
                }
                for index in order.first_rollout..order.first_rollout + order.rollouts {
                    self.leased(RolloutId { group: order.group, index }, worker, order.lease);
                }
                let (slots, held) = (self.slots[worker], self.at_worker[worker]);
                assert!(held <= slots + (slots / 4).max(1), "{held} rollouts at {worker} with {slots} slots");
            }
            Effect::VerifyRollout { rollout, .. } => {
                let Event::RolloutArrived { worker, lease, .. } = event else {
                    panic!("verified without a rollout: {event:?}");
                };
                let held = self.outstanding.remove(rollout);
                assert_eq!(held, Some((worker.clone(), *lease)), "rollout {rollout} counted twice");
                *self.at_worker.get_mut(worker).expect("it has a lease") -= 1;
                assert!(self.arrived.insert(*rollout, false).is_none(), "rollout {rollout} came twice");
            }
            Effect::PromptSkipped { group, .. } => {
                let at_worker = &mut self.at_worker;
                self.outstanding.retain(|rollout, (worker, _)| {
                    let keeps = rollout.group != *group;
                    *at_worker.get_mut(worker).expect("it has a lease") -= u32::from(!keeps);
                    keeps
                });
                assert!(self.dropped.insert(*group), "group {group} was skipped twice");
            }
            Effect::ShapeGroup { group, .. } => {
                assert!(!self.given.contains(group), "group {group} is given, and shaped");
                assert!(self.all_verified(*group, self.group_size), "group {group} is not complete");
                assert!(self.shaped.insert(*group, None).is_none(), "group {group} was shaped twice");
            }
            Effect::TrainMinibatch { worker, epoch, step, minibatch, sequences, .. } => {
                assert!(self.outstanding.is_empty(), "an update while rollouts are out");
                assert_eq!((*step, *epoch), (self.next_step, self.epoch));
                let this = (*step, *minibatch);
                assert!(self.last_minibatch <= Some(this), "mini-batches out of order");
                assert!(!self.committed.contains(&this), "mini-batch {this:?} is computed after its commit");
                self.last_minibatch = Some(this);
                assert!(!self.told.contains(&(*epoch, worker.clone(), this)));
                assert!(
                    !self.skipped.contains(&this),
                    "mini-batch {this:?} is computed although it is skipped"
                );
                for order in sequences {
                    let group = order.rollout.group;
                    let given = self.given.contains(&group);
                    let (policy, imitation) = (order.policy_weight, order.imitation_weight);
                    assert!(self.is_trained(group), "{} is trained", order.rollout);
                    assert!(
                        if given { policy == 0.0 } else { imitation == 0.0 },
                        "{} counts as both",
                        order.rollout
                    );
                    let trained = self.trained.entry(this).or_default().entry(*epoch).or_default();
                    assert!(trained.insert(order.rollout), "rollout {} trained twice", order.rollout);
                }
            }
            Effect::Apply { worker, epoch, step, minibatch } => {
                let this = (*step, *minibatch);
                let spoiled = self.spoiled.contains(&(*epoch, this)) || self.skipped.contains(&this);
                assert!(!spoiled, "told to apply {this:?}, which is not finite");
                let all = |rank: &WorkerId| self.ready.contains(&(*epoch, rank.clone(), this));
                assert!(self.ranks.iter().all(all), "told to apply before all were ready");
                assert!(self.told.insert((*epoch, worker.clone(), this)), "{worker} was told to apply twice");
                let whole = &self.trained[&this];
                let first = whole.values().next();
                assert_eq!(first, whole.get(epoch), "{this:?} is another mini-batch in epoch {epoch}");
            }
            Effect::MinibatchSkipped { step, minibatch, .. } => {
                let this = (*step, *minibatch);
                assert!(!self.committed.contains(&this), "mini-batch {this:?} is skipped after its commit");
                assert!(self.skipped.insert(this), "mini-batch {this:?} is skipped twice");
            }
            Effect::SaveCheckpoint { step, policy_version, .. } => {
                assert_eq!((*step, *policy_version), (self.next_step, self.version), "not of this moment");
                assert!(self.saving.is_none_or(|saving| saving == *step), "two checkpoints at a time");
                self.saving = Some(*step);
            }
            Effect::CheckpointWritten { step } | Effect::CheckpointFailed { step, .. } => {
                assert_eq!(self.saving.take(), Some(*step), "a checkpoint that nobody asked for");
            }
            Effect::Record(Record::ApplyTold { step, .. }) => self.forget_before(*step),
            Effect::Record(Record::MinibatchDone { step, minibatch, .. }) => {
                let this = (*step, *minibatch);
                let told = self.told.iter().any(|(_, _, of)| *of == this);
                assert!(told, "mini-batch {this:?} was committed, but nobody was told to apply it");
                assert!(self.committed.insert(this), "mini-batch {this:?} was committed twice");
            }
            Effect::StepCompleted(record) => self.step_completed(record),
            Effect::EvaluationCompleted { groups, .. } => {
                assert!(self.outstanding.is_empty());
                let complete = |group| self.all_verified(group, self.evaluation_samples);
                for (group, problem) in groups {
                    assert!(complete(*group), "group {group} is measured before it is complete");
                    assert_eq!(problem.purpose, Purpose::Evaluate);
                }
            }
            Effect::StartOver { .. } => self.finished = true,
            Effect::Finished(outcome) => {
                let waits = !matches!(outcome, Outcome::Failed(_));
                assert!(!waits || self.saving.is_none(), "the run ends before its checkpoint is durable");
                self.finished = true;
            }
            _ => {}
        }
    }

    /// It has advantages and is not left out, or its response is given and there.
    fn is_trained(&self, group: GroupId) -> bool {
        match self.given.contains(&group) {
            true => self.all_verified(group, 1),
            false => self.shaped.get(&group) == Some(&Some(false)),
        }
    }

    /// One more prompt for each skipped group, up to the limit.
    fn check_refills(&self, record: &StepRecord) {
        let is_skipped = |group: &&GroupId| self.shaped.get(group) == Some(&Some(true));
        let skipped = record.groups.iter().filter(is_skipped).count();
        let drawn = self.refill_to.min(self.prompts_per_step + skipped).max(self.prompts_per_step);
        let (found, step) = (record.groups.len(), record.step);
        // A prompt that does not fit is neither trained nor replaced.
        let exact = self.dropped.is_empty();
        assert!(found <= drawn, "{found} prompts in step {step}, {skipped} of them skipped");
        assert!(!exact || found == drawn, "{found} prompts in step {step}, {skipped} of them skipped");
    }

    fn step_completed(&mut self, record: &StepRecord) {
        let step = record.step;
        assert_eq!(step, self.next_step, "steps out of order");
        self.next_step = step.next();
        let rollouts = |group: GroupId| (0..self.group_size).map(move |index| RolloutId { group, index });
        let given = record.imitated.iter().map(|&group| RolloutId { group, index: 0 });
        let of_step: BTreeSet<_> = record.groups.iter().copied().flat_map(rollouts).chain(given).collect();
        self.check_refills(record);
        let tokens: u64 = of_step.iter().map(|rollout| u64::from(response_tokens(*rollout))).sum();
        assert_eq!(record.response_tokens, tokens, "tokens of step {step}");
        // Every rollout of every group that is not left out is in one mini-batch.
        let wanted = of_step.iter().filter(|rollout| self.is_trained(rollout.group));
        let wanted: BTreeSet<RolloutId> = wanted.copied().collect();
        let minibatches = match self.per_minibatch {
            0 => usize::from(!wanted.is_empty()),
            most => wanted.len().div_ceil(most),
        };
        let of_step = |minibatch: &&Minibatch| minibatch.0 == step;
        let committed = self.committed.iter().filter(of_step).count();
        let skipped = self.skipped.iter().filter(of_step).count();
        assert_eq!(committed + skipped, minibatches, "mini-batches of step {step}");
        let (mut trained, mut applied) = (Vec::new(), 0);
        for (of, epochs) in self.trained.iter().filter(|(of, _)| of.0 == step) {
            let rollouts = epochs.values().next_back().into_iter().flatten();
            let before = trained.len();
            trained.extend(rollouts.copied());
            if self.committed.contains(of) {
                applied += trained.len() - before;
            }
        }
        assert_eq!(trained.len(), wanted.len(), "a rollout of step {step} is in two mini-batches");
        assert_eq!(BTreeSet::from_iter(trained), wanted, "rollouts of step {step}");
        assert_eq!(record.stats.sequences, applied as u64, "a rank's sums counted twice");
        self.version = PolicyVersion(self.version.0 + committed as u64);
        assert_eq!(record.policy_version, self.version, "one version a mini-batch");
    }

    /// Of completed steps only the groups matter, and these are checked once.
    fn forget_before(&mut self, step: StepIndex) {
        self.told.retain(|(_, _, of)| of.0 >= step);
        self.ready.retain(|(_, _, of)| of.0 >= step);
        self.trained.retain(|of, _| of.0 >= step);
        self.committed.retain(|of| of.0 >= step);
        self.skipped.retain(|of| of.0 >= step);
        self.spoiled.retain(|(_, of)| of.0 >= step);
    }

    /// Another process goes on from these records: what they do not name did not happen.
    pub(crate) fn restarted(&mut self, records: &[Record], machine: &Coordinator) {
        let Some(Record::Position { position, .. }) = records.first() else {
            panic!("records begin with a position: {records:?}");
        };
        let known = Known::from(records);
        let (next, done) = (position.state.next_group, position.state.steps_done);
        let verified = |rollout: &RolloutId| rollout.group < next || known.verified.contains(rollout);
        self.arrived.retain(|rollout, _| rollout.group < next || known.accepted.contains(rollout));
        self.arrived.iter_mut().for_each(|(rollout, was)| *was = verified(rollout));
        let there = |group: &GroupId| known.accepted.iter().any(|rollout| rollout.group == *group);
        self.given.retain(|group| *group < next || there(group));
        self.shaped.retain(|group, _| *group < next || known.shaped.contains(group));
        self.dropped.retain(|group| *group < next);
        self.dropped.extend(known.dropped);
        self.told.retain(|(_, _, of)| of.0 < done || known.told.contains(of));
        self.trained.retain(|of, _| of.0 < done || known.told.contains(of) || known.skipped.contains(of));
        self.committed.retain(|of| of.0 < done);
        self.committed.extend(known.committed);
        self.skipped.retain(|of| of.0 < done);
        self.skipped.extend(known.skipped);
        self.last_minibatch = self.trained.keys().next_back().copied();
        self.outstanding.clear();
        self.at_worker.clear();
        self.ready.clear();
        self.ranks.clear();
        // Whoever was writing a checkpoint may complete it, but nobody waits for it any more.
        self.saving = None;
        self.lies.forget();
        (self.version, self.next_step) = (position.state.policy_version, done);
        (self.policy, self.finished) = (machine.policy_version, false);
        assert!(machine.members.epoch() >= self.epoch, "epoch {} is numbered again", self.epoch);
        self.epoch = machine.members.epoch();
    }

    /// Another course of the run begins at a checkpoint.
    pub(crate) fn began_at(&mut self, checkpoint: Option<ResumeState>, machine: &Coordinator) {
        let state = checkpoint.unwrap_or(ResumeState {
            steps_done: StepIndex(0),
            policy_version: PolicyVersion(0),
            prompts_drawn: 0,
            policy_since_prompt: 0,
            next_group: GroupId(0),
        });
        let position = Position { state, weights_digest: None, last_evaluation: None, skipped_in_a_row: 0 };
        self.restarted(&[Record::Position { epoch: machine.members.epoch(), position }], machine);
    }
}
