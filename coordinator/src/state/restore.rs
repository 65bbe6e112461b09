//! `records -> machine`: a run that another process of the coordinator began is taken up again.
//!
//! In: the plan, and the records since the last position. Out: a machine without workers that goes on where the
//! records end, and what the shell has to do again. What was not recorded did not happen: rollouts are drawn
//! again, with the same random streams.
//!
//! Invariants: records are replayed into the same parts by the same methods that events go through, but each
//! is checked before, so that damaged records are an error and never a panic. Effects of the past are not
//! performed again.

use g2rl_common::ids::{GroupEpoch, GroupId, MinibatchIndex, RolloutId, StepIndex};

use super::agenda::Agenda;
use super::interface::{Effect, ProblemRef, ResumeState};
use super::plan::RunPlan;
use super::record::{Position, Record};
use super::updates::Told;
use super::{Activity, Coordinator};

/// Steps, policies, prompts, groups and epochs of a run are fewer, so that counting on never overflows.
const MOST: u64 = 1 << 48;

/// Prompts drawn under one policy are fewer: they are counted again when a run is taken up.
const MOST_DRAWS: u64 = 1 << 22;

/// Records that cannot have been left by this run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {at} ({record}) does not follow from those before it: {reason}")]
pub struct RestoreError {
    /// Its place, from 0.
    pub at: usize,
    /// What it says.
    pub record: String,
    /// What is wrong.
    pub reason: String,
}

impl ResumeState {
    /// Whether a run can be here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let (since, drawn) = (self.policy_since_prompt, self.prompts_drawn);
        if since > drawn || drawn - since > MOST_DRAWS {
            return Err(format!("the policy began after {since} of {drawn} prompts"));
        }
        for (what, count) in [
            ("steps", self.steps_done.0),
            ("optimizer steps", self.policy_version.0),
            ("prompts", drawn),
            ("groups", self.next_group.0),
        ] {
            must_be_possible(what, count)?;
        }
        Ok(())
    }
}

fn must_be_possible(what: &str, count: u64) -> Result<(), String> {
    if count <= MOST { Ok(()) } else { Err(format!("no run gets to {count} {what}")) }
}

impl Coordinator {
    /// The machine that left these records, without its workers, and what the shell must do again.
    /// [`RunPlan::resume`] is the state of the checkpoint that new workers read.
    ///
    /// # Errors
    /// If the records contradict each other or the plan.
    pub fn restore(plan: RunPlan, records: &[Record]) -> Result<(Self, Vec<Effect>), RestoreError> {
        let failed = |at: usize, reason: String| RestoreError {
            at,
            record: records.get(at).map_or_else(|| "none".to_owned(), |record| format!("{record:?}")),
            reason,
        };
        let Some(Record::Position { epoch, position }) = records.first() else {
            return Err(failed(0, "the first one must be a position".into()));
        };
        let mut machine = Self::at(plan, *epoch, position).map_err(|reason| failed(0, reason))?;
        for (at, record) in records.iter().enumerate().skip(1) {
            machine.replay(record).map_err(|reason| failed(at, reason))?;
        }
        machine.first_epoch = machine.members.epoch().next();
        machine.effects.clear();
        let again = machine.unfinished();
        Ok((machine, again))
    }

    /// The problem of a group under way.
    #[must_use]
    pub fn problem_of(&self, group: GroupId) -> Option<ProblemRef> {
        let collection = match &self.activity {
            Activity::Updating(update) => Some(update.collection()),
            _ => self.collection(),
        };
        collection?.problem_of(group)
    }

    /// A machine with nothing under way.
    fn at(plan: RunPlan, epoch: GroupEpoch, position: &Position) -> Result<Self, String> {
        position.state.check()?;
        must_be_possible("epochs", epoch.0)?;
        let checkpoint = plan.resume;
        let mut machine = Self::after(RunPlan { resume: Some(position.state), ..plan }, epoch);
        machine.loaded_version = checkpoint.map(|state| state.policy_version).unwrap_or_default();
        let saved = checkpoint.map(|state| state.steps_done).unwrap_or_default();
        machine.agenda = Agenda::at(&machine.plan, (machine.steps_done, saved), position.last_evaluation);
        machine.not_finite.in_a_row = position.skipped_in_a_row;
        machine.weights_digest = position.weights_digest;
        machine.recorded = Some(*position);
        Ok(machine)
    }

    fn replay(&mut self, record: &Record) -> Result<(), String> {
        let now = self.now;
        match record {
            Record::Position { .. } => return Err("a position in the middle".into()),
            Record::EpochBegan { epoch } if *epoch > self.members.epoch() => {
                must_be_possible("epochs", epoch.0)?;
                self.members.continue_from(*epoch);
            }
            Record::EpochBegan { .. } => return Err(format!("epoch {} was there", self.members.epoch())),
            Record::StepBegan { step } => {
                self.must_begin(*step)?;
                if step.0 >= self.plan.steps {
                    return Err(format!("the run has {} steps", self.plan.steps));
                }
                self.begin_step();
            }
            Record::EvaluationBegan { step } => {
                self.must_begin(*step)?;
                if self.plan.evaluation.is_none() {
                    return Err("nothing is evaluated".into());
                }
                self.begin_evaluation();
            }
            &Record::RolloutAccepted { rollout, prompt_tokens, response_tokens } => {
                if prompt_tokens.checked_add(response_tokens).is_none() {
                    return Err("it is longer than any sequence".into());
                }
                if !self.leases.withdraw(rollout) {
                    return Err("it is not asked for".into());
                }
                let collection = self.collection_mut().ok_or("no rollouts are under way")?;
                collection.arrived(rollout, (prompt_tokens, response_tokens), now);
            }
            Record::RolloutVerified { rollout } => self.replay_verified(*rollout)?,
            Record::GroupShaped { group, advantages, skipped } => match &mut self.activity {
                Activity::Collecting(collection) if collection.is_shaping(*group) => {
                    collection.complete(*group, advantages.clone(), *skipped, now)?;
                    if *skipped {
                        self.refill();
                    }
                }
                _ => return Err("its rollouts are not verified".into()),
            },
            Record::PromptSkipped { group } => {
                let collection = self.collection_mut().filter(|collection| collection.is_open(*group));
                collection.ok_or("the group is not there")?.drop_group(*group);
                self.leases.drop_group(*group, now);
            }
            &Record::ApplyTold { step, minibatch, stats, gradient_norm } => {
                self.must_be_at(step)?;
                self.retell(Told { minibatch, stats, gradient_norm })?;
            }
            &Record::MinibatchDone { step, minibatch, policy_version, weights_digest } => {
                self.must_be_at(step)?;
                self.replay_done(minibatch)?;
                if policy_version != self.policy_version {
                    return Err(format!("the policy after it is {}", self.policy_version));
                }
                self.weights_digest = weights_digest;
            }
            Record::MinibatchSkipped { .. } if planted!(SkipForgotten) => {}
            Record::MinibatchSkipped { step, minibatch, rollouts } => {
                self.must_be_at(*step)?;
                self.replay_skipped(*minibatch, rollouts)?;
            }
        }
        Ok(())
    }

    fn must_be_at(&self, step: StepIndex) -> Result<(), String> {
        if step == self.steps_done { Ok(()) } else { Err(format!("{} steps are done", self.steps_done)) }
    }

    fn must_begin(&self, step: StepIndex) -> Result<(), String> {
        self.must_be_at(step)?;
        match self.activity {
            Activity::Joining => Ok(()),
            _ => Err("something else is under way".into()),
        }
    }

    fn replay_verified(&mut self, rollout: RolloutId) -> Result<(), String> {
        let now = self.now;
        let evaluating = matches!(self.activity, Activity::Evaluating(_));
        let collection = self.collection_mut().filter(|collection| collection.has_arrived(rollout));
        let collection = collection.ok_or("it has not arrived")?;
        if collection.verified(rollout, now).is_some() && evaluating {
            collection.measured(rollout.group);
        }
        Ok(())
    }

    fn replay_done(&mut self, minibatch: MinibatchIndex) -> Result<(), String> {
        match &self.activity {
            Activity::Updating(update) if update.is_told(minibatch) => self.commit_what_was_told(),
            _ => return Err("nobody was told to do it".into()),
        }
        Ok(())
    }

    /// All who held the policy are gone.
    pub(super) fn start_over(&mut self) {
        self.effects.push(Effect::StartOver { policy_version: self.policy_version });
        self.leases.clear();
        self.activity = Activity::Finished;
    }

    /// What the shell was doing.
    fn unfinished(&self) -> Vec<Effect> {
        let Some(collection) = self.collection() else { return Vec::new() };
        let unverified = collection.unverified();
        let judged =
            unverified.map(|(rollout, problem, source)| Effect::VerifyRollout { rollout, problem, source });
        let shaped = collection.unshaped().map(|(group, problem)| Effect::ShapeGroup {
            group,
            step: self.steps_done,
            problem,
        });
        judged.chain(shaped).collect()
    }
}
