//! A value over the steps of a run, in bounded memory.

/// Points that are kept; more are merged two by two.
const LIMIT: usize = 512;

/// A value over the steps of a run: the last one as it is, those before as means of equal numbers of steps.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    points: Vec<f64>,
    /// Values of a point.
    each: u32,
    sum: f64,
    count: u32,
    last: Option<f64>,
}

impl Default for Curve {
    fn default() -> Self {
        Self { points: Vec::new(), each: 1, sum: 0.0, count: 0, last: None }
    }
}

impl Curve {
    /// Takes in the next value; what is not finite is only shown as the last one.
    pub(super) fn push(&mut self, value: f64) {
        self.last = Some(value);
        if !value.is_finite() {
            return;
        }
        self.sum += value;
        self.count += 1;
        if self.count < self.each {
            return;
        }
        self.points.push(self.sum / f64::from(self.count));
        (self.sum, self.count) = (0.0, 0);
        if self.points.len() == LIMIT {
            self.points =
                self.points.chunks(2).map(|pair| pair.iter().sum::<f64>() / pair.len() as f64).collect();
            self.each *= 2;
        }
    }

    /// The newest value.
    pub(super) fn last(&self) -> Option<f64> {
        self.last
    }

    pub(super) fn points(&self) -> &[f64] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_form_in_bounded_memory() {
        let mut curve = Curve::default();
        for value in 0..4096 {
            curve.push(f64::from(value));
        }
        assert!(curve.points().len() <= LIMIT && curve.points().is_sorted());
        // 4096 values are 256 points of 16: the first is the mean of 0 to 15.
        assert_eq!((curve.points().len(), curve.points()[0], curve.last()), (256, 7.5, Some(4095.0)));
        curve.push(f64::NAN);
        assert!(curve.last().unwrap().is_nan() && curve.points().iter().all(|value| value.is_finite()));
    }
}
