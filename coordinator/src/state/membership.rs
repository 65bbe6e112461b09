//! Who is connected, and which of them form the epoch.
//!
//! Invariants: an epoch's ranks are fixed from its first message to its end; ranks are given by
//! worker name, so that the same workers get the same ranks in whatever order they connect. A worker
//! without a rank is only welcomed and watched. Nothing here knows what the ranks work on.

use std::collections::BTreeMap;

use g2rl_common::ids::{GroupEpoch, PolicyVersion, Rank, WorkerId};
use g2rl_proto::{Hello, WorkerStatus};

use super::commit::{Disagreement, agree};
use super::failure::Peer;
use super::interface::Millis;

/// A connected worker.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) address: String,
    pub(super) last_seen: Millis,
    pub(super) reported: WorkerStatus,
}

/// What a rank says when it has joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) policy_version: PolicyVersion,
    pub(super) weights_digest: u64,
    pub(super) decode_slots: u32,
}

/// How far the epoch is.
#[derive(Debug, Clone)]
pub(super) enum Formation {
    /// Workers are waited for. `since` is unknown before the first event.
    Gathering { since: Option<Millis>, enough_since: Option<Millis> },
    /// Rank 0 opens its store.
    Hosting { since: Millis },
    /// The ranks join.
    Joining { since: Millis, joined: BTreeMap<Rank, Joined> },
    /// All ranks have joined.
    Standing,
}

/// Who is connected, and which of them form the epoch.
#[derive(Debug, Clone)]
pub(super) struct Membership {
    members: BTreeMap<WorkerId, Member>,
    epoch: GroupEpoch,
    /// By rank; empty while gathering.
    ranks: Vec<WorkerId>,
    formation: Formation,
    /// No member was seen last before this; found anew by [`Self::silent`].
    oldest_sign: Option<Millis>,
    /// Who left while workers were gathered, and why: the likely reason if too few come.
    last_departure: Option<String>,
}

impl Membership {
    pub(super) fn new() -> Self {
        Self {
            members: BTreeMap::new(),
            epoch: GroupEpoch::default(),
            ranks: Vec::new(),
            formation: Formation::Gathering { since: None, enough_since: None },
            oldest_sign: None,
            last_departure: None,
        }
    }

    /// A time before which no member can have been silent for `timeout_ms`.
    pub(super) fn silence_before(&self, timeout_ms: u64) -> Option<Millis> {
        self.oldest_sign.filter(|_| !self.members.is_empty()).map(|oldest| Millis(oldest.0 + timeout_ms))
    }

    pub(super) fn epoch(&self) -> GroupEpoch {
        self.epoch
    }

    pub(super) fn formation(&self) -> &Formation {
        &self.formation
    }

    pub(super) fn stands(&self) -> bool {
        matches!(self.formation, Formation::Standing)
    }

    pub(super) fn members(&self) -> &BTreeMap<WorkerId, Member> {
        &self.members
    }

    pub(super) fn ranks(&self) -> impl ExactSizeIterator<Item = (Rank, &WorkerId)> {
        self.ranks.iter().enumerate().map(|(rank, worker)| (Rank(rank as u32), worker))
    }

    pub(super) fn world_size(&self) -> u32 {
        self.ranks.len() as u32
    }

    /// # Panics
    /// If the epoch has no such rank.
    pub(super) fn worker(&self, rank: Rank) -> &WorkerId {
        &self.ranks[rank.0 as usize]
    }

    pub(super) fn rank_of(&self, worker: &WorkerId) -> Option<Rank> {
        // Ranks are in the order of the names.
        self.ranks.binary_search(worker).ok().map(|rank| Rank(rank as u32))
    }

    pub(super) fn peer_at(&self, rank: Rank) -> Peer {
        Peer { worker: self.worker(rank).clone(), rank: Some(rank) }
    }

    /// The clock starts with the first event.
    pub(super) fn start_clock(&mut self, now: Millis) {
        if let Formation::Gathering { since, .. } = &mut self.formation {
            since.get_or_insert(now);
        }
    }

    pub(super) fn add(&mut self, hello: Hello, now: Millis) {
        let member = Member { address: hello.address, last_seen: now, reported: WorkerStatus::default() };
        self.oldest_sign.get_or_insert(now);
        let before = self.members.insert(hello.worker, member);
        assert!(before.is_none(), "a worker was added twice");
    }

    /// Forgets a worker; its rank, if it had one, stays in the epoch, which cannot go on.
    pub(super) fn remove(&mut self, worker: &WorkerId, reason: &str) {
        if self.members.remove(worker).is_some() {
            self.last_departure = Some(format!("worker {worker} left: {reason}"));
        }
    }

    pub(super) fn last_departure(&self) -> Option<&str> {
        self.last_departure.as_deref()
    }

    /// Notes a sign of life; false for a worker that is not connected.
    pub(super) fn seen(&mut self, worker: &WorkerId, now: Millis) -> bool {
        let Some(member) = self.members.get_mut(worker) else { return false };
        member.last_seen = now;
        true
    }

    pub(super) fn reported(&mut self, worker: &WorkerId, status: WorkerStatus) {
        if let Some(member) = self.members.get_mut(worker) {
            member.reported = status;
        }
    }

    /// While gathering: notes whether there are enough workers, and says whether an epoch can be
    /// formed now: with the most useful number at once, with enough of them after the grace time.
    pub(super) fn is_ready(
        &mut self,
        wanted: std::ops::RangeInclusive<u32>,
        grace_ms: u64,
        now: Millis,
    ) -> bool {
        let count = self.members.len() as u32;
        let Formation::Gathering { enough_since, .. } = &mut self.formation else { return false };
        if count < *wanted.start() {
            *enough_since = None;
            return false;
        }
        let since = *enough_since.get_or_insert(now);
        count >= *wanted.end() || now.0 >= since.0 + grace_ms
    }

    /// Begins the next epoch with all connected workers; rank 0 must open its store.
    pub(super) fn begin_epoch(&mut self, now: Millis) {
        self.epoch = self.epoch.next();
        self.ranks = self.members.keys().cloned().collect();
        self.formation = Formation::Hosting { since: now };
    }

    /// Rank 0 listens: the ranks join. False if that was known or is not waited for.
    pub(super) fn store_ready(&mut self, rank: Rank, now: Millis) -> bool {
        let hosting = matches!(self.formation, Formation::Hosting { .. }) && rank == Rank(0);
        if hosting {
            self.formation = Formation::Joining { since: now, joined: BTreeMap::new() };
        }
        hosting
    }

    /// A rank joined. `Ok(Some(slots by rank))` when it was the last and all hold the policy.
    pub(super) fn joined(
        &mut self,
        rank: Rank,
        as_it_says: Joined,
        expected: PolicyVersion,
    ) -> Result<Option<Vec<u32>>, Disagreement> {
        let Formation::Joining { joined, .. } = &mut self.formation else { return Ok(None) };
        joined.entry(rank).or_insert(as_it_says);
        if joined.len() < self.ranks.len() {
            return Ok(None);
        }
        let policies = joined
            .iter()
            .map(|(&rank, rank_joined)| (rank, (rank_joined.policy_version, rank_joined.weights_digest)));
        agree(&policies.collect(), expected)?;
        let slots = joined.values().map(|rank_joined| rank_joined.decode_slots).collect();
        self.formation = Formation::Standing;
        Ok(Some(slots))
    }

    /// Ranks that the formation waits for.
    pub(super) fn missing(&self) -> Vec<Rank> {
        match &self.formation {
            Formation::Gathering { .. } | Formation::Standing => Vec::new(),
            Formation::Hosting { .. } => vec![Rank(0)],
            Formation::Joining { joined, .. } => {
                self.ranks().map(|(rank, _)| rank).filter(|rank| !joined.contains_key(rank)).collect()
            }
        }
    }

    /// Workers whose last sign of life is at least this old.
    pub(super) fn silent(&mut self, timeout_ms: u64, now: Millis) -> Vec<WorkerId> {
        self.oldest_sign = self.members.values().map(|member| member.last_seen).min();
        let silent = self.members.iter().filter(|(_, member)| now.0 >= member.last_seen.0 + timeout_ms);
        silent.map(|(worker, _)| worker.clone()).collect()
    }
}
