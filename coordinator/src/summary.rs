//! What a run says of itself: numbers of each step, and the table at the end.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use g2rl_common::config::RunConfig;
use g2rl_common::geometry::PairStatistics;
use g2rl_common::ids::{GroupEpoch, StepIndex};
use serde_json::{Map, Value, json};

use crate::evaluate::{Evaluation, Score};
use crate::shaping::{GroupOutcome, RolloutOutcome};
use crate::state::{Recovery, StepRecord};

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
    /// Response tokens a second, over the time of the rollouts.
    pub tokens_per_s: f64,
    /// Seconds of the whole step.
    pub seconds: f64,
}

/// Collects what the end of a run reports.
#[derive(Debug)]
pub struct Results {
    steps: u64,
    last: VecDeque<(StepIndex, Option<PairStatistics>)>,
    evaluations: Vec<(StepIndex, Evaluation)>,
    recoveries: Vec<Value>,
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u64), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

impl Results {
    pub(crate) fn new(config: &RunConfig) -> Self {
        let steps = config.run.steps;
        Self { steps, last: VecDeque::new(), evaluations: Vec::new(), recoveries: Vec::new() }
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
        let rollout_s = times.rollout_ms.max(1) as f64 / 1e3;
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
            tokens_per_s: record.response_tokens as f64 / rollout_s,
            seconds: (times.rollout_ms + times.shaping_ms + times.update_ms) as f64 / 1e3,
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
    pub(crate) fn evaluation(&mut self, step: StepIndex, evaluation: Evaluation) {
        self.evaluations.push((step, evaluation));
    }

    /// The last evaluation.
    #[must_use]
    pub fn latest(&self) -> Option<&Evaluation> {
        self.evaluations.last().map(|(_, evaluation)| evaluation)
    }

    /// The pairs of the last steps.
    fn geometry(&self) -> Option<PairStatistics> {
        self.last.iter().filter_map(|(_, pairs)| pairs.as_ref()).fold(None, |sum, pairs| {
            let mut sum: PairStatistics = sum.unwrap_or_default();
            sum.merge(pairs);
            Some(sum)
        })
    }

    fn before_and_after(&self) -> (Option<&Evaluation>, Option<&Evaluation>) {
        let before = self.evaluations.first().filter(|(step, _)| step.0 == 0 || self.evaluations.len() > 1);
        let after = self.evaluations.last().filter(|(step, _)| step.0 > 0 || self.steps == 0);
        (before.map(|(_, e)| e), after.map(|(_, e)| e))
    }

    /// The object of `summary.json`.
    #[must_use]
    pub fn json(&self, steps: u64, seconds: f64) -> Value {
        let (before, after) = self.before_and_after();
        let geometry = self.geometry();
        let share = |f: fn(&PairStatistics) -> Option<f64>| geometry.as_ref().and_then(f);
        json!({
            "before": before.map(scores),
            "after": after.map(scores),
            "mean_cosine": share(PairStatistics::mean_cosine),
            "mean_cosine_without_duplicates": share(PairStatistics::mean_distinct_cosine),
            "negative_pair_ratio": share(PairStatistics::negative_ratio),
            "orthogonal_pair_ratio": share(PairStatistics::orthogonal_ratio),
            "duplicate_ratio": share(PairStatistics::duplicate_ratio),
            "distinct_problems": after.or(before).map(|evaluation| evaluation.problems),
            "recoveries": self.recoveries,
            "steps": steps,
            "seconds": seconds,
        })
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, dir: &Path, steps: u64, seconds: f64) -> std::io::Result<()> {
        std::fs::write(dir.join("summary.json"), format!("{:#}\n", self.json(steps, seconds)))
    }

    /// The tables a person reads at the end.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        if let (before, Some(after)) = self.before_and_after() {
            let mut table = Table::new();
            let title = format!("{} problems, {} answers each", after.problems, after.samples);
            let before = before.filter(|before| !std::ptr::eq(*before, after));
            let headers: &[&str] = if before.is_some() { &["before", "after", "change"] } else { &["score"] };
            table.load_preset(presets::UTF8_FULL_CONDENSED);
            table.set_header([title.as_str()].iter().chain(headers));
            for (name, score) in &after.scores {
                let mut cells = vec![name.clone()];
                if let Some(old) = before.and_then(|before| before.score(name)) {
                    cells.push(percent(old));
                    cells.push(percent(*score));
                    cells.push(format!("{:+.1}", 100.0 * (score.mean - old.mean)));
                } else {
                    cells.push(percent(*score));
                }
                table.add_row(cells);
            }
            for column in 1..=headers.len() {
                if let Some(column) = table.column_mut(column) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{table}\nPer cent, with 95 % bootstrap intervals over problems.");
        }
        if let Some(pairs) = self.geometry() {
            let mut table = Table::new();
            table.load_preset(presets::UTF8_FULL_CONDENSED);
            table.set_header(["pairs inside groups, last fifth of the steps", ""]);
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
            for (name, value) in [
                ("mean gradient cosine", number(pairs.mean_cosine())),
                ("mean gradient cosine without identical responses", number(pairs.mean_distinct_cosine())),
                ("negative pair rate (S < 0)", number(pairs.negative_ratio())),
                ("orthogonal pair rate (|S| < 0.1)", number(pairs.orthogonal_ratio())),
                ("identical responses", number(pairs.duplicate_ratio())),
            ] {
                table.add_row([name.to_owned(), value]);
            }
            let _ = writeln!(text, "{table}");
        }
        text
    }
}

fn percent(score: Score) -> String {
    format!("{:.1} [{:.1}, {:.1}]", 100.0 * score.mean, 100.0 * score.interval[0], 100.0 * score.interval[1])
}

fn scores(evaluation: &Evaluation) -> Value {
    let mut object = Map::new();
    for (name, score) in &evaluation.scores {
        object.insert(name.clone(), json!(score.mean));
        object.insert(format!("{name}_interval"), json!(score.interval));
    }
    object.insert("mean_length".into(), json!(evaluation.mean_length));
    object.insert("mean_score".into(), json!(evaluation.mean_score));
    object.insert("distinct_correct".into(), json!(evaluation.distinct_correct));
    object.insert("finish_reasons".into(), json!(evaluation.finish_reasons));
    Value::Object(object)
}
