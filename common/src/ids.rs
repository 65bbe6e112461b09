//! Newtypes for everything that is counted or named.
//!
//! Two ids of different kinds cannot be exchanged by mistake, and each type's documentation says
//! what starts its count and what makes it grow.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The following value.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

counter! {
    /// Membership generation. Grows by one whenever the set of ranks changes; messages that name
    /// an older epoch are dropped and counted.
    GroupEpoch
}
counter! {
    /// Number of optimizer steps applied to the policy since the run began.
    PolicyVersion
}
counter! {
    /// Number of a training step (rollouts, shaping, one or more mini-batches), from 0.
    StepIndex
}
counter! {
    /// Number of a mini-batch inside its training step, from 0.
    MinibatchIndex
}
counter! {
    /// A group: one prompt and its rollouts. Unique in a run, given out in order.
    GroupId
}
counter! {
    /// A piece of work handed to one worker: some or all rollouts of one group. Unique in a run;
    /// a lease that is given to another worker gets a new id.
    LeaseId
}

name! {
    /// A run, as named in its configuration.
    RunId
}
name! {
    /// A worker process. It chooses the name itself at start and keeps it over reconnects.
    WorkerId
}
name! {
    /// A row of a data set.
    PromptId
}

/// Position of a worker in the process group of one epoch, from 0. Rank 0 hosts the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(pub u32);

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One rollout: the group it answers and its place in the group, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RolloutId {
    /// The group.
    pub group: GroupId,
    /// Place in the group, `0..group_size`.
    pub index: u32,
}

impl fmt::Display for RolloutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.group, self.index)
    }
}
