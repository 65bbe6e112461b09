//! Reactions while rollouts of a training step or an evaluation are generated, verified and shaped.
//!
//! Invariants: all leases of a step name the policy version the step began with; a rollout of
//! another version ends the run. The update begins after the last group is complete.

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion, Rank, RolloutId};
use g2rl_common::rollout::Purpose;
use g2rl_proto::RejectReason;

use super::collection::Collection;
use super::interface::{Effect, Millis, ProblemRef};
use super::lease::Arrival;
use super::plan::ResponseSource;
use super::queue::Piece;
use super::record::Record;
use super::{Activity, Coordinator, Failure, Handled};

/// A rollout that came back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) rollout: RolloutId,
    pub(super) policy_version: PolicyVersion,
    /// Of prompt and response.
    pub(super) tokens: (u32, u32),
}

impl Coordinator {
    pub(super) fn begin_step(&mut self) {
        let mut collection = Collection::new(self.now);
        let prompts = 0..self.plan.prompts_per_step;
        let mut pieces: Vec<Piece> = prompts.map(|_| self.draw_group(&mut collection)).collect();
        // Beside the policy's answers to the first prompts their given ones.
        for at in 0..self.plan.imitation.solutions_per_step as usize {
            let problem = pieces[at].problem;
            pieces.push(self.new_group(&mut collection, problem, (1, 0), ResponseSource::Given));
        }
        let rollouts = pieces.iter().map(|piece| piece.rollouts).sum();
        self.effects.push(Effect::Record(Record::StepBegan { step: self.steps_done }));
        self.effects.push(Effect::StepStarted { step: self.steps_done, rollouts });
        self.activity = Activity::Collecting(collection);
        self.begin_leases(pieces);
    }

    pub(super) fn begin_evaluation(&mut self) {
        let evaluation =
            self.plan.evaluation.clone().expect("an evaluation is due only where one is planned");
        let mut collection = Collection::new(self.now);
        let mut pieces = Vec::new();
        for index in 0..evaluation.problems {
            let problem = ProblemRef { purpose: Purpose::Evaluate, index };
            let size = (evaluation.samples, 0);
            pieces.push(self.new_group(&mut collection, problem, size, ResponseSource::Generated));
        }
        let rollouts = evaluation.problems * evaluation.samples;
        self.effects.push(Effect::Record(Record::EvaluationBegan { step: self.steps_done }));
        self.effects.push(Effect::EvaluationStarted { step: self.steps_done, rollouts });
        self.activity = Activity::Evaluating(collection);
        self.begin_leases(pieces);
    }

    /// A group of the next prompt of a training step.
    fn draw_group(&mut self, collection: &mut Collection) -> Piece {
        let (size, source) = (self.plan.group_size, self.plan.responses);
        let draw = self.cursor.draw();
        let problem = ProblemRef { purpose: Purpose::Train, index: draw.problem };
        let stream_offset = draw.occurrence.checked_mul(size).expect("fewer than 2^32 rollouts of a prompt");
        self.new_group(collection, problem, (size, stream_offset), source)
    }

    fn new_group(
        &mut self,
        collection: &mut Collection,
        problem: ProblemRef,
        (rollouts, stream_offset): (u32, u32),
        source: ResponseSource,
    ) -> Piece {
        let group = self.next_group;
        self.next_group = group.next();
        collection.add(group, problem, (rollouts, source));
        let expected_tokens = self.lengths.expected(problem);
        Piece { group, problem, first_rollout: 0, rollouts, stream_offset, source, expected_tokens }
    }

    /// A group of the step is skipped: the next prompt takes its place, up to the limit.
    pub(super) fn refill(&mut self) {
        let Activity::Collecting(mut collection) = std::mem::replace(&mut self.activity, Activity::Joining)
        else {
            panic!("a group is skipped while groups are collected");
        };
        let room = self.plan.refill_to.is_some_and(|limit| collection.prompts() < limit as usize);
        let piece = (room && !planted!(RefillForgotten)).then(|| self.draw_group(&mut collection));
        self.activity = Activity::Collecting(collection);
        self.leases.push(piece.into_iter().collect());
        self.hand_out_leases();
    }

    fn begin_leases(&mut self, pieces: Vec<Piece>) {
        self.leases.start_clock(self.now);
        self.leases.push(pieces);
        self.hand_out_leases();
    }

    fn hand_out_leases(&mut self) {
        if !self.members.stands() {
            return;
        }
        let deadline = Millis(self.now.0 + self.plan.cluster.lease_timeout_ms);
        for (rank, order) in self.leases.assign(self.policy_version, deadline, self.now) {
            let worker = self.members.worker(rank).clone();
            self.effects.push(Effect::Lease { worker, epoch: self.members.epoch(), order });
        }
    }

    /// A new epoch stands: the leases of its ranks go on, those of lost ranks are given out again.
    pub(super) fn continue_collection(&mut self) {
        let now = self.now;
        self.leases.extend(Millis(now.0 + self.plan.cluster.lease_timeout_ms));
        if let Some(collection) = self.collection_mut() {
            collection.shell_goes_on(now);
        }
        self.hand_out_leases();
        self.end_collection_if_done();
    }

    /// The groups under way.
    pub(super) fn collection(&self) -> Option<&Collection> {
        match &self.activity {
            Activity::Evaluating(collection) | Activity::Collecting(collection) => Some(collection),
            _ => None,
        }
    }

    pub(super) fn collection_mut(&mut self) -> Option<&mut Collection> {
        match &mut self.activity {
            Activity::Evaluating(collection) | Activity::Collecting(collection) => Some(collection),
            _ => None,
        }
    }

    pub(super) fn rollout_arrived(
        &mut self,
        rank: Rank,
        lease: LeaseId,
        arrived: Arrived,
    ) -> Result<bool, Failure> {
        let Arrived { rollout, policy_version, tokens } = arrived;
        let detail = match self.leases.arrived(rank, lease, rollout, self.now) {
            Arrival::Stale => return Ok(false),
            Arrival::NotAsked => format!("rollout {rollout} for lease {lease}, which does not ask for it"),
            Arrival::Accepted if policy_version != self.policy_version => {
                format!("rollout {rollout} of policy {policy_version} instead of {}", self.policy_version)
            }
            Arrival::Accepted => {
                let now = self.now;
                let collection = self.collection_mut().expect("a lease outlived its activity");
                let (problem, source) = collection.arrived(rollout, tokens, now);
                let (prompt_tokens, response_tokens) = tokens;
                self.effects.push(Effect::VerifyRollout { rollout, problem, source });
                let record = Record::RolloutAccepted { rollout, prompt_tokens, response_tokens };
                self.effects.push(Effect::Record(record));
                self.hand_out_leases();
                return Ok(true);
            }
        };
        Err(Failure::Protocol { peer: self.members.peer_at(rank), phase: self.phase(), detail })
    }

    pub(super) fn lease_rejected(
        &mut self,
        rank: Rank,
        lease: LeaseId,
        reason: RejectReason,
        detail: String,
    ) -> Result<bool, Failure> {
        let Some(piece) = self.leases.get(rank, lease).map(|lease| lease.piece) else { return Ok(false) };
        let Piece { group, problem, .. } = piece;
        match reason {
            RejectReason::InvalidPrompt => {
                let (peer, phase) = (self.members.peer_at(rank), self.phase());
                Err(Failure::InvalidPrompt { peer, problem, phase, detail })
            }
            RejectReason::PromptTooLong => {
                // Every rank that has a part of the group refuses it too; those answers are stale.
                self.leases.drop_group(group, self.now);
                let collection = self.collection_mut().expect("a lease outlived its activity");
                if collection.drop_group(group).is_some() {
                    self.effects.push(Effect::Record(Record::PromptSkipped { group }));
                    self.effects.push(Effect::PromptSkipped { group, problem, detail });
                }
                self.hand_out_leases();
                self.end_collection_if_done();
                Ok(true)
            }
        }
    }

    /// The time of the outage is not the shell's.
    pub(super) fn judging_resumed(&mut self) -> Handled {
        let now = self.now;
        self.judging_paused = None;
        if let Some(collection) = self.collection_mut() {
            collection.shell_goes_on(now);
        }
        Ok(())
    }

    pub(super) fn rollout_verified(&mut self, rollout: RolloutId) -> Handled {
        let now = self.now;
        // The verifier may report on rollouts of groups or activities that were given up.
        if self.collection().is_some_and(|collection| collection.has_arrived(rollout)) {
            self.effects.push(Effect::Record(Record::RolloutVerified { rollout }));
        }
        let Some(problem) = self.collection_mut().and_then(|collection| collection.verified(rollout, now))
        else {
            // With a given response its group is complete.
            self.end_collection_if_done();
            return Ok(());
        };
        let group = rollout.group;
        if let Activity::Evaluating(collection) = &mut self.activity {
            collection.measured(group);
            self.end_collection_if_done();
        } else {
            self.effects.push(Effect::ShapeGroup { group, step: self.steps_done, problem });
        }
        Ok(())
    }

    pub(super) fn group_shaped(&mut self, group: GroupId, advantages: Vec<f32>, skipped: bool) -> Handled {
        let (now, phase) = (self.now, self.phase());
        let Activity::Collecting(collection) = &mut self.activity else { return Ok(()) };
        let wanted = collection.is_shaping(group);
        collection
            .complete(group, advantages.clone(), skipped, now)
            .map_err(|error| Failure::Shell { phase, error })?;
        if wanted {
            self.effects.push(Effect::Record(Record::GroupShaped { group, advantages, skipped }));
            if skipped {
                self.refill();
            }
        }
        self.end_collection_if_done();
        Ok(())
    }

    fn end_collection_if_done(&mut self) {
        if !self.members.stands() {
            return;
        }
        if let Some(collection) = self.collection().filter(|collection| collection.is_done()) {
            for (problem, length) in collection.mean_lengths() {
                self.lengths.observe(problem, length);
            }
        }
        match &self.activity {
            Activity::Evaluating(collection) if collection.is_done() => {
                self.agenda.evaluated(self.steps_done);
                self.recovery.progressed();
                self.effects.push(Effect::EvaluationCompleted {
                    step: self.steps_done,
                    groups: collection.groups(ResponseSource::Generated),
                    duration_ms: self.now.0 - collection.started().0,
                });
                self.proceed();
            }
            Activity::Collecting(collection) if collection.is_done() => self.begin_update(),
            _ => {}
        }
    }
}
