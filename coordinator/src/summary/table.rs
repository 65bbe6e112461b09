//! The tables a person reads at the end of a run.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use g2rl_common::geometry::PairStatistics;

use crate::evaluate::{Evaluation, Score};

/// A table with numbers to the right of its first column.
pub(crate) fn table<H: ToString>(headers: &[H], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(headers.iter().map(ToString::to_string));
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    for column in 1..headers.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// One row of scores.
struct Row {
    name: String,
    before: Option<Score>,
    after: Score,
    /// 100 for shares, which are shown in per cent.
    unit: f64,
}

fn rows(before: Option<&Evaluation>, after: &Evaluation) -> Vec<Row> {
    let scores = after.scores.iter().map(|(name, score)| Row {
        name: name.clone(),
        before: before.and_then(|before| before.score(name)),
        after: *score,
        unit: 100.0,
    });
    let number = |name: &str, of: fn(&Evaluation) -> Score| Row {
        name: name.to_owned(),
        before: before.map(of),
        after: of(after),
        unit: 1.0,
    };
    let numbers = [
        number("distinct right answers", |evaluation| evaluation.distinct_correct),
        number("response length, tokens", |evaluation| evaluation.length),
    ];
    scores.chain(numbers).collect()
}

impl Row {
    fn cells(self) -> Vec<String> {
        let number = |score: Score| {
            let [low, high] = score.interval.map(|end| self.unit * end);
            format!("{:.1} [{low:.1}, {high:.1}]", self.unit * score.mean)
        };
        let mut cells = vec![self.name];
        if let Some(before) = self.before {
            cells.extend([number(before), number(self.after)]);
            cells.push(format!("{:+.1}", self.unit * (self.after.mean - before.mean)));
        } else {
            cells.push(number(self.after));
        }
        cells
    }
}

/// The scores on each data set, beside those of before if there are any.
pub(super) fn scores(before: Option<&[Evaluation]>, after: &[Evaluation]) -> String {
    let mut text = String::new();
    for evaluation in after {
        let of_set = |before: &&Evaluation| before.set == evaluation.set;
        let before = before.and_then(|before| before.iter().find(of_set));
        let Evaluation { set, problems, samples, .. } = evaluation;
        let mut headers = vec![format!("{set}: {problems} problems, {samples} answers each")];
        let columns: &[&str] = if before.is_some() { &["before", "after", "change"] } else { &["score"] };
        headers.extend(columns.iter().map(ToString::to_string));
        let rows = rows(before, evaluation).into_iter().map(Row::cells);
        let answers: u64 = evaluation.finish_reasons.values().sum();
        let cut = evaluation.finish_reasons.get("length").copied().unwrap_or(0);
        let cut = 100.0 * cut as f64 / answers.max(1) as f64;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}\n{cut:.1} % of the answers were cut at the longest length.",
            table(&headers, rows)
        );
    }
    text.push_str("pass@k and maj@k in per cent; 95 % bootstrap intervals over problems.\n");
    text
}

/// The geometry of pairs.
pub(super) fn geometry(pairs: &PairStatistics) -> String {
    let rows = [
        ("mean gradient cosine", pairs.mean_cosine()),
        ("mean gradient cosine without identical responses", pairs.mean_distinct_cosine()),
        ("negative pair rate (S < 0)", pairs.negative_ratio()),
        ("orthogonal pair rate (|S| < 0.1)", pairs.orthogonal_ratio()),
        ("identical responses", pairs.duplicate_ratio()),
    ];
    let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
    let rows = rows.into_iter().map(|(name, value)| vec![name.to_owned(), number(value)]);
    format!("{}\n", table(&["pairs inside groups, last fifth of the steps", ""], rows))
}
