//! What the engine is doing, readable by other threads at any moment.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use g2rl_common::ids::{GroupEpoch, PolicyVersion, RunId, StepIndex};
use g2rl_proto::{LeaseProgress, Phase, WorkerStatus};

use crate::pulse::Pulse;
use crate::watchdog::Limits;

const PHASES: [Phase; 8] = [
    // First: what a worker does before its first command.
    Phase::Loading,
    Phase::Idle,
    Phase::Forming,
    Phase::Rollout,
    Phase::Update,
    Phase::WaitingForApply,
    Phase::Apply,
    Phase::Checkpoint,
];

/// Written by the engine, read by heartbeats, metrics and the watchdog. Each value is on its own: a reader may
/// see a new phase with an old count, which is good enough for a sign of life.
#[derive(Debug, Default)]
pub struct SharedStatus {
    phase: AtomicU32,
    epoch: AtomicU64,
    slots_in_use: AtomicU32,
    generated_tokens: AtomicU64,
    stale_commands: AtomicU64,
    step: AtomicU64,
    held: Mutex<Option<(RunId, PolicyVersion)>>,
    leases: Mutex<Vec<LeaseProgress>>,
    pulse: Arc<Pulse>,
    /// Of the thread that writes checkpoints.
    writing: Arc<Pulse>,
    limits: Mutex<Limits>,
    /// As the watchdog sees it, milliseconds.
    phase_ms: AtomicU64,
    still_ms: AtomicU64,
}

/// No thread panics while it holds one of these, so that none is left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedStatus {
    /// Whether the engine gets on.
    #[must_use]
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Whether the thread that writes checkpoints gets on. The watchdog does not look at it: nothing waits for it but
    /// the coordinator, which has a deadline.
    #[must_use]
    pub(super) fn writing(&self) -> &Arc<Pulse> {
        &self.writing
    }

    /// How long each phase may go without progress.
    #[must_use]
    pub fn limits(&self) -> Limits {
        lock(&self.limits).clone()
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        *lock(&self.limits) = limits;
    }

    /// How long the engine has been in its phase, and how long without a beat.
    pub(crate) fn set_ages(&self, phase: Duration, still: Duration) {
        self.phase_ms.store(phase.as_millis() as u64, Ordering::Relaxed);
        self.still_ms.store(still.as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn set_step(&self, step: StepIndex) {
        self.step.store(step.0, Ordering::Relaxed);
    }

    /// The training step that the engine last worked on after its rollouts.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    pub(super) fn set_leases(&self, leases: Vec<LeaseProgress>) {
        *lock(&self.leases) = leases;
    }

    /// What the engine does.
    #[must_use]
    pub fn phase(&self) -> Phase {
        PHASES[self.phase.load(Ordering::Relaxed) as usize]
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        let index = PHASES.iter().position(|p| *p == phase).expect("the table has every phase");
        self.phase.store(index as u32, Ordering::Relaxed);
        self.pulse.beat();
        if phase != Phase::Rollout {
            self.slots_in_use.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn set_epoch(&self, epoch: GroupEpoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
    }

    pub(super) fn set_rollout(&self, slots_in_use: usize, generated_tokens: u64) {
        self.slots_in_use.store(slots_in_use as u32, Ordering::Relaxed);
        self.generated_tokens.store(generated_tokens, Ordering::Relaxed);
    }

    pub(super) fn set_held(&self, run: &RunId, version: PolicyVersion) {
        let held = Some((run.clone(), version));
        *lock(&self.held) = held;
    }

    /// The run and the policy that the engine holds, once it has one.
    #[must_use]
    pub fn held(&self) -> Option<(RunId, PolicyVersion)> {
        lock(&self.held).clone()
    }

    pub(super) fn count_stale(&self) {
        self.stale_commands.fetch_add(1, Ordering::Relaxed);
    }

    /// The epoch the engine is in; 0 before the first.
    #[must_use]
    pub fn epoch(&self) -> GroupEpoch {
        GroupEpoch(self.epoch.load(Ordering::Relaxed))
    }

    /// Commands dropped because they named another epoch.
    #[must_use]
    pub fn stale_commands(&self) -> u64 {
        self.stale_commands.load(Ordering::Relaxed)
    }

    /// The engine's part of a heartbeat; memory is filled in by [`crate::memory`].
    #[must_use]
    pub fn snapshot(&self) -> WorkerStatus {
        let works = [&self.pulse, &self.writing].map(|pulse| pulse.work());
        WorkerStatus {
            phase: self.phase(),
            phase_ms: self.phase_ms.load(Ordering::Relaxed),
            work: works.into_iter().find(|work| !work.is_empty()).unwrap_or_default().to_owned(),
            progress: self.pulse.beats() + self.writing.beats(),
            still_ms: self.still_ms.load(Ordering::Relaxed),
            leases: lock(&self.leases).clone(),
            slots_in_use: self.slots_in_use.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
            resident_bytes: 0,
            device_bytes: 0,
        }
    }
}
