//! The page: head, curves, tables, histograms, sample groups.
//!
//! Everything is in it: style, script, pictures. It can be read without the script.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::curves;
use super::data::RunData;
use super::histograms;
use super::plot::{Figure, Line, Plot, Shape};
use super::samples;
use super::series::thin;
use super::sources::Report;
use super::svg;
use super::words;
use crate::experiment::{TextTable, preface, sections};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Rows of the table beside a plot.
const TABLE_ROWS: usize = 12;

/// Bins of a histogram are all in its table.
const BIN_ROWS: usize = 40;

/// The page.
///
/// # Errors
/// If a plot cannot be drawn.
pub(super) fn page(report: &Report) -> anyhow::Result<String> {
    let curves = figures(curves::figures(report))?;
    let histograms = figures(histograms::figures(report))?;
    let samples = samples::samples(&report.groups)?;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (report.title) " \u{2013} report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (report.title) }
                    @if let Some(data) = &report.data { p.data { "Data: " (data) } }
                    nav aria-label="Sections" {
                        a href="#result" { "Result" }
                        @if !curves.0.is_empty() { a href="#curves" { "Curves" } }
                        @if report.comparison.is_some() { a href="#comparison" { "Comparison" } }
                        @if !histograms.0.is_empty() { a href="#cosines" { "Cosines" } }
                        @if !report.groups.is_empty() { a href="#groups" { "Sample groups" } }
                    }
                }
                main {
                    section id="result" {
                        h2 { "Result" }
                        p.result { (words::main_result(report)) }
                        (runs(report))
                    }
                    section id="curves" { (curves) }
                    (comparison(report))
                    section id="cosines" { (histograms) }
                    (samples)
                }
                footer { "g2rl-coordinator " (env!("CARGO_PKG_VERSION")) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(markup.into_string())
}

/// What was run.
fn runs(report: &Report) -> Markup {
    let rows = report.methods.iter().map(|method| run_row(report, method));
    let headers = ["method", "settings", "warm starts and seeds", "runs", "steps", "rollouts", "wall time"];
    let table = TextTable { headers: headers.map(Into::into).into(), rows: rows.collect() };
    html! {
        h3 { "What was run" }
        (text_table(&table, 3))
        @if report.left_out > 0 {
            p.note { "Left out, because they are not complete: " (report.left_out) " of the runs." }
        }
    }
}

fn run_row(report: &Report, method: &str) -> Vec<String> {
    let runs: Vec<&RunData> = report.of(method).collect();
    let compared = report.comparison.as_ref().and_then(|c| c.methods.iter().find(|m| m.method == method));
    let settings = match compared {
        Some(compared) if !compared.settings.is_empty() => compared.settings.join(", "),
        Some(_) => "as configured".to_owned(),
        None => kinds(&runs),
    };
    let complete = runs.iter().filter(|run| run.complete).count();
    let planned = compared.map_or(runs.len(), |compared| compared.planned);
    let labels: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let steps = |f: fn(u64, u64) -> u64| runs.iter().map(|run| run.steps.len() as u64).reduce(f).unwrap_or(0);
    let (least, most) = (steps(u64::min), steps(u64::max));
    vec![
        method.to_owned(),
        settings,
        labels_in_short(&labels),
        format!("{complete} of {planned}"),
        if least == most { most.to_string() } else { format!("{least} to {most}") },
        grouped(runs.iter().map(|run| run.rollouts).sum()),
        duration(runs.iter().map(|run| run.seconds).sum()),
    ]
}

/// Kinds of algorithm of some runs.
fn kinds(runs: &[&RunData]) -> String {
    let kind = |run: &&RunData| {
        let kind = serde_json::to_value(run.config.as_ref()?.algorithm.kind).ok()?;
        Some(format!("algorithm.kind={}", kind.as_str()?))
    };
    let mut kinds: Vec<String> = runs.iter().filter_map(kind).collect();
    kinds.sort();
    kinds.dedup();
    if kinds.is_empty() { "unknown".to_owned() } else { kinds.join("; ") }
}

/// `a, seed 1`, `a, seed 2`, `b, seed 1` and `b, seed 2` become `a, b: seeds 1, 2`; of many the first and the count.
fn labels_in_short(labels: &[&str]) -> String {
    const MOST: usize = 12;
    let mut warm: Vec<(&str, Vec<&str>)> = Vec::new();
    for label in labels {
        let (start, seed) = label.rsplit_once(", seed ").unwrap_or((label, ""));
        match warm.iter_mut().find(|(other, _)| *other == start) {
            Some((_, seeds)) => seeds.push(seed),
            None => warm.push((start, vec![seed])),
        }
    }
    let mut alike: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    for (start, seeds) in warm {
        match alike.iter_mut().find(|(_, others)| *others == seeds) {
            Some((starts, _)) => starts.push(start),
            None => alike.push((vec![start], seeds)),
        }
    }
    let one = |(starts, seeds): &(Vec<&str>, Vec<&str>)| match seeds.as_slice() {
        [""] => starts.join(", "),
        seeds => format!("{}: {}", starts.join(", "), seeds_in_short(seeds)),
    };
    let mut text = alike.iter().take(MOST).map(one).collect::<Vec<_>>().join("; ");
    if alike.len() > MOST {
        text.push_str(&format!("; {} more", alike.len() - MOST));
    }
    text
}

/// `seeds 1 to 5` where they follow each other.
fn seeds_in_short(seeds: &[&str]) -> String {
    let numbers: Vec<u64> = seeds.iter().filter_map(|seed| seed.parse().ok()).collect();
    let follow = numbers.len() == seeds.len() && numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    match seeds {
        [seed] => format!("seed {seed}"),
        [first, .., last] if follow && seeds.len() > 2 => format!("seeds {first} to {last}"),
        seeds => format!("seeds {}", seeds.join(", ")),
    }
}

/// Thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let place = |(at, digit): (usize, char)| {
        let gap = at > 0 && (digits.len() - at).is_multiple_of(3);
        [gap.then_some('\u{2009}'), Some(digit)].into_iter().flatten()
    };
    digits.chars().enumerate().flat_map(place).collect()
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A table; the first `words` columns are text, the others numbers.
fn text_table(table: &TextTable, words: usize) -> Markup {
    let class = |at: usize| if at < words { "w" } else { "n" };
    html! {
        div.scroll tabindex="0" role="region" aria-label=(table.headers.join(", ")) {
            table {
                thead { tr {
                    @for (at, header) in table.headers.iter().enumerate() {
                        th scope="col" class=(class(at)) { (header) }
                    }
                } }
                tbody {
                    @for row in &table.rows { tr {
                        @for (at, cell) in row.iter().enumerate() {
                            @if at == 0 { th scope="row" class="w" { (cell) } }
                            @else { td class=(class(at)) { (interval_cell(cell)) } }
                        }
                    } }
                }
            }
        }
    }
}

/// The interval of a number stands back.
fn interval_cell(cell: &str) -> Markup {
    match cell.split_once(" [").filter(|(number, _)| number.replace('\u{2212}', "-").parse::<f64>().is_ok()) {
        Some((number, interval)) => html! { (number) " " span.i { "[" (interval) } },
        None => html! { (cell) },
    }
}

fn comparison(report: &Report) -> Markup {
    let Some(comparison) = &report.comparison else { return html! {} };
    let words = |section: &str| if section == "Settings and cost" { 2 } else { 1 };
    html! {
        section id="comparison" {
            h2 { "Comparison" }
            p.caption { (preface(comparison)) " With few runs an end may lie outside of 0 to 100." }
            @for section in sections(comparison) {
                h3 { (section.title) }
                @if !section.intro.is_empty() { p.caption { (section.intro) } }
                @match &section.table {
                    Some(table) => (text_table(table, words(&section.title))),
                    None => p { "No runs yet." },
                }
                @if !section.note.is_empty() { p.note { (section.note) } }
            }
        }
    }
}

/// Figures, each with its legend above the plots.
fn figures(figures: Vec<Figure>) -> anyhow::Result<PreEscaped<String>> {
    let mut text = String::new();
    for figure in figures {
        let plots: Vec<Markup> = figure.plots.iter().map(plot).collect::<anyhow::Result<_>>()?;
        let markup = html! {
            h2 { (figure.title) }
            p.caption { (figure.caption) }
            (legend(&figure))
            div.plots { @for plot in plots { (plot) } }
        };
        text.push_str(&markup.into_string());
    }
    Ok(PreEscaped(text))
}

/// The lines of a figure, in the order of their first plot.
fn legend(figure: &Figure) -> Markup {
    let mut lines: Vec<&Line> = Vec::new();
    for line in figure.plots.iter().flat_map(|plot| &plot.lines) {
        if !lines.iter().any(|other| other.label == line.label) {
            lines.push(line);
        }
    }
    let marked = figure.plots.iter().any(|plot| plot.shape == Shape::Marked);
    let points = |line: &Line| {
        let corner =
            |(x, y): (i32, i32)| format!("{},{}", 14.0 + f64::from(x) / 10.0, 7.0 + f64::from(y) / 10.0);
        super::draw::marker(line.style, 10.0).into_iter().map(corner).collect::<Vec<_>>().join(" ")
    };
    html! {
        ul.legend {
            @for line in lines {
                li {
                    svg viewBox="0 0 28 14" width="28" height="14" aria-hidden="true" {
                        path class=(format!("s c{}", line.style.color)) d="M1 7H27" stroke-width="2"
                            stroke-dasharray=[line.style.dashed.then_some("5 3")] {}
                        @if marked {
                            polygon class=(format!("f c{}", line.style.color)) points=(points(line)) {}
                        }
                    }
                    (line.label)
                }
            }
        }
    }
}

fn plot(plot: &Plot) -> anyhow::Result<Markup> {
    let chart = svg::inline(plot, &description(plot))?;
    Ok(html! {
        figure id=(format!("plot-{}", plot.id)) {
            figcaption { (plot.title) " " span.unit { (plot.unit) } }
            (chart)
            details { summary { "Data" } (numbers(plot)) }
        }
    })
}

/// What the plot shows, for who does not see it.
fn description(plot: &Plot) -> String {
    let (y0, y1) = plot.y_range();
    let number = |value: f64| plot.number(value, (y1 - y0) / 10.0);
    let of = |line: &Line| -> String {
        let ends = (line.points.first(), line.points.last());
        let (Some(first), Some(last)) = ends else { return String::new() };
        if plot.shape == Shape::Bins {
            let most = line.points.iter().reduce(|a, b| if b.mean > a.mean { b } else { a }).unwrap_or(first);
            return format!(
                "{}: most pairs, {}, in the bin from {:.2}.",
                line.label,
                number(most.mean),
                most.x
            );
        }
        let (from, to) = (number(first.mean), number(last.mean));
        format!("{}: {from} at {}, {to} at {}.", line.label, first.x, last.x)
    };
    let lines: Vec<String> = plot.lines.iter().map(of).collect();
    format!("{} ({}) by {}. {}", plot.title, plot.unit, plot.x, lines.join(" "))
}

/// The plot's numbers, of long curves some.
fn numbers(plot: &Plot) -> Markup {
    let mut places: Vec<f64> =
        plot.lines.iter().flat_map(|line| line.points.iter().map(|point| point.x)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let most = if plot.shape == Shape::Bins { BIN_ROWS } else { TABLE_ROWS };
    let (y0, y1) = plot.y_range();
    let number = |value: f64| plot.number(value, (y1 - y0) / 10.0);
    let cell = |line: &Line, x: f64| match line.points.iter().find(|point| point.x == x) {
        Some(point) if point.low < point.high => {
            format!("{} [{}, {}]", number(point.mean), number(point.low), number(point.high))
        }
        Some(point) => number(point.mean),
        None => "\u{2013}".to_owned(),
    };
    let x_text = |x: f64| if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.2}") };
    let rows = thin(places.len(), most).into_iter().map(|at| {
        let x = places[at];
        std::iter::once(x_text(x)).chain(plot.lines.iter().map(|line| cell(line, x))).collect()
    });
    let headers = std::iter::once(plot.x.clone()).chain(plot.lines.iter().map(|line| line.label.clone()));
    text_table(&TextTable { headers: headers.collect(), rows: rows.collect() }, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(grouped(1_234_567), "1\u{2009}234\u{2009}567");
        assert_eq!((grouped(0), grouped(999)), ("0".to_owned(), "999".to_owned()));
        assert_eq!([90.0, 150.0, 9_000.0].map(duration), ["90 s", "2 min", "2.5 h"]);
        assert_eq!(labels_in_short(&["a, seed 1", "a, seed 2", "b, seed 1"]), "a: seeds 1, 2; b: seed 1");
        let all = ["a, seed 3", "a, seed 4", "a, seed 5", "b, seed 3", "b, seed 4", "b, seed 5"];
        assert_eq!(labels_in_short(&all), "a, b: seeds 3 to 5");
        assert_eq!(labels_in_short(&["demo"]), "demo");
    }
}
