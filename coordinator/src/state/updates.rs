//! Reactions while the mini-batches of a training step are computed and applied.
//!
//! Invariants: one mini-batch is under way at a time, in order; the policy version grows by one
//! with each that is applied; a step is completed after its last mini-batch, also when it has none. A new epoch
//! computes the mini-batch that was interrupted again, divided among its own ranks.

use g2rl_common::ids::{MinibatchIndex, PolicyVersion, Rank, RolloutId, StepIndex};
use g2rl_common::update::UpdateStats;

use super::collection::Collection;
use super::commit::{Commit, Disagreement, Progress};
use super::failure::list;
use super::interface::{Effect, Millis, SequenceOrder, StepRecord, StepTimes};
use super::minibatch::{Packing, plan_minibatches};
use super::plan::ResponseSource;
use super::record::Record;
use super::{Activity, Coordinator, Failure, RunPhase};

/// The update of a training step.
#[derive(Debug)]
pub(super) struct Update {
    collection: Collection,
    /// Shares by rank of the mini-batches that have not begun, in order.
    waiting: std::vec::IntoIter<Vec<Vec<SequenceOrder>>>,
    pub(super) commit: Commit,
    /// The commit of an epoch that ended after its ranks were told to apply: nobody may have done so.
    pub(super) told: Option<Commit>,
    /// All mini-batches are applied or skipped.
    complete: bool,
    began: Millis,
    /// Rollouts of the mini-batch under way.
    pub(super) rollouts: Vec<RolloutId>,
    /// Mini-batches applied; the others were skipped.
    applied: u32,
    stats: UpdateStats,
    first_minibatch_stats: UpdateStats,
    gradient_norms: f64,
}

/// An optimizer step that an earlier process of the coordinator told all ranks to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub(super) minibatch: MinibatchIndex,
    pub(super) stats: UpdateStats,
    pub(super) gradient_norm: f64,
}

impl Update {
    /// The epoch is over.
    pub(super) fn interrupted(&mut self) {
        if self.commit.is_applying() && !self.complete {
            self.told = Some(self.commit.clone());
        }
    }

    /// All ranks were told to do the optimizer step of this mini-batch, in this epoch or an earlier one.
    pub(super) fn was_told(&self) -> bool {
        self.told.is_some() || (self.commit.is_applying() && !self.complete)
    }

    /// What it trains on.
    pub(super) fn collection(&self) -> &Collection {
        &self.collection
    }

    /// All ranks of an epoch before were told to do this one.
    pub(super) fn is_told(&self, minibatch: MinibatchIndex) -> bool {
        self.told.as_ref().is_some_and(|told| told.minibatch() == minibatch)
    }
}

impl Coordinator {
    pub(super) fn begin_update(&mut self) {
        let Activity::Collecting(collection) = &self.activity else {
            panic!("an update begins with collected groups");
        };
        let mut waiting = self.plan_step(collection).into_iter();
        if let Some(shares) = waiting.next() {
            self.take_up_update(waiting);
            return self.send_shares(MinibatchIndex(0), shares);
        }
        let Activity::Collecting(collection) = std::mem::replace(&mut self.activity, Activity::Joining)
        else {
            unreachable!("nothing was done between");
        };
        let sums = (UpdateStats::default(), UpdateStats::default());
        self.complete_step(&collection, sums, 0.0, self.now);
    }

    fn take_up_update(&mut self, waiting: std::vec::IntoIter<Vec<Vec<SequenceOrder>>>) {
        let Activity::Collecting(collection) = std::mem::replace(&mut self.activity, Activity::Joining)
        else {
            panic!("an update begins with collected groups");
        };
        let commit = self.new_commit(MinibatchIndex(0));
        self.activity = Activity::Updating(Box::new(Update {
            collection,
            waiting,
            commit,
            told: None,
            complete: false,
            began: self.now,
            rollouts: Vec::new(),
            applied: 0,
            stats: UpdateStats::default(),
            first_minibatch_stats: UpdateStats::default(),
            gradient_norms: 0.0,
        }));
    }

    /// Takes in what an earlier process told the ranks of its epoch. Whether they have done it their answers
    /// will say.
    ///
    /// # Errors
    /// If another mini-batch comes next.
    pub(super) fn retell(&mut self, told: Told) -> Result<(), String> {
        self.take_up_at(told.minibatch)?;
        let (at, version) = ((self.steps_done, told.minibatch), self.policy_version.next());
        if let Activity::Updating(update) = &mut self.activity {
            update.told = Some(Commit::told(at, version, told.stats, told.gradient_norm));
        }
        Ok(())
    }

    /// Begins or continues the update of an earlier process at this mini-batch.
    ///
    /// # Errors
    /// If another one comes next.
    pub(super) fn take_up_at(&mut self, minibatch: MinibatchIndex) -> Result<(), String> {
        if matches!(&self.activity, Activity::Collecting(collection) if collection.is_done()) {
            self.take_up_update(Vec::new().into_iter());
        }
        let Activity::Updating(update) = &self.activity else { return Err("nothing is updated".into()) };
        let next = update.commit.minibatch();
        let mut waiting = self.plan_step(&update.collection).into_iter();
        if update.complete || next != minibatch || waiting.nth(next.0 as usize).is_none() {
            return Err(format!("mini-batch {next} or the end of the step comes next"));
        }
        if let Activity::Updating(update) = &mut self.activity {
            update.waiting = waiting;
        }
        Ok(())
    }

    /// The mini-batches of a step for the ranks of the epoch.
    fn plan_step(&self, collection: &Collection) -> Vec<Vec<Vec<SequenceOrder>>> {
        let packing = Packing {
            seed: self.plan.seed,
            step: self.steps_done,
            per_minibatch: self.plan.sequences_per_minibatch,
            // Without an epoch only their number matters.
            ranks: self.members.world_size().max(1),
            aggregation: self.plan.aggregation,
            imitation_coef: self.plan.imitation_coef
                * self.plan.imitation.factor(self.steps_done.0, self.plan.steps),
        };
        plan_minibatches(&collection.sequences(), &packing)
    }

    /// A new epoch stands: its ranks take up the mini-batch that was interrupted.
    pub(super) fn continue_update(&mut self) {
        let Activity::Updating(mut update) = std::mem::replace(&mut self.activity, Activity::Joining) else {
            panic!("an interrupted update continues");
        };
        if update.complete {
            return self.end_update(&update);
        }
        let minibatch = update.commit.minibatch();
        let mut waiting = self.plan_step(&update.collection).into_iter();
        let shares = waiting.nth(minibatch.0 as usize).expect("a mini-batch does not depend on the ranks");
        (update.waiting, update.commit) = (waiting, self.new_commit(minibatch));
        self.activity = Activity::Updating(update);
        self.send_shares(minibatch, shares);
    }

    /// Somebody who is left did the optimizer step that all were told to do: it is done.
    pub(super) fn commit_what_was_told(&mut self) {
        let Activity::Updating(update) = &mut self.activity else {
            panic!("a newer policy comes from an update");
        };
        update.commit = update.told.take().expect("a newer policy is one that ranks were told to make");
        let minibatch = self.take_commit(None);
        self.await_next(minibatch);
    }

    /// A mini-batch is done or skipped; the next epoch takes up the one after it, or ends the step.
    pub(super) fn await_next(&mut self, minibatch: MinibatchIndex) {
        let commit = self.new_commit(minibatch.next());
        if let Activity::Updating(update) = &mut self.activity {
            match update.waiting.len() {
                0 => update.complete = true,
                _ => update.commit = commit,
            }
        }
    }

    fn new_commit(&self, minibatch: MinibatchIndex) -> Commit {
        Commit::new(self.steps_done, minibatch, self.members.world_size(), self.policy_version.next())
    }

    fn send_shares(&mut self, minibatch: MinibatchIndex, shares: Vec<Vec<SequenceOrder>>) {
        self.since = self.now;
        assert_eq!(shares.len(), self.members.ranks().len(), "every rank gets a share");
        if let Activity::Updating(update) = &mut self.activity {
            update.rollouts = shares.iter().flatten().map(|order| order.rollout).collect();
        }
        for ((_, worker), sequences) in self.members.ranks().zip(shares) {
            self.effects.push(Effect::TrainMinibatch {
                worker: worker.clone(),
                epoch: self.members.epoch(),
                step: self.steps_done,
                minibatch,
                learning_rate: self.plan.learning_rate(self.steps_done),
                sequences,
            });
        }
    }

    pub(super) fn gradients_ready(
        &mut self,
        rank: Rank,
        (step, minibatch): (StepIndex, MinibatchIndex),
        (stats, gradient_norm): (&UpdateStats, f64),
        not_finite: &[RolloutId],
    ) -> Result<bool, Failure> {
        let (phase, stands) = (self.phase(), self.members.stands());
        let Activity::Updating(update) = &mut self.activity else { return Ok(false) };
        if !stands {
            return Ok(false);
        }
        if !update.commit.is_of(step, minibatch) {
            return Ok(false);
        }
        let progress = update.commit.gradients_ready(rank, stats, gradient_norm, not_finite);
        let (sums, norm) = (*update.commit.stats(), update.commit.gradient_norm());
        match progress.map_err(|disagreement| self.disagreement(disagreement, phase))? {
            Progress::Duplicate => Ok(false),
            Progress::Waiting => Ok(true),
            Progress::All => {
                self.since = self.now;
                let record = Record::ApplyTold { step, minibatch, stats: sums, gradient_norm: norm };
                self.effects.push(Effect::Record(record));
                for (_, worker) in self.members.ranks() {
                    let (worker, epoch) = (worker.clone(), self.members.epoch());
                    self.effects.push(Effect::Apply { worker, epoch, step, minibatch });
                }
                Ok(true)
            }
            Progress::NotFinite => {
                self.skip_minibatch();
                Ok(true)
            }
        }
    }

    pub(super) fn minibatch_applied(
        &mut self,
        rank: Rank,
        (step, minibatch): (StepIndex, MinibatchIndex),
        policy_version: PolicyVersion,
        weights_digest: u64,
    ) -> Result<bool, Failure> {
        let (phase, stands) = (self.phase(), self.members.stands());
        let Activity::Updating(update) = &mut self.activity else { return Ok(false) };
        if !stands {
            return Ok(false);
        }
        if !update.commit.is_of(step, minibatch) {
            return Ok(false);
        }
        let Some(progress) = update.commit.applied(rank, policy_version, weights_digest) else {
            let detail = "it applied gradients without being told to".to_owned();
            return Err(Failure::Protocol { peer: self.members.peer_at(rank), phase, detail });
        };
        match progress.map_err(|disagreement| self.disagreement(disagreement, phase))? {
            Progress::Duplicate => return Ok(false),
            Progress::Waiting | Progress::NotFinite => {}
            Progress::All => {
                let minibatch = self.take_commit(Some(weights_digest));
                self.end_minibatch(minibatch);
            }
        }
        Ok(true)
    }

    /// Goes on after a mini-batch that was applied or skipped.
    pub(super) fn end_minibatch(&mut self, minibatch: MinibatchIndex) {
        let Activity::Updating(mut update) = std::mem::replace(&mut self.activity, Activity::Joining) else {
            panic!("a mini-batch ends inside an update");
        };
        if let Some(shares) = update.waiting.next() {
            update.commit = self.new_commit(minibatch.next());
            self.activity = Activity::Updating(update);
            self.send_shares(minibatch.next(), shares);
        } else {
            self.end_update(&update);
        }
    }

    /// Counts the optimizer step under way as done.
    fn take_commit(&mut self, weights_digest: Option<u64>) -> MinibatchIndex {
        let Activity::Updating(update) = &mut self.activity else {
            panic!("a mini-batch ends inside an update");
        };
        assert_eq!(update.commit.version(), self.policy_version.next(), "an optimizer step was left out");
        if !planted!(VersionKept) {
            self.policy_version = update.commit.version();
        }
        update.told = None;
        update.stats.merge(update.commit.stats());
        update.gradient_norms += update.commit.gradient_norm();
        if update.applied == 0 {
            update.first_minibatch_stats = *update.commit.stats();
        }
        update.applied += 1;
        let minibatch = update.commit.minibatch();
        self.not_finite.in_a_row = 0;
        self.weights_digest = weights_digest;
        self.effects.push(Effect::Record(Record::MinibatchDone {
            step: self.steps_done,
            minibatch,
            policy_version: self.policy_version,
            weights_digest,
        }));
        minibatch
    }

    fn end_update(&mut self, update: &Update) {
        if update.applied > 0 {
            self.cursor.policy_changed();
        }
        let mean_norm = update.gradient_norms / f64::from(update.applied.max(1));
        let sums = (update.stats, update.first_minibatch_stats);
        self.complete_step(&update.collection, sums, mean_norm, update.began);
    }

    fn complete_step(
        &mut self,
        collection: &Collection,
        (stats, first_minibatch_stats): (UpdateStats, UpdateStats),
        gradient_norm: f64,
        update_began: Millis,
    ) {
        let step = self.steps_done;
        self.recovery.progressed();
        self.steps_done = step.next();
        self.committed_draws = self.cursor.drawn();
        self.committed_policy_since = self.cursor.policy_since();
        let ids = |source| collection.groups(source).into_iter().map(|(group, _)| group).collect();
        self.effects.push(Effect::StepCompleted(StepRecord {
            step,
            policy_version: self.policy_version,
            groups: ids(ResponseSource::Generated),
            imitated: ids(ResponseSource::Given),
            stats,
            first_minibatch_stats,
            gradient_norm,
            learning_rate: self.plan.learning_rate(step),
            response_tokens: collection.response_tokens(),
            rollout_idle_ratio: self
                .leases
                .idle_ratio(collection.rollouts(), collection.last_arrival().0 - collection.started().0),
            times: StepTimes {
                rollout_ms: collection.last_arrival().0 - collection.started().0,
                reward_ms: collection.last_judged().0 - collection.last_arrival().0,
                shaping_ms: update_began.0 - collection.last_judged().0,
                update_ms: self.now.0 - update_began.0,
            },
        }));
        self.proceed();
    }

    pub(super) fn disagreement(&self, disagreement: Disagreement, phase: RunPhase) -> Failure {
        let Disagreement { what, values } = disagreement;
        let values =
            values.into_iter().map(|(rank, value)| format!("{}: {value}", self.members.peer_at(rank)));
        Failure::Disagreement { what, phase, values: list(values) }
    }
}
