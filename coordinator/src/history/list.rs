//! `runs`: one row for each run under a directory.

use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{Evaluations, RunRecord, StepRow, is_run, local_time, open, read_steps};
use crate::progress::readable;

/// How deep runs are looked for: `runs/sweep/a`.
const DEPTH: usize = 3;

/// A run and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Listed {
    record: RunRecord,
    last: Option<StepRow>,
    /// Name, mean, and steps before it.
    score: Option<(String, f64, u64)>,
    /// The journal cannot be read.
    error: Option<String>,
}

impl Listed {
    fn read(dir: &Path) -> Self {
        let record = RunRecord::read(dir);
        match progress(dir) {
            Ok((last, score)) => Self { record, last, score, error: None },
            // The others are of interest all the same.
            Err(error) => Self { record, last: None, score: None, error: Some(format!("{error:#}")) },
        }
    }

    fn steps_done(&self) -> u64 {
        self.last.as_ref().map_or(0, |row| row.step + 1)
    }
}

type Score = (String, f64, u64);

fn progress(dir: &Path) -> anyhow::Result<(Option<StepRow>, Option<Score>)> {
    let db = open(dir)?;
    let last = read_steps(&db, dir, true)?.pop();
    let evaluations = Evaluations::read(&db, dir)?;
    let score = evaluations
        .last()
        .zip(evaluations.main_score())
        .and_then(|(last, main)| last.score(main).map(|score| (score.score.clone(), score.mean, last.step)));
    Ok((last, score))
}

/// All runs under a directory, or the run that it is; the newest first.
///
/// # Errors
/// If the directory cannot be read; names it.
pub(crate) fn find(dir: &Path) -> anyhow::Result<Vec<Listed>> {
    let mut dirs = Vec::new();
    if is_run(dir) {
        dirs.push(dir.to_owned());
    } else {
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        look(entries, DEPTH, &mut dirs);
    }
    let mut runs: Vec<Listed> = dirs.iter().map(|dir| Listed::read(dir)).collect();
    let started = |run: &Listed| run.record.span.started_s.unwrap_or(0.0);
    runs.sort_by(|a, b| started(b).total_cmp(&started(a)).then_with(|| a.record.dir.cmp(&b.record.dir)));
    Ok(runs)
}

fn look(entries: std::fs::ReadDir, depth: usize, found: &mut Vec<PathBuf>) {
    // A link may lead round in a circle.
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for path in folders.map(|entry| entry.path()) {
        if is_run(&path) {
            found.push(path);
        } else if depth > 1
            && let Ok(entries) = std::fs::read_dir(&path)
        {
            look(entries, depth - 1, found);
        }
    }
}

/// The runs as objects.
pub(crate) fn json(runs: &[Listed]) -> Value {
    let object = |run: &Listed| {
        let (record, last) = (&run.record, run.last.as_ref());
        json!({
            "name": record.name(),
            "dir": record.dir.display().to_string(),
            "state": record.state,
            "reason": record.reason,
            "steps_done": run.steps_done(),
            "steps": record.essentials.steps,
            "reward": last.and_then(|row| row.reward),
            "score": run.score.as_ref().map(|(name, mean, step)| json!({"name": name, "mean": mean, "step": step})),
            "model": record.essentials.model,
            "method": record.essentials.method,
            "started_s": record.span.started_s,
            "seconds": record.span.seconds,
            "error": run.error,
        })
    };
    Value::Array(runs.iter().map(object).collect())
}

/// The runs as a table.
pub(crate) fn table(runs: &[Listed]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let titles = [
        "name",
        "state",
        "steps",
        "reward",
        "held out",
        "model",
        "method",
        "started",
        "duration",
        "directory",
    ];
    table.set_header(titles);
    for run in runs {
        let (record, known) = (&run.record, &run.record.essentials);
        let steps = known.steps.map_or("?".to_owned(), |steps| steps.to_string());
        let reward = run.last.as_ref().and_then(|row| row.reward);
        table.add_row([
            record.name(),
            record.state.as_str().to_owned(),
            format!("{}/{steps}", run.steps_done()),
            reward.map_or("-".to_owned(), |reward| format!("{reward:+.3}")),
            run.score
                .as_ref()
                .map_or("-".to_owned(), |(name, mean, _)| format!("{name} {:.1} %", 100.0 * mean)),
            known.short_model().to_owned(),
            known.method.clone().unwrap_or_else(|| "-".to_owned()),
            record.span.started_s.map_or("-".to_owned(), local_time),
            readable(record.span.seconds),
            record.dir.display().to_string(),
        ]);
    }
    for column in [2, 3, 4, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = format!("{table}\n");
    for run in runs {
        let name = run.record.name();
        for why in run.record.reason.iter().chain(&run.error) {
            text.push_str(&format!("{name}: {why}\n"));
        }
    }
    text
}
