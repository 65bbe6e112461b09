//! Learning curves of runs, and methods where their first score is the same.
//!
//! At equal steps a method that sharpens more slowly looks more diverse. So means over runs are also read where the first
//! score has the same value: on the line between evaluations, where the mean curve first reaches it.
//!
//! In: each run's measures by evaluated step. Out: mean curves, their values at a level, and differences with intervals.

use g2rl_common::bootstrap::Interval;

use super::result::RunResult;
use super::statistics::{at_first_reach, resampled_runs};

/// Measures by completed steps, means over problems: the scores, then [`super::MEASURES`].
pub(super) type Curve = Vec<(u64, Vec<f64>)>;

/// A run's measures at each of its evaluations.
pub(super) fn of_run(run: &RunResult) -> Curve {
    let mean = |measured: &super::Measured, at: usize| {
        measured.values().map(|numbers| numbers[at]).sum::<f64>() / measured.len() as f64
    };
    let at = |measured: &super::Measured| {
        let count = measured.values().next().map_or(0, Vec::len);
        (0..count).map(|at| mean(measured, at)).collect()
    };
    run.evaluations.iter().map(|(step, measured)| (*step, at(measured))).collect()
}

/// The mean over runs at the steps that all of them evaluated.
pub(super) fn mean<'a>(curves: impl IntoIterator<Item = &'a Curve>) -> Curve {
    let curves: Vec<&Curve> = curves.into_iter().collect();
    let Some((first, others)) = curves.split_first() else { return Vec::new() };
    let of_step = |curve: &&'a Curve, step: u64| curve.iter().find(|(at, _)| *at == step).map(|(_, m)| m);
    let mut means = Vec::new();
    for (step, measures) in first.iter() {
        let Some(others) = others.iter().map(|curve| of_step(curve, *step)).collect::<Option<Vec<_>>>()
        else {
            continue;
        };
        let sum = |at: usize| others.iter().fold(measures[at], |sum, other| sum + other[at]);
        means.push((*step, (0..measures.len()).map(|at| sum(at) / curves.len() as f64).collect()));
    }
    means
}

/// The highest value of the first score.
pub(super) fn best(curve: &Curve) -> f64 {
    curve.iter().map(|(_, measures)| measures[0]).fold(f64::MIN, f64::max)
}

/// A measure where the first score first reaches a level; `None` if it never does.
pub(super) fn at_level(curve: &Curve, measure: usize, level: f64) -> Option<f64> {
    let points: Vec<(f64, f64)> =
        curve.iter().map(|(_, measures)| (measures[0], measures[measure])).collect();
    at_first_reach(&points, level)
}

/// The difference of a measure between the mean curves of pairs of runs, at the highest first score that both reach;
/// runs are resampled in pairs, and with them the level. `None` without pairs or evaluations.
pub(super) fn difference_at_equal(pairs: &[(Curve, Curve)], measure: usize) -> Option<Interval> {
    resampled_runs(pairs.len(), |drawn| {
        let one = mean(drawn.iter().map(|&at| &pairs[at].0));
        let other = mean(drawn.iter().map(|&at| &pairs[at].1));
        let level = best(&one).min(best(&other));
        Some(at_level(&one, measure, level)? - at_level(&other, measure, level)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps 0, 10, 20 with (first score, measure).
    fn curve(points: [(f64, f64); 3]) -> Curve {
        [0, 10, 20].into_iter().zip(points).map(|(step, (x, y))| (step, vec![x, y])).collect()
    }

    #[test]
    fn means_are_of_the_steps_that_all_have() {
        let mut other = curve([(0.3, 2.0), (0.5, 4.0), (0.7, 6.0)]);
        other.remove(1);
        let found = mean([&curve([(0.1, 1.0), (0.2, 2.0), (0.3, 3.0)]), &other]);
        assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 20]);
        assert!((found[1].1[0] - 0.5).abs() < 1e-12 && (found[1].1[1] - 4.5).abs() < 1e-12);
        assert_eq!(mean([]), Vec::new());
    }

    /// The measure is the same function of the score in both, 10 x score, and one method is half as fast: at equal steps
    /// it differs by 2, at an equal score not at all. Then 0.25 is added to it, in one pair 0.15 and in the other 0.35.
    #[test]
    fn slower_learning_alone_is_no_difference() {
        let fast = curve([(0.2, 2.0), (0.4, 4.0), (0.6, 6.0)]);
        let slow = |more: f64| curve([(0.2, 2.0 + more), (0.3, 3.0 + more), (0.4, 4.0 + more)]);
        let none = difference_at_equal(&[(slow(0.0), fast.clone())], 1).unwrap();
        assert!(none.mean.abs() < 1e-12 && none.low.abs() < 1e-12, "{none:?}");
        let pairs = [(slow(0.15), fast.clone()), (slow(0.35), fast)];
        let found = difference_at_equal(&pairs, 1).unwrap();
        assert!((found.mean - 0.25).abs() < 1e-12, "{found:?}");
        // Two runs: from one to the other, stretched by sqrt(2).
        assert!((found.high - (0.25 + 0.1 * 2f64.sqrt())).abs() < 1e-9, "{found:?}");
        assert_eq!(difference_at_equal(&[], 1), None);
    }
}
