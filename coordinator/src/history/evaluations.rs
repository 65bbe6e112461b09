//! The journal's rows of evaluations.

use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;

use super::steps::unreadable;

/// A score with its 95 % interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ScoreRow {
    pub(crate) score: String,
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// An evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EvaluationRow {
    /// Training steps before it.
    pub(crate) step: u64,
    pub(crate) problems: u64,
    pub(crate) samples: u64,
    pub(crate) scores: Vec<ScoreRow>,
}

impl EvaluationRow {
    pub(crate) fn score(&self, name: &str) -> Option<&ScoreRow> {
        self.scores.iter().find(|score| score.score == name)
    }
}

/// All evaluations of a run, in their order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Evaluations(pub(crate) Vec<EvaluationRow>);

impl Evaluations {
    /// # Errors
    /// If the journal cannot be read; names the file.
    pub(crate) fn read(db: &Connection, dir: &Path) -> anyhow::Result<Self> {
        let read = || -> rusqlite::Result<Self> {
            let mut query = db.prepare(
                "SELECT step, score, mean, low, high, problems, samples FROM evaluation
                 WHERE mean IS NOT NULL ORDER BY step, rowid",
            )?;
            let mut rows = query.query([])?;
            let mut all: Vec<EvaluationRow> = Vec::new();
            while let Some(row) = rows.next()? {
                let step: u64 = row.get(0)?;
                if all.last().is_none_or(|last| last.step != step) {
                    let (problems, samples) = (row.get(5)?, row.get(6)?);
                    all.push(EvaluationRow { step, problems, samples, scores: Vec::new() });
                }
                let mean: f64 = row.get(2)?;
                let end = |at: usize| row.get::<_, Option<f64>>(at).map(|end| end.unwrap_or(mean));
                let score = ScoreRow { score: row.get(1)?, mean, low: end(3)?, high: end(4)? };
                if let Some(last) = all.last_mut() {
                    last.scores.push(score);
                }
            }
            Ok(Self(all))
        };
        read().map_err(|error| unreadable(dir, &error))
    }

    /// The score that evaluations are compared by: pass@1, or the first there is.
    pub(crate) fn main_score(&self) -> Option<&str> {
        let last = self.0.last()?;
        let main = last.score("pass@1").or_else(|| last.scores.first())?;
        Some(&main.score)
    }

    pub(crate) fn first(&self) -> Option<&EvaluationRow> {
        self.0.first()
    }

    pub(crate) fn last(&self) -> Option<&EvaluationRow> {
        self.0.last()
    }

    /// The one with the highest main score; the earliest of equals.
    pub(crate) fn best(&self) -> Option<&EvaluationRow> {
        let main = self.main_score()?;
        let value = |row: &&EvaluationRow| row.score(main).map_or(f64::NEG_INFINITY, |score| score.mean);
        self.0.iter().rev().max_by(|a, b| value(a).total_cmp(&value(b)))
    }
}
