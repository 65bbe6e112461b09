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
    let parts: Vec<(f64, f64)> = values.iter().map(|&value| (value, 1.0)).collect();
    ratio_interval(&parts, options)
}

/// The ratio of two sums over problems, such as the share of a kind of pairs, and its percentile interval: each
/// problem's numerator and denominator are resampled together. `None` if the denominators add up to 0.
///
/// # Panics
/// If there are no resamples or the level is not between 0 and 1.
#[must_use]
pub fn ratio_interval(parts: &[(f64, f64)], options: &BootstrapOptions) -> Option<Interval> {
    let ratio = |draws: &mut dyn Iterator<Item = usize>| {
        let (sum, of) = draws.fold((0.0, 0.0), |(sum, of), at| (sum + parts[at].0, of + parts[at].1));
        (of != 0.0).then(|| sum / of)
    };
    let mean = ratio(&mut (0..parts.len()))?;
    let ratios = resampled(&[parts.len()], options, |draws| ratio(&mut draws[0].iter().copied()));
    Some(percentiles(mean, ratios, options))
}

/// A statistic of resampled items, as often as it has a value. It is given a sample of each kind of item: indices
/// drawn with replacement, as many as there are.
///
/// # Panics
/// If there are no resamples.
pub fn resampled(
    counts: &[usize],
    options: &BootstrapOptions,
    mut statistic: impl FnMut(&[Vec<usize>]) -> Option<f64>,
) -> Vec<f64> {
    assert!(options.resamples > 0, "a bootstrap needs resamples");
    let mut rng = CounterRng::new(options.seed, "bootstrap");
    let mut draws: Vec<Vec<usize>> = counts.iter().map(|&count| vec![0; count]).collect();
    let values = (0..options.resamples).filter_map(|_| {
        for sample in &mut draws {
            let count = sample.len() as u64;
            sample.iter_mut().for_each(|draw| *draw = rng.below(count) as usize);
        }
        statistic(&draws)
    });
    values.collect()
}

/// The interval that holds the middle share of the resampled values.
///
/// # Panics
/// If there are no values or the level is not between 0 and 1.
#[must_use]
pub fn percentiles(mean: f64, mut values: Vec<f64>, options: &BootstrapOptions) -> Interval {
    assert!((0.0..=1.0).contains(&options.level), "level {} is not between 0 and 1", options.level);
    values.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - options.level) / 2.0;
    Interval { mean, low: quantile(&values, tail), high: quantile(&values, 1.0 - tail) }
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

    /// 100 problems of 10 pairs, 100 of 30; a tenth and a half of them negative: (100 + 1500) / 4000.
    #[test]
    fn a_ratio_weighs_problems_by_their_pairs() {
        let part = |i: usize| if i.is_multiple_of(2) { (1.0, 10.0) } else { (15.0, 30.0) };
        let parts: Vec<(f64, f64)> = (0..200).map(part).collect();
        let interval = ratio_interval(&parts, &BootstrapOptions::default()).unwrap();
        assert_eq!(interval.mean, 0.4);
        // The share x of the large problems has deviation sqrt(1/4/200) = 0.0354; the ratio
        // (1 + 14 x) / (10 + 20 x) has slope 120 / 400 = 0.3 at 1/2: 1.96 x 0.3 x 0.0354 = 0.0208.
        assert!((interval.low - (0.4 - 0.0208)).abs() < 0.003, "{interval:?}");
        assert!((interval.high - (0.4 + 0.0208)).abs() < 0.003, "{interval:?}");
        assert_eq!(ratio_interval(&[(0.0, 0.0)], &BootstrapOptions::default()), None);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 1.0), 4.0);
    }
}
