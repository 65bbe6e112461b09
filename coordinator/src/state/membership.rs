//! Who is connected, and which of them form the epoch.
//!
//! Invariants: an epoch's ranks are fixed from its first message to its end; ranks are given by
//! worker name, so that the same workers get the same ranks in whatever order they connect. A worker
//! without a rank is only welcomed and watched. The core are the ranks of the last epoch that stood
//! and have been connected since: they alone are known to hold the same policy. Nothing here knows
//! what the ranks work on.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::ids::{GroupEpoch, PolicyVersion, Rank, WorkerId};
use g2rl_proto::{Hello, Phase, WorkerStatus};

use super::commit::{Disagreement, agree};
use super::failure::Peer;
use super::interface::Millis;

/// A connected worker.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) hostname: String,
    pub(super) device: String,
    pub(super) address: String,
    pub(super) last_seen: Millis,
    pub(super) reported: WorkerStatus,
    /// When it last got on with anything, as far as known.
    pub(super) moved: Millis,
    /// The newest policy it is known to hold.
    pub(super) held: PolicyVersion,
    /// It has read its model.
    loaded: bool,
    /// Epochs with it that could not be formed.
    strikes: u32,
}

/// What a rank says when it has left the epoch before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) held: PolicyVersion,
    /// Of its store; rank 0 has one.
    pub(super) port: Option<u16>,
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
    /// The ranks leave the epoch before and say what they hold; rank 0 opens its store.
    Preparing { since: Millis, prepared: BTreeMap<Rank, Prepared> },
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
    /// By rank; while gathering those of the epoch that ended.
    ranks: Vec<WorkerId>,
    core: BTreeSet<WorkerId>,
    /// An epoch has stood.
    has_stood: bool,
    formation: Formation,
    /// No member was seen last before this; found anew by [`Self::silent`].
    oldest_sign: Option<Millis>,
    /// Who left while workers were gathered, and why: the likely reason if too few come.
    last_departure: Option<String>,
}

impl Membership {
    /// Nobody is connected, and the newest epoch was this one.
    pub(super) fn after(epoch: GroupEpoch) -> Self {
        Self {
            members: BTreeMap::new(),
            epoch,
            ranks: Vec::new(),
            core: BTreeSet::new(),
            has_stood: false,
            formation: Formation::Gathering { since: None, enough_since: None },
            oldest_sign: None,
            last_departure: None,
        }
    }

    /// A time before which no member can have been silent for `timeout_ms`.
    pub(super) fn silence_before(&self, timeout_ms: u64) -> Option<Millis> {
        self.oldest_sign.filter(|_| !self.members.is_empty()).map(|oldest| Millis(oldest.0 + timeout_ms))
    }

    /// Epochs up to this one were there before.
    pub(super) fn continue_from(&mut self, epoch: GroupEpoch) {
        self.epoch = epoch;
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

    pub(super) fn add(&mut self, hello: Hello, held: PolicyVersion, now: Millis) {
        let member = Member {
            hostname: hello.hostname,
            device: hello.device,
            address: hello.address,
            last_seen: now,
            reported: WorkerStatus::default(),
            moved: now,
            held,
            loaded: hello.held.is_some(),
            strikes: 0,
        };
        self.oldest_sign.get_or_insert(now);
        let before = self.members.insert(hello.worker, member);
        assert!(before.is_none(), "a worker was added twice");
    }

    /// A member that gradients cannot be exchanged with: it is on another host, and one of the two is reached on
    /// its own host only.
    pub(super) fn unreachable_from(&self, hello: &Hello) -> Option<(&WorkerId, &Member)> {
        self.members.iter().find(|(_, member)| {
            let local = is_loopback(&member.address) || is_loopback(&hello.address);
            local && member.hostname != hello.hostname
        })
    }

    /// Forgets a worker; its rank, if it had one, stays in the epoch, which cannot go on.
    pub(super) fn remove(&mut self, worker: &WorkerId, reason: &str) {
        if self.members.remove(worker).is_some() {
            self.core.remove(worker);
            self.last_departure = Some(format!("worker {worker} left: {reason}"));
        }
    }

    pub(super) fn last_departure(&self) -> Option<&str> {
        self.last_departure.as_deref()
    }

    /// Notes a message; false for a worker that is not connected.
    pub(super) fn seen(&mut self, worker: &WorkerId, now: Millis) -> bool {
        let Some(member) = self.members.get_mut(worker) else { return false };
        member.last_seen = now;
        true
    }

    /// Notes that a worker got on with its work.
    pub(super) fn moved(&mut self, worker: &WorkerId, now: Millis) {
        if let Some(member) = self.members.get_mut(worker) {
            member.moved = now;
        }
    }

    pub(super) fn reported(&mut self, worker: &WorkerId, status: &WorkerStatus, now: Millis) {
        if let Some(member) = self.members.get_mut(worker) {
            if status.progress != member.reported.progress {
                let moved = Millis(now.0.saturating_sub(status.still_ms));
                member.moved = member.moved.max(moved);
            }
            member.loaded |= status.phase != Phase::Loading;
            member.reported.clone_from(status);
        }
    }

    /// Notes the policy a worker holds.
    pub(super) fn holds(&mut self, worker: &WorkerId, version: PolicyVersion) {
        if let Some(member) = self.members.get_mut(worker) {
            member.held = member.held.max(version);
        }
    }

    /// Whether somebody is known to hold this policy or a newer one.
    pub(super) fn somebody_holds(&self, version: PolicyVersion) -> bool {
        self.members.values().any(|member| member.held >= version)
    }

    /// Whether an epoch has stood.
    pub(super) fn has_stood(&self) -> bool {
        self.has_stood
    }

    pub(super) fn core(&self) -> &BTreeSet<WorkerId> {
        &self.core
    }

    /// Connected workers without a rank that have read their model.
    pub(super) fn newcomers(&self) -> impl Iterator<Item = &WorkerId> {
        let loaded = self.members.iter().filter(|(_, member)| member.loaded).map(|(worker, _)| worker);
        loaded.filter(|worker| self.rank_of(worker).is_none())
    }

    /// The epoch with workers outside the core could not be formed; returns those of them with which
    /// that happened before.
    pub(super) fn strike_newcomers(&mut self, most: u32) -> Vec<WorkerId> {
        let mut out = Vec::new();
        for worker in self.ranks.iter().filter(|worker| !self.core.contains(*worker)) {
            if let Some(member) = self.members.get_mut(worker) {
                member.strikes += 1;
                if member.strikes >= most {
                    out.push(worker.clone());
                }
            }
        }
        out
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

    /// The epoch is over: workers are waited for.
    pub(super) fn end_epoch(&mut self, now: Millis) {
        self.formation = Formation::Gathering { since: Some(now), enough_since: None };
    }

    /// Begins the next epoch with these workers, which leave the one before. Returns the new rank of
    /// every rank before that goes on.
    pub(super) fn begin_epoch(&mut self, mut workers: Vec<WorkerId>, now: Millis) -> BTreeMap<Rank, Rank> {
        workers.sort();
        self.epoch = self.epoch.next();
        let before = std::mem::replace(&mut self.ranks, workers);
        self.formation = Formation::Preparing { since: now, prepared: BTreeMap::new() };
        let old = before.iter().enumerate();
        old.filter_map(|(rank, worker)| Some((Rank(rank as u32), self.rank_of(worker)?))).collect()
    }

    /// A rank is prepared; false if that was known or is not waited for.
    pub(super) fn prepared(&mut self, rank: Rank, as_it_says: Prepared) -> bool {
        let Formation::Preparing { prepared, .. } = &mut self.formation else { return false };
        if prepared.insert(rank, as_it_says).is_some() {
            return false;
        }
        let worker = self.worker(rank).clone();
        self.holds(&worker, as_it_says.held);
        true
    }

    /// All ranks are prepared: they join. Returns the store's port.
    pub(super) fn join(&mut self, now: Millis) -> u16 {
        let Formation::Preparing { prepared, .. } = &self.formation else {
            panic!("ranks join an epoch that they have prepared");
        };
        let port = prepared.get(&Rank(0)).and_then(|rank| rank.port).unwrap_or(0);
        self.formation = Formation::Joining { since: now, joined: BTreeMap::new() };
        port
    }

    /// What a prepared rank holds.
    pub(super) fn held_by(&self, rank: Rank) -> PolicyVersion {
        self.members.get(self.worker(rank)).map_or(PolicyVersion(0), |member| member.held)
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
        let policies = joined
            .iter()
            .map(|(&rank, rank_joined)| (rank, (rank_joined.policy_version, rank_joined.weights_digest)));
        agree(&policies.collect(), expected)?;
        if joined.len() < self.ranks.len() {
            return Ok(None);
        }
        let slots = joined.values().map(|rank_joined| rank_joined.decode_slots).collect();
        self.formation = Formation::Standing;
        self.core = self.ranks.iter().cloned().collect();
        self.has_stood = true;
        Ok(Some(slots))
    }

    /// Ranks that the formation waits for.
    pub(super) fn missing(&self) -> Vec<Rank> {
        match &self.formation {
            Formation::Gathering { .. } | Formation::Standing => Vec::new(),
            Formation::Preparing { prepared, .. } => {
                self.ranks().map(|(rank, _)| rank).filter(|rank| !prepared.contains_key(rank)).collect()
            }
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

fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}
