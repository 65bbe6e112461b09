//! Which curves a report has: held-out scores, then what was measured of every training step.

use super::data::{METRICS, RunData};
use super::plot::{Figure, Line, Plot, Shape, Style};
use super::series::{evaluated, training, window};
use super::sources::Report;
use crate::experiment::MEASURES;

/// All curves; figures without a plot are left out.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let figures = [evaluations(report), steps(report)];
    figures.into_iter().filter(|figure| !figure.plots.is_empty()).collect()
}

/// Methods with their styles.
pub(super) fn styles(report: &Report) -> Vec<(&str, Style)> {
    let style = |(place, method): (usize, &String)| Style::of(place, report.control.as_ref() == Some(method));
    report.methods.iter().enumerate().map(|at| (at.1.as_str(), style(at))).collect()
}

/// A line for each method that has points.
fn lines(report: &Report, points: impl Fn(&[&RunData]) -> Vec<super::plot::Point>) -> Vec<Line> {
    let line = |(method, style): (&str, Style)| {
        let runs: Vec<&RunData> = report.of(method).collect();
        Line { label: method.to_owned(), style, points: points(&runs) }
    };
    let lines = styles(report).into_iter().map(line);
    lines.filter(|line| !line.points.is_empty()).collect()
}

fn evaluations(report: &Report) -> Figure {
    let mut names: Vec<&str> = Vec::new();
    for name in report.runs.iter().flat_map(|run| &run.scores) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let plot = |name: &str| {
        let share = name.contains('@');
        let (title, unit) = match name.split_once(", ") {
            Some((title, unit)) => (title, unit),
            None if share => (name, "%"),
            None => (name, "mean of a problem"),
        };
        Plot {
            id: format!("evaluation-{}", file_name(name)),
            title: title.to_owned(),
            unit: unit.to_owned(),
            x: "training steps".to_owned(),
            share,
            shape: Shape::Marked,
            lines: lines(report, |runs| evaluated(runs, name)),
        }
    };
    let plots = names.into_iter().chain(MEASURES).map(plot);
    Figure {
        title: "Held-out problems".to_owned(),
        caption: format!(
            "A marker is an evaluation; not smoothed. {} Intervals are those of the tables: 95 %, by resampling runs and \
             problems, crossed; of one run they contain the variance between problems alone.",
            averaged(report)
        ),
        plots: plots.filter(|plot| !plot.lines.is_empty()).collect(),
    }
}

fn steps(report: &Report) -> Figure {
    let plot = |(at, metric): (usize, &super::data::Metric)| Plot {
        id: format!("training-{}", file_name(metric.column)),
        title: metric.title.to_owned(),
        unit: metric.unit.to_owned(),
        x: "training step".to_owned(),
        share: metric.share,
        shape: Shape::Curve,
        lines: lines(report, |runs| training(runs, at)),
    };
    let all: Vec<Plot> = METRICS.iter().enumerate().map(plot).collect();
    let (plots, nothing): (Vec<Plot>, Vec<Plot>) = all.into_iter().partition(says_something);
    let steps = report.runs.iter().map(|run| run.steps.len()).max().unwrap_or(0);
    let smoothed = match window(steps) {
        1 => "Not smoothed.".to_owned(),
        window => {
            format!("Smoothed in each run: centred moving average over {window} steps, shorter at the ends.")
        }
    };
    let missing = match nothing.is_empty() {
        true => String::new(),
        false => {
            let names: Vec<&str> = nothing.iter().map(|plot| plot.title.as_str()).collect();
            format!(" Not measured, or 0 in every step: {}.", names.join("; "))
        }
    };
    Figure {
        title: "Training".to_owned(),
        caption: format!(
            "{smoothed} {} Intervals: 95 %, by resampling runs, step by step; of one run there is none, and of two or three \
             it is rough. An axis shows all means; a wide interval may leave it.{missing}",
            averaged(report)
        ),
        plots,
    }
}

/// Whether anything but zeros was measured.
fn says_something(plot: &Plot) -> bool {
    plot.lines.iter().flat_map(|line| &line.points).any(|point| point.mean != 0.0)
}

fn averaged(report: &Report) -> &'static str {
    let several = |method: &String| report.of(method).count() > 1;
    match report.methods.iter().any(several) {
        true => "Lines are means over the runs of a method, where all of them have the step.",
        false => "Each line is one run.",
    }
}

/// A name in lower case, with hyphens for what is no letter or digit.
pub(super) fn file_name(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let parts: Vec<&str> = plain.split('-').filter(|part| !part.is_empty()).collect();
    parts.join("-")
}
