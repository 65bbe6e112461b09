//! What the machine wants, done.

use g2rl_common::ids::{GroupEpoch, GroupId, MinibatchIndex, RolloutId, StepIndex, WorkerId};
use g2rl_common::rollout::{GroupLease, Purpose, Sampling};
use g2rl_common::update::TrainSequence;
use g2rl_proto::wire::CoordinatorMessage;
use g2rl_proto::{Command, PROTOCOL_VERSION, Welcome};

use super::{Event, Shell};
use crate::checkpoints;
use crate::dataset::Problem;
use crate::evaluate::{self, Evaluation, HeldOutSet, ProblemRow};
use crate::export::Kind;
use crate::failpoint;
use crate::reward::Verdict;
use crate::standing::Standing;
use crate::state::{Effect, LeaseOrder, ProblemRef, Record, ResponseSource, SequenceOrder, StepRecord};
use crate::wal::Entry;

/// How many signs of life fit into the time after which a worker is lost.
const HEARTBEATS_PER_TIMEOUT: u64 = 6;

impl Shell {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Record(record) => self.record(record),
            Effect::Welcome { worker } => self.welcome(worker),
            Effect::Refuse { worker, reason, may_return } => {
                tracing::warn!(%worker, reason, "worker refused");
                let connection = self.connections.remove(&worker).or_else(|| self.knocking.take());
                let (standing, last) = match may_return {
                    // To a worker a broken stream like any other.
                    true => (Standing::Lost, Err(tonic::Status::unavailable(reason))),
                    false => (Standing::Expelled, Ok(Command::Shutdown { reason, failed: true }.into())),
                };
                self.standings.set(&worker, standing);
                say_last(connection.map(|c| c.outgoing), last);
            }
            Effect::PrepareEpoch { worker, epoch, host } => {
                self.send(&worker, Command::PrepareEpoch { epoch, host });
            }
            Effect::FormEpoch { worker, plan } => self.send(&worker, Command::FormEpoch(plan)),
            Effect::Lease { worker, epoch, order } => self.lease(&worker, epoch, &order),
            Effect::VerifyRollout { rollout, problem, source } => self.verify(rollout, problem, source),
            Effect::ShapeGroup { group, step, problem } => {
                self.pool.shape((group, step, problem), self.store.group(group));
            }
            Effect::TrainMinibatch { worker, epoch, step, minibatch, learning_rate, sequences } => {
                self.train(&worker, (epoch, step, minibatch), learning_rate, &sequences);
            }
            Effect::Apply { worker, epoch, step, minibatch } => {
                self.send(&worker, Command::Apply { epoch, step, minibatch });
            }
            Effect::SaveCheckpoint { worker, epoch, step, policy_version: _, state } => {
                match checkpoints::name(&self.dir, step, &state, &self.run_id) {
                    Ok((path, trainer_state_json)) => {
                        self.send(&worker, Command::SaveCheckpoint { epoch, step, path, trainer_state_json });
                        failpoint::reach("checkpoint");
                    }
                    Err(error) => self.queue.push_back(Event::ShellFailed { error: error.to_string() }),
                }
            }
            Effect::CheckpointWritten { step } => {
                tracing::info!(%step, "checkpoint written");
                let keep = self.run.config.checkpoint.keep as usize;
                checkpoints::retain(&self.dir, keep, &self.run.model_path);
            }
            Effect::CheckpointFailed { step, error } => {
                self.telemetry.checkpoint_failed();
                let newest = checkpoints::newest(&self.dir);
                let stays = newest.map_or_else(|| "none".to_owned(), |path| path.display().to_string());
                tracing::warn!(%step, error, stays, "checkpoint failed; the one before it stays");
            }
            Effect::EpochStarted { epoch, ranks, recovery } => {
                tracing::info!(%epoch, ranks = ranks.len(), "all ranks are in place");
                if let Some(recovery) = recovery {
                    let (seconds, redone) = (recovery.duration_ms as f64 / 1e3, recovery.rollouts_redone);
                    tracing::info!(phase = %recovery.phase, seconds, redone, "the run goes on");
                    self.results.recovery(epoch, recovery);
                }
            }
            Effect::EpochEnded { epoch, cause } => {
                tracing::warn!(%epoch, cause, "epoch ended");
            }
            Effect::StepStarted { step: _, rollouts: _ } => {}
            Effect::MinibatchSkipped { step, minibatch, rollouts } => {
                let names: Vec<String> = rollouts.iter().map(ToString::to_string).collect();
                tracing::warn!(%step, %minibatch, rollouts = names.join(" "), "not finite: no rank applies it");
                self.telemetry.minibatch_skipped();
                self.journal.minibatch_skipped(step, minibatch, &rollouts);
            }
            Effect::StepCompleted(record) => self.step_completed(&record),
            Effect::EvaluationStarted { step, rollouts } => {
                tracing::info!(%step, rollouts, "evaluation begins");
            }
            Effect::EvaluationCompleted { step, groups, duration_ms } => {
                self.evaluation_completed(step, &groups, duration_ms);
            }
            Effect::PromptSkipped { group, problem, detail } => {
                tracing::warn!(%problem, detail, "prompt skipped");
                self.telemetry.prompt_skipped();
                self.store.forget(group);
            }
            Effect::StaleMessage { worker, kind } => {
                tracing::debug!(%worker, kind, "dropped a stale message");
                self.telemetry.stale_message();
            }
            Effect::StartOver { policy_version } => self.start_over(policy_version),
            Effect::Shutdown { worker, reason, failed } => {
                self.send(&worker, Command::Shutdown { reason, failed })
            }
            Effect::Finished(outcome) => self.outcome = Some(outcome),
        }
    }

    fn problem(&self, problem: ProblemRef) -> &Problem {
        let set = match problem.purpose {
            Purpose::Train => &self.run.train,
            Purpose::Evaluate => &self.run.evaluation,
        };
        &set[problem.index as usize]
    }

    /// Sends a command; behind a promise that is not on the disk it waits.
    fn send(&mut self, worker: &WorkerId, command: Command) {
        match self.promised {
            true => self.outbox.push((worker.clone(), command)),
            false => self.send_now(worker, command),
        }
    }

    pub(super) fn send_now(&mut self, worker: &WorkerId, command: Command) {
        let Some(connection) = self.connections.get(worker) else { return };
        if connection.outgoing.try_send(Ok(CoordinatorMessage::from(command))).is_err() {
            // Full or closed: either way nobody reads on the other side.
            self.connections.remove(worker);
            self.standings.set(worker, Standing::Lost);
            let reason = "it does not take its messages".to_owned();
            self.queue.push_back(Event::Disconnected { worker: worker.clone(), reason });
        }
    }

    fn welcome(&mut self, worker: WorkerId) {
        let Some(connection) = self.knocking.take() else { return };
        self.connections.insert(worker.clone(), connection);
        self.standings.set(&worker, Standing::Connected);
        let welcome = Welcome {
            protocol_version: PROTOCOL_VERSION,
            run: self.run_id.clone(),
            config_toml: self.config_toml.clone(),
            heartbeat_interval_ms: (self.run.config.cluster.heartbeat_timeout_ms / HEARTBEATS_PER_TIMEOUT)
                .max(1),
            model_path: self.run.model_path.display().to_string(),
            policy_version: self.run.policy_version,
        };
        self.send(&worker, Command::Welcome(welcome));
    }

    fn lease(&mut self, worker: &WorkerId, epoch: GroupEpoch, order: &LeaseOrder) {
        let problem = self.problem(order.problem);
        let lease = GroupLease {
            lease: order.lease,
            group: order.group,
            purpose: order.problem.purpose,
            policy_version: order.policy_version,
            prompt_id: problem.id.as_str().into(),
            problem: problem.problem.clone(),
            first_rollout: order.first_rollout,
            rollouts: order.rollouts,
            stream_offset: order.stream_offset,
            given_response: problem.solution.clone().filter(|_| order.source == ResponseSource::Given),
            sampling: self.sampling(order.problem.purpose),
        };
        self.send(worker, Command::Lease { epoch, lease });
    }

    fn sampling(&self, purpose: Purpose) -> Sampling {
        let train = self.run.config.rollout.sampling();
        match (&self.run.config.evaluation, purpose) {
            (Some(evaluation), Purpose::Evaluate) => Sampling {
                temperature: evaluation.temperature,
                max_new_tokens: evaluation.max_new_tokens.unwrap_or(train.max_new_tokens),
                stop: train.stop,
                ..Sampling::default()
            },
            _ => train,
        }
    }

    fn verify(&mut self, rollout: RolloutId, problem: ProblemRef, source: ResponseSource) {
        let Some(kept) = self.store.accept(rollout) else {
            let error = format!("rollout {rollout} was accepted but is not there");
            self.queue.push_back(Event::ShellFailed { error });
            return;
        };
        if source == ResponseSource::Given {
            self.store.judge(rollout, Verdict::plain(true, "given solution").into());
            self.queue.push_back(Event::RolloutVerified { rollout });
            return;
        }
        let of = |set: &HeldOutSet| set.problems.contains(&(problem.index as usize));
        let set = match problem.purpose {
            Purpose::Train => None,
            Purpose::Evaluate => self.run.evaluation_sets.iter().position(of),
        };
        self.pool.verify(&kept, self.problem(problem), set);
    }

    fn train(
        &mut self,
        worker: &WorkerId,
        (epoch, step, minibatch): (GroupEpoch, StepIndex, MinibatchIndex),
        learning_rate: f64,
        orders: &[SequenceOrder],
    ) {
        let sequence = |order: &SequenceOrder| {
            let rollout = &self.store.get(order.rollout)?.rollout;
            Some(TrainSequence {
                id: order.rollout,
                tokens: [&rollout.prompt_tokens[..], &rollout.response_tokens[..]].concat(),
                prompt_length: rollout.prompt_tokens.len() as u32,
                behavior_logprobs: rollout.behavior_logprobs.clone(),
                advantage: order.advantage,
                policy_weight: order.policy_weight,
                imitation_weight: order.imitation_weight,
            })
        };
        match orders.iter().map(sequence).collect::<Option<Vec<_>>>() {
            Some(sequences) => {
                self.send(
                    worker,
                    Command::TrainMinibatch { epoch, step, minibatch, learning_rate, sequences },
                );
            }
            None => {
                let error = format!("a rollout of step {step}, mini-batch {minibatch} is not there");
                self.queue.push_back(Event::ShellFailed { error });
            }
        }
    }

    /// Keeps what a restart needs.
    fn record(&mut self, record: Record) {
        let (rollout, judgement) = match &record {
            Record::RolloutAccepted { rollout, .. } => {
                (self.store.get(*rollout).map(|kept| kept.rollout.clone()), None)
            }
            Record::RolloutVerified { rollout } => {
                (None, self.store.get(*rollout).and_then(|kept| kept.judgement.clone()))
            }
            _ => (None, None),
        };
        self.promised |= record.is_promise();
        let point = match &record {
            Record::RolloutAccepted { .. } => "accepted",
            Record::MinibatchDone { .. } => "done",
            Record::Position { .. } => "position",
            _ => "",
        };
        self.journal.record(Entry { record, rollout, judgement });
        failpoint::reach(point);
    }

    fn step_completed(&mut self, record: &StepRecord) {
        for group in &record.groups {
            for kept in self.store.group(*group) {
                self.journal.rollout(record.step, &kept);
            }
        }
        record.imitated.iter().for_each(|group| self.store.forget(*group));
        let outcomes = self.store.finish(&record.groups);
        let step = self.results.step(record, &outcomes);
        self.journal.step(record, &step);
        self.telemetry.step(record, &step, &outcomes);
        self.exports.write(Kind::Train, record.step.next(), &step.values(record));
        self.progress.step(record, &step);
    }

    fn evaluation_completed(&mut self, step: StepIndex, groups: &[(GroupId, ProblemRef)], duration_ms: u64) {
        let Some(options) = self.run.config.evaluation.clone() else { return };
        let seconds = duration_ms as f64 / 1e3;
        let mut evaluations = Vec::new();
        for (at, set) in self.run.evaluation_sets.iter().enumerate() {
            let of_set =
                groups.iter().filter(|(_, problem)| set.problems.contains(&(problem.index as usize)));
            let rows: anyhow::Result<Vec<ProblemRow>> = of_set
                .map(|(group, problem)| {
                    ProblemRow::new(&self.problem(*problem).id, &self.store.group(*group))
                })
                .collect();
            let path = evaluate::path(&self.dir, step, (at > 0).then_some(set.name.as_str()));
            let rows = match rows.and_then(|rows| evaluate::write(&path, &rows).map(|()| rows)) {
                Ok(rows) => rows,
                Err(error) => {
                    return self.queue.push_back(Event::ShellFailed { error: format!("{error:#}") });
                }
            };
            let evaluation = evaluate::evaluate(&set.name, &rows, &options, self.run.config.run.seed);
            tracing::info!(%step, seconds, "evaluation: {evaluation}");
            self.telemetry.evaluation(&evaluation);
            let of = if at > 0 { format!("{}/", set.name) } else { String::new() };
            let values: Vec<_> =
                evaluation.values().into_iter().map(|(name, value)| (format!("{of}{name}"), value)).collect();
            self.exports.write(Kind::Evaluation, step, &values);
            evaluations.push(evaluation);
        }
        groups.iter().for_each(|(group, _)| self.store.forget(*group));
        self.note_score(step, &evaluations);
        if let Some(first) = evaluations.first() {
            self.progress.evaluation(step, first);
        }
        self.journal.evaluations(step, &evaluations);
        self.results.evaluation(step, evaluations);
    }

    /// The best checkpoint is that of the highest score.
    fn note_score(&self, step: StepIndex, evaluations: &[Evaluation]) {
        let name = self.run.config.checkpoint.best_by.as_ref();
        let score = name.zip(evaluations.first()).and_then(|(name, evaluation)| evaluation.score(name));
        let Some(score) = score else { return };
        match checkpoints::note_score(&self.dir, step, score.mean) {
            // Its checkpoint may be there already, and better than what was the best.
            Ok(()) => {
                let keep = self.run.config.checkpoint.keep as usize;
                checkpoints::retain(&self.dir, keep, &self.run.model_path);
            }
            Err(error) => tracing::warn!(%step, %error, "the score of a checkpoint is lost"),
        }
    }
}

/// Tells a stream why it ends.
fn say_last(outgoing: Option<crate::session::Outgoing>, last: Result<CoordinatorMessage, tonic::Status>) {
    if let Some(outgoing) = outgoing {
        // A stream that cannot take even this is gone anyway.
        let _ = outgoing.try_send(last);
    }
}
