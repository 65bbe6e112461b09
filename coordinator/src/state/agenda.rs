//! What comes next whenever nothing is under way.
//!
//! Invariants: a checkpoint comes before the evaluation of the same step, so that a crash in the
//! evaluation costs no step. Each is done once for a step. A run that is asked to stop, or whose answers
//! cannot be judged, writes a checkpoint of its completed steps, if there is none, and ends.

use g2rl_common::ids::{Rank, StepIndex};

use super::interface::{Effect, Outcome, ResumeState};
use super::plan::RunPlan;
use super::record::Position;
use super::{Activity, Coordinator, Failure, Handled};

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Checkpoint,
    Evaluation,
    Step,
    End(Outcome),
}

/// What was done, as far as it decides what comes next.
#[derive(Debug, Clone)]
pub(super) struct Agenda {
    /// Completed steps of the newest checkpoint; before the first, of the initial policy.
    last_checkpoint: StepIndex,
    last_evaluation: Option<StepIndex>,
    /// The run is to end, like this.
    stopping: Option<Outcome>,
}

impl Agenda {
    pub(super) fn new(steps_done: StepIndex) -> Self {
        Self::at(steps_done, None)
    }

    /// Of a run that goes on.
    pub(super) fn at(last_checkpoint: StepIndex, last_evaluation: Option<StepIndex>) -> Self {
        Self { last_checkpoint, last_evaluation, stopping: None }
    }

    pub(super) fn position(&self, state: ResumeState, weights_digest: Option<u64>) -> Position {
        let (last_checkpoint, last_evaluation) = (self.last_checkpoint, self.last_evaluation);
        Position { state, weights_digest, last_checkpoint, last_evaluation }
    }

    pub(super) fn next(&self, plan: &RunPlan, steps_done: StepIndex) -> Next {
        let unsaved = steps_done > self.last_checkpoint;
        if unsaved && (self.stopping.is_some() || plan.checkpoint_due(steps_done)) {
            Next::Checkpoint
        } else if let Some(outcome) = &self.stopping {
            Next::End(outcome.clone())
        } else if plan.evaluation_due(steps_done) && self.last_evaluation != Some(steps_done) {
            Next::Evaluation
        } else if steps_done.0 < plan.steps {
            Next::Step
        } else {
            Next::End(Outcome::Completed)
        }
    }

    pub(super) fn checkpoint_written(&mut self, steps_done: StepIndex) {
        self.last_checkpoint = steps_done;
    }

    pub(super) fn evaluated(&mut self, steps_done: StepIndex) {
        self.last_evaluation = Some(steps_done);
    }
}

impl Coordinator {
    /// Begins what comes next. Called whenever an activity ends, and when the epoch stands.
    pub(super) fn proceed(&mut self) {
        assert!(self.members.stands(), "nothing can be done without an epoch");
        self.since = self.now;
        self.activity = Activity::Joining;
        self.record_position();
        let next = self.agenda.next(&self.plan, self.steps_done);
        if !matches!(next, Next::End(_)) && self.grow() {
            return;
        }
        match next {
            Next::Checkpoint => self.begin_checkpoint(),
            Next::Evaluation => self.begin_evaluation(),
            Next::Step => self.begin_step(),
            Next::End(outcome) => self.finish(outcome),
        }
    }

    /// Asks for a checkpoint, also again after another rank 0 was lost.
    pub(super) fn begin_checkpoint(&mut self) {
        let writer = self.members.worker(Rank(0)).clone();
        self.activity = Activity::Checkpointing { writer };
        // With a divided optimizer all ranks take part; rank 0, which writes, is told last.
        let mut workers: Vec<_> = self.members.ranks().map(|(_, worker)| worker.clone()).collect();
        workers.truncate(if self.plan.optimizer.shard { workers.len() } else { 1 });
        for worker in workers.into_iter().rev() {
            self.effects.push(Effect::SaveCheckpoint {
                worker,
                epoch: self.members.epoch(),
                step: self.steps_done,
                policy_version: self.policy_version,
                state: self.resume_state(),
            });
        }
    }

    /// The user wants it. Rollouts under way are given up; an update or a checkpoint is completed first.
    pub(super) fn stop_requested(&mut self) -> Handled {
        self.end_with(Outcome::Stopped)
    }

    /// No fault of the policy's: its completed steps are saved before the run ends.
    pub(super) fn judging_failed(&mut self, error: String) -> Handled {
        let failure = Failure::Judging { phase: self.phase(), error };
        self.end_with(Outcome::Failed(failure.to_string()))
    }

    /// Ends the run at the next safe point; the first reason counts.
    fn end_with(&mut self, outcome: Outcome) -> Handled {
        let outcome = self.agenda.stopping.get_or_insert(outcome).clone();
        match &self.activity {
            Activity::Joining => {}
            Activity::Evaluating(_) | Activity::Collecting(_) => {
                self.leases.clear();
                self.activity = Activity::Joining;
            }
            Activity::Updating(_) | Activity::Checkpointing { .. } | Activity::Finished => return Ok(()),
        }
        if self.members.stands() {
            self.proceed();
        } else if matches!(self.agenda.next(&self.plan, self.steps_done), Next::End(_)) {
            self.finish(outcome);
        }
        // Else the ranks of the next epoch write a checkpoint first.
        Ok(())
    }

    pub(super) fn checkpoint_done(
        &mut self,
        rank: Rank,
        steps: StepIndex,
        error: Option<String>,
    ) -> Result<bool, Failure> {
        let Activity::Checkpointing { writer } = &self.activity else { return Ok(false) };
        if steps != self.steps_done || writer != self.members.worker(rank) {
            return Ok(false);
        }
        if let Some(error) = error {
            return Err(Failure::Checkpoint { peer: self.members.peer_at(rank), steps, error });
        }
        self.agenda.checkpoint_written(steps);
        self.effects.push(Effect::CheckpointWritten { step: steps });
        self.activity = Activity::Joining;
        if self.members.stands() {
            self.proceed();
        }
        Ok(true)
    }
}
