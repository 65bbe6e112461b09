//! What a run says of itself: numbers of each step, and the table at the end.

pub(crate) mod table;

use std::collections::VecDeque;
use std::path::Path;

use g2rl_common::algorithm;
use g2rl_common::config::RunConfig;
use g2rl_common::geometry::PairStatistics;
use g2rl_common::ids::{GroupEpoch, StepIndex};
use serde_json::{Map, Value, json};

use crate::evaluate::Evaluation;
use crate::shaping::{GroupOutcome, RolloutOutcome};
use crate::state::{Outcome, Recovery, StepRecord};

/// The geometry at the end is that of the last fifth of the steps.
const LAST_SHARE: u64 = 5;

/// Numbers of a completed step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSummary {
    /// Mean base reward.
    pub reward: f64,
    /// Share of right answers.
    pub correct: f64,
    /// Mean score of the answers, in [0, 1].
    pub score: f64,
    /// Mean response length, tokens.
    pub length: f64,
    /// Mean novelty; `None` where features are off.
    pub novelty: Option<f64>,
    /// All pairs inside groups; `None` where features are off.
    pub pairs: Option<PairStatistics>,
    /// Groups whose base rewards are all equal.
    pub equal_reward_groups: usize,
    /// Groups.
    pub groups: usize,
    /// Response tokens a second: generated ones over the time of the rollouts, given ones over the whole step.
    pub tokens_per_s: f64,
    /// Seconds of the whole step.
    pub seconds: f64,
}

impl StepSummary {
    /// What is drawn over the steps of a run: the names of the metrics, without their prefix.
    pub(crate) fn values(&self, record: &StepRecord) -> Vec<(String, f64)> {
        let (stats, first) = (&record.stats, &record.first_minibatch_stats);
        let values = [
            ("tokens_per_second", self.tokens_per_s),
            ("rollout_idle_ratio", record.rollout_idle_ratio),
            ("reward_mean", self.reward),
            ("correct_ratio", self.correct),
            ("score_mean", self.score),
            ("response_length_mean", self.length),
            ("loss", stats.loss),
            ("kl", stats.per_token(stats.kl)),
            ("clip_fraction", stats.per_token(stats.clipped as f64)),
            ("entropy", stats.per_token(stats.entropy)),
            ("gradient_norm", record.gradient_norm),
            ("learning_rate", record.learning_rate),
            ("logprob_drift_mean", first.per_token(first.drift)),
            ("logprob_drift_max", first.drift_max),
        ];
        let pairs = self.pairs.as_ref();
        let geometry = [
            ("cosine_mean", pairs.and_then(PairStatistics::mean_cosine)),
            ("cosine_mean_distinct", pairs.and_then(PairStatistics::mean_distinct_cosine)),
            ("orthogonal_pair_ratio", pairs.and_then(PairStatistics::orthogonal_ratio)),
            ("negative_pair_ratio", pairs.and_then(PairStatistics::negative_ratio)),
            ("duplicate_pair_ratio", pairs.and_then(PairStatistics::duplicate_ratio)),
            ("novelty_mean", pairs.and(self.novelty)),
        ];
        let geometry = geometry.into_iter().filter_map(|(name, value)| Some((name, value?)));
        values.into_iter().chain(geometry).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
/// What was measured after so many steps: one evaluation for each data set.
type Evaluated = (StepIndex, Vec<Evaluation>);

/// Collects what the end of a run reports.
#[derive(Debug)]
pub struct Results {
    steps: u64,
    imitates: bool,
    last: VecDeque<(StepIndex, Option<PairStatistics>)>,
    evaluations: Vec<Evaluated>,
    recoveries: Vec<Value>,
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

impl Results {
    pub(crate) fn new(config: &RunConfig) -> Self {
        Self {
            steps: config.run.steps,
            imitates: !algorithm::build(&config.algorithm).needs_rollouts(),
            last: VecDeque::new(),
            evaluations: Vec::new(),
            recoveries: Vec::new(),
        }
    }

    /// Takes in a completed step.
    pub(crate) fn step(&mut self, record: &StepRecord, outcomes: &[GroupOutcome]) -> StepSummary {
        let rollouts = || outcomes.iter().flat_map(|outcome| &outcome.rollouts);
        let pairs = outcomes.iter().filter_map(|outcome| outcome.pairs.as_ref()).fold(None, |sum, pairs| {
            let mut sum: PairStatistics = sum.unwrap_or_default();
            sum.merge(pairs);
            Some(sum)
        });
        let novelty =
            rollouts().any(|r| r.novelty.is_some()).then(|| mean(rollouts().filter_map(|r| r.novelty)));
        let times = record.times;
        let step_ms = times.rollout_ms + times.reward_ms + times.shaping_ms + times.update_ms;
        let token_ms = if self.imitates { step_ms } else { times.rollout_ms };
        self.last.push_back((record.step, pairs.clone()));
        if self.last.len() as u64 > (self.steps / LAST_SHARE).max(1) {
            self.last.pop_front();
        }
        StepSummary {
            reward: mean(rollouts().map(|r| r.reward)),
            correct: mean(rollouts().map(|r: &RolloutOutcome| f64::from(u8::from(r.correct)))),
            score: mean(rollouts().map(|r| r.score)),
            length: mean(rollouts().map(|r| r.length as f64)),
            novelty,
            pairs,
            equal_reward_groups: outcomes.iter().filter(|outcome| outcome.equal_rewards).count(),
            groups: outcomes.len(),
            tokens_per_s: record.response_tokens as f64 * 1e3 / token_ms.max(1) as f64,
            seconds: step_ms as f64 / 1e3,
        }
    }

    /// Takes in that the run goes on, in this epoch, after one that ended too early.
    pub(crate) fn recovery(&mut self, epoch: GroupEpoch, recovery: Recovery) {
        self.recoveries.push(json!({
            "epoch": epoch.0,
            "phase": recovery.phase.as_str(),
            "cause": recovery.cause,
            "seconds": recovery.duration_ms as f64 / 1e3,
            "rollouts_redone": recovery.rollouts_redone,
        }));
    }

    /// Takes in an evaluation.
    pub(crate) fn evaluation(&mut self, step: StepIndex, evaluations: Vec<Evaluation>) {
        self.evaluations.push((step, evaluations));
    }

    /// The pairs of the last steps.
    fn geometry(&self) -> Option<PairStatistics> {
        self.last.iter().filter_map(|(_, pairs)| pairs.as_ref()).fold(None, |sum, pairs| {
            let mut sum: PairStatistics = sum.unwrap_or_default();
            sum.merge(pairs);
            Some(sum)
        })
    }

    fn before_and_after(&self) -> (Option<&Evaluated>, Option<&Evaluated>) {
        let before = self.evaluations.first().filter(|(step, _)| step.0 == 0 || self.evaluations.len() > 1);
        let after = self.evaluations.last().filter(|(step, _)| step.0 > 0 || self.steps == 0);
        (before, after)
    }

    /// The object of `summary.json`.
    #[must_use]
    pub fn json(&self, outcome: &Outcome, seconds: f64) -> Value {
        let (before, after) = self.before_and_after();
        let geometry = self.geometry();
        let share = |f: fn(&PairStatistics) -> Option<f64>| geometry.as_ref().and_then(f);
        json!({
            "outcome": match outcome {
                Outcome::Completed => "completed",
                Outcome::Stopped => "stopped",
                Outcome::Failed(_) => "failed",
            },
            "before": before.map(scores),
            "after": after.map(scores),
            "mean_cosine": share(PairStatistics::mean_cosine),
            "mean_cosine_without_duplicates": share(PairStatistics::mean_distinct_cosine),
            "negative_pair_ratio": share(PairStatistics::negative_ratio),
            "orthogonal_pair_ratio": share(PairStatistics::orthogonal_ratio),
            "duplicate_ratio": share(PairStatistics::duplicate_ratio),
            "distinct_problems": after.or(before).and_then(|(_, sets)| sets.first()).map(|set| set.problems),
            "recoveries": self.recoveries,
            "steps": self.steps,
            "seconds": seconds,
        })
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, dir: &Path, outcome: &Outcome, seconds: f64) -> std::io::Result<()> {
        std::fs::write(dir.join("summary.json"), format!("{:#}\n", self.json(outcome, seconds)))
    }

    /// The tables a person reads at the end.
    #[must_use]
    pub fn table(&self) -> String {
        let (before, after) = self.before_and_after();
        let scores = after.map(|(at, after)| {
            let before = before.filter(|(earlier, _)| earlier != at);
            table::scores(before.map(|(_, evaluations)| evaluations.as_slice()), after)
        });
        let geometry = self.geometry().map(|pairs| table::geometry(&pairs));
        [scores, geometry].into_iter().flatten().collect()
    }
}

/// The object of an evaluation: the first data set's scores, with those of further ones inside.
fn scores((_, evaluations): &Evaluated) -> Value {
    let Some((first, more)) = evaluations.split_first() else { return Value::Null };
    let mut object = first.json();
    let more: Map<String, Value> = more.iter().map(|e| (e.set.clone(), e.json())).collect();
    if !more.is_empty() {
        object["sets"] = Value::Object(more);
    }
    object
}

#[cfg(test)]
mod tests {
    use g2rl_common::algorithm::AlgorithmKind;
    use g2rl_common::ids::PolicyVersion;
    use g2rl_common::update::UpdateStats;

    use super::*;
    use crate::state::StepTimes;

    #[test]
    fn given_tokens_are_counted_over_the_whole_step() {
        let record = StepRecord {
            step: StepIndex(0),
            policy_version: PolicyVersion(1),
            groups: Vec::new(),
            imitated: Vec::new(),
            stats: UpdateStats::default(),
            first_minibatch_stats: UpdateStats::default(),
            gradient_norm: 1.0,
            learning_rate: 1e-6,
            response_tokens: 6_000,
            rollout_idle_ratio: 0.0,
            times: StepTimes { rollout_ms: 100, reward_ms: 40, shaping_ms: 60, update_ms: 800 },
        };
        for (kind, rate) in [(AlgorithmKind::Grpo, 60_000.0), (AlgorithmKind::Sft, 6_000.0)] {
            let mut config: RunConfig = toml::from_str(include_str!("../../../configs/demo.toml")).unwrap();
            config.algorithm.kind = kind;
            let step = Results::new(&config).step(&record, &[]);
            assert_eq!((step.tokens_per_s, step.seconds), (rate, 1.0), "{kind:?}");
        }
    }
}
