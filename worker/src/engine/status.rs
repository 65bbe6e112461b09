//! What the engine is doing, readable by other threads at any moment.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use g2rl_common::ids::{GroupEpoch, PolicyVersion, RunId};
use g2rl_proto::{Phase, WorkerStatus};

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

/// Written by the engine, read by heartbeats and metrics. Each value is on its own: a reader may
/// see a new phase with an old count, which is good enough for a sign of life.
#[derive(Debug, Default)]
pub struct SharedStatus {
    phase: AtomicU32,
    epoch: AtomicU64,
    slots_in_use: AtomicU32,
    generated_tokens: AtomicU64,
    stale_commands: AtomicU64,
    held: Mutex<Option<(RunId, PolicyVersion)>>,
}

impl SharedStatus {
    pub(super) fn set_phase(&self, phase: Phase) {
        let index = PHASES.iter().position(|p| *p == phase).expect("the table has every phase");
        self.phase.store(index as u32, Ordering::Relaxed);
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
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// The run and the policy that the engine holds, once it has one.
    #[must_use]
    pub fn held(&self) -> Option<(RunId, PolicyVersion)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        WorkerStatus {
            phase: PHASES[self.phase.load(Ordering::Relaxed) as usize],
            slots_in_use: self.slots_in_use.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
            resident_bytes: 0,
            device_bytes: 0,
        }
    }
}
