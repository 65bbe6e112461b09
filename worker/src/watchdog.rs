//! Ends a process whose engine hangs: libtorch cannot be interrupted, but a process can be replaced.
//!
//! In: the engine's pulse and phase. Out: a report on standard error and the end of the process, once a phase that
//! has work to do has gone without any progress for its `[watchdog]` limit. The coordinator sees the stream break and
//! goes on with the other ranks. While the engine waits for a command there is nothing to watch: that wait is the
//! session's, which ends when nobody answers.
//!
//! Invariant: nothing here waits for the engine or for a lock that it may hold.

use std::sync::Arc;
use std::time::{Duration, Instant};

use g2rl_common::config::WatchdogConfig;
use g2rl_proto::Phase;

use crate::engine::SharedStatus;

/// How often the watchdog looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Time for the report: what writes it may hang for the same reason as the engine.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The process's exit code: an internal error, as in `sysexits.h`.
const EXIT_CODE: i32 = 70;

/// How long each phase may go without progress. The defaults hold until the coordinator has sent the run's
/// configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// As configured.
    pub phases: WatchdogConfig,
    /// Added while a collective is waited for.
    pub collective_ms: u64,
}

impl Limits {
    /// `None` where the engine has nothing to do but to wait for a command.
    fn of(&self, phase: Phase, collective: bool) -> Option<Duration> {
        let limit_ms = match phase {
            Phase::Idle | Phase::WaitingForApply => return None,
            Phase::Loading => self.phases.loading_ms,
            Phase::Forming => self.phases.forming_ms,
            Phase::Rollout => self.phases.rollout_ms,
            Phase::Update => self.phases.update_ms,
            Phase::Apply => self.phases.apply_ms,
            Phase::Checkpoint => self.phases.checkpoint_ms,
        };
        Some(Duration::from_millis(limit_ms + if collective { self.collective_ms } else { 0 }))
    }
}

/// What the watchdog remembers from one look to the next.
#[derive(Debug, Default)]
struct Watch {
    seen: Option<(Phase, u64)>,
    /// In this phase.
    phase: Duration,
    /// Without a beat.
    still: Duration,
}

impl Watch {
    /// Looks after `passed`; true if the engine has hung for too long.
    fn look(&mut self, status: &SharedStatus, passed: Duration) -> bool {
        let (phase, beats) = (status.phase(), status.pulse().beats());
        let same_phase = self.seen.is_some_and(|(before, _)| before == phase);
        let moved = self.seen != Some((phase, beats));
        self.seen = Some((phase, beats));
        self.phase = if same_phase { self.phase + passed } else { Duration::ZERO };
        let limit = status.limits().of(phase, status.pulse().is_collective());
        self.still = if moved || limit.is_none() { Duration::ZERO } else { self.still + passed };
        status.set_ages(self.phase, self.still);
        limit.is_some_and(|limit| self.still >= limit)
    }
}

/// Watches the engine behind `status` until nobody else holds it.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(status: &Arc<SharedStatus>) -> std::io::Result<()> {
    let status = Arc::downgrade(status);
    let body = move || {
        let mut watch = Watch::default();
        let mut looked = Instant::now();
        loop {
            std::thread::park_timeout(INTERVAL);
            // Time in which this process was stopped does not count.
            let passed = looked.elapsed().min(2 * INTERVAL);
            looked = Instant::now();
            let Some(status) = status.upgrade() else { return };
            if watch.look(&status, passed) {
                end(&status);
            }
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(body).map(|_| ())
}

/// Reports and ends the process, without destructors: libtorch's would wait for the engine.
fn end(status: &Arc<SharedStatus>) {
    let status = status.clone();
    let words = std::thread::spawn(move || report(&status));
    let since = Instant::now();
    while !words.is_finished() && since.elapsed() < LAST_WORDS {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    g2rl_ffi::process::exit_now(EXIT_CODE);
}

fn report(status: &SharedStatus) {
    let now = status.snapshot();
    let leases: Vec<String> = now
        .leases
        .iter()
        .map(|lease| format!("{} ({} rollouts, {} tokens)", lease.lease, lease.rollouts, lease.tokens))
        .collect();
    let held = status.held().map(|(_, version)| version.0);
    tracing::error!(
        phase = now.phase.as_str(),
        work = now.work,
        phase_seconds = now.phase_ms as f64 / 1e3,
        still_seconds = now.still_ms as f64 / 1e3,
        collective = status.pulse().is_collective(),
        epoch = %status.epoch(),
        step = status.step(),
        policy_version = held,
        leases = leases.join(", "),
        "the engine hangs, and this process ends with it (watchdog.{}_ms)",
        now.phase.as_str()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    fn status() -> SharedStatus {
        let status = SharedStatus::default();
        let phases = WatchdogConfig { rollout_ms: 300, update_ms: 300, ..WatchdogConfig::default() };
        status.set_limits(Limits { phases, collective_ms: 500 });
        status
    }

    /// Looks until the limit is reached, or thirty times.
    fn looks(watch: &mut Watch, status: &SharedStatus) -> Option<u32> {
        (1..=30).find(|_| watch.look(status, STEP))
    }

    #[test]
    fn an_engine_that_beats_or_waits_for_a_command_is_left_alone() {
        let (status, mut watch) = (status(), Watch::default());
        status.set_phase(Phase::Rollout);
        for _ in 0..30 {
            status.pulse().beat();
            assert!(!watch.look(&status, STEP));
        }
        assert_eq!((status.snapshot().phase_ms, status.snapshot().still_ms), (2_900, 0));
        for phase in [Phase::Idle, Phase::WaitingForApply] {
            status.set_phase(phase);
            assert_eq!(looks(&mut watch, &status), None, "{phase:?}");
        }
    }

    #[test]
    fn an_engine_that_hangs_is_found_after_its_phases_limit() {
        let (status, mut watch) = (status(), Watch::default());
        status.set_phase(Phase::Rollout);
        // The first look sees something new.
        assert_eq!(looks(&mut watch, &status), Some(4));
        assert_eq!(status.snapshot().still_ms, 300);
        // Another phase begins anew.
        status.set_phase(Phase::Update);
        assert_eq!(looks(&mut watch, &status), Some(4));
    }

    #[test]
    fn a_collective_has_its_own_deadline_besides() {
        let status = Arc::new(status());
        status.set_phase(Phase::Update);
        let pulse = status.pulse().clone();
        std::thread::spawn(move || {
            crate::pulse::install(pulse);
            let reduction = crate::pulse::Work::Compute(crate::profile::Phase::Reduction);
            crate::pulse::piece::<()>(reduction, || {
                loop {
                    std::thread::park();
                }
            });
        });
        while !status.pulse().is_collective() {
            std::thread::yield_now();
        }
        assert_eq!(looks(&mut Watch::default(), &status), Some(9));
        assert_eq!(status.snapshot().work, "reduction");
    }
}
