//! Numbers of steps made into curves: smoothed in each run, averaged over runs, thinned.
//!
//! In: the values of some runs. Out: points with intervals over runs. A step counts where all runs have it.

use std::collections::{BTreeMap, BTreeSet};

use super::data::RunData;
use super::plot::Point;
use crate::experiment::{MEASURES, OverRuns, crossed};

/// Points of a curve: two for each pixel column that a phone gives it would not be seen.
pub(super) const MOST_POINTS: usize = 160;

/// A smoothing window is this share of the steps.
const WINDOW_SHARE: usize = 20;

/// Steps of a moving average over so many steps: odd, a twentieth of them, and never less than what thinning leaves out.
pub(super) fn window(steps: usize) -> usize {
    let wanted = (steps / WINDOW_SHARE).max(steps.div_ceil(MOST_POINTS));
    wanted + 1 - wanted % 2
}

/// The centred moving average over `window` (odd) values; at the ends, and where values are missing, over those that are
/// there. What is missing stays missing.
pub(super) fn smooth(values: &[Option<f64>], window: usize) -> Vec<Option<f64>> {
    let half = window / 2;
    let at = |(i, value): (usize, &Option<f64>)| {
        value.as_ref()?;
        // The same reach on both sides: an end must not lean towards the middle.
        let reach = half.min(i).min(values.len() - 1 - i);
        let near: Vec<f64> = values[i - reach..=i + reach].iter().flatten().copied().collect();
        Some(near.iter().sum::<f64>() / near.len() as f64)
    };
    values.iter().enumerate().map(at).collect()
}

/// Places of at most `most` (at least 2) of so many points, evenly, with the first and the last.
pub(super) fn thin(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let last = most - 1;
    (0..most).map(|i| (i * (count - 1) + last / 2) / last).collect()
}

/// The curve of a training metric over runs; empty where nothing was measured.
pub(super) fn training(runs: &[&RunData], metric: usize) -> Vec<Point> {
    let of_run = |run: &&RunData| -> BTreeMap<u64, f64> {
        let smoothed = smooth(&run.values[metric], window(run.steps.len()));
        run.steps.iter().zip(smoothed).filter_map(|(step, value)| Some((*step, value?))).collect()
    };
    let values: Vec<BTreeMap<u64, f64>> =
        runs.iter().map(of_run).filter(|values| !values.is_empty()).collect();
    let steps = common(&values.iter().map(|values| values.keys().copied().collect()).collect::<Vec<_>>());
    let over = OverRuns::new(values.len());
    let point = |at: usize| {
        let step = steps[at];
        let of_step: Vec<f64> = values.iter().map(|values| values[&step]).collect();
        let interval = over.interval(&of_step);
        Point { x: step as f64, mean: interval.mean, low: interval.low, high: interval.high }
    };
    thin(steps.len(), MOST_POINTS).into_iter().map(point).collect()
}

/// Steps that all have.
fn common(of_runs: &[BTreeSet<u64>]) -> Vec<u64> {
    let Some((first, others)) = of_runs.split_first() else { return Vec::new() };
    first.iter().copied().filter(|step| others.iter().all(|steps| steps.contains(step))).collect()
}

/// Evaluations of a curve: each costs a bootstrap over runs and problems.
const MOST_EVALUATIONS: usize = 12;

/// The curve of a score, or of one of [`MEASURES`], over runs and problems: intervals are those of the comparison. Runs
/// that answered other problems than the first one count for nothing.
pub(super) fn evaluated(runs: &[&RunData], name: &str) -> Vec<Point> {
    let place = |run: &RunData| {
        let names = run.scores.iter().map(String::as_str).chain(MEASURES);
        names.into_iter().position(|other| other == name)
    };
    let measured: Vec<(&RunData, usize)> = runs
        .iter()
        .filter(|run| !run.evaluations.is_empty())
        .filter_map(|run| Some((*run, place(run)?)))
        .collect();
    let steps = common(
        &measured.iter().map(|(run, _)| run.evaluations.keys().copied().collect()).collect::<Vec<_>>(),
    );
    let point = |at: usize| {
        let step = steps[at];
        let problems = |run: &RunData| run.evaluations[&step].keys().cloned().collect::<Vec<String>>();
        let first = problems(measured.first()?.0);
        let same = measured.iter().filter(|(run, _)| problems(run) == first);
        let values: Vec<Vec<f64>> = same
            .map(|(run, place)| run.evaluations[&step].values().map(|numbers| numbers[*place]).collect())
            .collect();
        let interval = crossed(&values, 0)?;
        Some(Point { x: step as f64, mean: interval.mean, low: interval.low, high: interval.high })
    };
    thin(steps.len(), MOST_EVALUATIONS).into_iter().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn windows_are_odd_and_cover_what_thinning_leaves_out() {
        // 40 / 20 = 2, so 3; 300 / 20 = 15; one for short runs.
        assert_eq!([10, 40, 300].map(window), [1, 3, 15]);
        for steps in 1..5_000 {
            assert!(window(steps) % 2 == 1 && window(steps) * MOST_POINTS >= steps, "{steps}");
        }
    }

    #[test]
    fn smoothing_is_symmetric_and_leaves_gaps() {
        let values = [Some(0.0), Some(3.0), Some(6.0), None, Some(1.0)];
        // The ends stand for themselves; (0 + 3 + 6) / 3; (3 + 6) / 2.
        assert_eq!(smooth(&values, 3), [Some(0.0), Some(3.0), Some(4.5), None, Some(1.0)]);
        assert_eq!(smooth(&values, 1), values);
        assert_eq!(smooth(&[], 3), Vec::<Option<f64>>::new());
    }

    #[test]
    fn thinning_keeps_both_ends_and_goes_evenly() {
        assert_eq!(thin(3, 5), [0, 1, 2]);
        assert_eq!(thin(9, 5), [0, 2, 4, 6, 8]);
        for count in 2..700 {
            let kept = thin(count, 160);
            assert!(kept.len() <= 160 && kept[0] == 0 && kept[kept.len() - 1] == count - 1, "{count}");
            assert!(kept.windows(2).all(|pair| pair[0] < pair[1]), "{count}");
        }
    }

    #[test]
    fn means_are_over_the_steps_that_all_runs_have() {
        let (a, b) = (run("m", "a", &[1.0, 3.0, 5.0]), run("m", "b", &[3.0, 5.0]));
        let points = training(&[&a, &b], 0);
        assert_eq!(points.iter().map(|p| (p.x, p.mean)).collect::<Vec<_>>(), [(1.0, 2.0), (2.0, 4.0)]);
        // Two runs, 1 and 3: the interval reaches sqrt(2) times as far as they do.
        assert!((points[0].low - (2.0 - 2f64.sqrt())).abs() < 1e-12, "{points:?}");
        let alone = training(&[&a], 0);
        assert_eq!((alone[2].mean, alone[2].low, alone[2].high), (5.0, 5.0, 5.0));
        assert!(training(&[&a], 5).is_empty() && training(&[], 0).is_empty());
    }
}
