//! What is read of a run: the numbers of its steps, its evaluations, its settings. Nothing of the texts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use g2rl_common::config::{LoadOptions, RunConfig};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::experiment::{self, Measured};
use crate::journal;

/// A number of every training step: a column of the journal's table `step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metric {
    /// The column.
    pub(super) column: &'static str,
    /// The plot's title.
    pub(super) title: &'static str,
    /// What the axis says.
    pub(super) unit: &'static str,
    /// Shares are shown in per cent.
    pub(super) share: bool,
}

const fn metric(column: &'static str, title: &'static str, unit: &'static str, share: bool) -> Metric {
    Metric { column, title, unit, share }
}

/// The curves of training.
pub(super) const METRICS: [Metric; 11] = [
    metric("reward", "Training reward", "mean base reward", false),
    metric("correct", "Share right", "% of rollouts", true),
    metric("length", "Response length", "tokens", false),
    metric("entropy", "Entropy", "nats per token", false),
    metric("kl", "KL to the reference policy", "nats per token", false),
    metric("novelty", "Novelty", "mean, 0 to 1", false),
    metric("negative_ratio", "Negative pairs", "% of pairs, cosine < 0", true),
    metric("orthogonal_ratio", "Orthogonal pairs", "% of pairs, |cosine| < 0.1", true),
    metric("duplicate_ratio", "Identical responses", "% of pairs", true),
    metric("mean_cosine", "Mean cosine, all pairs", "-1 to 1", false),
    metric("mean_cosine_distinct", "Mean cosine, without identical responses", "-1 to 1", false),
];

/// A run.
#[derive(Debug, Clone)]
pub(super) struct RunData {
    /// What it is a run of.
    pub(super) method: String,
    /// Warm start and seed, or its directory's name.
    pub(super) label: String,
    /// Where it lies.
    pub(super) dir: PathBuf,
    /// Completed training steps after each row, ascending.
    pub(super) steps: Vec<u64>,
    /// For each of [`METRICS`] a value for each row, where it was measured.
    pub(super) values: Vec<Vec<Option<f64>>>,
    /// Cosines of the last fifth of the steps.
    pub(super) cosines: Option<RunCosines>,
    /// Names of the scores of `evaluations`; [`experiment::MEASURES`] follow.
    pub(super) scores: Vec<String>,
    /// By completed steps.
    pub(super) evaluations: BTreeMap<u64, Measured>,
    /// As it was configured, if that can be read.
    pub(super) config: Option<RunConfig>,
    /// Training rollouts.
    pub(super) rollouts: u64,
    /// Wall time, seconds; of a run that is not complete the time of its steps.
    pub(super) seconds: f64,
    /// Whether it came to its end.
    pub(super) complete: bool,
}

/// Pairs of responses by cosine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RunCosines {
    /// As `PairStatistics::histogram`.
    pub(super) histogram: Vec<f64>,
    /// Pairs of identical responses, which are in the last bin.
    pub(super) identical: f64,
}

/// Steps whose cosines are added up: those that the comparison calls the last ones.
const LAST_SHARE: usize = 5;

impl RunData {
    /// Reads a run.
    ///
    /// # Errors
    /// If its journal or an evaluation cannot be read; names the file.
    pub(super) fn read(method: &str, label: &str, dir: &Path) -> anyhow::Result<Self> {
        let path = journal::path(dir);
        let in_journal = || format!("journal {}", path.display());
        let db = open(dir)?;
        let rows = Rows::read(&db).with_context(in_journal)?;
        let scores = scores(&db).with_context(in_journal)?;
        let evaluations = match dir.join("evaluations").is_dir() {
            true => experiment::evaluations(dir, &scores)?,
            false => BTreeMap::new(),
        };
        let config = LoadOptions { path: dir.join("config.toml"), overrides: Vec::new() };
        let summary = std::fs::read_to_string(dir.join("summary.json")).ok();
        let summary: Value = summary.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Ok(Self {
            method: method.to_owned(),
            label: label.to_owned(),
            dir: dir.to_owned(),
            steps: rows.steps,
            values: rows.values,
            cosines: cosines(&rows.pairs),
            scores,
            evaluations,
            config: RunConfig::load(&config).ok(),
            rollouts: journal::rollouts(dir)?,
            seconds: summary["seconds"].as_f64().unwrap_or(rows.seconds),
            complete: experiment::is_complete(dir),
        })
    }
}

/// A run's journal, to read.
pub(super) fn open(dir: &Path) -> anyhow::Result<Connection> {
    let path = journal::path(dir);
    Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("cannot read {}", path.display()))
}

/// The table `step`.
struct Rows {
    steps: Vec<u64>,
    values: Vec<Vec<Option<f64>>>,
    /// Histogram and share of identical pairs of each row.
    pairs: Vec<(Vec<f64>, f64)>,
    seconds: f64,
}

impl Rows {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        let columns = METRICS.map(|metric| metric.column).join(", ");
        let mut query = db.prepare(&format!(
            "SELECT step, cosine_histogram, duplicate_ratio, rollout_ms + shaping_ms + update_ms, {columns}
             FROM step ORDER BY step"
        ))?;
        let mut found = Self {
            steps: Vec::new(),
            values: vec![Vec::new(); METRICS.len()],
            pairs: Vec::new(),
            seconds: 0.0,
        };
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            // The row of step 0 is what one completed step left.
            found.steps.push(row.get::<_, u64>(0)? + 1);
            let histogram: Option<String> = row.get(1)?;
            let histogram = histogram.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            found.pairs.push((histogram, row.get::<_, Option<f64>>(2)?.unwrap_or(0.0)));
            found.seconds += row.get::<_, Option<f64>>(3)?.unwrap_or(0.0) / 1e3;
            for (at, values) in found.values.iter_mut().enumerate() {
                values.push(row.get::<_, Option<f64>>(4 + at)?.filter(|value| value.is_finite()));
            }
        }
        Ok(found)
    }
}

/// Adds up the last steps that have cosines.
fn cosines(pairs: &[(Vec<f64>, f64)]) -> Option<RunCosines> {
    let last = &pairs[pairs.len() - (pairs.len() / LAST_SHARE).max(1).min(pairs.len())..];
    let bins = last.iter().map(|(histogram, _)| histogram.len()).max().filter(|bins| *bins > 0)?;
    let mut sum = RunCosines { histogram: vec![0.0; bins], identical: 0.0 };
    for (histogram, identical) in last {
        sum.histogram.iter_mut().zip(histogram).for_each(|(sum, pairs)| *sum += pairs);
        sum.identical += identical * histogram.iter().sum::<f64>();
    }
    Some(sum)
}

/// Scores of the first data set that a run was evaluated by: pass@k before maj@k, by k.
fn scores(db: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut query = db.prepare("SELECT DISTINCT score FROM evaluation")?;
    let names: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut keyed: Vec<(bool, u64, String)> = names
        .into_iter()
        .filter(|name| !name.contains('/'))
        .filter_map(|name| {
            let (kind, k) = name.split_once('@')?;
            Some((kind != "pass", k.parse().ok()?, name))
        })
        .collect();
    keyed.sort();
    Ok(keyed.into_iter().map(|(_, _, name)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_are_those_of_the_last_fifth_with_the_identical_pairs_counted() {
        let early = (vec![9.0, 0.0], 0.0);
        let (one, two) = ((vec![6.0, 4.0], 0.3), (vec![5.0, 5.0], 0.1));
        let mut steps = vec![early; 8];
        steps.extend([one, two]);
        // 0.3 x 10 + 0.1 x 10 pairs are identical.
        assert_eq!(cosines(&steps), Some(RunCosines { histogram: vec![11.0, 9.0], identical: 4.0 }));
        assert_eq!(cosines(&[]), None);
        assert_eq!(cosines(&[(Vec::new(), 0.0)]), None);
    }

    #[test]
    fn scores_are_ordered_by_kind_and_k() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(
            "CREATE TABLE evaluation (score TEXT);
             INSERT INTO evaluation VALUES ('maj@4'), ('pass@16'), ('length'), ('more/pass@1'), ('pass@1'), ('pass@16');",
        )
        .unwrap();
        assert_eq!(scores(&db).unwrap(), ["pass@1", "pass@16", "maj@4"]);
    }
}
