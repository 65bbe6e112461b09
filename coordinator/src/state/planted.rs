//! Bugs that tests plant to see that the simulator finds them. Outside of tests there are none.

/// Whether a bug is planted; `false` outside of tests.
#[cfg(not(test))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

#[cfg(test)]
macro_rules! planted {
    ($bug:ident) => {
        $crate::state::planted::is_planted($crate::state::planted::Bug::$bug)
    };
}

#[cfg(test)]
pub(super) use bugs::{Bug, is_planted, with};

#[cfg(test)]
mod bugs {
    use std::cell::Cell;

    /// What may be wrong.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::state) enum Bug {
        /// What a lost rank had not given back is not leased again.
        LeasesForgotten,
        /// A rollout that came before counts again.
        DuplicateAccepted,
        /// A group is complete before its last rollout is verified.
        GroupCompleteEarly,
        /// Ranks are told to apply before all have their gradients.
        AppliedEarly,
        /// A mini-batch is computed again although a rank has applied it.
        AppliedTwice,
        /// Messages of an old epoch count.
        OldEpochHeard,
        /// An optimizer step does not make a new policy version.
        VersionKept,
        /// A passed deadline costs nobody a place.
        DeadlineIgnored,
        /// A policy that nobody can hold is believed.
        UnknownPolicyBelieved,
        /// Ranks are told to apply what is not finite.
        NotFiniteApplied,
        /// What must be on the disk before workers hear of it may still be under way.
        PromiseNotKept,
        /// A coordinator that is started again computes a skipped mini-batch again.
        SkipForgotten,
        /// A checkpoint that is lost with its rank is waited for.
        CheckpointForgotten,
        /// The policy counts as lost although who holds it came back while others formed an epoch.
        HolderWithoutRankForgotten,
        /// A skipped group is not replaced.
        RefillForgotten,
    }

    impl Bug {
        pub(in crate::state) const ALL: [Self; 15] = [
            Self::LeasesForgotten,
            Self::DuplicateAccepted,
            Self::GroupCompleteEarly,
            Self::AppliedEarly,
            Self::AppliedTwice,
            Self::OldEpochHeard,
            Self::VersionKept,
            Self::DeadlineIgnored,
            Self::UnknownPolicyBelieved,
            Self::NotFiniteApplied,
            Self::PromiseNotKept,
            Self::SkipForgotten,
            Self::CheckpointForgotten,
            Self::HolderWithoutRankForgotten,
            Self::RefillForgotten,
        ];
    }

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(in crate::state) fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Does something on this thread with a bug; `work` must not panic.
    pub(in crate::state) fn with<T>(bug: Bug, work: impl FnOnce() -> T) -> T {
        PLANTED.set(Some(bug));
        let done = work();
        PLANTED.set(None);
        done
    }
}
