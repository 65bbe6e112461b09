//! Checkpoints: rank 0 copies the policy of this moment and writes it while the run goes on.
//!
//! Invariants: at most one is under way; the next one waits for it, and so does the end of the run. A rank obeys
//! in order, so it copies before it does what follows. A checkpoint counts when its rank says that it is durable.
//! One that fails costs only itself: it is reported, and the next is tried when it is due. One whose rank is lost is
//! asked of another rank at once, or after the update under way. The last one of a run must not fail.

use g2rl_common::ids::{Rank, StepIndex, WorkerId};

use super::agenda::Next;
use super::failure::Peer;
use super::interface::{Effect, Millis, Outcome};
use super::{Activity, Coordinator, Failure};

/// A checkpoint that a rank writes.
#[derive(Debug)]
pub(super) struct Saving {
    /// Who was asked.
    pub(super) writer: WorkerId,
    /// Completed training steps in it.
    steps: StepIndex,
    /// When it was asked for.
    since: Millis,
    /// Nothing is trained after it.
    last: bool,
}

impl Coordinator {
    /// Asks for a checkpoint of the completed steps.
    pub(super) fn begin_checkpoint(&mut self) {
        assert!(self.saving.is_none(), "one checkpoint at a time");
        let writer = self.members.worker(Rank(0)).clone();
        let (steps, last) = (self.steps_done, self.agenda.is_last(&self.plan, self.steps_done));
        // Not of this moment: a step may be under way, which a run that goes on from it does again.
        let state = self.recorded.expect("a run begins with a position").state;
        self.agenda.checkpoint_asked(steps);
        self.saving = Some(Saving { writer, steps, since: self.now, last });
        // With a divided optimizer all ranks take part; rank 0, which writes, is told last.
        let mut workers: Vec<_> = self.members.ranks().map(|(_, worker)| worker.clone()).collect();
        workers.truncate(if self.plan.optimizer.shard { workers.len() } else { 1 });
        for worker in workers.into_iter().rev() {
            self.effects.push(Effect::SaveCheckpoint {
                worker,
                epoch: self.members.epoch(),
                step: self.steps_done,
                policy_version: self.policy_version,
                state,
            });
        }
    }

    pub(super) fn checkpoint_done(&mut self, rank: Rank, steps: StepIndex, error: Option<String>) -> bool {
        let worker = self.members.worker(rank);
        let Some(saving) = self.saving.take_if(|saving| saving.steps == steps && saving.writer == *worker)
        else {
            return false;
        };
        match error {
            None => {
                self.agenda.checkpoint_written(steps);
                self.effects.push(Effect::CheckpointWritten { step: steps });
                self.after_checkpoint();
            }
            Some(error) => self.checkpoint_failed(&saving, error),
        }
        true
    }

    /// When the checkpoint under way must be done. The last one has time until the run waits for it, and then costs
    /// its rank its place.
    pub(super) fn checkpoint_deadline(&self) -> Option<Millis> {
        let waited_for = matches!(self.activity, Activity::Checkpointing);
        let saving = self.saving.as_ref().filter(|saving| waited_for || !saving.last)?;
        Some(Millis(saving.since.0 + self.plan.cluster.checkpoint_timeout_ms))
    }

    /// A checkpoint that is not done in time has failed, unless it is the last one.
    pub(super) fn give_up_late_checkpoint(&mut self) {
        if self.checkpoint_deadline().is_some_and(|deadline| self.now >= deadline)
            && let Some(saving) = self.saving.take_if(|saving| !saving.last)
        {
            let limit_ms = self.plan.cluster.checkpoint_timeout_ms;
            self.checkpoint_failed(&saving, format!("it was not done in {limit_ms} ms"));
        }
    }

    /// The run goes on without this checkpoint, unless it was the last one.
    fn checkpoint_failed(&mut self, saving: &Saving, error: String) {
        let (writer, steps) = (saving.writer.clone(), saving.steps);
        let peer = Peer { rank: self.members.rank_of(&writer), worker: writer };
        let failure = Failure::Checkpoint { peer, steps, error };
        self.effects.push(Effect::CheckpointFailed { step: steps, error: failure.to_string() });
        if saving.last {
            let outcome = match self.agenda.stopping() {
                Some(Outcome::Failed(before)) => format!("{before}; {failure}"),
                _ => failure.to_string(),
            };
            return self.finish(Outcome::Failed(outcome));
        }
        self.agenda.checkpoint_failed(steps);
        self.after_checkpoint();
    }

    /// A worker is gone, and with it the checkpoint that it wrote.
    pub(super) fn checkpoint_lost_with(&mut self, worker: &WorkerId, cause: &str) {
        let lost = |saving: &mut Saving| saving.writer == *worker && !planted!(CheckpointForgotten);
        if let Some(saving) = self.saving.take_if(lost) {
            self.agenda.checkpoint_lost();
            let error =
                format!("the checkpoint after {} steps was lost with its rank: {cause}", saving.steps);
            self.effects.push(Effect::CheckpointFailed { step: saving.steps, error });
        }
    }

    /// Goes on if the checkpoint was waited for. If nothing follows, no epoch is needed either.
    fn after_checkpoint(&mut self) {
        if !matches!(self.activity, Activity::Checkpointing) {
            return;
        }
        self.activity = Activity::Joining;
        if self.members.stands() {
            self.proceed();
        } else if let Next::End(outcome) = self.agenda.next(&self.plan, self.steps_done) {
            self.finish(outcome);
        }
    }
}
