//! `show`: a run, finished or not.

use std::fmt::Write as _;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use super::{EvaluationRow, Evaluations, RunRecord, ScoreRow, StepRow, local_time, open, read_steps};
use crate::checkpoints;
use crate::progress::readable;
use crate::sparkline::{buckets, sparkline};

/// Points of a curve.
const POINTS: usize = 40;

/// What the configuration says that a reader wants to know first.
const SETTINGS: [(&str, &str); 15] = [
    ("algorithm", "novelty"),
    ("algorithm", "scaler"),
    ("algorithm", "lambda"),
    ("reward", "kind"),
    ("data", "train"),
    ("rollout", "prompts_per_step"),
    ("rollout", "group_size"),
    ("rollout", "max_new_tokens"),
    ("rollout", "temperature"),
    ("optimizer", "learning_rate"),
    ("objective", "clip_low"),
    ("objective", "clip_high"),
    ("objective", "kl_coef"),
    ("model", "dtype"),
    ("run", "seed"),
];

/// Files and directories of a run, and what they hold.
const PLACES: [(&str, &str); 9] = [
    ("journal.sqlite", "every step, group and rollout"),
    ("config.toml", "the configuration, defaults filled in"),
    ("summary.json", "the numbers at the end"),
    ("chronicle.jsonl", "processes of the coordinator"),
    ("checkpoints", "models with optimizer state"),
    ("evaluations", "every answer to every held-out problem"),
    ("logs", "logs of local workers"),
    ("metrics.jsonl", "curves"),
    ("tensorboard", "curves"),
];

type Curve = (&'static str, fn(&StepRow) -> Option<f64>);

const CURVES: [Curve; 10] = [
    ("reward", |row| row.reward),
    ("correct_ratio", |row| row.correct),
    ("response_length", |row| row.length),
    ("entropy", |row| row.entropy),
    ("kl", |row| row.kl),
    ("gradient_norm", |row| row.gradient_norm),
    ("novelty", |row| row.novelty),
    ("orthogonal_pair_ratio", |row| row.orthogonal),
    ("negative_pair_ratio", |row| row.negative),
    ("cosine_mean", |row| row.cosine),
];

/// Everything that is shown.
struct Shown {
    record: RunRecord,
    steps: Vec<StepRow>,
    evaluations: Evaluations,
    recoveries: Vec<Value>,
    checkpoints: Vec<(u64, std::path::PathBuf)>,
}

impl Shown {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let db = open(dir)?;
        let summary = std::fs::read_to_string(dir.join("summary.json")).unwrap_or_default();
        let summary: Value = serde_json::from_str(&summary).unwrap_or_default();
        Ok(Self {
            record: RunRecord::read(dir),
            steps: read_steps(&db, dir, false)?,
            evaluations: Evaluations::read(&db, dir)?,
            recoveries: summary["recoveries"].as_array().cloned().unwrap_or_default(),
            checkpoints: checkpoints::all(dir),
        })
    }

    fn curve(&self, value: fn(&StepRow) -> Option<f64>) -> Vec<f64> {
        self.steps.iter().filter_map(value).collect()
    }

    fn setting(&self, section: &str, key: &str) -> Option<&toml::Value> {
        self.record.essentials.config.get(section)?.get(key)
    }

    /// Seconds of rollouts, of reward and shaping after the last rollout, of updates, and of all else: evaluations,
    /// checkpoints, waiting for ranks.
    fn times(&self) -> [(&'static str, f64); 4] {
        let sum = |ms: fn(&StepRow) -> u64| self.steps.iter().map(ms).sum::<u64>() as f64 / 1e3;
        let parts = [sum(|row| row.rollout_ms), sum(|row| row.shaping_ms), sum(|row| row.update_ms)];
        let other = (self.record.span.seconds - parts.iter().sum::<f64>()).max(0.0);
        [("rollout", parts[0]), ("reward and shaping", parts[1]), ("update", parts[2]), ("other", other)]
    }

    /// Of generated responses; `None` where all were given.
    fn tokens_per_s(&self) -> Option<f64> {
        if self.record.essentials.method.as_deref() == Some("sft") {
            return None;
        }
        let tokens: u64 = self.steps.iter().map(|row| row.response_tokens).sum();
        let seconds = self.times()[0].1;
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    fn chosen_evaluations(&self) -> [(&'static str, Option<&EvaluationRow>); 3] {
        let all = &self.evaluations;
        [("first", all.first()), ("best", all.best()), ("last", all.last())]
    }

    fn places(&self) -> Vec<(&'static str, &'static str, String)> {
        let path = |name: &str| self.record.dir.join(name);
        let there = PLACES.iter().filter(|(name, _)| path(name).exists());
        there.map(|(name, what)| (*name, *what, path(name).display().to_string())).collect()
    }
}

/// A run as an object.
///
/// # Errors
/// If the directory holds no run or its journal cannot be read; names the path.
pub(crate) fn json(dir: &Path) -> anyhow::Result<Value> {
    let shown = Shown::read(dir)?;
    let (record, last) = (&shown.record, shown.steps.last());
    let mut curves = Map::new();
    for (name, value) in CURVES {
        let values = shown.curve(value);
        let (Some(first), Some(last)) = (values.first(), values.last()) else { continue };
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let points = buckets(&values, POINTS);
        curves.insert(
            name.to_owned(),
            json!({"first": first, "last": last, "min": low, "max": high, "points": points}),
        );
    }
    let places = shown.places().into_iter().map(|(name, _, path)| (name.to_owned(), json!(path)));
    let evaluations =
        shown.chosen_evaluations().into_iter().map(|(name, evaluation)| (name.to_owned(), json!(evaluation)));
    let times = shown.times().into_iter().map(|(name, seconds)| (name.replace(' ', "_"), json!(seconds)));
    Ok(json!({
        "name": record.name(),
        "dir": record.dir.display().to_string(),
        "state": record.state,
        "reason": record.reason,
        "steps_done": last.map_or(0, |row| row.step + 1),
        "steps": record.essentials.steps,
        "policy_version": last.map(|row| row.policy_version),
        "model": record.essentials.model,
        "method": record.essentials.method,
        "config": record.essentials.config,
        "started_s": record.span.started_s,
        "ended_s": record.span.ended_s,
        "seconds": record.span.seconds,
        "processes": record.span.processes,
        "evaluations": Map::from_iter(evaluations),
        "curves": curves,
        "times_s": Map::from_iter(times),
        "tokens_per_s": shown.tokens_per_s(),
        "recoveries": shown.recoveries,
        "checkpoints": shown.checkpoints.iter().map(|(_, path)| path.display().to_string()).collect::<Vec<_>>(),
        "files": Map::from_iter(places),
    }))
}

/// A run for people.
///
/// # Errors
/// If the directory holds no run or its journal cannot be read; names the path.
pub(crate) fn text(dir: &Path) -> anyhow::Result<String> {
    let shown = Shown::read(dir)?;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = head(&mut out, &shown)
        .and_then(|()| evaluations(&mut out, &shown.evaluations, shown.chosen_evaluations()))
        .and_then(|()| curves(&mut out, &shown))
        .and_then(|()| times(&mut out, &shown))
        .and_then(|()| rest(&mut out, &shown));
    Ok(out)
}

fn head(out: &mut String, shown: &Shown) -> std::fmt::Result {
    let (record, known, span) = (&shown.record, &shown.record.essentials, &shown.record.span);
    let done = shown.steps.last().map_or(0, |row| row.step + 1);
    let steps = known.steps.map_or("?".to_owned(), |steps| steps.to_string());
    writeln!(out, "{}  {}  step {done} of {steps}", record.name(), record.state.as_str())?;
    if let Some(reason) = &record.reason {
        writeln!(out, "  {reason}")?;
    }
    if let Some(started) = span.started_s {
        let more =
            if span.processes > 1 { format!(" in {} processes", span.processes) } else { String::new() };
        writeln!(out, "  started {}, worked on for {}{more}", local_time(started), readable(span.seconds))?;
    }
    let method = known.method.as_deref().unwrap_or("-");
    writeln!(out, "  {method} on {}", known.model.as_deref().unwrap_or("-"))?;
    let settings: Vec<String> = SETTINGS
        .iter()
        .filter_map(|(section, key)| Some(format!("{section}.{key} {}", shown.setting(section, key)?)))
        .collect();
    for line in settings.chunks(3) {
        writeln!(out, "  {}", line.join("   "))?;
    }
    Ok(())
}

fn evaluations(
    out: &mut String,
    all: &Evaluations,
    chosen: [(&str, Option<&EvaluationRow>); 3],
) -> std::fmt::Result {
    let Some(last) = all.last() else { return writeln!(out, "\nNo evaluation yet.") };
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec![format!("{} problems, {} answers", last.problems, last.samples)];
    let chosen = chosen.iter().filter_map(|(name, row)| Some((name, (*row)?))).collect::<Vec<_>>();
    header.extend(chosen.iter().map(|(name, row)| format!("{name} (step {})", row.step)));
    table.set_header(header);
    for score in &last.scores {
        let mut cells = vec![score.score.clone()];
        cells.extend(chosen.iter().map(|(_, row)| row.score(&score.score).map_or("-".to_owned(), value)));
        table.add_row(cells);
    }
    for column in 1..=chosen.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "\n{table}\npass@k and maj@k in per cent; 95 % bootstrap intervals over problems.")
}

/// Shares such as pass@8 in per cent, lengths and counts as they are.
fn value(score: &ScoreRow) -> String {
    let unit = if score.score.contains('@') { 100.0 } else { 1.0 };
    format!("{:.1} [{:.1}, {:.1}]", unit * score.mean, unit * score.low, unit * score.high)
}

fn curves(out: &mut String, shown: &Shown) -> std::fmt::Result {
    if shown.steps.is_empty() {
        return writeln!(out, "\nNo step is completed yet.");
    }
    let count = shown.steps.len();
    writeln!(out, "\n{:<22} {:>10} {:>10}   over {count} steps", "", "first", "last")?;
    for (name, value) in CURVES {
        let values = shown.curve(value);
        let (Some(first), Some(last)) = (values.first(), values.last()) else { continue };
        let line = sparkline(&values, POINTS);
        writeln!(
            out,
            "{:<22} {:>10} {:>10}   {line}",
            name.replace('_', " "),
            number(*first),
            number(*last)
        )?;
    }
    Ok(())
}

/// Three or four digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 1e-3 => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.1}"),
    }
}

fn times(out: &mut String, shown: &Shown) -> std::fmt::Result {
    let times = shown.times();
    let all = times.iter().map(|(_, seconds)| seconds).sum::<f64>().max(f64::MIN_POSITIVE);
    let share = |(name, seconds): &(&str, f64)| {
        format!("{name} {} ({:.0} %)", readable(*seconds), 100.0 * seconds / all)
    };
    writeln!(out, "\nTime: {}", times.iter().map(share).collect::<Vec<_>>().join(", "))?;
    match shown.tokens_per_s() {
        Some(rate) => writeln!(out, "Rollouts: {rate:.0} tokens/s"),
        None => Ok(()),
    }
}

fn rest(out: &mut String, shown: &Shown) -> std::fmt::Result {
    for recovery in &shown.recoveries {
        let field = |name: &str| recovery[name].as_str().unwrap_or("-").to_owned();
        let seconds = recovery["seconds"].as_f64().unwrap_or(0.0);
        writeln!(out, "Recovered in {seconds:.1} s from the {}: {}", field("phase"), field("cause"))?;
    }
    match shown.checkpoints.last() {
        Some((_, newest)) => {
            writeln!(out, "Checkpoints: {}, the newest {}", shown.checkpoints.len(), newest.display())?;
        }
        None => writeln!(out, "Checkpoints: none")?,
    }
    writeln!(out, "Files:")?;
    for (_, what, path) in shown.places() {
        writeln!(out, "  {path}  ({what})")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shares_are_in_per_cent() {
        let row = |score: &str| ScoreRow { score: score.to_owned(), mean: 0.5, low: 0.0, high: 1.0 };
        assert_eq!(value(&row("more/pass@8")), "50.0 [0.0, 100.0]");
        assert_eq!(value(&row("length")), "0.5 [0.0, 1.0]");
    }
}
