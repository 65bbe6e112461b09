//! Reactions to workers that come and go.
//!
//! Invariants: a worker is welcomed or refused, once for each of its streams. A worker that says hello
//! again has lost its old stream, whether that was noticed or not, and with it its rank and its leases.
//! A rank that is lost ends its epoch; what it had not given back is leased again.

use g2rl_common::ids::{PolicyVersion, WorkerId};
use g2rl_proto::{Hello, PROTOCOL_VERSION};

use super::interface::{Effect, Event};
use super::membership::Formation;
use super::{Coordinator, Failure, Handled, Peer};

impl Coordinator {
    pub(super) fn connected(&mut self, hello: Hello) -> Handled {
        let worker = hello.worker.clone();
        self.lost(&worker, "it connected again".to_owned())?;
        let most = self.plan.cluster.max_workers;
        let reason = if hello.protocol_version != PROTOCOL_VERSION {
            let theirs = hello.protocol_version;
            Some(format!(
                "worker {worker} speaks protocol version {theirs}, the coordinator {PROTOCOL_VERSION}; \
                 use binaries of the same release"
            ))
        } else if self.members.members().len() >= most as usize {
            Some(format!("there are {most} workers already, as many as cluster.max_workers allows"))
        } else {
            self.members.unreachable_from(&hello).map(|(other, member)| {
                let (own, theirs) = (&hello.address, &member.address);
                format!(
                    "worker {worker} is reached at {own} and worker {other} at {theirs}, but they are on different \
                     hosts; start them with the coordinator's address in the network, or with --address or --interface"
                )
            })
        };
        if let Some(reason) = reason {
            self.effects.push(Effect::Refuse { worker, reason, may_return: false });
            return Ok(());
        }
        let held = hello.held.as_ref().map_or(self.loaded_version, |(_, version)| *version);
        let known = self.newest_policy();
        if held > known {
            return Err(Failure::UnknownPolicy { peer: Peer { worker, rank: None }, held, known });
        }
        self.members.add(hello, held, self.now);
        self.effects.push(Effect::Welcome { worker });
        self.form_if_ready();
        Ok(())
    }

    /// A worker is gone.
    pub(super) fn lost(&mut self, worker: &WorkerId, cause: String) -> Handled {
        self.lose(vec![(worker.clone(), cause)])
    }

    /// Ends the streams of workers that are silent or owe something, and goes on without them.
    pub(super) fn expel(&mut self, workers: Vec<(WorkerId, String)>, may_return: bool) -> Handled {
        for (worker, reason) in &workers {
            let (worker, reason) = (worker.clone(), reason.clone());
            self.effects.push(Effect::Refuse { worker, reason, may_return });
        }
        self.lose(workers)
    }

    /// Workers are gone: each with how that was noticed.
    fn lose(&mut self, workers: Vec<(WorkerId, String)>) -> Handled {
        let (phase, mut failure, mut redone) = (self.phase(), None, 0);
        if self.members.somebody_holds(self.policy_version) {
            self.policy_seen = self.now;
        }
        for (worker, cause) in workers {
            if !self.members.members().contains_key(&worker) {
                continue;
            }
            let mut why = cause.clone();
            if let Some(rank) = self.members.rank_of(&worker) {
                if !matches!(self.members.formation(), Formation::Gathering { .. }) {
                    let (peer, owed) = (self.members.peer_at(rank), self.owed_by(rank));
                    let lost = Failure::RankLost { peer, phase, cause, owed };
                    why = lost.to_string();
                    failure = Some(lost);
                }
                redone += self.leases.revoke(rank, self.now);
            }
            self.checkpoint_lost_with(&worker, &why);
            self.members.remove(&worker, &why);
        }
        let lost = match failure {
            Some(failure) => self.end_epoch(&failure),
            None => {
                // While gathering there may no longer be enough.
                self.form_if_ready();
                Ok(())
            }
        };
        self.recovery.redone(redone);
        lost
    }

    /// Forms an epoch if there is none and there are enough workers. Without a first epoch: with the
    /// most useful number at once, with enough of them after the grace time. After one: at once, with
    /// those who were in it if they are enough, else with everybody.
    pub(super) fn form_if_ready(&mut self) {
        let cluster = &self.plan.cluster;
        let wanted = cluster.min_workers..=cluster.max_workers;
        if !self.members.has_stood() {
            // Without its holder a restored run would go on from an older policy.
            if !self.policy_is_missing() && self.members.is_ready(wanted, cluster.grace_ms, self.now) {
                self.begin_epoch(self.members.members().keys().cloned().collect());
            }
            return;
        }
        let enough = |count: usize| count >= *wanted.start() as usize;
        if !matches!(self.members.formation(), Formation::Gathering { .. }) || self.policy_is_missing() {
            return;
        }
        let core = self.members.core();
        if enough(core.len()) {
            self.begin_epoch(core.iter().cloned().collect());
        } else if enough(self.members.members().len()) {
            self.begin_epoch(self.members.members().keys().cloned().collect());
        }
    }

    /// Nobody who is connected is known to hold the newest policy, and it cannot be read from files.
    pub(super) fn policy_is_missing(&self) -> bool {
        self.policy_version > self.loaded_version && !self.members.somebody_holds(self.policy_version)
    }

    /// What a message says of the policy that its sender holds. That counts whatever has become of its epoch, and
    /// also if the sender is no rank of the next one: it may be the only one that is left.
    pub(super) fn hear_of_policy(&mut self, event: &Event) -> Handled {
        match event {
            Event::EpochFormed { worker, policy_version, .. } => self.worker_holds(worker, *policy_version),
            Event::MinibatchApplied { worker, epoch, policy_version, .. } => {
                // In its own epoch what it cannot hold is for the commit to say.
                let current = *epoch == self.members.epoch();
                match current && *policy_version > self.newest_policy() {
                    true => Ok(()),
                    false => self.worker_holds(worker, *policy_version),
                }
            }
            _ => Ok(()),
        }
    }

    /// A worker says which policy it holds.
    pub(super) fn worker_holds(&mut self, worker: &WorkerId, held: PolicyVersion) -> Handled {
        let known = self.newest_policy();
        if held > known && !planted!(UnknownPolicyBelieved) {
            let peer = Peer { worker: worker.clone(), rank: self.members.rank_of(worker) };
            return Err(Failure::UnknownPolicy { peer, held, known });
        }
        let was_missing = self.policy_is_missing();
        self.members.holds(worker, held);
        if was_missing && !self.policy_is_missing() {
            self.form_if_ready();
        }
        Ok(())
    }

    /// The newest policy that a worker may hold: all ranks may have been told of one more optimizer
    /// step than is known to be done.
    #[must_use]
    pub fn newest_policy(&self) -> PolicyVersion {
        match &self.activity {
            super::Activity::Updating(update) if update.was_told() => self.policy_version.next(),
            _ => self.policy_version,
        }
    }
}
