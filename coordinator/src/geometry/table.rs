//! Geometries of several models beside each other, for people.

use g2rl_common::bootstrap::Interval;

use super::{CosineReport, ModelGeometry, PairReport};
use crate::summary::table::table;

fn number(interval: Option<Interval>, unit: f64, digits: usize) -> String {
    let value = |x: f64| format!("{:.digits$}", unit * x);
    interval.map_or("-".to_owned(), |i| format!("{} [{}, {}]", value(i.mean), value(i.low), value(i.high)))
}

/// The tables of all models.
#[must_use]
pub fn tables(models: &[ModelGeometry]) -> String {
    let mut text = overview(models);
    text.push_str(&cosines("gradient cosines", models, |model| Some(&model.gradient)));
    if models.iter().any(|model| model.semantic.is_some()) {
        text.push_str(&cosines("semantic cosines", models, |model| model.semantic.as_ref()));
    }
    text.push_str("Shares in per cent; 95 % bootstrap intervals over problems.\n");
    text
}

fn overview(models: &[ModelGeometry]) -> String {
    let Some(first) = models.first() else { return String::new() };
    let title = format!(
        "{} problems, {} answers each, temperature {}",
        first.problems, first.samples, first.temperature
    );
    let rows = models.iter().map(|model| {
        vec![
            model.model.clone(),
            number(model.pass_at_1, 100.0, 1),
            number(model.distinct_correct, 1.0, 2),
            number(model.identical, 100.0, 1),
        ]
    });
    let headers = [title.as_str(), "pass@1", "distinct right answers", "identical pairs"];
    format!("{}\n", table(&headers, rows))
}

fn cosines(
    title: &str,
    models: &[ModelGeometry],
    of: impl Fn(&ModelGeometry) -> Option<&Vec<PairReport>>,
) -> String {
    let mut rows = Vec::new();
    for (model, reports) in models.iter().filter_map(|model| Some((model, of(model)?))) {
        for report in reports {
            for (which, cosines) in
                [("all pairs", &report.with_identical), ("not identical", &report.without_identical)]
            {
                rows.extend(cosines.as_ref().map(|cosines| {
                    let name = format!("{}: {}, {which}", model.model, report.kind.as_str());
                    row(name, cosines)
                }));
            }
        }
    }
    format!("{}\n", table(&[title, "pairs", "mean", "negative", "orthogonal"], rows))
}

fn row(name: String, cosines: &CosineReport) -> Vec<String> {
    vec![
        name,
        cosines.pairs.to_string(),
        number(Some(cosines.mean), 1.0, 3),
        number(Some(cosines.negative), 100.0, 1),
        number(Some(cosines.orthogonal), 100.0, 1),
    ]
}
