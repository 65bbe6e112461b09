//! The answers of an evaluation on one data set, one problem a line.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use g2rl_common::geometry::{GroupGeometry, token_classes};
use g2rl_common::ids::StepIndex;
use g2rl_common::passk::{majority_at_k, pass_at_k};
use serde::{Deserialize, Serialize};

use crate::shell::Kept;

/// One problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProblemRow {
    /// Its id.
    pub id: String,
    /// Number of answers.
    pub samples: usize,
    /// Right ones.
    pub correct: usize,
    /// The answers, in the order they were asked for.
    pub answers: Vec<AnswerRow>,
    /// For each answer the first one with the same tokens.
    pub duplicate_of: Vec<usize>,
    /// Cosines of the answers' features, row-major `[samples, samples]`; `None` where features are off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<Vec<f32>>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerRow {
    /// What the policy said.
    pub text: String,
    /// Whether it is right.
    pub correct: bool,
    /// What it is worth, in [0, 1].
    pub score: f64,
    /// The answer in it.
    pub extracted: Option<String>,
    /// The same in a normal form.
    pub canonical: Option<String>,
    /// Response tokens.
    pub tokens: usize,
    /// How it ended.
    pub finish_reason: String,
}

impl ProblemRow {
    pub(crate) fn new(id: &str, kept: &[Kept]) -> anyhow::Result<Self> {
        let features: Vec<&[f32]> = kept.iter().filter_map(|k| k.rollout.feature.as_deref()).collect();
        let cosine = match features.len() {
            0 => None,
            _ => {
                let geometry = GroupGeometry::from_features(&features)?;
                Some(geometry.matrix().iter().map(|&cosine| cosine as f32).collect())
            }
        };
        let tokens: Vec<&[u32]> = kept.iter().map(|k| k.rollout.response_tokens.as_slice()).collect();
        Ok(Self {
            id: id.to_owned(),
            samples: kept.len(),
            correct: kept.iter().filter(|k| k.correct()).count(),
            answers: kept.iter().map(AnswerRow::new).collect(),
            duplicate_of: token_classes(&tokens),
            cosine,
        })
    }

    /// `pass@k` or `maj@k`; `None` of other names and without enough answers.
    #[must_use]
    pub fn score(&self, name: &str) -> Option<f64> {
        let (kind, k) = name.split_once('@')?;
        let k: u32 = k.parse().ok()?;
        match kind {
            "pass" => pass_at_k(self.samples as u64, self.correct as u64, k.into()),
            "maj" => {
                let canonical: Vec<Option<&str>> =
                    self.answers.iter().map(|answer| answer.canonical.as_deref()).collect();
                let correct: Vec<bool> = self.answers.iter().map(|answer| answer.correct).collect();
                majority_at_k(&canonical, &correct, k as usize)
            }
            _ => None,
        }
    }

    /// Right answers that differ in their normal form.
    #[must_use]
    pub fn distinct_correct(&self) -> usize {
        let right = self.answers.iter().filter(|answer| answer.correct);
        right.filter_map(|answer| answer.canonical.as_deref()).collect::<BTreeSet<_>>().len()
    }

    /// Mean of a quantity over the answers; `None` without answers.
    #[must_use]
    pub fn mean(&self, quantity: impl Fn(&AnswerRow) -> f64) -> Option<f64> {
        let count = self.answers.len();
        (count > 0).then(|| self.answers.iter().map(quantity).sum::<f64>() / count as f64)
    }
}

impl AnswerRow {
    fn new(kept: &Kept) -> Self {
        let verdict = kept.verdict();
        Self {
            text: kept.rollout.text.clone(),
            correct: kept.correct(),
            score: kept.score(),
            extracted: verdict.and_then(|v| v.extracted.clone()),
            canonical: verdict.and_then(|v| v.canonical.clone()),
            tokens: kept.rollout.response_tokens.len(),
            finish_reason: kept.rollout.finish_reason.as_str().to_owned(),
        }
    }
}

/// The file of a step's evaluation: `evaluations/step-N.jsonl` of the first data set, `step-N-NAME.jsonl` of
/// another.
#[must_use]
pub fn path(dir: &Path, step: StepIndex, another: Option<&str>) -> PathBuf {
    let name = another.map_or(String::new(), |name| format!("-{name}"));
    dir.join("evaluations").join(format!("step-{:06}{name}.jsonl", step.0))
}

/// Writes it aside and renames it, so that a file with its name is complete.
pub(crate) fn write(path: &Path, rows: &[ProblemRow]) -> anyhow::Result<()> {
    let context = || format!("cannot write {} ({} problems)", path.display(), rows.len());
    let aside = path.with_extension("writing");
    let write = || -> anyhow::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        let mut out = std::io::BufWriter::new(std::fs::File::create(&aside)?);
        for row in rows {
            serde_json::to_writer(&mut out, row)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(std::fs::rename(&aside, path)?)
    };
    write().with_context(context)
}

/// Reads such a file.
///
/// # Errors
/// If it cannot be read or a line is not a problem; names file and line.
pub fn read(path: &Path) -> anyhow::Result<Vec<ProblemRow>> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let row = |(at, line): (usize, std::io::Result<String>)| {
        let row: Result<ProblemRow, anyhow::Error> =
            line.map_err(Into::into).and_then(|line| Ok(serde_json::from_str(&line)?));
        row.with_context(|| format!("{}:{}", path.display(), at + 1))
    };
    BufReader::new(file).lines().enumerate().map(row).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use g2rl_common::ids::{GroupId, PolicyVersion, RolloutId};
    use g2rl_common::rollout::{FinishReason, Rollout};

    use super::*;
    use crate::reward::Verdict;

    /// An answer of so many tokens.
    pub(in crate::evaluate) fn answer(tokens: usize, correct: bool, canonical: &str) -> Kept {
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
    fn what_is_written_is_read_with_cosines_and_duplicates() {
        let with = |feature: [f32; 2], tokens| {
            let mut kept = answer(tokens, true, "4");
            Arc::get_mut(&mut kept.rollout).unwrap().feature = Some(feature.to_vec());
            kept
        };
        let kept = [with([2.0, 0.0], 3), with([0.0, 1.0], 2), with([2.0, 0.0], 3)];
        let rows = [ProblemRow::new("a", &kept).unwrap()];
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path(), StepIndex(7), Some("more"));
        write(&path, &rows).unwrap();
        assert!(path.ends_with("evaluations/step-000007-more.jsonl"));
        assert_eq!(read(&path).unwrap(), rows);
        assert_eq!((rows[0].id.as_str(), rows[0].samples, rows[0].correct), ("a", 3, 3));
        assert_eq!(rows[0].duplicate_of, [0, 1, 0]);
        let cosine = rows[0].cosine.as_ref().unwrap();
        assert!((cosine[2] - 1.0).abs() < 1e-6 && cosine[1] == 0.0, "{cosine:?}");
        std::fs::write(&path, "{}\n").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("step-000007-more.jsonl:1"));
    }
}
