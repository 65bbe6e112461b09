//! What the view knows of a run.
//!
//! In: steps, evaluations, statuses, stalls and warnings, as they come. Out: the numbers that `layout` arranges.
//! Must not know: how wide the terminal is, how anything looks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use g2rl_common::algorithm;
use g2rl_common::config::RunConfig;
use g2rl_common::geometry::PairStatistics;
use g2rl_common::ids::{StepIndex, WorkerId};

use super::curve::Curve;
use crate::alerts::Alert;
use crate::evaluate::Evaluation;
use crate::state::{Millis, RunPhase, RunStatus, Stall, StepRecord, StepTimes};
use crate::summary::StepSummary;

/// Steps whose pace gives the time left.
const PACE_STEPS: usize = 32;

/// Time over which a rank's tokens are counted, milliseconds.
const RATE_WINDOW_MS: u64 = 30_000;

/// A rank of the epoch, or one that is being formed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct RankLine {
    pub(super) rank: u64,
    pub(super) worker: String,
    pub(super) state: &'static str,
    pub(super) slots_in_use: u32,
    pub(super) slots: u32,
    /// Over the last half minute.
    pub(super) tokens_per_s: Option<f64>,
    /// Since its last message.
    pub(super) heard_ms: u64,
}

/// A score of the last evaluation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LastScore {
    pub(super) name: String,
    pub(super) mean: f64,
    pub(super) step: u64,
}

/// The values that are drawn over the steps.
#[derive(Debug, Clone, Default)]
pub(super) struct Curves {
    pub(super) reward: Curve,
    pub(super) correct: Curve,
    pub(super) loss: Curve,
    pub(super) length: Curve,
    pub(super) entropy: Curve,
    pub(super) kl: Curve,
    pub(super) novelty: Curve,
    pub(super) orthogonal: Curve,
    pub(super) negative: Curve,
    pub(super) score: Curve,
}

/// Where the time of the last steps went, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) rollout: u64,
    /// From the last rollout to the last advantage.
    pub(super) reward: u64,
    pub(super) update: u64,
    /// All else: evaluations, checkpoints, ranks that were lost.
    pub(super) wait: u64,
}

impl Split {
    pub(super) fn all(&self) -> u64 {
        self.rollout + self.reward + self.update + self.wait
    }
}

/// See the module's documentation. Times are since the view was opened.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) method: String,
    pub(super) model: String,
    pub(super) steps: u64,
    pub(super) imitates: bool,
    pub(super) has_reference: bool,
    pub(super) rollouts_per_step: u64,
    pub(super) done: u64,
    pub(super) phase: String,
    pub(super) phase_ms: u64,
    /// Rollouts that are back and all of the phase, while it generates some.
    pub(super) rollouts: Option<(u64, u64)>,
    /// What a phase without rollouts waits for.
    pub(super) waiting_for: String,
    pub(super) waiting_workers: usize,
    pub(super) curves: Curves,
    pub(super) score: Option<LastScore>,
    pub(super) tokens_per_s: Option<f64>,
    pub(super) ranks: Vec<RankLine>,
    pub(super) stalls: Vec<String>,
    pub(super) alert: Option<Alert>,
    rates: BTreeMap<WorkerId, VecDeque<(Millis, u64)>>,
    /// When steps were completed, and where their time went.
    pace: VecDeque<(Duration, StepTimes)>,
}

impl Model {
    pub(super) fn new(config: &RunConfig) -> Self {
        let algorithm = algorithm::build(&config.algorithm);
        Self {
            name: config.run.name.clone(),
            method: algorithm.name().to_owned(),
            model: short(&config.model.path),
            steps: config.run.steps,
            imitates: !algorithm.needs_rollouts(),
            has_reference: config.objective.needs_reference(),
            rollouts_per_step: u64::from(config.rollout.prompts_per_step)
                * u64::from(config.rollout.group_size),
            ..Self::default()
        }
    }

    pub(super) fn step(&mut self, record: &StepRecord, step: &StepSummary, at: Duration) {
        self.done = record.step.0 + 1;
        let (stats, pairs, curves) = (&record.stats, step.pairs.as_ref(), &mut self.curves);
        for (curve, value) in [
            (&mut curves.reward, Some(step.reward)),
            (&mut curves.correct, Some(step.correct)),
            (&mut curves.loss, Some(stats.loss)),
            (&mut curves.length, Some(step.length)),
            (&mut curves.entropy, Some(stats.per_token(stats.entropy))),
            (&mut curves.kl, Some(stats.per_token(stats.kl)).filter(|_| self.has_reference)),
            (&mut curves.novelty, pairs.and(step.novelty)),
            (&mut curves.orthogonal, pairs.and_then(PairStatistics::orthogonal_ratio)),
            (&mut curves.negative, pairs.and_then(PairStatistics::negative_ratio)),
        ] {
            if let Some(value) = value {
                curve.push(value);
            }
        }
        self.tokens_per_s = Some(step.tokens_per_s);
        self.pace.push_back((at, record.times));
        if self.pace.len() > PACE_STEPS + 1 {
            self.pace.pop_front();
        }
    }

    pub(super) fn evaluation(&mut self, step: StepIndex, evaluation: &Evaluation) {
        let main = evaluation.scores.iter().find(|(name, _)| name == "pass@1").or(evaluation.scores.first());
        if let Some((name, score)) = main {
            self.curves.score.push(score.mean);
            self.score = Some(LastScore { name: name.clone(), mean: score.mean, step: step.0 });
        }
    }

    pub(super) fn status(&mut self, status: &RunStatus, now: Millis) {
        let phase = phase(status.phase);
        let left = u64::from(status.queued_rollouts) + u64::from(status.outstanding_rollouts);
        let before = self.rollouts.filter(|_| phase == self.phase).map_or(0, |(_, all)| all);
        self.rollouts = match status.phase {
            RunPhase::Rollout(_) => Some(self.rollouts_per_step.max(left).max(before)),
            // How many there are is not said; all are left at first.
            RunPhase::Evaluation(_) => Some(left.max(before)),
            _ => None,
        }
        .map(|all| (all - left, all));
        self.done = status.steps_done.0;
        self.phase = phase;
        self.phase_ms = now.0.saturating_sub(status.since.0);
        self.waiting_for.clone_from(&status.waiting_for);
        self.waiting_workers = status.waiting_workers.len();
        self.rates.retain(|worker, _| status.ranks.iter().any(|rank| rank.worker == *worker));
        self.ranks = status
            .ranks
            .iter()
            .map(|rank| {
                let rates = self.rates.entry(rank.worker.clone()).or_default();
                RankLine {
                    rank: rank.rank.0.into(),
                    worker: rank.worker.to_string(),
                    state: rank.reported.phase.as_str(),
                    slots_in_use: rank.reported.slots_in_use,
                    slots: rank.decode_slots,
                    tokens_per_s: rate(rates, now, rank.reported.generated_tokens),
                    heard_ms: now.0.saturating_sub(rank.last_seen.0),
                }
            })
            .collect();
    }

    pub(super) fn stalls(&mut self, stalls: &[Stall]) {
        let line = |stall: &Stall| {
            format!("{}: nothing moves for {:.0} s: {}", stall.who, stall.for_ms as f64 / 1e3, stall.what)
        };
        self.stalls = stalls.iter().map(line).collect();
    }

    /// Seconds of a step and seconds left, by the pace of the last steps; `None` before there is one.
    pub(super) fn pace(&self, now: Duration) -> Option<(f64, f64)> {
        let ((first, _), (last, _)) = (self.pace.front()?, self.pace.back()?);
        let each =
            (*last - *first).as_secs_f64() / (self.pace.len().checked_sub(1).filter(|n| *n > 0)? as f64);
        let since = now.saturating_sub(*last).as_secs_f64();
        Some((each, (each * self.steps.saturating_sub(self.done) as f64 - since).max(0.0)))
    }

    /// Where the time of the last steps went.
    pub(super) fn split(&self) -> Option<Split> {
        let ((first, _), (last, _)) = (self.pace.front()?, self.pace.back()?);
        // The time between two completions is that of the later step.
        let counted = if self.pace.len() > 1 { 1 } else { 0 };
        let times = || self.pace.iter().skip(counted).map(|(_, times)| times);
        let mut split = Split {
            rollout: times().map(|times| times.rollout_ms).sum(),
            reward: times().map(|times| times.reward_ms + times.shaping_ms).sum(),
            update: times().map(|times| times.update_ms).sum(),
            wait: 0,
        };
        split.wait = ((*last - *first).as_millis() as u64).saturating_sub(split.all());
        (split.all() > 0).then_some(split)
    }
}

/// A phase for people, who count steps from 1.
fn phase(phase: RunPhase) -> String {
    let step = |step: StepIndex| step.0 + 1;
    match phase {
        RunPhase::Rollout(at) => format!("rollout of step {}", step(at)),
        RunPhase::Gradients(at, minibatch) => {
            format!("gradients of step {}, mini-batch {}", step(at), minibatch.0 + 1)
        }
        RunPhase::Apply(at, minibatch) => {
            format!("optimizer step of step {}, mini-batch {}", step(at), minibatch.0 + 1)
        }
        other => other.to_string(),
    }
}

/// Tokens a second of a rank that has generated `tokens` by now.
fn rate(seen: &mut VecDeque<(Millis, u64)>, now: Millis, tokens: u64) -> Option<f64> {
    // It says so only now and then, and counts from 0 again when it was started again.
    if seen.back().is_none_or(|(_, last)| *last != tokens) {
        if seen.back().is_some_and(|(_, last)| *last > tokens) {
            seen.clear();
        }
        seen.push_back((now, tokens));
    }
    while seen.len() > 2 && seen.get(1).is_some_and(|(at, _)| now.0.saturating_sub(at.0) >= RATE_WINDOW_MS) {
        seen.pop_front();
    }
    let ((from, before), (to, after)) = (seen.front()?, seen.back()?);
    let seconds = to.0.checked_sub(from.0).filter(|ms| *ms > 0)? as f64 / 1e3;
    Some((after - before) as f64 / seconds)
}

/// The last two parts of a path: enough to tell `owner/name` and `demo/model`.
fn short(path: &str) -> String {
    let parts: Vec<&str> = path.trim_end_matches('/').rsplit('/').take(2).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}
