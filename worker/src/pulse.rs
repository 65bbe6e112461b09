//! The engine's pulse: whether it gets on, and what it is in the middle of.
//!
//! In: the engine's thread installs its [`Pulse`]; every [`piece`] of work then beats at its beginning and at its end.
//! The thread that writes checkpoints has one of its own.
//! Out: [`Pulse::beats`] and [`Pulse::work`] for heartbeats and the watchdog, readable at any moment by any thread.
//!
//! A beat costs a look at a thread-local and two stores; other threads, such as those of tests, beat for nobody.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::profile;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Computing; the profile names what.
    Compute(profile::Phase),
    /// Waiting until the network takes an event.
    Send,
    /// Waiting for the other ranks to form a process group.
    Rendezvous,
    /// Receiving or handing out the policy.
    Broadcast,
    /// Reading the model.
    Read,
    /// Writing a checkpoint.
    Write,
    /// Waiting until a process group is aborted.
    Abort,
}

const NAMES: [&str; 6] = ["send", "rendezvous", "broadcast", "read", "write", "abort"];

impl Work {
    /// Its number; 0 is none.
    fn code(self) -> usize {
        let after = profile::Phase::ALL.len();
        match self {
            Self::Compute(phase) => 1 + phase as usize,
            Self::Send => after + 1,
            Self::Rendezvous => after + 2,
            Self::Broadcast => after + 3,
            Self::Read => after + 4,
            Self::Write => after + 5,
            Self::Abort => after + 6,
        }
    }

    /// The name of a number; empty for none.
    fn name(code: usize) -> &'static str {
        let phases = profile::Phase::ALL;
        match code.checked_sub(1) {
            None => "",
            Some(at) if at < phases.len() => phases[at].as_str(),
            Some(at) => NAMES.get(at - phases.len()).copied().unwrap_or(""),
        }
    }
}

/// Written by one thread, read by all.
#[derive(Debug, Default)]
pub struct Pulse {
    beats: AtomicU64,
    work: AtomicUsize,
}

impl Pulse {
    /// The thread gets on.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows as long as the thread gets on.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// What the thread is in the middle of; empty between two pieces of work.
    #[must_use]
    pub fn work(&self) -> &'static str {
        Work::name(self.work.load(Ordering::Relaxed))
    }

    /// Whether it waits for the other ranks, which has a deadline of its own.
    #[must_use]
    pub fn is_collective(&self) -> bool {
        let code = self.work.load(Ordering::Relaxed);
        [Work::Compute(profile::Phase::Reduction), Work::Rendezvous, Work::Broadcast]
            .iter()
            .any(|work| work.code() == code)
    }
}

thread_local! {
    static PULSE: RefCell<Option<Arc<Pulse>>> = const { RefCell::new(None) };
}

/// Makes the pulse that of this thread.
pub fn install(pulse: Arc<Pulse>) {
    PULSE.set(Some(pulse));
}

/// This thread gets on in the middle of a piece of work.
pub fn beat() {
    PULSE.with_borrow(|pulse| {
        if let Some(pulse) = pulse {
            pulse.beat();
        }
    });
}

/// Runs a piece of work. A piece inside another has its own name until it ends.
pub fn piece<T>(work: Work, run: impl FnOnce() -> T) -> T {
    let begin = |pulse: &Arc<Pulse>| {
        pulse.beat();
        pulse.work.swap(work.code(), Ordering::Relaxed)
    };
    let Some(before) = PULSE.with_borrow(|pulse| pulse.as_ref().map(begin)) else { return run() };
    let result = run();
    PULSE.with_borrow(|pulse| {
        if let Some(pulse) = pulse {
            pulse.work.store(before, Ordering::Relaxed);
            pulse.beat();
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_beat_and_have_names() {
        let compute = profile::Phase::ALL.map(Work::Compute);
        let others = [Work::Send, Work::Rendezvous, Work::Broadcast, Work::Read, Work::Write, Work::Abort];
        let names: std::collections::BTreeSet<&str> =
            compute.iter().chain(&others).map(|work| Work::name(work.code())).collect();
        assert_eq!(names.len(), compute.len() + others.len(), "each has its own: {names:?}");
        assert!(names.contains("abort") && names.contains("reduction") && !names.contains(""));

        let pulse = Arc::new(Pulse::default());
        piece(Work::Send, || assert_eq!((pulse.beats(), pulse.work()), (0, ""), "not this thread's"));
        install(pulse.clone());
        piece(Work::Compute(profile::Phase::Head), || {
            assert_eq!((pulse.beats(), pulse.work(), pulse.is_collective()), (1, "head", false));
            piece(Work::Rendezvous, || {
                assert_eq!((pulse.work(), pulse.is_collective()), ("rendezvous", true))
            });
            beat();
            assert_eq!((pulse.beats(), pulse.work()), (4, "head"));
        });
        assert_eq!((pulse.beats(), pulse.work()), (5, ""));
    }
}
