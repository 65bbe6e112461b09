//! The coordinator's process dies and another one takes its place.
//!
//! Effects are performed one after another, so a process may die between any two of them. What it had recorded is
//! there again, but for a tail behind its last promise, which may not have got to the disk.

use g2rl_coordinator::state::{Coordinator, Effect, Event, Record, ResumeState, RunPlan};
use g2rl_proto::Hello;

use super::{Sim, Source, worker};

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
        Self {
            checkpoint: plan.resume,
            plan,
            records: Vec::new(),
            writing: None,
            completes: None,
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

    /// How many of these effects are performed before the process dies, if it does.
    pub(crate) fn dies_within(&self, effects: usize) -> Option<usize> {
        let left = self.die_after?.saturating_sub(self.performed);
        (left <= effects).then_some(left)
    }

    /// Takes note of an effect that is performed.
    pub(crate) fn note(&mut self, effect: &Effect) {
        self.performed += 1;
        match effect {
            Effect::Record(record) => self.records.push(record.clone()),
            Effect::SaveCheckpoint { state, .. } => self.writing = Some(*state),
            Effect::CheckpointWritten { .. } => self.checkpoint = self.writing.take(),
            Effect::CheckpointFailed { .. } => self.writing = None,
            _ => {}
        }
    }

    /// The records since the last position, of all but the last `lost` of those since the last promise.
    fn left(&mut self, lost: usize) -> Vec<Record> {
        self.records.truncate(self.records.len() - lost);
        let begin = self.records.iter().rposition(|record| matches!(record, Record::Position { .. }));
        self.records.split_off(begin.expect("a run begins with a position"))
    }

    /// Records that no promise comes after.
    fn tail(&self) -> usize {
        let last = self.records.iter().rposition(Record::is_promise).map_or(1, |at| at + 1);
        self.records.len() - last
    }

    fn plan(&self) -> RunPlan {
        RunPlan { resume: self.checkpoint, ..self.plan.clone() }
    }
}

impl Sim {
    /// The process dies in the middle of an event.
    pub(super) fn die(&mut self, event: &Event, effects: Vec<Effect>) {
        self.checks.before_death(event, &effects);
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
        let tail = if self.disk.lose_tail { self.below(self.disk.tail() as u64 + 1) as usize } else { 0 };
        let records = self.disk.left(tail);
        self.restart_from(records);
    }

    /// Like [`Self::restart`], from these records.
    pub(crate) fn restart_from(&mut self, records: Vec<Record>) {
        let (machine, again) =
            Coordinator::restore(self.disk.plan(), &records).expect("the records are the run's");
        self.machine = machine;
        self.disk.restarts += 1;
        self.checks.restarted(&records, &self.machine);
        self.disk.records = records;
        self.streams_break(true);
        for effect in again {
            self.react(&effect);
        }
    }

    /// Nobody holds the policy.
    pub(super) fn start_over(&mut self) {
        self.machine = Coordinator::new(self.disk.plan());
        self.disk.started_over += 1;
        self.checks.began_at(self.disk.checkpoint, &self.machine);
        self.streams_break(false);
    }

    /// All that was on its way is lost, but for what workers say again when they are back.
    fn streams_break(&mut self, keep_policy: bool) {
        let before = std::mem::take(&mut self.queue);
        self.last_due.clear();
        let back = 20 * self.max_delay_ms;
        for (_, (source, event)) in before {
            let late = matches!(source, Source::Worker(_))
                && !matches!(
                    event,
                    Event::Connected { .. }
                        | Event::Disconnected { .. }
                        | Event::Heartbeat { .. }
                        | Event::WorkerFailed { .. }
                );
            if late && self.below(4) == 0 {
                let delay = self.below(back) + 1;
                self.send_at(Source::Pool, event, delay);
            }
        }
        let living: Vec<_> =
            self.workers.values().filter(|worker| worker.lives()).map(|w| w.id.clone()).collect();
        for id in living {
            self.cut_off.insert(id.clone());
            let fake = self.workers.get_mut(&id).expect("it was just there");
            fake.leave_epoch();
            if !keep_policy {
                fake.version = self.disk.checkpoint.map(|state| state.policy_version).unwrap_or_default();
            }
            let held = keep_policy.then(|| ("run".into(), fake.version));
            let hello = Hello { held, ..worker::hello(&id.0) };
            let delay = self.below(back) + 1;
            self.send_at(Source::Worker(id), Event::Connected { hello }, delay);
        }
    }
}
