//! How certain a mean over problems is: the percentile bootstrap.
//!
//! In: one number for each problem. Out: their mean and an interval. Problems are resampled, not
//! answers: a benchmark's problems are the sample that another benchmark would replace.

use serde::{Deserialize, Serialize};

use crate::seed::CounterRng;

/// How an interval is made.
#[derive(Debug, Clone, PartialEq)]
pub struct BootstrapOptions {
    /// Seed of the resampling; the same seed gives the same interval.
    pub seed: u64,
    /// Number of resamples, at least 1; default 10,000 (the ends then move by about a percent of
    /// the interval's width with the seed).
    pub resamples: usize,
    /// Share of resampled means inside the interval, between 0 and 1; default 0.95.
    pub level: f64,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        Self { seed: 0, resamples: 10_000, level: 0.95 }
    }
}

/// A mean and where it may lie.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Mean of the values.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The mean of the values and its percentile interval; `None` without values.
///
/// # Panics
/// If there are no resamples or the level is not between 0 and 1.
#[must_use]
pub fn mean_interval(values: &[f64], options: &BootstrapOptions) -> Option<Interval> {
    assert!(options.resamples > 0, "a bootstrap needs resamples");
    assert!((0.0..=1.0).contains(&options.level), "level {} is not between 0 and 1", options.level);
    if values.is_empty() {
        return None;
    }
    let count = values.len();
    let mut rng = CounterRng::new(options.seed, "bootstrap");
    let mut means: Vec<f64> = (0..options.resamples)
        .map(|_| {
            let sum: f64 = (0..count).map(|_| values[rng.below(count as u64) as usize]).sum();
            sum / count as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - options.level) / 2.0;
    Some(Interval {
        mean: values.iter().sum::<f64>() / count as f64,
        low: quantile(&means, tail),
        high: quantile(&means, 1.0 - tail),
    })
}

/// Quantile of sorted values, linear between neighbours (numpy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 200 problems, half solved: the resampled mean has standard deviation sqrt(0.25 / 200) =
    /// 0.03536, so 95 % lie within 1.96 x 0.03536 = 0.0693 of the mean.
    #[test]
    fn the_interval_agrees_with_the_normal_one_for_many_problems() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        let options = BootstrapOptions { seed: 1, ..BootstrapOptions::default() };
        let interval = mean_interval(&values, &options).unwrap();
        assert_eq!(interval.mean, 0.5);
        assert!((interval.low - (0.5 - 0.0693)).abs() < 0.01, "{interval:?}");
        assert!((interval.high - (0.5 + 0.0693)).abs() < 0.01, "{interval:?}");
        assert_eq!(mean_interval(&values, &options), Some(interval));
    }

    #[test]
    fn one_problem_has_no_spread() {
        let interval = mean_interval(&[0.25], &BootstrapOptions::default()).unwrap();
        assert_eq!(interval, Interval { mean: 0.25, low: 0.25, high: 0.25 });
        assert_eq!(mean_interval(&[], &BootstrapOptions::default()), None);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), 4.0);
    }
}
