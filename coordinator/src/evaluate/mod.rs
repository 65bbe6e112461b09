//! What judged answers to held-out problems say about a policy.
//!
//! In: each problem's answers with their verdicts. Out: for each data set pass@k (unbiased), maj@k, lengths,
//! finish reasons, with bootstrap intervals over problems ([`Evaluation`]), and a file of its answers (`file`).

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use g2rl_common::bootstrap::{BootstrapOptions, Interval, mean_interval};
use g2rl_common::config::EvaluationConfig;
use g2rl_common::passk::{majority_at_k, pass_at_k};
use serde_json::{Map, Value, json};

pub(crate) use self::file::write;
pub use self::file::{AnswerRow, ProblemRow, path, read};
use crate::shell::Kept;

/// A data set of held-out problems: its name, and its place among the problems of all sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOutSet {
    /// As it is configured.
    pub name: String,
    /// Indices of its problems.
    pub problems: Range<usize>,
}

/// A problem's id and its answers.
pub(crate) type Judged = (String, Vec<Kept>);

/// One measured quantity with its 95 % interval over problems.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Score {
    /// Mean over problems.
    pub mean: f64,
    /// Lower and upper end.
    pub interval: [f64; 2],
}

impl From<Interval> for Score {
    fn from(interval: Interval) -> Self {
        Self { mean: interval.mean, interval: [interval.low, interval.high] }
    }
}

/// The result of an evaluation on one data set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Name of the data set.
    pub set: String,
    /// Number of problems that were answered.
    pub problems: usize,
    /// Answers for each.
    pub samples: u32,
    /// See [`EvaluationConfig::score_names`].
    pub scores: Vec<(String, Score)>,
    /// Response length, tokens.
    pub length: Score,
    /// Number of distinct right answers of a problem.
    pub distinct_correct: Score,
    /// Score of the answers, in [0, 1].
    pub reward_score: Score,
    /// How responses ended.
    pub finish_reasons: BTreeMap<&'static str, u64>,
}

impl Evaluation {
    /// A score by its name.
    #[must_use]
    pub fn score(&self, name: &str) -> Option<Score> {
        self.scores.iter().find(|(n, _)| n == name).map(|(_, score)| *score)
    }

    /// Everything, by name, for `summary.json`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        let more = [
            ("mean_length", self.length),
            ("mean_score", self.reward_score),
            ("distinct_correct", self.distinct_correct),
        ];
        let scores = self.scores.iter().map(|(name, score)| (name.as_str(), *score));
        for (name, score) in scores.chain(more) {
            object.insert(name.to_owned(), json!(score.mean));
            object.insert(format!("{name}_interval"), json!(score.interval));
        }
        object.insert("finish_reasons".into(), json!(self.finish_reasons));
        object.insert("problems".into(), json!(self.problems));
        Value::Object(object)
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  ", self.set)?;
        for (name, score) in &self.scores {
            write!(f, "{name} {:.1} %  ", 100.0 * score.mean)?;
        }
        write!(f, "({} problems, {} answers each)", self.problems, self.samples)
    }
}

fn correct_flags(kept: &[Kept]) -> Vec<bool> {
    kept.iter().map(Kept::correct).collect()
}

fn canonical(kept: &[Kept]) -> Vec<Option<String>> {
    kept.iter().map(|k| k.verdict().and_then(|v| v.canonical.clone())).collect()
}

/// Mean of a quantity over answers; `None` without answers.
fn mean(kept: &[Kept], quantity: impl Fn(&Kept) -> f64) -> Option<f64> {
    (!kept.is_empty()).then(|| kept.iter().map(quantity).sum::<f64>() / kept.len() as f64)
}

/// Judged answers of one data set to scores.
pub(crate) fn evaluate(set: &str, judged: &[Judged], options: &EvaluationConfig, seed: u64) -> Evaluation {
    let bootstrap = BootstrapOptions { seed, ..BootstrapOptions::default() };
    let over_problems = |f: &dyn Fn(&[Kept]) -> Option<f64>| -> Option<Score> {
        let values: Vec<f64> = judged.iter().filter_map(|(_, kept)| f(kept)).collect();
        mean_interval(&values, &bootstrap).map(Score::from)
    };
    let score = |name: &str| {
        let (kind, k) = name.split_once('@')?;
        let k: u32 = k.parse().ok()?;
        match kind {
            "pass" => over_problems(&|kept| {
                let correct = correct_flags(kept).iter().filter(|c| **c).count() as u64;
                pass_at_k(kept.len() as u64, correct, k.into())
            }),
            _ => over_problems(&|kept| majority_at_k(&canonical(kept), &correct_flags(kept), k as usize)),
        }
    };
    let scores = options.score_names().into_iter().filter_map(|name| Some((name.clone(), score(&name)?)));
    let distinct = |kept: &[Kept]| {
        let right = kept.iter().filter_map(Kept::verdict).filter(|v| v.correct);
        Some(right.filter_map(|v| v.canonical.as_deref()).collect::<BTreeSet<_>>().len() as f64)
    };
    let length = |kept: &[Kept]| mean(kept, |k| k.rollout.response_tokens.len() as f64);
    let mut finish_reasons = BTreeMap::new();
    for kept in judged.iter().flat_map(|(_, kept)| kept) {
        *finish_reasons.entry(kept.rollout.finish_reason.as_str()).or_default() += 1;
    }
    Evaluation {
        set: set.to_owned(),
        problems: judged.len(),
        samples: options.samples,
        scores: scores.collect(),
        length: over_problems(&length).unwrap_or_default(),
        distinct_correct: over_problems(&distinct).unwrap_or_default(),
        reward_score: over_problems(&|kept| mean(kept, Kept::score)).unwrap_or_default(),
        finish_reasons,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use g2rl_common::ids::{GroupId, PolicyVersion, RolloutId};
    use g2rl_common::rollout::{FinishReason, Rollout};

    use super::*;
    use crate::reward::Verdict;

    /// An answer of so many tokens.
    pub(super) fn answer(tokens: usize, correct: bool, canonical: &str) -> Kept {
        let rollout = Rollout {
            id: RolloutId { group: GroupId(0), index: 0 },
            policy_version: PolicyVersion(0),
            prompt_tokens: vec![1],
            response_tokens: vec![2; tokens],
            behavior_logprobs: vec![-0.1; tokens],
            mean_entropy: 0.1,
            text: canonical.to_owned(),
            finish_reason: if tokens < 9 { FinishReason::EndToken } else { FinishReason::Length },
            feature: None,
        };
        let canonical = Some(canonical.to_owned());
        let verdict = Verdict { correct, extracted: canonical.clone(), canonical, reason: String::new() };
        Kept { rollout: Arc::new(rollout), judgement: Some(verdict.into()) }
    }

    #[test]
    fn scores_lengths_and_reasons_of_two_problems() {
        let judged = [
            ("a".to_owned(), vec![answer(2, true, "4"), answer(4, true, "2+2"), answer(9, false, "5")]),
            ("b".to_owned(), vec![answer(1, false, "1"), answer(1, false, "1"), answer(1, true, "2")]),
        ];
        let options: EvaluationConfig = toml::from_str("data = 'd'\nsamples = 3\nk = [3, 1]").unwrap();
        let found = evaluate("test", &judged, &options, 1);
        let mean = |name: &str| found.score(name).unwrap().mean;
        // 2/3 and 1/3; both have a right answer; three answers tie in a, two of three are right; b votes for 1.
        assert!((mean("pass@1") - 0.5).abs() < 1e-12);
        assert_eq!(mean("pass@3"), 1.0);
        assert!((mean("maj@3") - (2.0 / 3.0) / 2.0).abs() < 1e-12);
        // (15 / 3 + 1) / 2 tokens, and the interval is between the two problems.
        assert_eq!((found.length.mean, found.length.interval), (3.0, [1.0, 5.0]));
        assert_eq!(found.distinct_correct.mean, 1.5);
        assert_eq!(found.finish_reasons, BTreeMap::from([("end_token", 5), ("length", 1)]));
        assert_eq!(found.json()["mean_length_interval"], json!([1.0, 5.0]));
    }
}
