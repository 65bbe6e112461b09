//! What must hold after every event, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::ids::{GroupId, LeaseId, MinibatchIndex, PolicyVersion, RolloutId, StepIndex, WorkerId};
use g2rl_coordinator::state::{Coordinator, Effect, Event, RunPhase, RunPlan};

#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) group_size: u32,
    finished: bool,
    version: PolicyVersion,
    next_step: StepIndex,
    ranks: Vec<WorkerId>,
    slots: BTreeMap<WorkerId, u32>,
    /// Rollouts at a worker.
    outstanding: BTreeMap<RolloutId, (WorkerId, LeaseId)>,
    /// Rollouts that were ever leased.
    leased: BTreeSet<RolloutId>,
    shaped: BTreeSet<GroupId>,
    ready: BTreeSet<(WorkerId, StepIndex, MinibatchIndex)>,
    applied: BTreeSet<(WorkerId, StepIndex, MinibatchIndex)>,
    told: BTreeSet<(WorkerId, StepIndex, MinibatchIndex)>,
    trained: BTreeSet<RolloutId>,
    last_minibatch: Option<(StepIndex, MinibatchIndex)>,
}

impl Checks {
    pub(crate) fn new(plan: &RunPlan) -> Self {
        let from = plan.resume;
        Self {
            group_size: plan.group_size,
            finished: false,
            version: from.map_or(PolicyVersion(0), |state| state.policy_version),
            next_step: from.map_or(StepIndex(0), |state| state.steps_done),
            ranks: Vec::new(),
            slots: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            leased: BTreeSet::new(),
            shaped: BTreeSet::new(),
            ready: BTreeSet::new(),
            applied: BTreeSet::new(),
            told: BTreeSet::new(),
            trained: BTreeSet::new(),
            last_minibatch: None,
        }
    }

    pub(crate) fn after_event(&mut self, event: &Event, effects: &[Effect], machine: &Coordinator) {
        assert!(!self.finished || effects.is_empty(), "after the end of the run: {effects:?}");
        self.note(event);
        for effect in effects {
            assert!(!self.finished, "after the end of the run: {effect:?}");
            self.check(event, effect);
        }
        let status = machine.status();
        assert_eq!(status.phase == RunPhase::Finished, self.finished);
        assert_eq!(machine.next_deadline().is_none(), self.finished, "every wait has a deadline");
        assert!(status.free_slots == 0 || status.queued_rollouts == 0, "idle slots: {status:?}");
        assert!(self.version <= status.policy_version, "the policy went back: {status:?}");
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::EpochFormed { worker, decode_slots, .. } => {
                self.slots.insert(worker.clone(), *decode_slots);
            }
            Event::GradientsReady { worker, step, minibatch, .. } => {
                self.ready.insert((worker.clone(), *step, *minibatch));
            }
            Event::MinibatchApplied { worker, step, minibatch, .. } => {
                self.applied.insert((worker.clone(), *step, *minibatch));
            }
            _ => {}
        }
    }

    fn check(&mut self, event: &Event, effect: &Effect) {
        match effect {
            Effect::EpochStarted { ranks, .. } => {
                self.ranks = ranks.iter().map(|(_, worker)| worker.clone()).collect();
            }
            Effect::Lease { worker, order, .. } => {
                assert_eq!(order.policy_version, self.version, "a lease of another policy");
                for index in order.first_rollout..order.first_rollout + order.rollouts {
                    let rollout = RolloutId { group: order.group, index };
                    assert!(self.leased.insert(rollout), "rollout {rollout} was leased twice");
                    self.outstanding.insert(rollout, (worker.clone(), order.lease));
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
            }
            Effect::PromptSkipped { group, .. } => {
                self.outstanding.retain(|rollout, _| rollout.group != *group)
            }
            Effect::ShapeGroup { group, .. } => {
                assert!(self.shaped.insert(*group), "group {group} was shaped twice");
            }
            Effect::TrainMinibatch { worker, step, minibatch, sequences, .. } => {
                assert!(self.outstanding.is_empty(), "an update while rollouts are out");
                assert_eq!(*step, self.next_step);
                if let Some(before) = self.last_minibatch.filter(|&before| before != (*step, *minibatch)) {
                    assert!(before < (*step, *minibatch), "mini-batches out of order");
                    for rank in &self.ranks {
                        let done = (rank.clone(), before.0, before.1);
                        assert!(self.applied.contains(&done), "{done:?} was not applied before the next");
                    }
                }
                self.last_minibatch = Some((*step, *minibatch));
                assert!(!self.told.contains(&(worker.clone(), *step, *minibatch)));
                for order in sequences {
                    assert!(self.trained.insert(order.rollout), "rollout {} trained twice", order.rollout);
                }
            }
            Effect::Apply { worker, step, minibatch, .. } => {
                let all = |rank: &WorkerId| self.ready.contains(&(rank.clone(), *step, *minibatch));
                assert!(self.ranks.iter().all(all), "told to apply before all were ready");
                let first = self.told.insert((worker.clone(), *step, *minibatch));
                assert!(first, "{worker} was told to apply twice");
            }
            Effect::StepCompleted(record) => {
                assert_eq!(record.step, self.next_step, "steps out of order");
                self.next_step = record.step.next();
                let of_step = |(_, step, _): &&(WorkerId, StepIndex, MinibatchIndex)| *step == record.step;
                let told = self.told.iter().filter(of_step).count() as u64;
                let minibatches = told / self.ranks.len() as u64;
                assert_eq!(record.policy_version.0, self.version.0 + minibatches, "one version a mini-batch");
                self.version = record.policy_version;
                let trained = self.trained.iter().filter(|rollout| record.groups.contains(&rollout.group));
                assert_eq!(record.stats.sequences, trained.count() as u64, "a rank's sums counted twice");
            }
            Effect::EvaluationCompleted { .. } => assert!(self.outstanding.is_empty()),
            Effect::Finished(_) => self.finished = true,
            _ => {}
        }
    }
}
