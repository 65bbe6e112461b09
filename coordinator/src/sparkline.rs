//! A curve in one line of text.

/// Least to most.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Means over at most `buckets` equal shares of the values, in their order; what is not finite is left out.
#[must_use]
pub(crate) fn buckets(values: &[f64], buckets: usize) -> Vec<f64> {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let count = buckets.min(values.len());
    let share = |at: usize| &values[at * values.len() / count..(at + 1) * values.len() / count];
    (0..count).map(|at| share(at).iter().sum::<f64>() / share(at).len() as f64).collect()
}

/// One character for each of at most `width` shares of the values; values that are all equal are a low line.
#[must_use]
pub(crate) fn sparkline(values: &[f64], width: usize) -> String {
    let means = buckets(values, width);
    let low = means.iter().copied().fold(f64::INFINITY, f64::min);
    let range = means.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
    let bar = |value: &f64| {
        let place = if range > 0.0 { (value - low) / range * (BARS.len() - 1) as f64 } else { 0.0 };
        BARS[(place.round() as usize).min(BARS.len() - 1)]
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_from_the_least_to_the_most() {
        assert_eq!(sparkline(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[3.0, 3.0, 3.0], 8), "▁▁▁");
        assert_eq!(sparkline(&[], 8), "");
        assert_eq!(sparkline(&[1.0], 0), "");
        assert_eq!(sparkline(&[f64::NAN, 1.0, 2.0, f64::INFINITY], 8), "▁█");
    }

    #[test]
    fn many_values_are_averaged_in_equal_shares() {
        // 5 values in 2 shares: the first two, the last three.
        assert_eq!(buckets(&[1.0, 3.0, 4.0, 5.0, 6.0], 2), [2.0, 5.0]);
        assert_eq!(buckets(&[1.0, 3.0], 5), [1.0, 3.0]);
    }
}
