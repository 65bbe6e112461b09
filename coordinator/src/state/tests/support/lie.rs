//! What a worker may say that is not true, and that no lie gets into an optimizer step.

use std::collections::BTreeMap;

use g2rl_common::ids::WorkerId;

use super::worker::Command;
use crate::state::{Effect, Event, Outcome};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Its weights are not those of the others.
    Digest,
    /// It names another policy version.
    Version,
    /// The gradient's norm is not that of the others.
    Norm,
    /// Its sums are not numbers; no lie, but nobody may apply its mini-batch.
    Sums,
    /// A feature is not a number.
    Feature,
    /// A rollout that its lease does not ask for.
    Unasked,
    /// It has applied what it was not told to.
    Untold,
    /// Its checkpoint was not written.
    Checkpoint,
}

impl Lie {
    pub(crate) const ALL: [Self; 7] =
        [Self::Digest, Self::Version, Self::Norm, Self::Sums, Self::Feature, Self::Unasked, Self::Untold];

    /// A wrong answer to a command, if it has one.
    pub(crate) fn to(command: Command) -> Option<Self> {
        match command {
            Command::Prepare => None,
            Command::FormEpoch | Command::Apply => Some(Self::Digest),
            Command::Lease => Some(Self::Version),
            Command::Train => Some(Self::Norm),
            Command::Save => Some(Self::Checkpoint),
        }
    }

    /// The commands that can be answered with it.
    pub(crate) fn commands(self) -> &'static [Command] {
        match self {
            Self::Digest => &[Command::FormEpoch, Command::Apply],
            Self::Version => &[Command::Prepare, Command::FormEpoch, Command::Lease, Command::Apply],
            Self::Norm | Self::Sums | Self::Untold => &[Command::Train],
            Self::Feature | Self::Unasked => &[Command::Lease],
            Self::Checkpoint => &[Command::Save],
        }
    }
}

/// Every lie the machine has heard ends the run and is named, or had no effect.
#[derive(Debug, Default)]
pub(crate) struct LieDetector {
    /// Told in the epoch under way, and not seen yet: another rank's answer will show it.
    pending: BTreeMap<WorkerId, Event>,
}

impl LieDetector {
    /// The coordinator that heard the lies is gone, and what it compares is told anew.
    pub(crate) fn forget(&mut self) {
        self.pending.clear();
    }

    pub(crate) fn after_event(&mut self, (event, lie): (&Event, bool), effects: &[Effect], committed: bool) {
        let failure = effects.iter().find_map(|effect| match effect {
            Effect::Finished(Outcome::Failed(text)) => Some(text),
            _ => None,
        });
        if lie {
            let (worker, ..) = crate::state::sender(event).expect("a worker lies");
            let stale = matches!(effects, [Effect::StaleMessage { .. }]);
            // Only a comparison shows these; the first to answer has nobody to be compared with.
            let compared = matches!(
                event,
                Event::EpochFormed { .. } | Event::MinibatchApplied { .. } | Event::GradientsReady { .. }
            );
            match failure {
                Some(text) => {
                    assert!(text.contains(&format!("worker {worker})")), "{worker} lied, but {text}")
                }
                None if stale => {}
                None => {
                    assert!(compared && effects.is_empty(), "{event:?} led to {effects:?}");
                    self.pending.insert(worker.clone(), event.clone());
                }
            }
        } else if let (Some(text), false) = (failure, self.pending.is_empty()) {
            let named = self.pending.keys().any(|liar| text.contains(&format!("worker {liar})")));
            assert!(named || !text.contains("disagree"), "{:?} lied, but {text}", self.pending);
        }
        let ended = effects.iter().any(|effect| matches!(effect, Effect::EpochEnded { .. }));
        if ended || failure.is_some() {
            self.pending.clear();
        }
        let stood = effects.iter().any(|effect| matches!(effect, Effect::EpochStarted { .. }));
        assert!(!(committed || stood) || self.pending.is_empty(), "a lie was believed: {:?}", self.pending);
    }
}
