//! Mini-batches whose loss or gradient is not finite.
//!
//! Invariants: no rank applies one, and all hear of that by the next command: the decision is the coordinator's,
//! between "gradients ready" and "apply", and recorded. It is never computed again, also not by a later epoch or by a
//! coordinator that was started again. The policy version stays, so it is still the number of optimizer steps behind
//! the weights; a step whose mini-batches were all skipped leaves the policy as it was, and prompts that come again get
//! other random streams. Too many in a row end the run as a stop does: the step is completed, and a checkpoint written.

use g2rl_common::ids::{MinibatchIndex, RolloutId};

use super::failure::list;
use super::interface::{Effect, Outcome};
use super::record::Record;
use super::{Activity, Coordinator, Failure};

/// Rollouts that a failure names; the rest is counted.
const NAMED: usize = 16;

/// Mini-batches that were skipped.
#[derive(Debug, Default)]
pub(super) struct NotFinite {
    /// Since the last one that was applied.
    pub(super) in_a_row: u32,
}

impl Coordinator {
    /// All ranks are ready, and none may apply: goes on with the next mini-batch.
    pub(super) fn skip_minibatch(&mut self) {
        let Activity::Updating(update) = &self.activity else {
            panic!("a mini-batch is skipped inside an update");
        };
        let minibatch = update.commit.minibatch();
        let mut rollouts: Vec<RolloutId> = update.commit.not_finite().collect();
        if rollouts.is_empty() {
            // Only the sum is not finite: each of them may have made it so.
            rollouts.clone_from(&update.rollouts);
            rollouts.sort_unstable();
        }
        self.count_skipped(minibatch, &rollouts);
        let step = self.steps_done;
        let record = Record::MinibatchSkipped { step, minibatch, rollouts: rollouts.clone() };
        self.effects.push(Effect::Record(record));
        self.effects.push(Effect::MinibatchSkipped { step, minibatch, rollouts });
        self.end_minibatch(minibatch);
    }

    /// Takes in a mini-batch that an earlier process skipped.
    ///
    /// # Errors
    /// If another mini-batch comes next.
    pub(super) fn replay_skipped(
        &mut self,
        minibatch: MinibatchIndex,
        rollouts: &[RolloutId],
    ) -> Result<(), String> {
        self.take_up_at(minibatch)?;
        self.count_skipped(minibatch, rollouts);
        self.await_next(minibatch);
        Ok(())
    }

    fn count_skipped(&mut self, minibatch: MinibatchIndex, rollouts: &[RolloutId]) {
        if let Activity::Updating(update) = &mut self.activity {
            // Ranks of an earlier epoch were told to apply it, but nobody who is left has.
            update.told = None;
        }
        self.not_finite.in_a_row = self.not_finite.in_a_row.saturating_add(1);
        let (step, most) = (self.steps_done, self.plan.max_nonfinite);
        if self.not_finite.in_a_row >= most {
            let rollouts = named(rollouts);
            let failure = Failure::NotFinite { minibatches: most, step, minibatch, rollouts };
            let _ = self.agenda.stop(Outcome::Failed(failure.to_string()));
        }
    }
}

/// The first rollouts by name, and how many more there are.
fn named(rollouts: &[RolloutId]) -> String {
    let first = list(rollouts.iter().take(NAMED));
    match rollouts.len().saturating_sub(NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
