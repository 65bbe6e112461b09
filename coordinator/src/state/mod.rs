//! The coordinator's decisions: a state machine without clock and without I/O.
//!
//! In: an [`Event`] and the time. Out: [`Effect`]s, which the shell performs in order.
//!
//! Invariants: the same plan and the same events at the same times give the same effects. Messages
//! of another epoch are dropped ([`Effect::StaleMessage`]), but for those that name a lease or a
//! checkpoint of their sender: these outlive an epoch. A rank that is lost ends its epoch, not the run. Every wait has a deadline
//! ([`Coordinator::next_deadline`]) and a [`Failure`] that names who was waited for. After
//! [`Effect::Finished`] nothing follows.
//!
//! The parts: `membership` knows who is there, `queue`, `load` and `lease` who generates what, `collection` how far the
//! groups are, `minibatch` and `commit` how they become optimizer steps, `agenda` what comes next.
//! `joining`, `epochs`, `rollouts`, `updates`, `nonfinite`, `checkpoint` and `deadlines` are the machine's reactions, by kind of event.
//! `record` is what it wants remembered, `restore` makes it again from that.

#[macro_use]
mod planted;

mod agenda;
mod checkpoint;
mod collection;
mod commit;
mod cursor;
mod deadlines;
mod epochs;
mod failure;
mod interface;
mod joining;
mod lease;
mod lengths;
mod load;
mod membership;
mod minibatch;
mod nonfinite;
mod plan;
mod queue;
mod record;
mod restore;
mod rollouts;
mod stalls;
mod status;
mod updates;

#[cfg(test)]
mod tests;

pub use failure::{Failure, Peer};
pub use interface::{
    Effect, Event, LeaseOrder, Millis, Outcome, ProblemRef, Recovery, ResumeState, SequenceOrder, StepRecord,
    StepTimes,
};
pub use minibatch::{PackedSequence, Packing, plan_minibatches};
pub use plan::{EvaluationPlan, ResponseSource, RunPlan};
pub use record::{Position, Record};
pub use restore::RestoreError;
pub use stalls::{EpochWait, GroupsWait, LeaseWait, LeasesWait, RankWait, Stall, StallReport};
pub use status::{RankStatus, RunPhase, RunStatus};

use g2rl_common::ids::{GroupEpoch, GroupId, PolicyVersion, StepIndex, WorkerId};
use g2rl_common::rollout::Purpose;

use agenda::Agenda;
use collection::Collection;
use cursor::PromptCursor;
use lease::LeaseBook;
use lengths::Lengths;
use membership::Membership;
use updates::Update;

/// What the ranks work on.
#[derive(Debug)]
enum Activity {
    /// Nothing: the first epoch is not formed, or one with newcomers.
    Joining,
    /// Rollouts of held-out problems.
    Evaluating(Collection),
    /// Rollouts of the next training step.
    Collecting(Collection),
    /// Mini-batches of the next training step.
    Updating(Box<Update>),
    /// A checkpoint must be durable before anything else: another one is due, or the run is over.
    Checkpointing,
    /// Nothing follows.
    Finished,
}

/// The state machine of a run.
#[derive(Debug)]
pub struct Coordinator {
    plan: RunPlan,
    members: Membership,
    leases: LeaseBook,
    cursor: PromptCursor,
    lengths: Lengths,
    agenda: Agenda,
    activity: Activity,
    /// When the activity (or the mini-batch phase) began.
    since: Millis,
    /// Time of the last event.
    now: Millis,
    policy_version: PolicyVersion,
    /// What a worker holds that has read the model its welcome names.
    loaded_version: PolicyVersion,
    /// Until then somebody held the policy.
    policy_seen: Millis,
    /// Digest of the policy's weights, if an optimizer step has told it.
    weights_digest: Option<u64>,
    /// Messages of earlier epochs are for an earlier process of the coordinator.
    first_epoch: GroupEpoch,
    /// The last recorded position.
    recorded: Option<Position>,
    recovery: epochs::Recoveries,
    steps_done: StepIndex,
    /// Draws of the completed steps: `cursor` without the step under way.
    committed_draws: u64,
    committed_policy_since: u64,
    next_group: GroupId,
    not_finite: nonfinite::NotFinite,
    /// How often ranks that must agree did not.
    disagreements: u64,
    /// The checkpoint under way.
    saving: Option<checkpoint::Saving>,
    /// Why answers wait unjudged, if they do.
    judging_paused: Option<String>,
    /// Of the event under way.
    effects: Vec<Effect>,
}

/// What a handler does: it either goes on or ends the run.
type Handled = Result<(), Failure>;

impl Coordinator {
    /// A run that has not begun.
    ///
    /// # Panics
    /// If the plan has no meaning, such as steps without training problems.
    #[must_use]
    pub fn new(plan: RunPlan) -> Self {
        Self::after(plan, GroupEpoch(0))
    }

    /// Another course of a run whose newest epoch was this one. Its workers may still say what belongs to that course.
    ///
    /// # Panics
    /// See [`Self::new`].
    #[must_use]
    pub fn after(plan: RunPlan, epoch: GroupEpoch) -> Self {
        plan.assert_valid();
        let from = plan.resume.unwrap_or(ResumeState {
            steps_done: StepIndex(0),
            policy_version: PolicyVersion(0),
            prompts_drawn: 0,
            policy_since_prompt: 0,
            next_group: GroupId(0),
        });
        let mut machine = Self {
            members: Membership::after(epoch),
            leases: LeaseBook::default(),
            cursor: PromptCursor::new(
                plan.shuffle.then_some(plan.seed),
                plan.train_problems,
                from.prompts_drawn,
                from.policy_since_prompt,
            ),
            lengths: Lengths::new(
                plan.response_lengths
                    .iter()
                    .map(|(&index, &length)| (ProblemRef { purpose: Purpose::Train, index }, length)),
            ),
            agenda: Agenda::new(from.steps_done),
            activity: Activity::Joining,
            since: Millis(0),
            now: Millis(0),
            policy_version: from.policy_version,
            loaded_version: from.policy_version,
            policy_seen: Millis(0),
            weights_digest: None,
            first_epoch: epoch.next(),
            recorded: None,
            recovery: epochs::Recoveries::default(),
            steps_done: from.steps_done,
            committed_draws: from.prompts_drawn,
            committed_policy_since: from.policy_since_prompt,
            next_group: from.next_group,
            not_finite: nonfinite::NotFinite::default(),
            disagreements: 0,
            saving: None,
            judging_paused: None,
            effects: Vec::new(),
            plan,
        };
        // The first event's effects begin with it.
        machine.record_position();
        machine
    }

    /// What must be done about an event. Time does not go back: an earlier `now` counts as the
    /// latest one. Deadlines are only looked at on [`Event::Tick`].
    #[must_use]
    pub fn step(&mut self, event: Event, now: Millis) -> Vec<Effect> {
        if self.is_finished() {
            return Vec::new();
        }
        self.now = self.now.max(now);
        self.members.start_clock(self.now);
        if let Err(failure) = self.handle(event) {
            self.disagreements += u64::from(matches!(failure, Failure::Disagreement { .. }));
            // Workers that know more than this coordinator are left to one that does.
            let tell = !matches!(failure, Failure::UnknownPolicy { .. });
            self.end(Outcome::Failed(failure.to_string()), tell);
        }
        std::mem::take(&mut self.effects)
    }

    fn is_finished(&self) -> bool {
        matches!(self.activity, Activity::Finished)
    }

    fn handle(&mut self, event: Event) -> Handled {
        match event {
            Event::Connected { hello } => self.connected(hello),
            Event::Disconnected { worker, reason } => {
                self.lost(&worker, format!("its stream ended: {reason}"))
            }
            Event::WorkerFailed { worker, error } => self.lost(&worker, format!("it failed: {error}")),
            Event::StopRequested => self.stop_requested(),
            Event::ShellFailed { error } => Err(Failure::Shell { phase: self.phase(), error }),
            Event::Tick => self.check_deadlines(),
            Event::RolloutVerified { rollout } => self.rollout_verified(rollout),
            Event::JudgingPaused { cause } => {
                self.judging_paused = Some(cause);
                Ok(())
            }
            Event::JudgingResumed => self.judging_resumed(),
            Event::JudgingFailed { error } => self.judging_failed(error),
            Event::GroupShaped { group, advantages, skipped } => {
                self.group_shaped(group, advantages, skipped)
            }
            from_worker => self.handle_message(from_worker),
        }
    }

    /// Messages of connected workers.
    fn handle_message(&mut self, event: Event) -> Handled {
        let Some((worker, epoch, kind)) = sender(&event) else {
            unreachable!("every other event is handled before: {event:?}")
        };
        let known = self.members.seen(worker, self.now);
        if let Event::Heartbeat { worker, status, .. } = &event {
            self.members.reported(worker, status, self.now);
            if known {
                return Ok(());
            }
        }
        self.members.moved(worker, self.now);
        if known && epoch >= self.first_epoch {
            self.hear_of_policy(&event)?;
        }
        let current = epoch == self.members.epoch() || planted!(OldEpochHeard);
        let rank = self.members.rank_of(worker);
        // Leases of an earlier process are no more.
        let outlives = || outlives_epoch(&event) && epoch >= self.first_epoch;
        let rank = rank.filter(|_| known && (current || outlives()));
        let Some(rank) = rank else {
            self.stale(worker.clone(), kind);
            return Ok(());
        };
        let handled = match event {
            Event::EpochPrepared { policy_version, port, .. } => {
                self.epoch_prepared(rank, membership::Prepared { held: policy_version, port })?
            }
            Event::EpochFormed { epoch, policy_version, weights_digest, decode_slots, .. } => {
                let joined = membership::Joined { policy_version, weights_digest, decode_slots };
                epoch == self.members.epoch() && self.epoch_formed(rank, joined)?
            }
            Event::EpochFailed { error, .. } => self.epoch_failed(rank, error)?,
            Event::RolloutArrived {
                lease, rollout, policy_version, prompt_tokens, response_tokens, ..
            } => {
                let tokens = (prompt_tokens, response_tokens);
                self.rollout_arrived(rank, lease, rollouts::Arrived { rollout, policy_version, tokens })?
            }
            Event::LeaseRejected { lease, reason, detail, .. } => {
                self.lease_rejected(rank, lease, reason, detail)?
            }
            Event::GradientsReady { step, minibatch, stats, gradient_norm, not_finite, .. } => {
                self.gradients_ready(rank, (step, minibatch), (&stats, gradient_norm), &not_finite)?
            }
            Event::MinibatchApplied { epoch, step, minibatch, policy_version, weights_digest, .. } => {
                epoch == self.members.epoch()
                    && self.minibatch_applied(rank, (step, minibatch), policy_version, weights_digest)?
            }
            Event::CheckpointDone { step, error, .. } => self.checkpoint_done(rank, step, error),
            other => unreachable!("not a message of a rank: {other:?}"),
        };
        if !handled {
            self.stale(self.members.worker(rank).clone(), kind);
        }
        Ok(())
    }

    fn stale(&mut self, worker: WorkerId, kind: &'static str) {
        self.effects.push(Effect::StaleMessage { worker, kind });
    }

    /// Tells every worker that the run is over.
    fn finish(&mut self, outcome: Outcome) {
        self.end(outcome, true);
    }

    fn end(&mut self, outcome: Outcome, tell: bool) {
        assert!(!self.is_finished(), "a run ends once");
        let (reason, failed) = match &outcome {
            Outcome::Completed => ("the run is complete".to_owned(), false),
            Outcome::Stopped => ("the run was stopped".to_owned(), false),
            Outcome::Failed(text) => (text.clone(), true),
        };
        // Workers that are not told look for the next coordinator.
        let tell = tell && !(self.plan.cluster.keep_workers && outcome == Outcome::Stopped);
        for worker in self.members.members().keys().filter(|_| tell) {
            self.effects.push(Effect::Shutdown { worker: worker.clone(), reason: reason.clone(), failed });
        }
        self.leases.clear();
        self.activity = Activity::Finished;
        self.since = self.now;
        self.effects.push(Effect::Finished(outcome));
    }

    /// Everything so far is completed.
    fn record_position(&mut self) {
        let position = Position {
            state: self.resume_state(),
            weights_digest: self.weights_digest,
            last_evaluation: self.agenda.last_evaluation(),
            skipped_in_a_row: self.not_finite.in_a_row,
        };
        if self.recorded != Some(position) {
            self.recorded = Some(position);
            self.effects.push(Effect::Record(Record::Position { epoch: self.members.epoch(), position }));
        }
    }

    fn resume_state(&self) -> ResumeState {
        ResumeState {
            steps_done: self.steps_done,
            policy_version: self.policy_version,
            prompts_drawn: self.committed_draws,
            policy_since_prompt: self.committed_policy_since,
            next_group: self.next_group,
        }
    }
}

/// Messages that mean the same whatever has become of their epoch: a lease and a checkpoint are their
/// rank's until it is lost, and a policy that is held is held.
fn outlives_epoch(event: &Event) -> bool {
    matches!(
        event,
        Event::RolloutArrived { .. }
            | Event::LeaseRejected { .. }
            | Event::EpochFormed { .. }
            | Event::MinibatchApplied { .. }
            | Event::CheckpointDone { .. }
    )
}

/// Who sent a message, the epoch it names, and its kind.
fn sender(event: &Event) -> Option<(&WorkerId, GroupEpoch, &'static str)> {
    Some(match event {
        Event::EpochPrepared { worker, epoch, .. } => (worker, *epoch, "epoch_prepared"),
        Event::EpochFormed { worker, epoch, .. } => (worker, *epoch, "epoch_formed"),
        Event::EpochFailed { worker, epoch, .. } => (worker, *epoch, "epoch_failed"),
        Event::Heartbeat { worker, epoch, .. } => (worker, *epoch, "heartbeat"),
        Event::RolloutArrived { worker, epoch, .. } => (worker, *epoch, "rollout_done"),
        Event::LeaseRejected { worker, epoch, .. } => (worker, *epoch, "lease_rejected"),
        Event::GradientsReady { worker, epoch, .. } => (worker, *epoch, "gradients_ready"),
        Event::MinibatchApplied { worker, epoch, .. } => (worker, *epoch, "minibatch_applied"),
        Event::CheckpointDone { worker, epoch, .. } => (worker, *epoch, "checkpoint_done"),
        Event::Connected { .. }
        | Event::Disconnected { .. }
        | Event::RolloutVerified { .. }
        | Event::JudgingPaused { .. }
        | Event::JudgingResumed
        | Event::JudgingFailed { .. }
        | Event::GroupShaped { .. }
        | Event::ShellFailed { .. }
        | Event::WorkerFailed { .. }
        | Event::StopRequested
        | Event::Tick => return None,
    })
}
