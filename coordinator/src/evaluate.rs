//! What judged answers to held-out problems say about a policy.
//!
//! In: each problem's answers with their verdicts. Out: pass@k (unbiased), maj@k, lengths, finish
//! reasons, with bootstrap intervals over problems.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use g2rl_common::bootstrap::{BootstrapOptions, Interval, mean_interval};
use g2rl_common::config::EvaluationConfig;
use g2rl_common::ids::StepIndex;
use g2rl_common::passk::{majority_at_k, pass_at_k};
use serde_json::{Value, json};

use crate::shell::Kept;

/// A problem's id and its answers.
pub(crate) type Judged = (String, Vec<Kept>);

/// One measured quantity with its 95 % interval over problems.
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Number of problems that were answered.
    pub problems: usize,
    /// Answers for each.
    pub samples: u32,
    /// `pass@1`, `pass@8`, `maj@8` and so on, in this order.
    pub scores: Vec<(String, Score)>,
    /// Mean response length, tokens.
    pub mean_length: f64,
    /// Mean number of distinct right answers of a problem.
    pub distinct_correct: f64,
    /// Mean score of the answers, in [0, 1].
    pub mean_score: f64,
    /// How responses ended.
    pub finish_reasons: BTreeMap<&'static str, u64>,
}

impl Evaluation {
    /// The means of an evaluation: the names of the metrics, without their prefix.
    pub(crate) fn means(&self) -> [(&'static str, f64); 3] {
        [
            ("response_length_mean", self.mean_length),
            ("reward_score_mean", self.mean_score),
            ("distinct_correct_mean", self.distinct_correct),
        ]
    }

    /// What is drawn over the evaluations of a run: scores by their names, such as `pass@8`, and the means.
    pub(crate) fn values(&self) -> Vec<(String, f64)> {
        let scores = self.scores.iter().map(|(name, score)| (name.clone(), score.mean));
        scores.chain(self.means().map(|(name, value)| (name.to_owned(), value))).collect()
    }

    /// A score by its name.
    #[must_use]
    pub fn score(&self, name: &str) -> Option<Score> {
        self.scores.iter().find(|(n, _)| n == name).map(|(_, score)| *score)
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// Judged answers to scores.
pub(crate) fn evaluate(judged: &[Judged], options: &EvaluationConfig, seed: u64) -> Evaluation {
    let bootstrap = BootstrapOptions { seed, ..BootstrapOptions::default() };
    let over_problems = |f: &dyn Fn(&[Kept]) -> Option<f64>| -> Option<Score> {
        let values: Vec<f64> = judged.iter().filter_map(|(_, kept)| f(kept)).collect();
        mean_interval(&values, &bootstrap).map(Score::from)
    };
    let mut ks = options.k.clone();
    ks.sort_unstable();
    ks.dedup();
    let pass = |k: u32| {
        over_problems(&|kept| {
            let correct = correct_flags(kept).iter().filter(|c| **c).count() as u64;
            pass_at_k(kept.len() as u64, correct, k.into())
        })
    };
    let majority =
        |k: u32| over_problems(&|kept| majority_at_k(&canonical(kept), &correct_flags(kept), k as usize));
    let mut scores: Vec<(String, Score)> = Vec::new();
    scores.extend(ks.iter().filter_map(|k| Some((format!("pass@{k}"), pass(*k)?))));
    scores.extend(ks.iter().filter(|k| **k > 1).filter_map(|k| Some((format!("maj@{k}"), majority(*k)?))));

    let distinct = |kept: &[Kept]| {
        let right = kept.iter().filter_map(Kept::verdict).filter(|v| v.correct);
        Some(right.filter_map(|v| v.canonical.as_deref()).collect::<BTreeSet<_>>().len() as f64)
    };
    let score = |kept: &[Kept]| {
        let sum: f64 = kept.iter().map(Kept::score).sum();
        (!kept.is_empty()).then(|| sum / kept.len() as f64)
    };
    let all: Vec<&Kept> = judged.iter().flat_map(|(_, kept)| kept).collect();
    let mut finish_reasons = BTreeMap::new();
    for kept in &all {
        *finish_reasons.entry(kept.rollout.finish_reason.as_str()).or_default() += 1;
    }
    let tokens: usize = all.iter().map(|k| k.rollout.response_tokens.len()).sum();
    Evaluation {
        problems: judged.len(),
        samples: options.samples,
        scores,
        mean_length: tokens as f64 / all.len().max(1) as f64,
        distinct_correct: over_problems(&distinct).map_or(0.0, |score| score.mean),
        mean_score: over_problems(&score).map_or(0.0, |score| score.mean),
        finish_reasons,
    }
}

/// Writes one line a problem to `evaluations/step-N.jsonl`.
pub(crate) fn write(
    dir: &Path,
    step: StepIndex,
    judged: &[Judged],
    evaluation: &Evaluation,
) -> anyhow::Result<()> {
    let path = dir.join("evaluations").join(format!("step-{:06}.jsonl", step.0));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(dir))?;
        let mut out = std::io::BufWriter::new(std::fs::File::create(&path)?);
        for (id, kept) in judged {
            let answers: Vec<Value> = kept
                .iter()
                .map(|k| {
                    let verdict = k.verdict();
                    json!({
                        "text": k.rollout.text,
                        "correct": k.correct(),
                        "score": k.score(),
                        "extracted": verdict.and_then(|v| v.extracted.clone()),
                        "canonical": verdict.and_then(|v| v.canonical.clone()),
                        "tokens": k.rollout.response_tokens.len(),
                        "finish_reason": k.rollout.finish_reason.as_str(),
                    })
                })
                .collect();
            let correct = correct_flags(kept).iter().filter(|c| **c).count();
            let row = json!({"id": id, "samples": kept.len(), "correct": correct, "answers": answers});
            writeln!(out, "{row}")?;
        }
        out.flush()
    };
    write().with_context(|| format!("cannot write {} ({} problems)", path.display(), evaluation.problems))
}
