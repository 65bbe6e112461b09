//! The ranks of a run, one a line, those first that have been silent for longest where not all have room.

use ratatui::style::Stylize;
use ratatui::text::Line;

use super::layout::{clip, thousands};
use super::model::{Model, RankLine};

/// Ranks that are named at most.
const MAX_RANKS: usize = 8;

/// Silence that is shown as such, milliseconds: more than two signs of life that are usual.
const SILENT_MS: u64 = 12_000;

/// Columns of all but the worker's name.
const FIXED: usize = 53;

/// The ranks in at most `room` lines.
pub(super) fn lines(model: &Model, width: usize, room: usize) -> Vec<Line<'static>> {
    let (ranks, waiting) = (&model.ranks, model.waiting_workers);
    if ranks.is_empty() || room == 0 {
        return Vec::new();
    }
    let rows = room.saturating_sub(1).min(MAX_RANKS);
    let rest = usize::from(ranks.len() > rows || waiting > 0);
    let named = ranks.len().min(rows.saturating_sub(rest));
    if named == 0 || width < FIXED {
        return vec![Line::from(
            format!(" {}", clip(&summary(ranks, waiting), width.saturating_sub(1))).dim(),
        )];
    }
    let name =
        ranks.iter().map(|rank| rank.worker.chars().count()).max().unwrap_or(0).clamp(6, width - FIXED + 6);
    let mut chosen: Vec<&RankLine> = ranks.iter().collect();
    if ranks.len() > named {
        chosen.sort_by_key(|rank| (std::cmp::Reverse(rank.heard_ms / 1_000), rank.rank));
        chosen.truncate(named);
    }
    let header = format!(
        " rank  {:<name$}  {:<10} {:>9} {:>10}  {:>6}",
        "worker", "state", "slots", "tokens/s", "heard"
    );
    let mut lines = vec![Line::from(header.dim())];
    lines.extend(chosen.iter().map(|rank| row(rank, name)));
    if rest > 0 {
        let others: Vec<RankLine> =
            ranks.iter().filter(|rank| !chosen.iter().any(|one| one.rank == rank.rank)).cloned().collect();
        let more = if others.is_empty() { "" } else { "and " };
        lines.push(Line::from(format!(" {more}{}", clip(&summary(&others, waiting), width - 5)).dim()));
    }
    lines
}

fn row(rank: &RankLine, name: usize) -> Line<'static> {
    let slots = format!("{}/{}", rank.slots_in_use, rank.slots);
    let rate = rank.tokens_per_s.map_or("-".to_owned(), thousands);
    let heard = format!("{:.1} s", rank.heard_ms as f64 / 1e3);
    let text = format!(" {:>4}  {:<name$}  ", rank.rank, clip(&rank.worker, name));
    let state = format!("{:<10}", state(rank.state));
    let state = match rank.state {
        "idle" | "waiting_for_apply" => state.dim(),
        "loading" | "forming" | "checkpoint" => state.yellow(),
        _ => state.green(),
    };
    let heard = format!("  {heard:>6}");
    let heard = if rank.heard_ms >= SILENT_MS { heard.red().bold() } else { heard.into() };
    Line::from(vec![text.into(), state, format!(" {slots:>9} {rate:>10}").into(), heard])
}

/// A state in ten letters.
fn state(name: &'static str) -> &'static str {
    if name == "waiting_for_apply" { "ready" } else { name }
}

/// `6 ranks: 4 rollout, 2 idle; 1 worker waits for the next step`
fn summary(ranks: &[RankLine], waiting: usize) -> String {
    let mut states: Vec<(&str, usize)> = Vec::new();
    for rank in ranks {
        match states.iter_mut().find(|(name, _)| *name == state(rank.state)) {
            Some((_, count)) => *count += 1,
            None => states.push((state(rank.state), 1)),
        }
    }
    let states: Vec<String> = states.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let ranks = (!ranks.is_empty()).then(|| format!("{}: {}", many(ranks.len(), "rank"), states.join(", ")));
    let waiting = (waiting > 0).then(|| format!("{} without a rank", many(waiting, "worker")));
    ranks.into_iter().chain(waiting).collect::<Vec<_>>().join("; ")
}
