//! The coordinator's process dies and another one takes its place.
//!
//! Effects are performed one after another, so a process may die between any two of them. What it had recorded is
//! there again, but for a tail behind its last promise, which may not have got to the disk.

use std::collections::BTreeMap;

use g2rl_common::ids::{PolicyVersion, WorkerId};

use super::Sim;
use super::worker::{FakeWorker, digest};
use crate::state::{Coordinator, Effect, Event, Record, ResumeState, RunPlan};

/// The longest time in which a worker finds the next process.
const RETURN_MS: u64 = 2_000;

/// What outlives the process.
#[derive(Debug)]
pub(crate) struct Disk {
    plan: RunPlan,
    records: Vec<Record>,
    /// State of the newest checkpoint.
    pub(crate) checkpoint: Option<ResumeState>,
    /// Of one that is written.
    writing: Option<ResumeState>,
    /// Whether that is there once the process is gone; unknown as a rule.
    pub(crate) completes: Option<bool>,
    /// The weights in checkpoints.
    weights: BTreeMap<PolicyVersion, u64>,
    /// Effects that were performed so far.
    performed: usize,
    /// The process dies after so many.
    pub(crate) die_after: Option<usize>,
    /// Records behind the last promise may be lost.
    pub(crate) lose_tail: bool,
    pub(crate) restarts: u32,
    /// Machines that began at the checkpoint because nobody held the policy.
    pub(crate) started_over: u32,
}

impl Disk {
    pub(crate) fn new(plan: RunPlan) -> Self {
        let begin = plan.resume.map(|state| state.policy_version).unwrap_or_default();
        Self {
            checkpoint: plan.resume,
            plan,
            records: Vec::new(),
            writing: None,
            completes: None,
            weights: BTreeMap::from([(begin, digest(begin)), (PolicyVersion(0), digest(PolicyVersion(0)))]),
            performed: 0,
            die_after: None,
            lose_tail: false,
            restarts: 0,
            started_over: 0,
        }
    }

    pub(crate) fn performed(&self) -> usize {
        self.performed
    }

    /// How many of these effects are performed before the process dies, if it does. Once the run is over it ends.
    pub(crate) fn dies_within(&self, effects: &[Effect]) -> Option<usize> {
        let left = self.die_after?.saturating_sub(self.performed);
        let performed = effects.get(..left)?;
        (!matches!(performed, [.., Effect::Finished(_)])).then_some(left)
    }

    /// Takes note of an effect that is performed.
    pub(crate) fn note(&mut self, effect: &Effect, workers: &BTreeMap<WorkerId, FakeWorker>) {
        self.performed += 1;
        match effect {
            Effect::Record(record) => self.records.push(record.clone()),
            Effect::SaveCheckpoint { worker, state, .. } => {
                // Its process may be gone, or another.
                let writer = workers.get(worker).filter(|fake| fake.version == state.policy_version);
                if let Some(writer) = writer {
                    self.writing = Some(*state);
                    self.weights.insert(state.policy_version, writer.weights);
                }
            }
            Effect::CheckpointWritten { .. } => {
                self.checkpoint = Some(self.writing.take().expect("a checkpoint was asked for"));
            }
            Effect::CheckpointFailed { .. } => self.writing = None,
            _ => {}
        }
    }

    /// The policy that a worker reads which is welcomed with this version.
    pub(super) fn policy(&self, version: PolicyVersion) -> (PolicyVersion, u64) {
        (version, self.weights[&version])
    }

    /// The records since the last position, of all but the last `lost` of those since the last promise.
    fn left(&mut self, lost: usize) -> Vec<Record> {
        self.records.truncate(self.records.len() - lost);
        let begin = self.records.iter().rposition(|record| matches!(record, Record::Position { .. }));
        self.records.split_off(begin.unwrap_or(0))
    }

    /// Records that no promise comes after.
    fn tail(&self) -> usize {
        let last = self.records.iter().rposition(Record::is_promise).map_or(1, |at| at + 1);
        self.records.len().saturating_sub(last)
    }

    fn plan(&self) -> RunPlan {
        RunPlan { resume: self.checkpoint, ..self.plan.clone() }
    }
}

impl Sim {
    /// The process dies in the middle of an event.
    pub(super) fn die(&mut self, said: (&Event, bool), effects: Vec<Effect>) {
        self.trouble(|| format!("the coordinator dies after {} effects", effects.len()));
        self.checks.before_death(said, &effects);
        for effect in effects {
            self.perform(effect);
        }
        self.disk.die_after = None;
        self.restart();
    }

    /// Another process of the coordinator goes on from the records.
    pub(crate) fn restart(&mut self) {
        // Whoever was writing a checkpoint may have completed it without being heard.
        let writing = self.disk.writing.take();
        if writing.is_some() && self.disk.completes.unwrap_or_else(|| self.random.below(2) == 0) {
            self.disk.checkpoint = writing;
        }
        let tail = self.disk.tail() as u64;
        let lost = if self.disk.lose_tail { self.random.below(tail + 1) as usize } else { 0 };
        let records = self.disk.left(lost);
        self.restart_from(records);
    }

    /// Like [`Self::restart`], from these records.
    pub(crate) fn restart_from(&mut self, records: Vec<Record>) {
        self.disk.restarts += 1;
        // Parts of a divided optimizer end with their epoch.
        if records.is_empty() || self.disk.plan.optimizer.shard {
            return self.begin_course();
        }
        let (machine, again) =
            Coordinator::restore(self.disk.plan(), &records).expect("the records are the run's");
        self.machine = machine;
        self.checks.restarted(&records, &self.machine);
        self.disk.records = records;
        self.streams_break(true);
        for effect in again {
            self.react(&effect);
        }
    }

    /// Nobody holds the policy.
    pub(super) fn start_over(&mut self) {
        let holds = |worker: &WorkerId| {
            let fake = self.workers.get(worker).filter(|fake| fake.lives() && fake.loaded);
            fake.is_some_and(|fake| fake.version >= self.machine.policy_version)
        };
        let holder = self.network.accepted().find(|worker| holds(worker));
        assert_eq!(holder, None, "the policy is given up although somebody holds it");
        self.disk.started_over += 1;
        self.begin_course();
    }

    /// Another course of the run begins at the checkpoint.
    fn begin_course(&mut self) {
        self.machine = Coordinator::after(self.disk.plan(), self.machine.members.epoch());
        (self.disk.records, self.disk.writing) = (Vec::new(), None);
        self.checks.began_at(self.disk.checkpoint, &self.machine);
        self.streams_break(false);
    }

    /// All streams end, and the workers look for the coordinator.
    fn streams_break(&mut self, keep_policy: bool) {
        self.trouble(|| "the workers lose their streams".to_owned());
        let mut undelivered = self.network.break_all();
        let policy = self.disk.policy(self.machine.loaded_version);
        let living: Vec<_> =
            self.workers.values().filter(|worker| worker.lives()).map(|worker| worker.id.clone()).collect();
        for id in living {
            if !keep_policy && let Some(fake) = self.workers.get_mut(&id) {
                fake.take(policy);
                fake.loaded = false;
            }
            let delay_ms = 1 + self.random.below(RETURN_MS.min(20 * self.weather.max_delay_ms));
            self.reconnect(&id, delay_ms, undelivered.remove(&id).unwrap_or_default());
        }
    }
}
