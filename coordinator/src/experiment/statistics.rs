//! Intervals of a mean over runs and problems.
//!
//! Runs (warm start and seed) and problems are two samples that another experiment would replace, and every run
//! answers every problem: both are resampled, crossed. With few runs the resampled means spread too little, by
//! sqrt((n - 1) / n) for n runs; their distance to the mean of all runs is stretched by the inverse. With one run
//! there is no variance between runs to see.

use g2rl_common::bootstrap::{BootstrapOptions, Interval, percentiles, resampled};

/// Resamples: the ends move by a few percent of the width with the seed.
const RESAMPLES: usize = 2_000;

/// The mean of `values[run][problem]` and its 95 % interval; `None` without values.
///
/// # Panics
/// If runs have different numbers of problems.
#[must_use]
pub(crate) fn crossed(values: &[Vec<f64>], seed: u64) -> Option<Interval> {
    let (runs, problems) = (values.len(), values.first()?.len());
    assert!(values.iter().all(|run| run.len() == problems), "every run answers every problem");
    if problems == 0 {
        return None;
    }
    let options = BootstrapOptions { seed, resamples: RESAMPLES, ..BootstrapOptions::default() };
    let stretch = stretch(runs);
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let means = resampled(&[runs, problems], &options, |draws| {
        let of_run = |run: &Vec<f64>| draws[1].iter().map(|&p| run[p]).sum::<f64>() / problems as f64;
        let by_run: Vec<f64> = values.iter().map(of_run).collect();
        let all = mean(&by_run);
        let drawn = draws[0].iter().map(|&run| by_run[run]).sum::<f64>() / runs as f64;
        Some(all + stretch * (drawn - all))
    });
    let by_run: Vec<f64> = values.iter().map(|run| mean(run)).collect();
    Some(percentiles(mean(&by_run), means, &options))
}

/// Intervals of means over the same number of runs, as [`crossed`] makes them of one problem: the draws are made once.
#[derive(Debug, Clone)]
pub(crate) struct OverRuns {
    draws: Vec<Vec<usize>>,
    stretch: f64,
}

impl OverRuns {
    /// For so many runs.
    pub(crate) fn new(runs: usize) -> Self {
        let options = BootstrapOptions { resamples: RESAMPLES, ..BootstrapOptions::default() };
        let mut draws = Vec::with_capacity(RESAMPLES);
        if runs > 1 {
            resampled(&[runs, 1], &options, |drawn| {
                draws.push(drawn[0].clone());
                None
            });
        }
        Self { draws, stretch: stretch(runs) }
    }

    /// The mean of one value of each run; the interval of one run is empty.
    pub(crate) fn interval(&self, values: &[f64]) -> Interval {
        let all = values.iter().sum::<f64>() / values.len() as f64;
        if self.draws.is_empty() {
            return Interval { mean: all, low: all, high: all };
        }
        let mean = |draw: &Vec<usize>| draw.iter().map(|&run| values[run]).sum::<f64>() / draw.len() as f64;
        let means = self.draws.iter().map(|draw| all + self.stretch * (mean(draw) - all)).collect();
        percentiles(all, means, &BootstrapOptions::default())
    }
}

/// A statistic of runs and its interval: it is given indices of runs, first all of them and then drawn ones. `None` without
/// runs, or if all of them have no value.
pub(super) fn resampled_runs(
    runs: usize,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<Interval> {
    if runs == 0 {
        return None;
    }
    let all = statistic(&(0..runs).collect::<Vec<_>>())?;
    let options = BootstrapOptions { resamples: RESAMPLES, ..BootstrapOptions::default() };
    let stretch = stretch(runs);
    let drawn = resampled(&[runs], &options, |draws| Some(all + stretch * (statistic(&draws[0])? - all)));
    (!drawn.is_empty()).then(|| percentiles(all, drawn, &options))
}

/// What the distances of resampled means of so many runs to the mean of all are multiplied by.
fn stretch(runs: usize) -> f64 {
    if runs > 1 { (runs as f64 / (runs - 1) as f64).sqrt() } else { 0.0 }
}

/// Where a curve of points (x, y), in order of training, first reaches x; y there, on the line between points. `None` if it
/// never does.
#[must_use]
pub(super) fn at_first_reach(curve: &[(f64, f64)], x: f64) -> Option<f64> {
    let at = curve.iter().position(|point| point.0 >= x)?;
    let (x1, y1) = curve[at];
    let Some(&(x0, y0)) = at.checked_sub(1).and_then(|before| curve.get(before)) else { return Some(y1) };
    Some(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs differ by +-0.1 whatever the problem: five of them, standard deviation 0.1095 with n - 1, so the mean has
    /// 0.1095 / sqrt(5) = 0.049; problems do not differ.
    #[test]
    fn the_variance_between_runs_is_in_the_interval() {
        let values: Vec<Vec<f64>> = [0.4, 0.6, 0.4, 0.6, 0.4].iter().map(|&x| vec![x; 50]).collect();
        let interval = crossed(&values, 1).unwrap();
        assert!((interval.mean - 0.48).abs() < 1e-12);
        let half = (interval.high - interval.low) / 2.0;
        assert!((half - 1.96 * 0.049).abs() < 0.03, "{interval:?}");
    }

    /// 200 problems, half solved by every run: 1.96 x sqrt(0.25 / 200) = 0.069.
    #[test]
    fn the_variance_between_problems_is_in_the_interval() {
        let problems: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        for runs in [1, 3] {
            let interval = crossed(&vec![problems.clone(); runs], 1).unwrap();
            assert!((interval.high - interval.low - 2.0 * 0.069).abs() < 0.015, "{interval:?}");
        }
        assert_eq!(crossed(&[], 1), None);
        assert_eq!(crossed(&[Vec::new()], 1), None);
    }

    /// Two runs: a quarter of the samples each is twice one run, so the interval reaches from run to run, stretched by
    /// sqrt(2): 0.5 +- 0.1 x 1.414.
    #[test]
    fn intervals_over_runs_are_those_of_one_problem() {
        let interval = OverRuns::new(2).interval(&[0.4, 0.6]);
        assert!((interval.low - (0.5 - 0.1 * 2f64.sqrt())).abs() < 1e-12, "{interval:?}");
        for values in [vec![0.3], vec![0.4, 0.6], vec![0.1, 0.5, 0.2]] {
            let columns: Vec<Vec<f64>> = values.iter().map(|&x| vec![x]).collect();
            assert_eq!(Some(OverRuns::new(values.len()).interval(&values)), crossed(&columns, 0));
        }
    }

    #[test]
    fn a_curve_is_read_where_it_first_reaches_a_level() {
        let curve = [(0.3, 0.9), (0.5, 0.8), (0.4, 0.7), (0.6, 0.6)];
        assert_eq!(at_first_reach(&curve, 0.2), Some(0.9));
        assert!((at_first_reach(&curve, 0.4).unwrap() - 0.85).abs() < 1e-12);
        // Three quarters of the way from 0.4 to 0.6: 0.7 - 0.75 x 0.1.
        assert!((at_first_reach(&curve, 0.55).unwrap() - 0.625).abs() < 1e-12);
        assert_eq!(at_first_reach(&curve, 0.7), None);
    }
}
