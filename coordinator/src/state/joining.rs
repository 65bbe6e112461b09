//! Reactions to workers that come, go and join the epoch.
//!
//! Invariants: a worker is welcomed or refused, once. An epoch is formed once there are enough
//! workers; a worker that comes later waits without a rank. For now a rank that is lost ends the
//! run.

use g2rl_common::ids::{Rank, WorkerId};
use g2rl_proto::{EpochPlan, Hello, PROTOCOL_VERSION};

use super::interface::Effect;
use super::membership::{Formation, Joined};
use super::{Coordinator, Failure, Handled};

impl Coordinator {
    pub(super) fn connected(&mut self, hello: Hello) -> Handled {
        let worker = hello.worker.clone();
        if self.members.members().contains_key(&worker) {
            let reason = format!("a worker named {worker} is connected already; give each its own name");
            self.effects.push(Effect::RefuseDuplicate { worker, reason });
            return Ok(());
        }
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
            None
        };
        if let Some(reason) = reason {
            self.effects.push(Effect::Refuse { worker, reason });
            return Ok(());
        }
        self.members.add(hello, self.now);
        self.effects.push(Effect::Welcome { worker });
        self.form_if_ready();
        Ok(())
    }

    /// A worker is gone.
    pub(super) fn lost(&mut self, worker: &WorkerId, cause: String) -> Handled {
        if !self.members.members().contains_key(worker) {
            return Ok(());
        }
        self.members.remove(worker, &cause);
        let Some(rank) = self.members.rank_of(worker) else {
            // While gathering there may no longer be enough.
            self.form_if_ready();
            return Ok(());
        };
        let (peer, phase, owed) = (self.members.peer_at(rank), self.phase(), self.owed_by(rank));
        Err(Failure::RankLost { peer, phase, cause, owed })
    }

    /// Begins the epoch once there are enough workers.
    pub(super) fn form_if_ready(&mut self) {
        let cluster = &self.plan.cluster;
        let wanted = cluster.min_workers..=cluster.max_workers;
        if !self.members.is_ready(wanted, cluster.grace_ms, self.now) {
            return;
        }
        self.members.begin_epoch(self.now);
        self.since = self.now;
        let worker = self.members.worker(Rank(0)).clone();
        self.effects.push(Effect::HostStore { worker, epoch: self.members.epoch() });
    }

    pub(super) fn store_ready(&mut self, rank: Rank, port: u16) -> bool {
        if !self.members.store_ready(rank, self.now) {
            return false;
        }
        let host = self.members.worker(Rank(0));
        let store_address = self.members.members()[host].address.clone();
        for (rank, worker) in self.members.ranks() {
            let plan = EpochPlan {
                epoch: self.members.epoch(),
                rank,
                world_size: self.members.world_size(),
                store_address: store_address.clone(),
                store_port: port,
                source_rank: Rank(0),
                policy_version: self.policy_version,
                collective_timeout_ms: self.plan.cluster.collective_timeout_ms,
            };
            self.effects.push(Effect::FormEpoch { worker: worker.clone(), plan });
        }
        true
    }

    pub(super) fn epoch_formed(&mut self, rank: Rank, joined: Joined) -> Result<bool, Failure> {
        if !matches!(self.members.formation(), Formation::Joining { .. }) {
            return Ok(false);
        }
        if joined.decode_slots == 0 {
            let detail = "it offers no decode slots".to_owned();
            return Err(Failure::Protocol { peer: self.members.peer_at(rank), phase: self.phase(), detail });
        }
        let phase = self.phase();
        let slots = self
            .members
            .joined(rank, joined, self.policy_version)
            .map_err(|disagreement| self.disagreement(disagreement, phase))?;
        if let Some(slots) = slots {
            self.leases.set_ranks(slots);
            let ranks = self.members.ranks().map(|(rank, worker)| (rank, worker.clone())).collect();
            self.effects.push(Effect::EpochStarted { epoch: self.members.epoch(), ranks });
            self.proceed();
        }
        Ok(true)
    }
}
