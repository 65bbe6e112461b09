//! What a run left: scores of every evaluation by problem, and the numbers of its summary.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, ensure};
use g2rl_common::ids::StepIndex;
use serde_json::Value;

use super::config::PlannedRun;
use crate::evaluate::{self, ProblemRow};

/// Scores of one evaluation: for each problem, in order of their ids, one number for each measure.
pub(crate) type Measured = BTreeMap<String, Vec<f64>>;

/// What is measured of every problem besides the scores that are asked for.
pub(crate) const MEASURES: [&str; 2] = ["distinct right answers", "response length, tokens"];

/// A completed run.
#[derive(Debug, Clone)]
pub struct RunResult {
    /// Which one.
    pub run: PlannedRun,
    /// By completed steps; the numbers of a problem are those of the scores, then of [`MEASURES`].
    pub(super) evaluations: BTreeMap<u64, Measured>,
    /// `summary.json`.
    pub(super) summary: Value,
    /// Rollouts of training.
    pub(super) rollouts: u64,
}

/// Whether a run has come to its end.
pub(crate) fn is_complete(dir: &Path) -> bool {
    summary(dir).is_ok_and(|summary| summary["outcome"] == "completed")
}

fn summary(dir: &Path) -> anyhow::Result<Value> {
    let path = dir.join("summary.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Scores of all evaluations of a run by completed steps: on the first data set.
///
/// # Errors
/// If a file is not what it should be or lacks a score; names it.
pub(crate) fn evaluations(dir: &Path, scores: &[String]) -> anyhow::Result<BTreeMap<u64, Measured>> {
    let folder = evaluate::path(dir, StepIndex(0), None);
    let folder = folder.parent().expect("evaluations lie in a folder");
    let mut evaluations = BTreeMap::new();
    for entry in folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))? {
        // Those of further data sets have a name behind the step.
        let name = entry?.file_name().to_string_lossy().into_owned();
        let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".jsonl"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            let rows = evaluate::read(&evaluate::path(dir, StepIndex(step), None))?;
            evaluations.insert(step, measured(&rows, scores)?);
        }
    }
    Ok(evaluations)
}

impl RunResult {
    /// Reads a completed run.
    ///
    /// # Errors
    /// If a file is not there or not what it should be; names it.
    pub fn read(run: &PlannedRun, scores: &[String]) -> anyhow::Result<Self> {
        let summary = summary(&run.dir)?;
        let evaluations = evaluations(&run.dir, scores)?;
        ensure!(!evaluations.is_empty(), "{} holds no evaluation", run.dir.display());
        let rollouts = crate::journal::rollouts(&run.dir)?;
        Ok(Self { run: run.clone(), evaluations, summary, rollouts })
    }

    /// The last evaluation.
    pub(super) fn last(&self) -> &Measured {
        self.evaluations.values().next_back().expect("a run that was read has evaluations")
    }

    /// A number of the summary.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.summary[key].as_f64()
    }
}

fn measured(rows: &[ProblemRow], scores: &[String]) -> anyhow::Result<Measured> {
    let numbers = |row: &ProblemRow| -> Option<Vec<f64>> {
        let mut numbers: Vec<f64> = scores.iter().map(|name| row.score(name)).collect::<Option<_>>()?;
        numbers.push(row.distinct_correct() as f64);
        numbers.push(row.mean(|answer| answer.tokens as f64)?);
        Some(numbers)
    };
    let of = |row: &ProblemRow| -> anyhow::Result<(String, Vec<f64>)> {
        let numbers = numbers(row).with_context(|| format!("problem {} has too few answers", row.id))?;
        Ok((row.id.clone(), numbers))
    };
    rows.iter().map(of).collect()
}
