//! `index -> curves`: a run of any length as a few hundred points.
//!
//! Steps are put into buckets of the same number of steps; a bucket has the mean of its finite values and, where it has
//! more than one step, their smallest and largest, so that a spike of one step in ten thousand stays visible. The last
//! bucket may be smaller. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use g2rl_common::geometry::HISTOGRAM_BINS;
use serde::{Deserialize, Serialize};

use super::index::{COLUMNS, EvaluationRow, Index, NOVELTY_BINS, StepRow};

/// Points of a curve, unless asked for otherwise.
const POINTS: usize = 300;

/// And at most.
const MAX_POINTS: usize = 1000;

/// Columns of the heat map: each has [`HISTOGRAM_BINS`] cells.
const MAP_POINTS: usize = 120;

/// Which steps, and how finely.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Window {
    /// First and last step, counted from 1.
    pub(super) from: Option<u64>,
    pub(super) to: Option<u64>,
    pub(super) points: Option<usize>,
}

/// A curve; `None` where no step has a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Series {
    pub(super) unit: &'static str,
    pub(super) mean: Vec<Option<f64>>,
    /// Left out where each point is one step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) min: Option<Vec<Option<f64>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max: Option<Vec<Option<f64>>>,
}

/// What `/api/curves` answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Curves {
    pub(super) revision: u64,
    /// All steps of the window are there.
    pub(super) complete: bool,
    pub(super) steps_per_point: usize,
    /// The last step of each point, counted from 1.
    pub(super) steps: Vec<u64>,
    /// When it was completed, milliseconds since 1970.
    pub(super) finished_ms: Vec<Option<i64>>,
    pub(super) series: BTreeMap<&'static str, Series>,
    pub(super) evaluations: Vec<EvaluationRow>,
}

/// What `/api/geometry` answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Geometry {
    pub(super) revision: u64,
    pub(super) steps: Vec<u64>,
    /// For each point the share of its pairs in each of 40 bins over [-1, 1]; empty without pairs.
    pub(super) cosines: Vec<Vec<f64>>,
    /// Rollouts of the whole window in each of 20 bins of novelty over [0, 1].
    pub(super) novelty_right: Vec<u64>,
    pub(super) novelty_wrong: Vec<u64>,
}

/// Six digits are more than a chart can show.
pub(super) fn short(value: f64) -> Option<f64> {
    if value == 0.0 {
        return Some(0.0);
    }
    let digits = 10f64.powi(5 - value.abs().log10().floor() as i32);
    let rounded = (value * digits).round() / digits;
    // Beside the range of powers of ten it stays as it is.
    value.is_finite().then(|| if rounded.is_finite() { rounded } else { value })
}

/// The rows of a window, and how many make a point.
fn select(rows: &[StepRow], window: Window, points: usize) -> (&[StepRow], usize) {
    let from = window.from.unwrap_or(1).saturating_sub(1);
    let to = window.to.unwrap_or(u64::MAX);
    let range = Range {
        start: rows.partition_point(|row| row.step < from),
        end: rows.partition_point(|row| row.step < to),
    };
    let rows = rows.get(range).unwrap_or_default();
    (rows, rows.len().div_ceil(points).max(1))
}

/// Mean, smallest and largest of the finite values.
fn of_bucket(values: impl Iterator<Item = f64>) -> [Option<f64>; 3] {
    let (mut sum, mut count, mut low, mut high) = (0.0, 0u32, f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        (sum, count, low, high) = (sum + value, count + 1, low.min(value), high.max(value));
    }
    if count == 0 { [None; 3] } else { [short(sum / f64::from(count)), short(low), short(high)] }
}

fn last_steps(rows: &[StepRow], size: usize) -> Vec<u64> {
    rows.chunks(size).filter_map(<[StepRow]>::last).map(|row| row.step + 1).collect()
}

/// The curves of a window.
pub(super) fn curves(index: &Index, window: Window) -> Curves {
    let points = window.points.unwrap_or(POINTS).clamp(1, MAX_POINTS);
    let (rows, size) = select(index.steps(), window, points);
    let series = COLUMNS.iter().enumerate().map(|(at, column)| {
        let buckets: Vec<[Option<f64>; 3]> =
            rows.chunks(size).map(|chunk| of_bucket(chunk.iter().map(|row| row.values[at]))).collect();
        let part = |which: usize| buckets.iter().map(|bucket| bucket[which]).collect();
        let bounds = |which| (size > 1).then(|| part(which));
        let series = Series { unit: column.unit, mean: part(0), min: bounds(1), max: bounds(2) };
        (column.name, series)
    });
    let inside = |row: &&EvaluationRow| {
        window.from.is_none_or(|from| row.step + 1 >= from) && window.to.is_none_or(|to| row.step <= to)
    };
    Curves {
        revision: index.revision,
        complete: index.complete,
        steps_per_point: size,
        steps: last_steps(rows, size),
        finished_ms: rows.chunks(size).map(|chunk| chunk.last().and_then(|row| row.finished_ms)).collect(),
        series: series.collect(),
        evaluations: index.evaluations.iter().filter(inside).cloned().collect(),
    }
}

/// The cosines and novelties of a window.
pub(super) fn geometry(index: &Index, window: Window) -> Geometry {
    let points = window.points.unwrap_or(MAP_POINTS).clamp(1, MAP_POINTS);
    let (rows, size) = select(index.steps(), window, points);
    let share = |chunk: &[StepRow]| {
        let mut sum = [0u64; HISTOGRAM_BINS];
        for bins in chunk.iter().filter_map(|row| row.cosines.as_deref()) {
            sum.iter_mut().zip(bins).for_each(|(sum, pairs)| *sum += u64::from(*pairs));
        }
        let all: u64 = sum.iter().sum();
        let shares = sum.iter().filter_map(|pairs| short(*pairs as f64 / all as f64));
        if all == 0 { Vec::new() } else { shares.collect() }
    };
    let novelty = |bins: fn(&StepRow) -> &[u32; NOVELTY_BINS]| {
        let mut sum = vec![0u64; NOVELTY_BINS];
        for row in rows {
            sum.iter_mut().zip(bins(row)).for_each(|(sum, count)| *sum += u64::from(*count));
        }
        sum
    };
    Geometry {
        revision: index.revision,
        steps: last_steps(rows, size),
        cosines: rows.chunks(size).map(share).collect(),
        novelty_right: novelty(|row| &row.novelty.right),
        novelty_wrong: novelty(|row| &row.novelty.wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::super::index::row;
    use super::*;

    fn index(steps: u64) -> Index {
        let mut index = Index::default();
        for step in 0..steps {
            let mut row = row(step);
            row.values[0] = step as f64;
            row.cosines = Some(Box::new(std::array::from_fn(|bin| u32::from(bin as u64 == step % 2))));
            index.push(row, []);
        }
        index
    }

    #[test]
    fn a_short_run_is_shown_step_by_step() {
        let curves = curves(&index(3), Window::default());
        assert_eq!((curves.steps, curves.steps_per_point), (vec![1, 2, 3], 1));
        let reward = &curves.series["reward"];
        assert_eq!(reward.mean, [Some(0.0), Some(1.0), Some(2.0)]);
        assert_eq!(reward.min, None);
        assert_eq!(curves.series["correct"].mean, [None; 3]);
        assert!(super::curves(&Index::default(), Window::default()).steps.is_empty());
    }

    #[test]
    fn a_spike_of_one_step_is_seen_in_a_long_run() {
        let mut index = index(10_000);
        let mut spike = row(10_000);
        spike.values[0] = 1e6;
        index.push(spike, []);
        let curves = curves(&index, Window { points: Some(100), ..Window::default() });
        let reward = &curves.series["reward"];
        // 10,001 steps in buckets of 101: 99 of them and one of two.
        assert_eq!((curves.steps_per_point, curves.steps.len()), (101, 100));
        assert_eq!(curves.steps.last(), Some(&10_001));
        assert_eq!(reward.max.as_ref().unwrap().last(), Some(&Some(1e6)));
        // The first has 0, 1, ..., 100.
        assert_eq!((reward.mean[0], reward.min.as_ref().unwrap()[0]), (Some(50.0), Some(0.0)));
    }

    #[test]
    fn a_window_counts_from_one() {
        let window = Window { from: Some(3), to: Some(5), points: None };
        assert_eq!(curves(&index(10), window).steps, [3, 4, 5]);
        let nothing = Window { from: Some(7), to: Some(2), points: Some(0) };
        assert!(curves(&index(10), nothing).steps.is_empty());
    }

    #[test]
    fn cosines_are_shares_of_their_pairs() {
        let geometry = geometry(&index(4), Window { points: Some(2), ..Window::default() });
        assert_eq!(geometry.steps, [2, 4]);
        assert!(geometry.cosines.iter().all(|bins| bins[..3] == [0.5, 0.5, 0.0]), "{:?}", geometry.cosines);
    }

    #[test]
    fn numbers_keep_six_digits() {
        assert_eq!(short(1.234_567_89), Some(1.23457));
        assert_eq!(short(-1.234_567_89e-9), Some(-1.234_57e-9));
        assert_eq!(short(0.0), Some(0.0));
        assert_eq!(short(f64::NAN), None);
        assert_eq!(short(5e-324), Some(5e-324));
    }
}
