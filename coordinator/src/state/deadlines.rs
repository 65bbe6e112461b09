//! Deadlines, and what is waited for.
//!
//! Invariant: while the run is not over there is a deadline, and passing it makes progress, costs the
//! ranks that owe something their place, or ends the run with a failure that names who was waited for. A reward service that is down is
//! waited for under the shell's deadline instead.

use std::collections::BTreeSet;

use g2rl_common::ids::Rank;

use super::agenda::Next;
use super::failure::list;
use super::interface::{Millis, Outcome};
use super::membership::Formation;
use super::status::{RankStatus, RunPhase, RunStatus};
use super::{Activity, Coordinator, Failure, Handled};

/// Leases and groups that a failure names; the rest is counted.
const NAMED: usize = 3;

impl Coordinator {
    /// When [`super::Event::Tick`] is due; `None` once the run is over.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Millis> {
        if self.is_finished() {
            return None;
        }
        let cluster = &self.plan.cluster;
        let silence = self.members.silence_before(cluster.heartbeat_timeout_ms).map(|at| at.0);
        let gathering = match self.members.formation() {
            Formation::Gathering { since, enough_since } => {
                // Before the first event the clock is unknown: a tick starts it.
                let Some(Millis(since)) = *since else { return Some(Millis(0)) };
                let grace = enough_since.map(|enough| enough.0 + cluster.grace_ms);
                Some(match self.policy_is_missing() {
                    _ if self.complete_without_ranks().is_some() => since + cluster.heartbeat_timeout_ms,
                    true => self.policy_lost_at(Millis(since)).0,
                    false => grace.into_iter().fold(since + cluster.join_timeout_ms, u64::min),
                })
            }
            _ => None,
        };
        let waits = self.waits().into_iter().map(|(deadline, _)| deadline.0);
        silence.into_iter().chain(gathering).chain(waits).min().map(Millis)
    }

    /// What is waited for under a deadline, with the configured limit.
    fn waits(&self) -> Vec<(Millis, u64)> {
        let cluster = &self.plan.cluster;
        let after = |since: Millis, limit_ms: u64| (Millis(since.0 + limit_ms), limit_ms);
        let mut waits = Vec::new();
        match self.members.formation() {
            Formation::Preparing { since, .. } | Formation::Joining { since, .. } => {
                return vec![after(*since, cluster.join_timeout_ms)];
            }
            Formation::Gathering { .. } => return waits,
            Formation::Standing => {}
        }
        match &self.activity {
            Activity::Collecting(collection) | Activity::Evaluating(collection) => {
                waits
                    .extend(self.leases.next_deadline().map(|deadline| (deadline, cluster.lease_timeout_ms)));
                // While a reward service is down the shell has its own limit, `give_up_after_s`.
                let shell = collection.waits_for_shell_since().filter(|_| self.judging_paused.is_none());
                waits.extend(shell.map(|since| after(since, cluster.lease_timeout_ms)));
            }
            Activity::Updating(_) => waits.push(after(self.since, cluster.update_timeout_ms)),
            Activity::Joining | Activity::Checkpointing | Activity::Finished => {}
        }
        waits.extend(self.checkpoint_deadline().map(|deadline| (deadline, cluster.checkpoint_timeout_ms)));
        waits
    }

    pub(super) fn check_deadlines(&mut self) -> Handled {
        // 1. Workers that are silent.
        let limit_ms = self.plan.cluster.heartbeat_timeout_ms;
        let reason = format!("no sign of life for {limit_ms} ms");
        let silent = self.members.silent(limit_ms, self.now);
        if !silent.is_empty() {
            self.expel(silent.into_iter().map(|worker| (worker, reason.clone())).collect(), true)?;
        }
        // 2. Too few workers, enough of them after the grace time, none with the policy, or none needed.
        self.form_if_ready();
        if let Formation::Gathering { since: Some(since), .. } = *self.members.formation() {
            let outcome = self.complete_without_ranks();
            if let Some(outcome) = outcome.filter(|_| self.now.0 >= since.0 + limit_ms) {
                self.finish(outcome);
                return Ok(());
            }
            if self.policy_is_missing() && self.now >= self.policy_lost_at(since) {
                if self.members.has_stood() {
                    return Err(self.policy_lost());
                }
                self.start_over();
                return Ok(());
            }
            let limit_ms = self.plan.cluster.join_timeout_ms;
            let (joined, wanted) = (self.members.members().len(), self.plan.cluster.min_workers);
            if self.now.0 >= since.0 + limit_ms && joined < wanted as usize {
                let departed =
                    self.members.last_departure().map_or(String::new(), |text| format!("; {text}"));
                let phase = self.phase();
                return Err(Failure::TooFewWorkers { phase, joined, wanted, limit_ms, departed });
            }
        }
        // 3. Work that is not done.
        if self.members.stands() {
            self.give_up_late_checkpoint();
        }
        match self.waits().into_iter().find(|(deadline, _)| self.now >= *deadline) {
            Some((_, limit_ms)) => self.overdue(limit_ms),
            None => Ok(()),
        }
    }

    /// A coordinator that died after the last thing to do finds no workers: they were told that the run is complete.
    /// Those that were not come back within the time after which a worker is lost, and are told.
    fn complete_without_ranks(&self) -> Option<Outcome> {
        let idle = matches!(self.activity, Activity::Joining) && self.saving.is_none();
        match self.agenda.next(&self.plan, self.steps_done) {
            Next::End(outcome) if idle => Some(outcome),
            _ => None,
        }
    }

    /// Until then a worker that holds the policy may come back to workers that are gathered since then.
    fn policy_lost_at(&self, since: Millis) -> Millis {
        Millis(since.max(self.policy_seen).0 + self.plan.cluster.heartbeat_timeout_ms)
    }

    /// A deadline passed: ranks that owe something lose their place. Where every rank waits for the
    /// others nobody can say who is to blame; the next epoch will show it, because each has to prepare
    /// for it by itself.
    fn overdue(&mut self, limit_ms: u64) -> Handled {
        let (phase, waiting_for) = (self.phase(), self.overdue_text());
        let failure = Failure::DeadlinePassed { phase, limit_ms, waiting_for };
        let late = self.overdue_ranks();
        if planted!(DeadlineIgnored) {
            return Ok(());
        }
        if late.is_empty() {
            return Err(failure);
        }
        let together = match (self.members.formation(), &self.activity) {
            (Formation::Joining { .. }, _) => true,
            (Formation::Standing, Activity::Updating(update)) => !update.commit.is_applying(),
            _ => false,
        };
        if together && late.len() > 1 && late.len() == self.members.world_size() as usize {
            return self.end_epoch(&failure);
        }
        let reason = failure.to_string();
        let workers = late.into_iter().map(|rank| (self.members.worker(rank).clone(), reason.clone()));
        // They show signs of life, so it is their work that hangs.
        self.expel(workers.collect(), false)
    }

    /// The ranks whose deadline has passed.
    fn overdue_ranks(&self) -> Vec<Rank> {
        match &self.activity {
            Activity::Evaluating(_) | Activity::Collecting(_) if self.members.stands() => {
                let late = self.leases.outstanding().filter(|lease| self.now >= lease.deadline);
                late.map(|lease| lease.rank).collect::<BTreeSet<_>>().into_iter().collect()
            }
            _ => self.waited_ranks(),
        }
    }

    /// What the run is doing.
    pub(super) fn phase(&self) -> RunPhase {
        let step = self.steps_done;
        if !self.is_finished() {
            match self.members.formation() {
                Formation::Gathering { .. } => return RunPhase::Gathering,
                Formation::Preparing { .. } | Formation::Joining { .. } => {
                    return RunPhase::Forming(self.members.epoch());
                }
                Formation::Standing => {}
            }
        }
        match &self.activity {
            // Only inside of one event.
            Activity::Joining => RunPhase::Forming(self.members.epoch()),
            Activity::Evaluating(_) => RunPhase::Evaluation(step),
            Activity::Collecting(_) => RunPhase::Rollout(step),
            Activity::Updating(update) if update.commit.is_applying() => {
                RunPhase::Apply(step, update.commit.minibatch())
            }
            Activity::Updating(update) => RunPhase::Gradients(step, update.commit.minibatch()),
            Activity::Checkpointing => RunPhase::Checkpoint(step),
            Activity::Finished => RunPhase::Finished,
        }
    }

    /// Ranks that the activity waits for.
    pub(super) fn waited_ranks(&self) -> Vec<Rank> {
        if !self.members.stands() {
            return self.members.missing();
        }
        match &self.activity {
            Activity::Joining => Vec::new(),
            Activity::Evaluating(_) | Activity::Collecting(_) => {
                let ranks = self.members.ranks().map(|(rank, _)| rank);
                ranks.filter(|&rank| self.leases.outstanding_of(rank) > 0).collect()
            }
            Activity::Updating(update) => update.commit.missing(),
            Activity::Checkpointing => {
                let writer = self.saving.as_ref().map(|saving| &saving.writer);
                writer.and_then(|writer| self.members.rank_of(writer)).into_iter().collect()
            }
            Activity::Finished => Vec::new(),
        }
    }

    /// What a rank has not done, for people.
    pub(super) fn owed_by(&self, rank: Rank) -> String {
        if !self.waited_ranks().contains(&rank) {
            return "nothing".to_owned();
        }
        if !self.members.stands() {
            return "its part in the epoch".to_owned();
        }
        match &self.activity {
            Activity::Joining => "nothing".to_owned(),
            Activity::Evaluating(_) | Activity::Collecting(_) => self.leased_to(|of, _| of == rank),
            Activity::Updating(update) if update.commit.is_applying() => "its optimizer step".to_owned(),
            Activity::Updating(_) => "its gradients".to_owned(),
            Activity::Checkpointing => "the checkpoint".to_owned(),
            Activity::Finished => "nothing".to_owned(),
        }
    }

    /// Missing rollouts of the leases that are asked for: the first ones by name.
    fn leased_to(&self, wanted: impl Fn(Rank, Millis) -> bool) -> String {
        let leases: Vec<_> =
            self.leases.outstanding().filter(|lease| wanted(lease.rank, lease.deadline)).collect();
        let named = leases.iter().take(NAMED).map(|lease| {
            let (group, problem) = (lease.piece.group, lease.piece.problem);
            format!("{} rollouts of group {group} ({problem})", lease.missing.len())
        });
        match leases.len().saturating_sub(NAMED) {
            0 => list(named),
            more => format!("{} and {more} more leases", list(named)),
        }
    }

    /// Who or what is waited for, for people.
    pub(super) fn waiting_for(&self) -> String {
        let ranks = self.waited_ranks();
        if matches!(self.members.formation(), Formation::Gathering { .. }) && !self.is_finished() {
            let (there, wanted) = (self.members.members().len(), self.plan.cluster.min_workers);
            return match self.policy_is_missing() {
                true => format!("a worker with policy version {}", self.policy_version),
                false => format!("workers ({there} of {wanted})"),
            };
        }
        if ranks.is_empty() {
            return match (&self.activity, self.collection()) {
                (_, Some(collection)) => match &self.judging_paused {
                    Some(cause) => format!("{} ({cause})", collection.shell_work()),
                    None => collection.shell_work(),
                },
                _ => "nothing".to_owned(),
            };
        }
        list(ranks.into_iter().map(|rank| format!("{}: {}", self.members.peer_at(rank), self.owed_by(rank))))
    }

    /// Like `waiting_for`, but of leases only those whose deadline has passed.
    fn overdue_text(&self) -> String {
        if !self.members.stands() {
            return self.waiting_for();
        }
        let late = |rank: Rank| self.leased_to(|of, deadline| of == rank && self.now >= deadline);
        let ranks =
            self.members.ranks().map(|(rank, _)| (rank, late(rank))).filter(|(_, late)| !late.is_empty());
        let text = list(ranks.map(|(rank, late)| format!("{}: {late}", self.members.peer_at(rank))));
        if text.is_empty() { self.waiting_for() } else { text }
    }

    /// What the run is doing, for logs and `/readyz`.
    #[must_use]
    pub fn status(&self) -> RunStatus {
        let ranks = self.members.ranks().filter_map(|(rank, worker)| {
            let member = self.members.members().get(worker)?;
            Some(RankStatus {
                rank,
                worker: worker.clone(),
                host: member.hostname.clone(),
                device: member.device.clone(),
                decode_slots: self.leases.slots_of(rank),
                outstanding_rollouts: self.leases.outstanding_of(rank),
                last_seen: member.last_seen,
                reported: member.reported.clone(),
            })
        });
        let waiting = self.members.members().keys().filter(|worker| self.members.rank_of(worker).is_none());
        let (epochs_failed, rollouts_redone, waited_ms) = self.recovery.totals();
        let waiting_ms = match self.members.formation() {
            Formation::Gathering { since: Some(since), .. } => self.now.0 - since.0,
            _ => 0,
        };
        RunStatus {
            epochs_failed,
            disagreements: self.disagreements,
            rollouts_redone,
            waiting_ms: waited_ms + waiting_ms,
            phase: self.phase(),
            since: self.since,
            steps_done: self.steps_done,
            steps: self.plan.steps,
            policy_version: self.policy_version,
            epoch: self.members.epoch(),
            epoch_stands: self.members.stands(),
            ranks: ranks.collect(),
            waiting_workers: waiting.cloned().collect(),
            free_slots: self.leases.free_slots(),
            outstanding_leases: self.leases.outstanding().count(),
            outstanding_rollouts: self.leases.outstanding().map(|lease| lease.missing.len() as u32).sum(),
            queued_rollouts: self.leases.queued_rollouts(),
            waiting_for: self.waiting_for(),
        }
    }
}
