//! A comparison for people, in Markdown.

use std::fmt::Write as _;

use g2rl_common::bootstrap::Interval;

use super::compare::{Comparison, MethodSummary};

/// Rows of a Markdown table.
fn table(headers: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule: Vec<String> = headers.iter().map(|_| "---".to_owned()).collect();
    let rows: String = rows.map(|row| line(&row)).collect();
    format!("{}{}{rows}\n", line(headers), line(&rule))
}

fn is_share(name: &str) -> bool {
    name.contains('@')
}

/// Scores in per cent, other numbers as they are.
fn value(name: &str, x: f64) -> String {
    if is_share(name) { format!("{:.1}", 100.0 * x) } else { format!("{x:.2}") }
}

fn interval(name: &str, i: &Interval) -> String {
    format!("{} [{}, {}]", value(name, i.mean), value(name, i.low), value(name, i.high))
}

fn intervals(comparison: &Comparison, of: impl Fn(&MethodSummary) -> &[(String, Interval)]) -> String {
    let Some(first) = comparison.methods.iter().find(|method| !of(method).is_empty()) else {
        return "No runs yet.\n\n".to_owned();
    };
    let names = of(first).iter().map(|(name, _)| name.clone());
    let headers: Vec<String> = ["method".to_owned(), "runs".to_owned()].into_iter().chain(names).collect();
    let rows = comparison.methods.iter().filter(|method| !of(method).is_empty()).map(|method| {
        let cells = of(method).iter().map(|(name, i)| interval(name, i));
        [method.method.clone(), format!("{} of {}", method.runs, method.planned)]
            .into_iter()
            .chain(cells)
            .collect()
    });
    table(&headers, rows)
}

/// The whole comparison.
#[must_use]
pub fn markdown(comparison: &Comparison) -> String {
    let Comparison { name, baseline, problems, .. } = comparison;
    let mut text = format!("# {name}\n\n{problems} held-out problems. ");
    text.push_str(
        "Scores in per cent. Intervals: 95 %, by resampling runs (warm start and seed) and problems, crossed.\n\n",
    );
    let _ = write!(text, "## After the last step\n\n{}", intervals(comparison, |m| &m.scores));
    let _ = write!(
        text,
        "## Difference to {baseline}\n\nOver pairs of runs with the same warm start and seed.\n\n{}",
        intervals(comparison, |m| &m.differences)
    );
    text.push_str(&noise(comparison));
    text.push_str(&equal_score(comparison));
    text.push_str(&geometry(comparison));
    text.push_str(&cost(comparison));
    text
}

/// What a control that means nothing "gained".
fn noise(comparison: &Comparison) -> String {
    let Some(control) = &comparison.control else { return String::new() };
    let found = comparison.methods.iter().find(|method| method.method == *control);
    let Some(found) = found.filter(|found| !found.differences.is_empty()) else { return String::new() };
    let differences = found.differences.iter().filter(|(name, _)| is_share(name));
    let differences: Vec<String> =
        differences.map(|(name, i)| format!("{name} {}", interval(name, i))).collect();
    format!(
        "{control} means nothing: its differences, {}, are the noise beside which the others stand.\n\n",
        differences.join(", ")
    )
}

fn equal_score(comparison: &Comparison) -> String {
    let (Some(level), Some(score)) = (comparison.level, comparison.scores.first()) else {
        return String::new();
    };
    if comparison.scores.len() < 2 {
        return String::new();
    }
    let headers: Vec<String> =
        ["method".to_owned()].into_iter().chain(comparison.scores.iter().skip(1).cloned()).collect();
    let compared = comparison.methods.iter().filter(|method| !method.at_level.is_empty());
    let rows = compared.map(|method| {
        let cells = method.at_level.iter().map(|(name, x)| value(name, *x));
        [method.method.clone()].into_iter().chain(cells).collect()
    });
    format!(
        "## At equal {score}\n\nWhere the mean curve first reaches {} %, which every method with all runs does: one that \
         sharpens more slowly looks more diverse at equal steps.\n\n{}",
        value(score, level),
        table(&headers, rows)
    )
}

fn geometry(comparison: &Comparison) -> String {
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
    format!(
        "## Gradient geometry of the last fifth of the steps\n\nMeans over runs.\n\n{}",
        table(&headers, rows)
    )
}

fn cost(comparison: &Comparison) -> String {
    let headers = ["method", "settings", "rollouts", "wall time, s"].map(str::to_owned);
    let rows = comparison.methods.iter().map(|method| {
        let settings = if method.settings.is_empty() { "-".to_owned() } else { method.settings.join(", ") };
        let (rollouts, seconds) = (method.rollouts.to_string(), format!("{:.0}", method.seconds));
        vec![method.method.clone(), settings, rollouts, seconds]
    });
    format!("## Settings and cost\n\nAll runs of a method together.\n\n{}", table(&headers, rows))
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::{experiment, results};
    use super::*;

    #[test]
    fn everything_is_said_with_the_noise_beside_it() {
        let results = results(&[("grpo", 1, 0.5), ("g2rl", 1, 0.7), ("random", 1, 0.5)]);
        let text = markdown(&Comparison::new(&experiment(), &results).unwrap());
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
