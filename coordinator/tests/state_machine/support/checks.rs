//! What must hold after every event, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::ids::{
    GroupEpoch, GroupId, LeaseId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId,
};
use g2rl_coordinator::state::{
    Coordinator, Effect, Event, Outcome, Position, Record, ResumeState, RunPhase, RunPlan,
};

type Minibatch = (StepIndex, MinibatchIndex);

#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) group_size: u32,
    finished: bool,
    /// As the machine says.
    policy: PolicyVersion,
    version: PolicyVersion,
    next_step: StepIndex,
    ranks: Vec<WorkerId>,
    slots: BTreeMap<WorkerId, u32>,
    /// Rollouts at a worker.
    outstanding: BTreeMap<RolloutId, (WorkerId, LeaseId)>,
    /// Rollouts that came back.
    arrived: BTreeSet<RolloutId>,
    skipped: BTreeSet<GroupId>,
    epoch: GroupEpoch,
    shaped: BTreeSet<GroupId>,
    ready: BTreeSet<(GroupEpoch, WorkerId, Minibatch)>,
    told: BTreeSet<(GroupEpoch, WorkerId, Minibatch)>,
    /// By epoch: a mini-batch that was interrupted is divided again.
    trained: BTreeMap<Minibatch, BTreeMap<GroupEpoch, BTreeSet<RolloutId>>>,
    last_minibatch: Option<Minibatch>,
    /// Mini-batches that were not finite.
    not_finite: BTreeSet<Minibatch>,
    /// The checkpoint under way.
    saving: Option<StepIndex>,
}

impl Checks {
    pub(crate) fn new(plan: &RunPlan) -> Self {
        let from = plan.resume;
        Self {
            group_size: plan.group_size,
            finished: false,
            policy: from.map_or(PolicyVersion(0), |state| state.policy_version),
            version: from.map_or(PolicyVersion(0), |state| state.policy_version),
            next_step: from.map_or(StepIndex(0), |state| state.steps_done),
            ranks: Vec::new(),
            slots: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            arrived: BTreeSet::new(),
            skipped: BTreeSet::new(),
            epoch: GroupEpoch(0),
            shaped: BTreeSet::new(),
            ready: BTreeSet::new(),
            told: BTreeSet::new(),
            trained: BTreeMap::new(),
            last_minibatch: None,
            not_finite: BTreeSet::new(),
            saving: None,
        }
    }

    pub(crate) fn after_event(&mut self, event: &Event, effects: &[Effect], machine: &Coordinator) {
        let before = self.policy;
        self.before_death(event, effects);
        let status = machine.status();
        assert_eq!(status.phase == RunPhase::Finished, self.finished);
        assert_eq!(machine.next_deadline().is_none(), self.finished, "every wait has a deadline");
        let idle = status.epoch_stands && status.free_slots > 0 && status.queued_rollouts > 0;
        assert!(!idle, "idle slots: {status:?}");
        self.policy = status.policy_version;
        assert!(self.version <= self.policy && before <= self.policy, "the policy went back: {status:?}");
        assert!(self.policy.0 <= before.0 + 1, "an optimizer step was left out: {status:?}");
        let known: BTreeSet<_> =
            status.ranks.iter().map(|rank| &rank.worker).chain(&status.waiting_workers).collect();
        assert!(known.len() <= 64 && status.outstanding_leases <= 4_096, "memory is bounded: {status:?}");
    }

    /// Looks at effects after which the coordinator may die.
    pub(crate) fn before_death(&mut self, event: &Event, effects: &[Effect]) {
        assert!(!self.finished || effects.is_empty(), "after the end of the run: {effects:?}");
        self.note(event);
        for effect in effects {
            assert!(!self.finished, "after the end of the run: {effect:?}");
            self.check(event, effect);
        }
    }

    /// Another process goes on from these records: what they do not name did not happen.
    pub(crate) fn restarted(&mut self, records: &[Record], machine: &Coordinator) {
        let Some(Record::Position { position, .. }) = records.first() else {
            panic!("records begin with a position: {records:?}");
        };
        let accepted: BTreeSet<RolloutId> = records
            .iter()
            .filter_map(|record| match record {
                Record::RolloutAccepted { rollout, .. } => Some(*rollout),
                _ => None,
            })
            .collect();
        let told: BTreeSet<Minibatch> = records
            .iter()
            .filter_map(|record| match record {
                Record::ApplyTold { step, minibatch, .. } => Some((*step, *minibatch)),
                _ => None,
            })
            .collect();
        let not_finite: BTreeSet<Minibatch> = records
            .iter()
            .filter_map(|record| match record {
                Record::MinibatchSkipped { step, minibatch, .. } => Some((*step, *minibatch)),
                _ => None,
            })
            .collect();
        let (shaped, skipped) = (
            |group: GroupId| {
                records.iter().any(|r| matches!(r, Record::GroupShaped { group: of, .. } if *of == group))
            },
            |group: GroupId| {
                records.iter().any(|r| matches!(r, Record::PromptSkipped { group: of } if *of == group))
            },
        );
        let (next, done) = (position.state.next_group, position.state.steps_done);
        self.outstanding.clear();
        self.arrived.retain(|rollout| rollout.group < next || accepted.contains(rollout));
        self.shaped.retain(|group| *group < next || shaped(*group));
        self.skipped.retain(|group| *group < next || skipped(*group));
        self.told.retain(|(_, _, of)| of.0 < done || told.contains(of));
        self.trained.retain(|of, _| of.0 < done || told.contains(of));
        self.not_finite.retain(|of| of.0 < done || not_finite.contains(of));
        self.last_minibatch = self.trained.keys().next_back().copied();
        // Whoever was writing a checkpoint may complete it, but nobody waits for it any more.
        self.saving = None;
        (self.version, self.next_step) = (position.state.policy_version, done);
        (self.policy, self.finished) = (machine.status().policy_version, false);
    }

    /// Another machine begins at a checkpoint.
    pub(crate) fn began_at(&mut self, checkpoint: Option<ResumeState>, machine: &Coordinator) {
        let state = checkpoint.unwrap_or(ResumeState {
            steps_done: StepIndex(0),
            policy_version: PolicyVersion(0),
            prompts_drawn: 0,
            policy_since_prompt: 0,
            next_group: GroupId(0),
        });
        let position = Position { state, weights_digest: None, last_evaluation: None, skipped_in_a_row: 0 };
        self.restarted(&[Record::Position { epoch: GroupEpoch(0), position }], machine);
        self.epoch = GroupEpoch(0);
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::EpochFormed { worker, decode_slots, .. } => {
                self.slots.insert(worker.clone(), *decode_slots);
            }
            Event::GradientsReady { worker, epoch, step, minibatch, .. } => {
                self.ready.insert((*epoch, worker.clone(), (*step, *minibatch)));
            }
            Event::Disconnected { worker, .. } | Event::WorkerFailed { worker, .. } => self.lost(worker),
            Event::Connected { hello } => self.lost(&hello.worker),
            _ => {}
        }
    }

    fn lost(&mut self, worker: &WorkerId) {
        self.outstanding.retain(|_, (at, _)| at != worker);
    }

    fn check(&mut self, event: &Event, effect: &Effect) {
        match effect {
            Effect::Refuse { worker, .. } => self.lost(worker),
            Effect::EpochStarted { epoch, ranks, .. } => {
                assert!(*epoch > self.epoch, "epochs go on");
                self.epoch = *epoch;
                self.ranks = ranks.iter().map(|(_, worker)| worker.clone()).collect();
            }
            Effect::Lease { worker, order, .. } => {
                assert_eq!(order.policy_version, self.version, "a lease of another policy");
                for index in order.first_rollout..order.first_rollout + order.rollouts {
                    let rollout = RolloutId { group: order.group, index };
                    assert!(
                        !self.arrived.contains(&rollout),
                        "rollout {rollout} was leased after it came back"
                    );
                    let before = self.outstanding.insert(rollout, (worker.clone(), order.lease));
                    assert!(before.is_none(), "rollout {rollout} is leased to two: {before:?}");
                }
                let slots = self.slots[worker];
                let held = self.outstanding.values().filter(|(at, _)| at == worker).count() as u32;
                assert!(held <= slots + (slots / 4).max(1), "{held} rollouts at {worker} with {slots} slots");
            }
            Effect::VerifyRollout { rollout, .. } => {
                let Event::RolloutArrived { worker, lease, .. } = event else {
                    panic!("verified without a rollout: {event:?}");
                };
                let held = self.outstanding.remove(rollout);
                assert_eq!(held, Some((worker.clone(), *lease)), "rollout {rollout} counted twice");
                assert!(self.arrived.insert(*rollout), "rollout {rollout} came twice");
            }
            Effect::PromptSkipped { group, .. } => {
                self.outstanding.retain(|rollout, _| rollout.group != *group);
                assert!(self.skipped.insert(*group), "group {group} was skipped twice");
            }
            Effect::ShapeGroup { group, .. } => {
                assert!(self.shaped.insert(*group), "group {group} was shaped twice");
            }
            Effect::TrainMinibatch { worker, epoch, step, minibatch, sequences, .. } => {
                assert!(self.outstanding.is_empty(), "an update while rollouts are out");
                assert_eq!((*step, *epoch), (self.next_step, self.epoch));
                let this = (*step, *minibatch);
                assert!(self.last_minibatch <= Some(this), "mini-batches out of order");
                self.last_minibatch = Some(this);
                assert!(!self.told.contains(&(*epoch, worker.clone(), this)));
                assert!(!self.not_finite.contains(&this), "computed again what is not finite");
                let trained = self.trained.entry(this).or_default().entry(*epoch).or_default();
                for order in sequences {
                    assert!(trained.insert(order.rollout), "rollout {} trained twice", order.rollout);
                }
            }
            Effect::SaveCheckpoint { step, policy_version, .. } => {
                assert_eq!((*step, *policy_version), (self.next_step, self.version), "not of this moment");
                assert!(self.saving.is_none_or(|saving| saving == *step), "two checkpoints at a time");
                self.saving = Some(*step);
            }
            Effect::CheckpointWritten { step } | Effect::CheckpointFailed { step, .. } => {
                assert_eq!(self.saving.take(), Some(*step), "a checkpoint that nobody asked for");
            }
            Effect::MinibatchSkipped { step, minibatch, .. } => {
                assert!(self.not_finite.insert((*step, *minibatch)), "skipped twice");
            }
            Effect::Apply { worker, epoch, step, minibatch } => {
                let this = (*step, *minibatch);
                assert!(!self.not_finite.contains(&this), "told to apply what is not finite");
                let all = |rank: &WorkerId| self.ready.contains(&(*epoch, rank.clone(), this));
                assert!(self.ranks.iter().all(all), "told to apply before all were ready");
                assert!(self.told.insert((*epoch, worker.clone(), this)), "{worker} was told to apply twice");
                let whole = self.trained[&this].values().map(BTreeSet::len).max();
                assert_eq!(whole, self.trained[&this].get(epoch).map(BTreeSet::len), "a part was left out");
            }
            Effect::StepCompleted(record) => {
                assert_eq!(record.step, self.next_step, "steps out of order");
                self.next_step = record.step.next();
                let minibatches: BTreeSet<_> =
                    self.told.iter().map(|(_, _, of)| *of).filter(|of| of.0 == record.step).collect();
                let version = self.version.0 + minibatches.len() as u64;
                assert_eq!(record.policy_version.0, version, "one version a mini-batch");
                self.version = record.policy_version;
                let applied = |of: &Minibatch| of.0 == record.step && !self.not_finite.contains(of);
                let of_step = self.trained.iter().filter(|(of, _)| applied(of));
                let trained: usize =
                    of_step.filter_map(|(_, epochs)| epochs.values().map(BTreeSet::len).max()).sum();
                assert_eq!(record.stats.sequences, trained as u64, "a rank's sums counted twice");
            }
            Effect::EvaluationCompleted { .. } => assert!(self.outstanding.is_empty()),
            Effect::Record(Record::ApplyTold { step, .. }) => {
                // Of the steps before only the groups matter, and these are checked once.
                self.told.retain(|(_, _, of)| of.0 >= *step);
                self.ready.retain(|(_, _, of)| of.0 >= *step);
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
}
