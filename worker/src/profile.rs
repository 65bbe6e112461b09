//! Where the time of a rollout or an update goes.
//!
//! In: pieces of work, each under the name of its [`Phase`]. Out: the seconds of each phase, if somebody
//! [`record`]s on this thread; if not, a piece of work costs one look at a thread-local.
//!
//! A piece inside another counts as part of the outer one, so the phases of a profile never overlap. On a
//! GPU a call returns when its work is queued, so a profile says something on a CPU only.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::pulse::{self, Work};

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Prompts through the model.
    Prefill,
    /// Weights into the order in which the CPU's decoder reads them.
    Packing,
    /// Matrix products of the layers, and in a rollout that of the head.
    Products,
    /// Attention; in a rollout with norms and rotation of the heads and the cache.
    Attention,
    /// Norms, rotation, gating and whatever else goes row by row.
    Rows,
    /// Softmax, draw, log-probability and residual sums.
    Sampling,
    /// Residual sums times the head.
    Features,
    /// Log-probabilities of the reference policy.
    Reference,
    /// Head, loss and their backward.
    Head,
    /// Waiting for the sum of the gradients over the ranks.
    Reduction,
    /// Norm, clipping and AdamW.
    Optimizer,
}

impl Phase {
    /// All, in the order in which they appear in a step.
    pub const ALL: [Self; 11] = [
        Self::Prefill,
        Self::Packing,
        Self::Products,
        Self::Attention,
        Self::Rows,
        Self::Sampling,
        Self::Features,
        Self::Reference,
        Self::Head,
        Self::Reduction,
        Self::Optimizer,
    ];

    /// The name in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Packing => "packing",
            Self::Products => "products",
            Self::Attention => "attention",
            Self::Rows => "rows",
            Self::Sampling => "sampling",
            Self::Features => "features",
            Self::Reference => "reference",
            Self::Head => "head",
            Self::Reduction => "reduction",
            Self::Optimizer => "optimizer",
        }
    }
}

/// Time of each phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    times: [Duration; Phase::ALL.len()],
    inside: bool,
}

impl Profile {
    /// Time of a phase.
    #[must_use]
    pub fn of(&self, phase: Phase) -> Duration {
        self.times[phase as usize]
    }

    /// Time of all phases.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.times.iter().sum()
    }
}

thread_local! {
    static PROFILE: RefCell<Option<Profile>> = const { RefCell::new(None) };
}

/// Runs `work` and returns what it returns, with a profile of it.
pub fn record<T>(work: impl FnOnce() -> T) -> (T, Profile) {
    PROFILE.with_borrow_mut(|profile| *profile = Some(Profile::default()));
    let result = work();
    (result, PROFILE.take().unwrap_or_default())
}

/// Runs a piece of work.
pub fn time<T>(phase: Phase, work: impl FnOnce() -> T) -> T {
    pulse::piece(Work::Compute(phase), || measure(phase, work))
}

fn measure<T>(phase: Phase, work: impl FnOnce() -> T) -> T {
    // Whether this is the outermost piece of a profile.
    let outer = PROFILE.with_borrow_mut(|profile| {
        profile.as_mut().is_some_and(|profile| !std::mem::replace(&mut profile.inside, true))
    });
    if !outer {
        return work();
    }
    let start = Instant::now();
    let result = work();
    let elapsed = start.elapsed();
    PROFILE.with_borrow_mut(|profile| {
        if let Some(profile) = profile {
            profile.inside = false;
            profile.times[phase as usize] += elapsed;
        }
    });
    result
}

/// Adds time that was measured elsewhere, unless it was inside another piece of work.
pub fn add(phase: Phase, elapsed: Duration) {
    PROFILE.with_borrow_mut(|profile| {
        if let Some(profile) = profile.as_mut().filter(|profile| !profile.inside) {
            profile.times[phase as usize] += elapsed;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Busy until the clock has moved.
    fn spin() {
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(50) {}
    }

    #[test]
    fn only_the_outermost_piece_counts() {
        let ((), profile) = record(|| {
            time(Phase::Reference, || {
                time(Phase::Products, spin);
                add(Phase::Rows, Duration::from_secs(9));
            });
            time(Phase::Sampling, spin);
            add(Phase::Features, Duration::from_secs(7));
        });
        assert!(profile.of(Phase::Reference) >= Duration::from_micros(50));
        assert!(profile.of(Phase::Sampling) >= Duration::from_micros(50));
        assert_eq!(profile.of(Phase::Features), Duration::from_secs(7));
        assert_eq!([Phase::Products, Phase::Rows].map(|p| profile.of(p)), [Duration::ZERO; 2]);
        let known = [Phase::Reference, Phase::Sampling, Phase::Features].map(|p| profile.of(p));
        assert_eq!(profile.sum(), known.iter().sum::<Duration>());
    }

    #[test]
    fn nothing_is_recorded_unasked() {
        time(Phase::Head, spin);
        let ((), profile) = record(|| ());
        assert_eq!(profile, Profile::default());
    }

    #[test]
    fn phases_stand_in_their_own_order() {
        assert!(Phase::ALL.iter().enumerate().all(|(at, phase)| *phase as usize == at));
    }
}
