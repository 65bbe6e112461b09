//! What the run does at this moment, for people: the answer of `/api/run` and the event of `/api/events`.
//!
//! In: the machine's status, which telemetry leaves on the [`StatusBoard`], the stall report, the index. Out:
//! [`RunState`]. Times are ages, so that clocks need not agree. Bounded: at most [`RANKS`] ranks are named.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use g2rl_common::algorithm;
use g2rl_common::ids::WorkerId;
use serde::Serialize;

use super::Inner;
use crate::alerts;
use crate::shell::StallBoard;
use crate::state::RunStatus;

/// Ranks that are named.
const RANKS: usize = 256;

/// How often the board takes a status.
const INTERVAL: Duration = Duration::from_millis(500);

/// Tokens a second are counted over this time: workers say how many they have only now and then.
const RATE_WINDOW: Duration = Duration::from_secs(30);

/// Where the newest status is left.
#[derive(Debug, Clone, Default)]
pub(crate) struct StatusBoard(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    status: Option<(Instant, RunStatus)>,
    rates: BTreeMap<WorkerId, Rate>,
}

/// When a worker said how many tokens it had generated.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    fn add(&mut self, now: Instant, tokens: u64) {
        let mut last = self.0.iter().rev().map(|(_, tokens)| *tokens);
        let (newest, before) = (last.next(), last.next());
        if newest.is_some_and(|newest| tokens < newest) {
            // A worker that started again counts from the beginning.
            self.0.clear();
        } else if newest == Some(tokens) && before == newest {
            // Of equal counts the first and the last say how long nothing came.
            self.0.pop_back();
        }
        self.0.push_back((now, tokens));
        while self.0.len() > 2 && now.duration_since(self.0[1].0) > RATE_WINDOW {
            self.0.pop_front();
        }
    }

    fn per_second(&self) -> Option<f64> {
        let ((first, before), (last, after)) = (self.0.front()?, self.0.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (seconds > 0.0).then(|| ((after - before) as f64 / seconds).round())
    }
}

impl StatusBoard {
    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        // Whoever holds it only moves values in or out.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a status, unless the last one is new enough and says the same phase.
    pub(crate) fn publish(&self, status: &RunStatus) {
        let now = Instant::now();
        let mut board = self.board();
        let new = |(at, before): &(Instant, RunStatus)| {
            now.duration_since(*at) < INTERVAL && before.phase.as_str() == status.phase.as_str()
        };
        if board.status.as_ref().is_some_and(new) {
            return;
        }
        board.rates.retain(|worker, _| status.ranks.iter().any(|rank| rank.worker == *worker));
        for rank in &status.ranks {
            board.rates.entry(rank.worker.clone()).or_default().add(now, rank.reported.generated_tokens);
        }
        board.status = Some((now, status.clone()));
    }
}

/// What the run does.
#[derive(Debug, Serialize)]
pub(super) struct RunState {
    pub(super) name: String,
    pub(super) algorithm: String,
    pub(super) model: String,
    pub(super) group_size: u32,
    pub(super) prompts_per_step: u32,
    /// Training steps of the whole run, and those completed.
    pub(super) steps: u64,
    pub(super) steps_done: u64,
    /// Mean over the last twenty steps, seconds.
    pub(super) seconds_per_step: Option<f64>,
    /// At that pace, seconds.
    pub(super) time_left_s: Option<f64>,
    /// `None` where no run goes on: a run directory is shown.
    pub(super) live: Option<Live>,
    pub(super) journal: JournalState,
}

/// How far the index is.
#[derive(Debug, Serialize)]
pub(super) struct JournalState {
    pub(super) steps: usize,
    pub(super) groups: usize,
    /// Grows with every change.
    pub(super) revision: u64,
    /// Everything was read.
    pub(super) complete: bool,
    pub(super) error: Option<String>,
    /// Texts need the run's token.
    pub(super) wants_token: bool,
}

/// What the machine says.
#[derive(Debug, Serialize)]
pub(super) struct Live {
    pub(super) phase: &'static str,
    /// The phase with its numbers.
    pub(super) during: String,
    pub(super) phase_ms: u64,
    pub(super) waiting_for: String,
    pub(super) policy_version: u64,
    pub(super) epoch: u64,
    pub(super) epoch_stands: bool,
    pub(super) free_slots: u32,
    pub(super) outstanding_rollouts: u32,
    pub(super) queued_rollouts: u32,
    pub(super) epochs_failed: u64,
    pub(super) rollouts_redone: u64,
    pub(super) disagreements: u64,
    /// Time without enough workers.
    pub(super) waiting_ms: u64,
    pub(super) stalls: usize,
    /// Since the coordinator began.
    pub(super) warnings: u64,
    pub(super) ranks: Vec<RankState>,
    pub(super) more_ranks: usize,
    pub(super) workers_without_rank: Vec<String>,
}

/// A rank.
#[derive(Debug, Serialize)]
pub(super) struct RankState {
    pub(super) rank: u32,
    pub(super) worker: String,
    pub(super) host: String,
    pub(super) device: String,
    /// What its engine does.
    pub(super) phase: &'static str,
    pub(super) phase_ms: u64,
    /// What it is waited for, if it is.
    pub(super) owes: Option<String>,
    pub(super) slots: u32,
    pub(super) slots_in_use: u32,
    pub(super) outstanding_rollouts: u32,
    /// Over the last half minute.
    pub(super) tokens_per_second: Option<f64>,
    pub(super) generated_tokens: u64,
    /// Since it was last heard.
    pub(super) silent_ms: Option<u64>,
    pub(super) resident_bytes: u64,
    /// 0 on a CPU.
    pub(super) device_bytes: u64,
}

/// The state at this moment.
pub(super) fn state(dashboard: &Inner) -> RunState {
    let live = dashboard.board.as_ref().and_then(|board| live(board, &dashboard.stalls));
    let config = &dashboard.config;
    let index = dashboard.index.read().unwrap_or_else(PoisonError::into_inner);
    let in_journal = index.steps().last().map_or(0, |row| row.step + 1);
    let steps_done = live.as_ref().map_or(in_journal, |(_, done)| *done);
    let seconds_per_step = index.seconds_per_step();
    let left = config.run.steps.saturating_sub(steps_done);
    RunState {
        name: config.run.name.clone(),
        algorithm: algorithm::build(&config.algorithm).name().to_owned(),
        model: config.model.path.clone(),
        group_size: config.rollout.group_size,
        prompts_per_step: config.rollout.prompts_per_step,
        steps: config.run.steps,
        steps_done,
        seconds_per_step,
        time_left_s: seconds_per_step.filter(|_| live.is_some()).map(|seconds| seconds * left as f64),
        live: live.map(|(live, _)| live),
        journal: JournalState {
            steps: index.steps().len(),
            groups: index.groups().len(),
            revision: index.revision,
            complete: index.complete,
            error: index.error.clone(),
            wants_token: dashboard.access.wants_token(),
        },
    }
}

/// What the machine said last, and how many steps are done.
fn live(board: &StatusBoard, stalls: &StallBoard) -> Option<(Live, u64)> {
    let served = stalls.served();
    let report = served.report.map(|report| report.run);
    let board = board.board();
    let (_, status) = board.status.as_ref()?;
    let waits = report.as_ref().map(|report| report.ranks.as_slice()).unwrap_or_default();
    let ranks = status.ranks.iter().take(RANKS).map(|rank| {
        let wait = waits.iter().find(|wait| wait.rank == rank.rank && wait.worker == rank.worker);
        RankState {
            rank: rank.rank.0,
            worker: rank.worker.0.clone(),
            host: rank.host.clone(),
            device: rank.device.clone(),
            phase: rank.reported.phase.as_str(),
            phase_ms: rank.reported.phase_ms,
            owes: wait.and_then(|wait| wait.owes.clone()),
            slots: rank.decode_slots,
            slots_in_use: rank.reported.slots_in_use,
            outstanding_rollouts: rank.outstanding_rollouts,
            tokens_per_second: board.rates.get(&rank.worker).and_then(Rate::per_second),
            generated_tokens: rank.reported.generated_tokens,
            silent_ms: wait.and_then(|wait| wait.silent_ms).map(|ms| ms + served.age_ms),
            resident_bytes: rank.reported.resident_bytes,
            device_bytes: rank.reported.device_bytes,
        }
    });
    let live = Live {
        phase: status.phase.as_str(),
        during: status.phase.to_string(),
        phase_ms: report.as_ref().map_or(0, |report| report.for_ms + served.age_ms),
        waiting_for: status.waiting_for.clone(),
        policy_version: status.policy_version.0,
        epoch: status.epoch.0,
        epoch_stands: status.epoch_stands,
        free_slots: status.free_slots,
        outstanding_rollouts: status.outstanding_rollouts,
        queued_rollouts: status.queued_rollouts,
        epochs_failed: status.epochs_failed,
        rollouts_redone: status.rollouts_redone,
        disagreements: status.disagreements,
        waiting_ms: status.waiting_ms,
        stalls: report.as_ref().map_or(0, |report| report.stalls.len()),
        warnings: alerts::seen(),
        ranks: ranks.collect(),
        more_ranks: status.ranks.len().saturating_sub(RANKS),
        workers_without_rank: status.waiting_workers.iter().take(RANKS).map(ToString::to_string).collect(),
    };
    Some((live, status.steps_done.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_a_second_are_those_of_the_last_half_minute() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        rate.add(at(0), 1_000);
        assert_eq!(rate.per_second(), None);
        rate.add(at(10), 2_000);
        assert_eq!(rate.per_second(), Some(100.0));
        for second in 11..=40 {
            rate.add(at(second), 2_000);
        }
        // 1,000 tokens between 0 s and 40 s, of which the window still begins with the last count before.
        assert!(rate.0.len() <= 4 && rate.per_second() < Some(26.0), "{rate:?}");
        rate.add(at(41), 5);
        assert_eq!(rate.per_second(), None);
    }
}
