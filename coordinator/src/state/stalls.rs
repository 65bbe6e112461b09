//! What is waited for, since when and of whom: the report of `/debug/stalls`.
//!
//! In: the machine at a moment. Out: a [`StallReport`], bounded however large the run is; what is left out is
//! counted.
//!
//! Invariant: whatever has a deadline (`deadlines.rs`) is named here long before it. A wait is a [`Stall`] once
//! nothing has moved in it for `cluster.stall_after_ms`: a rank that decodes a long response moves, one whose
//! engine hangs does not, whether it still shows signs of life or not.

use std::collections::BTreeSet;

use g2rl_common::ids::{GroupEpoch, GroupId, LeaseId, PolicyVersion, Rank, StepIndex, WorkerId};
use serde::Serialize;

use super::Coordinator;
use super::interface::Millis;
use super::membership::{Formation, Member};

/// Leases that a report names: the oldest.
const LEASES: usize = 20;

/// Ranks that a report names: those that are waited for first.
const RANKS: usize = 64;

/// Workers without a rank that a report names.
const WAITING: usize = 16;

/// A wait in which nothing has moved for too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stall {
    /// Who: `rank 1 (worker b)`, `the coordinator`, `workers`.
    pub who: String,
    /// What it owes.
    pub what: String,
    /// How long nothing has moved, milliseconds.
    pub for_ms: u64,
}

/// How far the epoch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EpochWait {
    /// The epoch that stands or is being formed.
    pub epoch: GroupEpoch,
    /// `gathering`, `preparing`, `joining` or `standing`.
    pub state: &'static str,
    /// For how long it is being formed, milliseconds.
    pub for_ms: Option<u64>,
    /// Ranks that have not taken their part in it.
    pub missing: Vec<Rank>,
    /// Connected workers, with and without a rank.
    pub workers: usize,
    /// Workers needed.
    pub min_workers: u32,
    /// Workers that are connected and have no rank, the first few.
    pub without_rank: Vec<WorkerId>,
    /// Who left while workers were gathered, and why.
    pub last_departure: Option<String>,
}

/// A rank and what it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RankWait {
    /// Its rank.
    pub rank: Rank,
    /// Who it is.
    pub worker: WorkerId,
    /// What it is waited for, if it is.
    pub owes: Option<String>,
    /// Since its last message, milliseconds; its connection is lost if `None`.
    pub silent_ms: Option<u64>,
    /// What its engine last said it does.
    pub phase: &'static str,
    /// And in the middle of which piece of work.
    pub work: String,
    /// For how long it had been in the phase when it said so, milliseconds.
    pub phase_ms: u64,
    /// Since it last got on with anything, milliseconds.
    pub still_ms: u64,
    /// The policy it is known to hold.
    pub policy_version: PolicyVersion,
    /// Decode slots it offers.
    pub decode_slots: u32,
    /// Those in use.
    pub slots_in_use: u32,
    /// Rollouts leased to it and not back.
    pub rollouts: u32,
}

/// A lease and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseWait {
    /// The lease.
    pub lease: LeaseId,
    /// Whose it is.
    pub rank: Rank,
    /// The group it belongs to.
    pub group: GroupId,
    /// The problem.
    pub problem: String,
    /// Rollouts that are not back.
    pub rollouts: usize,
    /// Tokens of them so far, if its rank has said so.
    pub tokens: Option<u64>,
    /// Since it was given out, milliseconds.
    pub for_ms: u64,
    /// Until its rank loses it, milliseconds.
    pub deadline_in_ms: u64,
}

/// All leases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LeasesWait {
    /// Leases that are not complete.
    pub outstanding: usize,
    /// Their rollouts that are not back.
    pub rollouts: u64,
    /// Rollouts not leased yet.
    pub rollouts_queued: u32,
    /// The oldest leases.
    pub oldest: Vec<LeaseWait>,
}

/// How far the groups of the step or evaluation are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GroupsWait {
    /// Rollouts are missing or not judged.
    pub open: usize,
    /// All rollouts are judged, the advantages are not there.
    pub shaping: usize,
    /// Ready for the update.
    pub complete: usize,
    /// Left out.
    pub dropped: usize,
    /// Rollouts that have not arrived.
    pub rollouts_missing: usize,
    /// Rollouts that wait for their reward.
    pub rollouts_unjudged: usize,
}

/// What is waited for. Times are ages at the moment of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StallReport {
    /// The phase.
    pub phase: &'static str,
    /// The phase with its numbers, for people.
    pub during: String,
    /// For how long, milliseconds.
    pub for_ms: u64,
    /// Who or what it waits for, for people.
    pub waiting_for: String,
    /// Until the next deadline, milliseconds; `None` once the run is over.
    pub deadline_in_ms: Option<u64>,
    /// Waits in which nothing moves.
    pub stalls: Vec<Stall>,
    /// Completed training steps.
    pub steps_done: StepIndex,
    /// Optimizer steps applied.
    pub policy_version: PolicyVersion,
    /// The epoch.
    pub epoch: EpochWait,
    /// Its ranks, those that are waited for first.
    pub ranks: Vec<RankWait>,
    /// Ranks that are not named.
    pub more_ranks: usize,
    /// Rollouts under way.
    pub leases: LeasesWait,
    /// Groups of the step or evaluation under way.
    pub groups: Option<GroupsWait>,
    /// Why answers wait unjudged, if a reward service is down.
    pub judging_paused: Option<String>,
}

impl Coordinator {
    /// What is waited for at `now`.
    #[must_use]
    pub fn stall_report(&self, now: Millis) -> StallReport {
        let now = self.now.max(now);
        let waited: BTreeSet<Rank> = self.waited_ranks().into_iter().collect();
        let mut ranks: Vec<Rank> = self.members.ranks().map(|(rank, _)| rank).collect();
        ranks.sort_by_key(|rank| !waited.contains(rank));
        let more_ranks = ranks.len().saturating_sub(RANKS);
        ranks.truncate(RANKS);
        StallReport {
            phase: self.phase().as_str(),
            during: self.phase().to_string(),
            for_ms: age(now, self.since),
            waiting_for: self.waiting_for(),
            deadline_in_ms: self.next_deadline().map(|deadline| deadline.0.saturating_sub(now.0)),
            stalls: self.stalls(now),
            steps_done: self.steps_done,
            policy_version: self.policy_version,
            epoch: self.epoch_wait(now),
            ranks: ranks.into_iter().map(|rank| self.rank_wait(rank, &waited, now)).collect(),
            more_ranks,
            leases: self.leases_wait(now),
            groups: self.collection().map(super::collection::Collection::groups_wait),
            judging_paused: self.judging_paused.clone(),
        }
    }

    /// Waits in which nothing has moved for `cluster.stall_after_ms`.
    fn stalls(&self, now: Millis) -> Vec<Stall> {
        let mut stalls = Vec::new();
        let limit_ms = self.plan.cluster.stall_after_ms;
        let mut note = |who: String, what: String, since: Millis| {
            let for_ms = age(now, since);
            if for_ms >= limit_ms {
                stalls.push(Stall { who, what, for_ms });
            }
        };
        if self.is_finished() {
            return stalls;
        }
        if let Formation::Gathering { since, .. } = self.members.formation() {
            note("workers".to_owned(), self.waiting_for(), since.unwrap_or(now));
            return stalls;
        }
        for rank in self.waited_ranks().into_iter().take(RANKS) {
            let Some(member) = self.member_at(rank) else { continue };
            let since = member.moved.max(self.waited_since(rank));
            note(self.members.peer_at(rank).to_string(), self.owed_by(rank), since);
        }
        let shell = self.collection().and_then(|collection| collection.waits_for_shell_since());
        if let Some(since) = shell.filter(|_| self.members.stands()) {
            note("the coordinator".to_owned(), self.waiting_for(), since);
        }
        stalls
    }

    /// Since when a rank that is waited for has had what it owes.
    fn waited_since(&self, rank: Rank) -> Millis {
        let leases = self.leases.outstanding().filter(|lease| lease.rank == rank);
        let granted = leases.map(|lease| lease.granted).min().filter(|_| self.collection().is_some());
        self.since.max(granted.unwrap_or_default())
    }

    fn member_at(&self, rank: Rank) -> Option<&Member> {
        self.members.members().get(self.members.worker(rank))
    }

    fn epoch_wait(&self, now: Millis) -> EpochWait {
        let (state, since) = match self.members.formation() {
            Formation::Gathering { since, .. } => ("gathering", *since),
            Formation::Preparing { since, .. } => ("preparing", Some(*since)),
            Formation::Joining { since, .. } => ("joining", Some(*since)),
            Formation::Standing => ("standing", None),
        };
        let missing = self.members.missing();
        let without_rank =
            self.members.members().keys().filter(|worker| self.members.rank_of(worker).is_none());
        EpochWait {
            epoch: self.members.epoch(),
            state,
            for_ms: since.map(|since| age(now, since)),
            missing: missing.into_iter().take(RANKS).collect(),
            workers: self.members.members().len(),
            min_workers: self.plan.cluster.min_workers,
            without_rank: without_rank.take(WAITING).cloned().collect(),
            last_departure: self.members.last_departure().map(str::to_owned),
        }
    }

    fn rank_wait(&self, rank: Rank, waited: &BTreeSet<Rank>, now: Millis) -> RankWait {
        let member = self.member_at(rank);
        let reported = member.map(|member| member.reported.clone()).unwrap_or_default();
        RankWait {
            rank,
            worker: self.members.worker(rank).clone(),
            owes: waited.contains(&rank).then(|| self.owed_by(rank)),
            silent_ms: member.map(|member| age(now, member.last_seen)),
            phase: reported.phase.as_str(),
            work: reported.work,
            phase_ms: reported.phase_ms,
            still_ms: member.map_or(0, |member| age(now, member.moved)),
            policy_version: member.map_or(PolicyVersion(0), |member| member.held),
            decode_slots: self.leases.slots_of(rank),
            slots_in_use: reported.slots_in_use,
            rollouts: self.leases.outstanding_of(rank),
        }
    }

    fn leases_wait(&self, now: Millis) -> LeasesWait {
        let oldest = self.leases.outstanding_by_id().take(LEASES).map(|(id, lease)| {
            let reported = self.member_at(lease.rank).map(|member| &member.reported.leases);
            let tokens = reported.and_then(|leases| leases.iter().find(|known| known.lease == id));
            LeaseWait {
                lease: id,
                rank: lease.rank,
                group: lease.piece.group,
                problem: lease.piece.problem.to_string(),
                rollouts: lease.missing.len(),
                tokens: tokens.map(|known| known.tokens),
                for_ms: age(now, lease.granted),
                deadline_in_ms: lease.deadline.0.saturating_sub(now.0),
            }
        });
        LeasesWait {
            outstanding: self.leases.outstanding_by_id().len(),
            rollouts: self.leases.outstanding().map(|lease| lease.missing.len() as u64).sum(),
            rollouts_queued: self.leases.queued_rollouts(),
            oldest: oldest.collect(),
        }
    }
}

fn age(now: Millis, since: Millis) -> u64 {
    now.0.saturating_sub(since.0)
}
