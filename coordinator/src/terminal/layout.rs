//! How the view of a run is arranged, for any size of the terminal.
//!
//! In: a [`Model`], the time, a width and a height. Out: lines. The first three are always there; then what a person
//! should look at, the curves, where the time goes, and the ranks, as far as there is room.

use std::time::Duration;

use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};

use super::curve::Curve;
use super::model::{Curves, Model, Split};
use super::ranks;
use crate::progress::readable;
use crate::sparkline::sparkline;

/// Wider than this nothing gets better, and what is not wide is not wrapped by a terminal that becomes narrower.
const MAX_WIDTH: usize = 110;

/// Widths from which on the curves have this many columns.
const COLUMNS: [(usize, usize); 2] = [(96, 3), (52, 2)];

/// A curve's name, value and line.
const LABEL: usize = 10;
const VALUE: usize = 7;
const LINE: usize = 16;

/// The size that lines are made for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// The view.
pub(super) fn lines(model: &Model, now: Duration, size: Size) -> Vec<Line<'static>> {
    let size = Size { width: size.width.clamp(1, MAX_WIDTH), ..size };
    let mut lines =
        vec![title(model, now, size.width), steps(model, now, size.width), phase(model, size.width)];
    let mut add = |more: Vec<Line<'static>>| {
        // One line less than there is: a terminal scrolls when its last line is written.
        if lines.len() + more.len() < size.height {
            lines.extend(more);
        }
    };
    add(alerts(model, size.width));
    add(curves(model, size.width));
    add(times(model, size.width));
    let room = size.height.saturating_sub(lines.len() + 1);
    lines.extend(ranks::lines(model, size.width, room));
    lines.truncate(size.height.saturating_sub(1).max(1));
    lines
}

/// Text of at most this many columns.
pub(super) fn clip(text: &str, width: usize) -> String {
    if Span::raw(text).width() <= width {
        return text.to_owned();
    }
    let mut clipped = String::new();
    for symbol in text.chars() {
        if Span::raw(format!("{clipped}{symbol}…")).width() > width {
            break;
        }
        clipped.push(symbol);
    }
    if width > 0 {
        clipped.push('…');
    }
    clipped
}

/// `── demo · g2rl · demo/model ──────── 3 min 20 s ──`
fn title(model: &Model, now: Duration, width: usize) -> Line<'static> {
    let about = clip(&format!(" · {} · {} ", model.method, model.model), width.saturating_sub(24));
    let name = clip(&model.name, 16);
    let time = format!(" {} ", readable(now.as_secs_f64()));
    let used = 3 + Span::raw(&*name).width() + Span::raw(&*about).width() + time.len() + 2;
    let rule = "─".repeat(width.saturating_sub(used));
    Line::from(vec!["── ".dim(), name.bold(), about.into(), rule.dim(), time.dim(), "──".dim()])
}

/// `step 37/500 ━━━━━━╌╌╌╌╌╌╌╌╌ 7 % left 1 h 02 min`
fn steps(model: &Model, now: Duration, width: usize) -> Line<'static> {
    let share = model.done as f64 / model.steps.max(1) as f64;
    let left = match model.pace(now) {
        Some(_) if model.done >= model.steps => "done".to_owned(),
        Some((_, seconds)) => format!("left {}", readable(seconds)),
        None => "left -".to_owned(),
    };
    let (head, tail) =
        (format!(" step {}/{} ", model.done, model.steps), format!(" {:>3.0} %  {left:<14}", 100.0 * share));
    let bar = width.saturating_sub(head.len() + tail.len()).min(60);
    let full = ((bar as f64 * share).round() as usize).min(bar);
    let mut line = vec![head.bold(), "━".repeat(full).green(), "╌".repeat(bar - full).dim()];
    line.push(tail.into());
    Line::from(line)
}

fn phase(model: &Model, width: usize) -> Line<'static> {
    let mut text = match model.phase.as_str() {
        "" => "starting".to_owned(),
        phase => phase.to_owned(),
    };
    match model.rollouts {
        Some((done, all)) => text.push_str(&format!(" · {done}/{all} rollouts")),
        None if !model.waiting_for.is_empty() && model.waiting_for != "nothing" => {
            text.push_str(&format!(" · waits for {}", model.waiting_for));
        }
        None => {}
    }
    let time = if model.phase_ms >= 1_000 {
        format!(" · {}", readable(model.phase_ms as f64 / 1e3))
    } else {
        String::new()
    };
    let text = clip(&text, width.saturating_sub(time.len() + 1));
    Line::from(vec![" ".into(), text.cyan(), time.dim()])
}

/// Local.
fn time_of_day(at_ms: i64) -> String {
    let at = chrono::DateTime::from_timestamp_millis(at_ms).unwrap_or_default();
    at.with_timezone(&chrono::Local).format("%H:%M:%S").to_string()
}

fn alerts(model: &Model, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(alert) = &model.alert {
        let style = Style::new().fg(if alert.is_error { Color::Red } else { Color::Yellow });
        let text = clip(&alert.text, width.saturating_sub(10));
        lines.push(Line::from(vec![
            format!(" {} ", time_of_day(alert.at_ms)).dim(),
            Span::styled(text, style),
        ]));
    }
    if let Some((first, others)) = model.stalls.split_first() {
        let more = if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
        let text = clip(first, width.saturating_sub(1 + more.len()));
        lines.push(Line::from(vec![" ".into(), text.red().bold(), more.red()]));
    }
    lines
}

/// A value over the steps, by its name.
struct Cell<'a> {
    label: &'static str,
    value: String,
    points: &'a [f64],
}

fn cell<'a>(label: &'static str, curve: &'a Curve, form: fn(f64) -> String, none: &str) -> Cell<'a> {
    Cell { label, value: curve.last().map_or_else(|| none.to_owned(), form), points: curve.points() }
}

fn cells(model: &Model) -> Vec<Cell<'_>> {
    let Curves { reward, correct, loss, length, entropy, kl, novelty, orthogonal, negative, score } =
        &model.curves;
    // What nobody measures in this run is off, not unknown.
    let unmeasured = if length.last().is_some() { "off" } else { "-" };
    let learning = match model.imitates {
        true => vec![cell("loss", loss, |value| format!("{value:.4}"), "-")],
        false => vec![
            cell("reward", reward, |value| format!("{value:+.3}"), "-"),
            cell("correct", correct, percent, "-"),
        ],
    };
    let others = [
        cell("held out", score, percent, "-"),
        cell("length", length, |value| format!("{value:.0}"), "-"),
        cell("entropy", entropy, |value| format!("{value:.3}"), "-"),
        cell("KL", kl, small, if model.has_reference { "-" } else { "off" }),
        cell("novelty", novelty, |value| format!("{value:.3}"), unmeasured),
        cell("orthogonal", orthogonal, percent, unmeasured),
        cell("negative", negative, percent, unmeasured),
    ];
    learning.into_iter().chain(others).collect()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn small(value: f64) -> String {
    if value.abs() < 1e-3 && value != 0.0 { format!("{value:.1e}") } else { format!("{value:.4}") }
}

/// The curves, column by column.
fn curves(model: &Model, width: usize) -> Vec<Line<'static>> {
    let columns = COLUMNS.iter().find(|(from, _)| width >= *from).map_or(1, |(_, columns)| *columns);
    let cells = cells(model);
    let rows = cells.len().div_ceil(columns);
    let each = width / columns;
    let line = each.saturating_sub(LABEL + VALUE + 4).min(LINE);
    let spans = |cell: &Cell<'_>| {
        let used = 1 + LABEL + 1 + VALUE + 1 + line;
        [
            format!(" {:<LABEL$} ", cell.label).dim(),
            format!("{:>VALUE$} ", cell.value).bold(),
            format!("{:<line$}", sparkline(cell.points, line)).cyan(),
            " ".repeat(each.saturating_sub(used)).into(),
        ]
    };
    let row = |row: usize| cells.iter().skip(row).step_by(rows).flat_map(spans).collect::<Line<'static>>();
    (0..rows).map(row).collect()
}

/// Colours of the parts of a step.
const PARTS: [(&str, Color); 4] =
    [("rollout", Color::Green), ("reward", Color::Yellow), ("update", Color::Blue), ("wait", Color::Magenta)];

/// Columns of the bar of a step's parts.
const MIN_BAR: usize = 12;
const MAX_BAR: usize = 24;

/// How long a step takes, and what takes it.
fn times(model: &Model, width: usize) -> Vec<Line<'static>> {
    let Some(split) = model.split() else { return Vec::new() };
    let Split { rollout, reward, update, wait } = split;
    let parts = PARTS.iter().zip([rollout, reward, update, wait]);
    let share = |ms: u64| ms as f64 / split.all() as f64;
    let legend: Vec<Span<'static>> = parts
        .clone()
        .flat_map(|((name, color), ms)| {
            [" ■ ".fg(*color), format!("{name} {:.0} %", 100.0 * share(ms)).into(), " ".into()]
        })
        .collect();
    let seconds =
        model.pace(Duration::ZERO).map_or(String::new(), |(seconds, _)| format!(" {seconds:.2} s/step"));
    let rate = model.tokens_per_s.map_or(String::new(), |rate| format!("  {} tokens/s", thousands(rate)));
    let legend_width: usize = legend.iter().map(Span::width).sum();
    let head = format!("{seconds}{rate} ");
    let beside = width.saturating_sub(head.len() + legend_width + 1);
    let is_one_line = beside >= MIN_BAR;
    let bar = if is_one_line { beside } else { width.saturating_sub(head.len() + 1) }.min(MAX_BAR);
    let mut first = vec![Span::raw(head)];
    let mut begun = 0.0;
    for ((_, color), ms) in parts {
        // Edges are rounded, not lengths, so that the bar has its length.
        let edge = |share: f64| (share * bar as f64).round() as usize;
        let cells = edge(begun + share(ms)) - edge(begun);
        begun += share(ms);
        first.push("■".repeat(cells).fg(*color));
    }
    match is_one_line {
        true => vec![first.into_iter().chain(legend).collect()],
        false => vec![Line::from(first), Line::from(legend)],
    }
}

/// `12,345`
pub(super) fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let places = digits.char_indices().flat_map(|(at, digit)| {
        let comma = at > 0 && (digits.len() - at).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    });
    places.collect()
}
