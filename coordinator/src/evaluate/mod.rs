//! What judged answers to held-out problems say about a policy.
//!
//! In: each problem's answers with their verdicts ([`ProblemRow`]). Out: for each data set pass@k (unbiased), maj@k, lengths,
//! finish reasons, with bootstrap intervals over problems ([`Evaluation`]), and a file of its answers (`file`).

mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use g2rl_common::bootstrap::{BootstrapOptions, Interval, mean_interval};
use g2rl_common::config::EvaluationConfig;
use serde_json::{Map, Value, json};

pub(crate) use self::file::write;
pub use self::file::{AnswerRow, ProblemRow, path, read};

/// A data set of held-out problems: its name, and its place among the problems of all sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOutSet {
    /// As it is configured.
    pub name: String,
    /// Indices of its problems.
    pub problems: Range<usize>,
}

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
    pub finish_reasons: BTreeMap<String, u64>,
}

impl Evaluation {
    /// A score by its name.
    #[must_use]
    pub fn score(&self, name: &str) -> Option<Score> {
        self.scores.iter().find(|(n, _)| n == name).map(|(_, score)| *score)
    }

    /// The quantities beside the scores: the names of the metrics, without their prefix.
    pub(crate) fn means(&self) -> [(&'static str, Score); 3] {
        [
            ("response_length_mean", self.length),
            ("reward_score_mean", self.reward_score),
            ("distinct_correct_mean", self.distinct_correct),
        ]
    }

    /// What is drawn over the evaluations of a run: scores by their names, such as `pass@8`, and the means.
    pub(crate) fn values(&self) -> Vec<(String, f64)> {
        let scores = self.scores.iter().map(|(name, score)| (name.clone(), score.mean));
        scores.chain(self.means().map(|(name, score)| (name.to_owned(), score.mean))).collect()
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

/// The answers of one data set to scores.
#[must_use]
pub fn evaluate(set: &str, rows: &[ProblemRow], options: &EvaluationConfig, seed: u64) -> Evaluation {
    let bootstrap = BootstrapOptions { seed, ..BootstrapOptions::default() };
    let over_problems = |f: &dyn Fn(&ProblemRow) -> Option<f64>| -> Option<Score> {
        let values: Vec<f64> = rows.iter().filter_map(f).collect();
        mean_interval(&values, &bootstrap).map(Score::from)
    };
    let score = |name: String| over_problems(&|row| row.score(&name)).map(|score| (name.clone(), score));
    let mut finish_reasons = BTreeMap::new();
    for answer in rows.iter().flat_map(|row| &row.answers) {
        *finish_reasons.entry(answer.finish_reason.clone()).or_default() += 1;
    }
    Evaluation {
        set: set.to_owned(),
        problems: rows.len(),
        samples: options.samples,
        scores: options.score_names().into_iter().filter_map(score).collect(),
        length: over_problems(&|row| row.mean(|answer| answer.tokens as f64)).unwrap_or_default(),
        distinct_correct: over_problems(&|row| Some(row.distinct_correct() as f64)).unwrap_or_default(),
        reward_score: over_problems(&|row| row.mean(|answer| answer.score)).unwrap_or_default(),
        finish_reasons,
    }
}

#[cfg(test)]
mod tests {
    use super::file::tests::answer;
    use super::*;
    use crate::shell::Kept;

    #[test]
    fn scores_lengths_and_reasons_of_two_problems() {
        let row = |id: &str, kept: &[Kept]| ProblemRow::new(id, kept).unwrap();
        let rows = [
            row("a", &[answer(2, true, "4"), answer(4, true, "2+2"), answer(9, false, "5")]),
            row("b", &[answer(1, false, "1"), answer(1, false, "1"), answer(1, true, "2")]),
        ];
        let options: EvaluationConfig = toml::from_str("data = 'd'\nsamples = 3\nk = [3, 1]").unwrap();
        let found = evaluate("test", &rows, &options, 1);
        let mean = |name: &str| found.score(name).unwrap().mean;
        // 2/3 and 1/3; both have a right answer; three answers tie in a, two of three are right; b votes for 1.
        assert!((mean("pass@1") - 0.5).abs() < 1e-12);
        assert_eq!(mean("pass@3"), 1.0);
        assert!((mean("maj@3") - (2.0 / 3.0) / 2.0).abs() < 1e-12);
        // (15 / 3 + 1) / 2 tokens, and the interval is between the two problems.
        assert_eq!((found.length.mean, found.length.interval), (3.0, [1.0, 5.0]));
        assert_eq!(found.distinct_correct.mean, 1.5);
        assert_eq!(
            found.finish_reasons,
            BTreeMap::from([("end_token".to_owned(), 5), ("length".to_owned(), 1)])
        );
        assert_eq!(found.json()["mean_length_interval"], json!([1.0, 5.0]));
    }
}
