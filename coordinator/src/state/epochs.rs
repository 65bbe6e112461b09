//! Reactions while an epoch begins, stands and ends.
//!
//! In: what the ranks say of the policy they hold. Out: who broadcasts it, and the activity taken up
//! again where it was interrupted.
//!
//! Invariants: no message about a mini-batch counts while no epoch stands. An optimizer step that all
//! ranks were told to do is done if anybody who is left has done it; then it is not done again. If
//! nobody has, its mini-batch is computed again. The policy never goes back: without its holder the run
//! ends. Epochs that end one after another without a step in between are counted and bounded.

use std::collections::BTreeSet;

use g2rl_common::ids::{Rank, WorkerId};
use g2rl_proto::EpochPlan;

use super::failure::Peer;
use super::interface::{Effect, Millis, Recovery};
use super::membership::{Formation, Joined, Prepared};
use super::record::Record;
use super::status::RunPhase;
use super::{Activity, Coordinator, Failure, Handled};

/// A worker with which this many epochs could not be formed is sent away.
const STRIKES: u32 = 2;

/// Epochs that ended too early, and the time and work that cost.
#[derive(Debug, Clone, Default)]
pub(super) struct Recoveries {
    /// Since the last step or evaluation.
    in_a_row: u32,
    total: u64,
    /// Rollouts leased again because their rank was lost.
    redone_total: u64,
    /// Time without enough workers that is over.
    waited_ms: u64,
    under_way: Option<UnderWay>,
}

#[derive(Debug, Clone)]
struct UnderWay {
    since: Millis,
    phase: RunPhase,
    cause: String,
    /// Of `redone_total`.
    redone_before: u64,
}

impl Recoveries {
    pub(super) fn redone(&mut self, rollouts: u64) {
        self.redone_total += rollouts;
    }

    /// Something was completed.
    pub(super) fn progressed(&mut self) {
        self.in_a_row = 0;
    }

    pub(super) fn totals(&self) -> (u64, u64, u64) {
        (self.total, self.redone_total, self.waited_ms)
    }
}

impl Coordinator {
    /// Begins an epoch with these workers.
    pub(super) fn begin_epoch(&mut self, workers: Vec<WorkerId>) {
        if let Formation::Gathering { since: Some(since), .. } = self.members.formation() {
            self.recovery.waited_ms += self.now.0 - since.0;
        }
        let moved = self.members.begin_epoch(workers, self.now);
        self.leases.move_ranks(self.members.world_size() as usize, &moved, self.now);
        self.since = self.now;
        let epoch = self.members.epoch();
        self.effects.push(Effect::Record(Record::EpochBegan { epoch }));
        for (rank, worker) in self.members.ranks() {
            let host = rank == Rank(0);
            self.effects.push(Effect::PrepareEpoch { worker: worker.clone(), epoch, host });
        }
    }

    /// Workers without a rank are taken in between two steps, unless the optimizer state is divided among those
    /// who are there; true if an epoch begins with them. After
    /// an epoch that failed something must be completed first, so that newcomers cannot keep the run from
    /// going on.
    pub(super) fn grow(&mut self) -> bool {
        if self.recovery.in_a_row > 0 || self.plan.optimizer.shard {
            return false;
        }
        let newcomers: Vec<WorkerId> = self.members.newcomers().cloned().collect();
        if newcomers.is_empty() {
            return false;
        }
        let ranks = self.members.ranks().map(|(_, worker)| worker.clone());
        self.begin_epoch(ranks.chain(newcomers).collect());
        true
    }

    /// The epoch is over before its time: another is formed once there are enough workers.
    pub(super) fn end_epoch(&mut self, failure: &Failure) -> Handled {
        let (cause, phase) = (failure.to_string(), self.phase());
        if self.plan.optimizer.shard && self.members.has_stood() {
            return Err(Failure::ShardLost { cause });
        }
        self.recovery.total += 1;
        self.recovery.in_a_row += 1;
        let redone_before = self.recovery.redone_total;
        let under_way = UnderWay { since: self.now, phase, cause: cause.clone(), redone_before };
        self.recovery.under_way.get_or_insert(under_way);
        self.effects.push(Effect::EpochEnded { epoch: self.members.epoch(), cause: cause.clone() });
        if let Activity::Updating(update) = &mut self.activity {
            update.interrupted();
        }
        self.members.end_epoch(self.now);
        self.since = self.now;
        let most = self.plan.cluster.max_epoch_failures;
        if self.recovery.in_a_row >= most {
            return Err(Failure::TooManyFailures { epochs: most, cause });
        }
        self.form_if_ready();
        Ok(())
    }

    /// A collective failed on a rank: most likely because of a peer, so it stays.
    pub(super) fn epoch_failed(&mut self, rank: Rank, error: String) -> Result<bool, Failure> {
        if matches!(self.members.formation(), Formation::Gathering { .. }) {
            return Ok(false);
        }
        let failure = Failure::RankFailed { peer: self.members.peer_at(rank), phase: self.phase(), error };
        let enough = self.members.core().len() >= self.plan.cluster.min_workers as usize;
        if !self.members.stands() && enough {
            for worker in self.members.strike_newcomers(STRIKES) {
                let reason = format!("{STRIKES} epochs with it could not be formed: {failure}");
                self.effects.push(Effect::Refuse {
                    worker: worker.clone(),
                    reason: reason.clone(),
                    may_return: false,
                });
                self.members.remove(&worker, &reason);
            }
        }
        self.end_epoch(&failure)?;
        Ok(true)
    }

    pub(super) fn epoch_prepared(&mut self, rank: Rank, prepared: Prepared) -> Result<bool, Failure> {
        if !self.members.prepared(rank, prepared) {
            return Ok(false);
        }
        // Also what its hello said.
        self.worker_holds(&self.members.worker(rank).clone(), self.members.held_by(rank))?;
        if !self.members.missing().is_empty() {
            return Ok(true);
        }
        let held: Vec<_> = self.members.ranks().map(|(rank, _)| self.members.held_by(rank)).collect();
        let newest = held.iter().copied().max().unwrap_or_default();
        if newest < self.policy_version {
            return match self.holder_without_rank() {
                Some(failure) => self.end_epoch(&failure).map(|()| true),
                None => Err(self.policy_lost()),
            };
        }
        if newest > self.policy_version && !planted!(AppliedTwice) {
            self.commit_what_was_told();
        }
        // The core's policy is the same on all of them; others may have come to theirs by another way.
        let core = |rank: Rank| self.members.core().contains(self.members.worker(rank));
        let ranks: BTreeSet<Rank> = self.members.ranks().map(|(rank, _)| rank).collect();
        let holds = |rank: &Rank| held[rank.0 as usize] == newest;
        let holders: Vec<Rank> = ranks.iter().copied().filter(holds).collect();
        let in_core = holders.iter().copied().find(|&rank| core(rank));
        let source_rank = in_core.or(holders.first().copied()).unwrap_or(Rank(0));
        let share_policy = !ranks.iter().all(|rank| holds(rank) && core(*rank));
        let store_port = self.members.join(self.now);
        self.since = self.now;
        let host = self.members.worker(Rank(0));
        let store_address = self.members.members()[host].address.clone();
        for (rank, worker) in self.members.ranks() {
            let plan = EpochPlan {
                epoch: self.members.epoch(),
                rank,
                world_size: self.members.world_size(),
                store_address: store_address.clone(),
                store_port,
                source_rank,
                share_policy,
                policy_version: self.policy_version,
                collective_timeout_ms: self.plan.cluster.collective_timeout_ms,
            };
            self.effects.push(Effect::FormEpoch { worker: worker.clone(), plan });
        }
        Ok(true)
    }

    pub(super) fn epoch_formed(&mut self, rank: Rank, joined: Joined) -> Result<bool, Failure> {
        if !matches!(self.members.formation(), Formation::Joining { .. }) {
            return Ok(false);
        }
        if joined.decode_slots == 0 {
            let detail = "it offers no decode slots".to_owned();
            return Err(Failure::Protocol { peer: self.members.peer_at(rank), phase: self.phase(), detail });
        }
        let (phase, digest) = (self.phase(), joined.weights_digest);
        // Of a policy that was read from files only its readers know the digest.
        let trained =
            self.policy_version > self.loaded_version && joined.policy_version == self.policy_version;
        if let Some(recorded) = self.weights_digest.filter(|recorded| trained && *recorded != digest) {
            let values =
                format!("the journal: {recorded:016x}, {}: {digest:016x}", self.members.peer_at(rank));
            return Err(Failure::Disagreement { what: "digest of the weights", phase, values });
        }
        let slots = self
            .members
            .joined(rank, joined, self.policy_version)
            .map_err(|disagreement| self.disagreement(disagreement, phase))?;
        if let Some(slots) = slots {
            self.leases.set_slots(slots, self.now);
            let ranks = self.members.ranks().map(|(rank, worker)| (rank, worker.clone())).collect();
            let recovery = self.recovery.under_way.take().map(|from| Recovery {
                phase: from.phase,
                cause: from.cause,
                duration_ms: self.now.0 - from.since.0,
                rollouts_redone: self.recovery.redone_total - from.redone_before,
            });
            self.effects.push(Effect::EpochStarted { epoch: self.members.epoch(), ranks, recovery });
            self.go_on();
        }
        Ok(true)
    }

    /// The epoch stands: takes up what was interrupted.
    fn go_on(&mut self) {
        self.since = self.now;
        if self.agenda.checkpoint_is_lost() && !matches!(self.activity, Activity::Updating(_)) {
            self.begin_checkpoint();
        }
        match &self.activity {
            Activity::Joining | Activity::Checkpointing => self.proceed(),
            Activity::Evaluating(_) | Activity::Collecting(_) => self.continue_collection(),
            Activity::Updating(_) => self.continue_update(),
            Activity::Finished => {}
        }
    }

    /// A worker that came while an epoch was formed by others holds the policy, which these have not.
    fn holder_without_rank(&self) -> Option<Failure> {
        if planted!(HolderWithoutRankForgotten) {
            return None;
        }
        let mut members = self.members.members().iter();
        let (worker, _) = members.find(|(_, member)| member.held >= self.policy_version)?;
        let (phase, version) = (self.phase(), self.policy_version);
        let holder = Peer { worker: worker.clone(), rank: None };
        Some(Failure::PolicyElsewhere { phase, version, holder })
    }

    /// Nobody holds the newest policy.
    pub(super) fn policy_lost(&self) -> Failure {
        let newest = self.members.members().values().map(|member| member.held).max().unwrap_or_default();
        let departed = self.members.last_departure().map_or(String::new(), |text| format!("; {text}"));
        Failure::PolicyLost { phase: self.phase(), version: self.policy_version, newest, departed }
    }
}
