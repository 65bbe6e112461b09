//! What comes next whenever nothing is under way.
//!
//! Invariants: a checkpoint is asked for before the evaluation of the same step, so that a crash in the evaluation
//! costs no step. Each is done once for a step, but for checkpoints that failed. A run that is asked to stop, or
//! whose answers cannot be judged, writes a checkpoint of its completed steps, if there is none, and ends.

use g2rl_common::ids::StepIndex;

use super::interface::Outcome;
use super::plan::RunPlan;
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
    /// Completed steps of the newest durable checkpoint; before the first, of the initial policy.
    saved: StepIndex,
    /// The same, with the checkpoint under way.
    asked: StepIndex,
    /// Completed steps when a checkpoint failed: not tried again before the next one is due.
    failed: Option<StepIndex>,
    /// A checkpoint was lost with its rank.
    again: bool,
    last_evaluation: Option<StepIndex>,
    /// The run is to end, like this.
    stopping: Option<Outcome>,
}

impl Agenda {
    pub(super) fn new(steps_done: StepIndex) -> Self {
        Self {
            saved: steps_done,
            asked: steps_done,
            failed: None,
            again: false,
            last_evaluation: None,
            stopping: None,
        }
    }

    /// Of a run that goes on from its records. A checkpoint that was due and is not there is written at once: it was
    /// under way, or is not what was written.
    pub(super) fn at(
        plan: &RunPlan,
        (steps_done, saved): (StepIndex, StepIndex),
        last_evaluation: Option<StepIndex>,
    ) -> Self {
        let again = (saved.0 + 1..=steps_done.0).any(|done| plan.checkpoint_due(StepIndex(done)));
        Self { again, last_evaluation, ..Self::new(saved) }
    }

    pub(super) fn last_evaluation(&self) -> Option<StepIndex> {
        self.last_evaluation
    }

    pub(super) fn next(&self, plan: &RunPlan, steps_done: StepIndex) -> Next {
        let due = plan.checkpoint_due(steps_done) && self.failed.is_none_or(|failed| steps_done > failed);
        if steps_done > self.asked && (due || self.again || self.is_last(plan, steps_done)) {
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

    /// Nothing is trained any more.
    pub(super) fn is_last(&self, plan: &RunPlan, steps_done: StepIndex) -> bool {
        self.stopping.is_some() || steps_done.0 >= plan.steps
    }

    pub(super) fn checkpoint_asked(&mut self, steps_done: StepIndex) {
        (self.asked, self.again) = (steps_done, false);
    }

    pub(super) fn checkpoint_written(&mut self, steps_done: StepIndex) {
        self.saved = steps_done;
    }

    pub(super) fn checkpoint_failed(&mut self, steps_done: StepIndex) {
        (self.asked, self.failed) = (self.saved, Some(steps_done));
    }

    pub(super) fn checkpoint_lost(&mut self) {
        (self.asked, self.again) = (self.saved, true);
    }

    /// Whether a checkpoint was lost with its rank and not asked for again.
    pub(super) fn checkpoint_is_lost(&self) -> bool {
        self.again
    }

    pub(super) fn stopping(&self) -> Option<&Outcome> {
        self.stopping.as_ref()
    }

    /// The run ends at the next safe point; the first reason counts, and is returned.
    pub(super) fn stop(&mut self, outcome: Outcome) -> Outcome {
        self.stopping.get_or_insert(outcome).clone()
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
            Next::Checkpoint | Next::End(_) if self.saving.is_some() => {
                self.activity = Activity::Checkpointing
            }
            Next::Checkpoint => {
                self.begin_checkpoint();
                self.proceed();
            }
            Next::Evaluation => self.begin_evaluation(),
            Next::Step => self.begin_step(),
            Next::End(outcome) => self.finish(outcome),
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
        let outcome = self.agenda.stop(outcome);
        match &self.activity {
            Activity::Joining => {}
            Activity::Evaluating(_) | Activity::Collecting(_) => {
                self.leases.clear();
                self.activity = Activity::Joining;
            }
            Activity::Updating(_) | Activity::Checkpointing | Activity::Finished => return Ok(()),
        }
        if self.members.stands() {
            self.proceed();
        } else if matches!(self.agenda.next(&self.plan, self.steps_done), Next::End(_)) {
            match self.saving {
                Some(_) => self.activity = Activity::Checkpointing,
                None => self.finish(outcome),
            }
        }
        // Else the ranks of the next epoch write a checkpoint first.
        Ok(())
    }
}
