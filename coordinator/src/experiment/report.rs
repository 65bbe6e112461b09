//! A comparison for people: sections with a table each, and the same in Markdown.
//!
//! `summary.md` and the HTML report show the same [`Section`]s, so that they cannot differ.

use std::fmt::Write as _;

use g2rl_common::bootstrap::Interval;

use super::compare::{Comparison, MethodSummary};

/// A heading with what stands under it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// What is to be known before reading the table; may be empty.
    pub intro: String,
    /// The numbers; `None` without runs.
    pub table: Option<TextTable>,
    /// What is to be known after reading the table; may be empty.
    pub note: String,
}

/// A table of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTable {
    /// One for each column.
    pub headers: Vec<String>,
    /// As many cells as headers.
    pub rows: Vec<Vec<String>>,
}

impl TextTable {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = self.headers.iter().map(|_| "---".to_owned()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}{}{rows}\n", line(&self.headers), line(&rule))
    }
}

impl Section {
    fn markdown(&self) -> String {
        let paragraph = |text: &str| if text.is_empty() { String::new() } else { format!("{text}\n\n") };
        let table = self.table.as_ref().map_or("No runs yet.\n\n".to_owned(), TextTable::markdown);
        format!("## {}\n\n{}{table}{}", self.title, paragraph(&self.intro), paragraph(&self.note))
    }
}

fn is_share(name: &str) -> bool {
    name.contains('@')
}

/// Scores in per cent, other numbers as they are.
fn value(name: &str, x: f64) -> String {
    if is_share(name) { format!("{:.1}", 100.0 * x) } else { format!("{x:.2}") }
}

/// A mean with its interval: scores in per cent, other numbers as they are.
pub(crate) fn interval(name: &str, i: &Interval) -> String {
    format!("{} [{}, {}]", value(name, i.mean), value(name, i.low), value(name, i.high))
}

/// The table of a measure of each method that has it.
fn intervals(
    comparison: &Comparison,
    of: impl Fn(&MethodSummary) -> &[(String, Interval)],
) -> Option<TextTable> {
    let first = comparison.methods.iter().find(|method| !of(method).is_empty())?;
    let names = of(first).iter().map(|(name, _)| name.clone());
    let headers: Vec<String> = ["method".to_owned(), "runs".to_owned()].into_iter().chain(names).collect();
    let rows = comparison.methods.iter().filter(|method| !of(method).is_empty()).map(|method| {
        let cells = of(method).iter().map(|(name, i)| interval(name, i));
        [method.method.clone(), format!("{} of {}", method.runs, method.planned)]
            .into_iter()
            .chain(cells)
            .collect()
    });
    Some(TextTable { headers, rows: rows.collect() })
}

/// What holds for all sections.
#[must_use]
pub fn preface(comparison: &Comparison) -> String {
    format!(
        "{} held-out problems. Scores in per cent. Intervals: 95 %, by resampling runs (warm start and seed) and \
         problems, crossed.",
        comparison.problems
    )
}

/// The whole comparison.
#[must_use]
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = format!("# {}\n\n{}\n\n", comparison.name, preface(comparison));
    for section in sections(comparison) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", section.markdown());
    }
    text
}

/// The comparison in sections.
#[must_use]
pub fn sections(comparison: &Comparison) -> Vec<Section> {
    let last = Section {
        title: "After the last step".to_owned(),
        intro: String::new(),
        table: intervals(comparison, |m| &m.scores),
        note: String::new(),
    };
    let differences = Section {
        title: format!("Difference to {}", comparison.baseline),
        intro: "Over pairs of runs with the same warm start and seed.".to_owned(),
        table: intervals(comparison, |m| &m.differences),
        note: noise(comparison),
    };
    let more = [geometry(comparison), cost(comparison)];
    [last, differences].into_iter().chain(equal_score(comparison)).chain(more).collect()
}

/// What a control that means nothing "gained"; empty without one.
fn noise(comparison: &Comparison) -> String {
    let Some(control) = &comparison.control else { return String::new() };
    let found = comparison.methods.iter().find(|method| method.method == *control);
    let Some(found) = found.filter(|found| !found.differences.is_empty()) else { return String::new() };
    let differences = found.differences.iter().filter(|(name, _)| is_share(name));
    let differences: Vec<String> =
        differences.map(|(name, i)| format!("{name} {}", interval(name, i))).collect();
    format!(
        "{control} means nothing: its differences, {}, are the noise beside which the others stand.",
        differences.join(", ")
    )
}

/// Every method where its first score is the same, and its differences to the baseline there.
fn equal_score(comparison: &Comparison) -> Vec<Section> {
    let Some((level, score)) = comparison.level.zip(comparison.scores.first()) else { return Vec::new() };
    let compared: Vec<&MethodSummary> =
        comparison.methods.iter().filter(|m| !m.at_level.is_empty()).collect();
    let mut sections = Vec::new();
    if let Some(first) = compared.first() {
        let names = first.at_level.iter().map(|(name, _)| name.clone());
        let headers = std::iter::once("method".to_owned()).chain(names).collect();
        let rows = compared.iter().map(|method| {
            let cells = method.at_level.iter().map(|(name, x)| value(name, *x));
            std::iter::once(method.method.clone()).chain(cells).collect()
        });
        sections.push(Section {
            title: format!("At equal {score}"),
            intro: format!(
                "Where the mean curve first reaches {} %, which every method with all runs does: one that sharpens more \
                 slowly looks more diverse at equal steps.",
                value(score, level)
            ),
            table: Some(TextTable { headers, rows: rows.collect() }),
            note: String::new(),
        });
    }
    if let table @ Some(_) = intervals(comparison, |m| &m.differences_at_equal) {
        sections.push(Section {
            title: format!("Difference to {} at equal {score}", comparison.baseline),
            intro: format!(
                "Over the same pairs, where the mean curves first reach the highest {score} that both methods reach; \
                 intervals by resampling runs."
            ),
            table,
            note: String::new(),
        });
    }
    sections
}

fn geometry(comparison: &Comparison) -> Section {
    let columns = [
        ("mean cosine", "mean_cosine"),
        ("without identical", "mean_cosine_without_duplicates"),
        ("negative pairs", "negative_pair_ratio"),
        ("orthogonal pairs", "orthogonal_pair_ratio"),
        ("identical pairs", "duplicate_ratio"),
    ];
    let headers: Vec<String> =
        std::iter::once("method").chain(columns.map(|(name, _)| name)).map(Into::into).collect();
    let rows = comparison.methods.iter().map(|method| {
        let cell =
            |(_, key): &(&str, &str)| method.geometry.get(*key).map_or("-".to_owned(), |x| format!("{x:.3}"));
        std::iter::once(method.method.clone()).chain(columns.iter().map(cell)).collect()
    });
    Section {
        title: "Gradient geometry of the last fifth of the steps".to_owned(),
        intro: "Means over runs.".to_owned(),
        table: Some(TextTable { headers, rows: rows.collect() }),
        note: String::new(),
    }
}

fn cost(comparison: &Comparison) -> Section {
    let headers = ["method", "settings", "rollouts", "wall time, s"].map(str::to_owned);
    let rows = comparison.methods.iter().map(|method| {
        let settings = if method.settings.is_empty() { "-".to_owned() } else { method.settings.join(", ") };
        let (rollouts, seconds) = (method.rollouts.to_string(), format!("{:.0}", method.seconds));
        vec![method.method.clone(), settings, rollouts, seconds]
    });
    Section {
        title: "Settings and cost".to_owned(),
        intro: "All runs of a method together.".to_owned(),
        table: Some(TextTable { headers: headers.into(), rows: rows.collect() }),
        note: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::{each, experiment, results};
    use super::*;

    #[test]
    fn everything_is_said_with_the_noise_beside_it() {
        let results = results(&[("grpo", 1, 0.5), ("g2rl", 1, 0.7), ("random", 1, 0.5)]);
        let text = markdown(&Comparison::new(&experiment(), &each(&results)).unwrap());
        for line in [
            "| g2rl | 1 of 2 | 60.0 [50.0, 70.0] |",
            "## Difference to grpo",
            "random means nothing: its differences, pass@1 0.0 [0.0, 0.0], pass@4 0.0 [0.0, 0.0]",
            "Where the mean curve first reaches 50.0 %",
            "| grpo | - | - | 0.250 | - | - |",
            "| g2rl | algorithm.kind=g2rl | 7 | 3 |",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        let empty = markdown(&Comparison::new(&experiment(), &[]).unwrap());
        assert!(empty.contains("No runs yet."), "{empty}");
    }
}
