//! `features -> geometry`: how the rollouts of a group lie to each other.
//!
//! In: one last-layer sensitivity feature for each rollout of a group. Out: their cosines
//! ([`GroupGeometry`]) and counts over pairs that can be added over groups ([`PairStatistics`]).
//! Must not know: rewards, advantages, the algorithm. Everything is f64, whatever the features are.

use serde::{Deserialize, Serialize};

/// Added to a feature's norm, so that an empty response divides by no zero.
pub const FEATURE_EPS: f64 = 1e-8;

/// Features that cannot be compared.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GeometryError {
    /// NaN or infinite.
    #[error("rollout {rollout}: feature component {component} is {value}")]
    NotFinite {
        /// Place in the group.
        rollout: usize,
        /// Place in the feature.
        component: usize,
        /// The value.
        value: f64,
    },
    /// Features of different length.
    #[error("rollout {rollout}: feature has {found} components, rollout 0 has {expected}")]
    LengthMismatch {
        /// Place in the group.
        rollout: usize,
        /// Its length.
        found: usize,
        /// The length of the group's first feature.
        expected: usize,
    },
}

/// The cosines of a group's features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupGeometry {
    size: usize,
    /// Row-major `[size, size]`, symmetric.
    cosine: Vec<f64>,
}

impl GroupGeometry {
    /// Compares features `[size][hidden]`. A feature of zeros has cosine 0 with all.
    ///
    /// # Errors
    /// [`GeometryError`], naming the rollout.
    pub fn from_features<F, T>(features: &[F]) -> Result<Self, GeometryError>
    where
        F: AsRef<[T]>,
        T: Copy + Into<f64>,
    {
        let expected = features.first().map_or(0, |f| f.as_ref().len());
        let units: Vec<Vec<f64>> = features
            .iter()
            .enumerate()
            .map(|(rollout, feature)| unit_vector(rollout, feature.as_ref(), expected))
            .collect::<Result<_, _>>()?;

        let size = units.len();
        let mut cosine = vec![0.0; size * size];
        for i in 0..size {
            for j in 0..=i {
                let dot = units[i].iter().zip(&units[j]).map(|(a, b)| a * b).sum();
                cosine[i * size + j] = dot;
                cosine[j * size + i] = dot;
            }
        }
        Ok(Self { size, cosine })
    }

    /// A geometry from its cosine matrix, row-major `[size, size]`.
    ///
    /// # Panics
    /// If the matrix is not square.
    #[must_use]
    pub fn from_cosine(size: usize, cosine: Vec<f64>) -> Self {
        assert_eq!(cosine.len(), size * size, "a cosine matrix of {size} rollouts is {size} x {size}");
        Self { size, cosine }
    }

    /// Number of rollouts.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The cosine of two rollouts' features. On the diagonal slightly below 1, because of the eps.
    ///
    /// # Panics
    /// If an index is not below [`Self::size`].
    #[must_use]
    pub fn cosine(&self, i: usize, j: usize) -> f64 {
        assert!(i < self.size && j < self.size, "pair ({i}, {j}) of a group of {}", self.size);
        self.cosine[i * self.size + j]
    }

    /// The cosine matrix, row-major `[size, size]`.
    #[must_use]
    pub fn matrix(&self) -> &[f64] {
        &self.cosine
    }

    /// The rows of the cosine matrix.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        // A group of size 0 has no rows, but chunks may not have size 0.
        self.cosine.chunks_exact(self.size.max(1))
    }

    /// Counts over the pairs i < j. Pairs with equal `duplicate_of` have the same tokens; an empty
    /// slice means that all rollouts differ (see [`token_classes`]).
    #[must_use]
    pub fn pair_statistics(&self, duplicate_of: &[usize]) -> PairStatistics {
        let mut statistics = PairStatistics::default();
        for i in 0..self.size {
            for j in i + 1..self.size {
                let duplicate = match (duplicate_of.get(i), duplicate_of.get(j)) {
                    (Some(a), Some(b)) => a == b,
                    _ => false,
                };
                statistics.add(self.cosine(i, j), duplicate);
            }
        }
        statistics
    }
}

fn unit_vector<T: Copy + Into<f64>>(
    rollout: usize,
    feature: &[T],
    expected: usize,
) -> Result<Vec<f64>, GeometryError> {
    if feature.len() != expected {
        return Err(GeometryError::LengthMismatch { rollout, found: feature.len(), expected });
    }
    let mut unit: Vec<f64> = feature.iter().map(|&x| x.into()).collect();
    if let Some(component) = unit.iter().position(|x| !x.is_finite()) {
        return Err(GeometryError::NotFinite { rollout, component, value: unit[component] });
    }
    let norm = unit.iter().map(|x| x * x).sum::<f64>().sqrt();
    unit.iter_mut().for_each(|x| *x /= norm + FEATURE_EPS);
    Ok(unit)
}

/// For each rollout the index of the first rollout with the same tokens.
#[must_use]
pub fn token_classes<R: AsRef<[u32]>>(responses: &[R]) -> Vec<usize> {
    let mut first = std::collections::HashMap::new();
    responses.iter().enumerate().map(|(i, r)| *first.entry(r.as_ref()).or_insert(i)).collect()
}

/// Bins of [`PairStatistics::histogram`].
pub const HISTOGRAM_BINS: usize = 40;

/// A pair with |cosine| below this counts as orthogonal.
pub const ORTHOGONAL_BELOW: f64 = 0.1;

/// Sums over pairs of rollouts of the same group; those of several groups are merged by adding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairStatistics {
    /// Number of pairs.
    pub pairs: u64,
    /// Sum of cosines.
    pub cosine_sum: f64,
    /// Pairs with |cosine| < [`ORTHOGONAL_BELOW`].
    pub orthogonal_pairs: u64,
    /// Pairs with cosine < 0.
    pub negative_pairs: u64,
    /// Pairs of responses with the same tokens.
    pub duplicate_pairs: u64,
    /// Sum of cosines of the pairs that are not duplicates.
    pub distinct_cosine_sum: f64,
    /// Pairs by cosine: [`HISTOGRAM_BINS`] bins of equal width over [-1, 1], each including its
    /// lower edge, the last both.
    pub histogram: Vec<u64>,
}

impl Default for PairStatistics {
    fn default() -> Self {
        Self {
            pairs: 0,
            cosine_sum: 0.0,
            orthogonal_pairs: 0,
            negative_pairs: 0,
            duplicate_pairs: 0,
            distinct_cosine_sum: 0.0,
            histogram: vec![0; HISTOGRAM_BINS],
        }
    }
}

impl PairStatistics {
    /// Adds a pair; `duplicate` says that its responses have the same tokens.
    pub fn add(&mut self, cosine: f64, duplicate: bool) {
        self.pairs += 1;
        self.cosine_sum += cosine;
        self.orthogonal_pairs += u64::from(cosine.abs() < ORTHOGONAL_BELOW);
        self.negative_pairs += u64::from(cosine < 0.0);
        self.duplicate_pairs += u64::from(duplicate);
        if !duplicate {
            self.distinct_cosine_sum += cosine;
        }
        // Rounding may leave [-1, 1]; the cast saturates at 0.
        let bin = ((cosine + 1.0) * (HISTOGRAM_BINS as f64 / 2.0)) as usize;
        self.histogram[bin.min(HISTOGRAM_BINS - 1)] += 1;
    }

    /// Adds the pairs of other groups.
    pub fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.cosine_sum += other.cosine_sum;
        self.orthogonal_pairs += other.orthogonal_pairs;
        self.negative_pairs += other.negative_pairs;
        self.duplicate_pairs += other.duplicate_pairs;
        self.distinct_cosine_sum += other.distinct_cosine_sum;
        for (bin, more) in self.histogram.iter_mut().zip(&other.histogram) {
            *bin += more;
        }
    }

    /// Mean cosine of all pairs; `None` without pairs.
    #[must_use]
    pub fn mean_cosine(&self) -> Option<f64> {
        ratio(self.cosine_sum, self.pairs)
    }

    /// Mean cosine of the pairs whose tokens differ; `None` without such pairs.
    #[must_use]
    pub fn mean_distinct_cosine(&self) -> Option<f64> {
        ratio(self.distinct_cosine_sum, self.pairs - self.duplicate_pairs)
    }

    /// Share of pairs with |cosine| < [`ORTHOGONAL_BELOW`]; `None` without pairs.
    #[must_use]
    pub fn orthogonal_ratio(&self) -> Option<f64> {
        ratio(self.orthogonal_pairs as f64, self.pairs)
    }

    /// Share of pairs with cosine < 0; `None` without pairs.
    #[must_use]
    pub fn negative_ratio(&self) -> Option<f64> {
        ratio(self.negative_pairs as f64, self.pairs)
    }

    /// Share of pairs with the same tokens; `None` without pairs.
    #[must_use]
    pub fn duplicate_ratio(&self) -> Option<f64> {
        ratio(self.duplicate_pairs as f64, self.pairs)
    }

    /// Lower and upper edge of a bin.
    #[must_use]
    pub fn bin_edges(bin: usize) -> (f64, f64) {
        let edge = |b: usize| b as f64 * 2.0 / HISTOGRAM_BINS as f64 - 1.0;
        (edge(bin), edge(bin + 1))
    }
}

fn ratio(sum: f64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_counted_by_cosine_and_identity() {
        // Unit vectors at 0, 90 and 180 degrees, and the first again.
        let features: [&[f32]; 4] = [&[2.0, 0.0], &[0.0, 1.0], &[-3.0, 0.0], &[2.0, 0.0]];
        let geometry = GroupGeometry::from_features(&features).unwrap();
        let statistics = geometry.pair_statistics(&[0, 1, 2, 0]);
        // Pairs: 01 orthogonal, 02 opposite, 03 duplicate, 12 orthogonal, 13 orthogonal, 23 opposite.
        assert_eq!(statistics.pairs, 6);
        assert_eq!(statistics.orthogonal_pairs, 3);
        assert_eq!(statistics.negative_pairs, 2);
        assert_eq!(statistics.duplicate_pairs, 1);
        // Cosines sum to -1 - 1 + 1; eps moves each by about 1e-8.
        assert!((statistics.mean_cosine().unwrap() + 1.0 / 6.0).abs() < 1e-7);
        assert!((statistics.mean_distinct_cosine().unwrap() + 2.0 / 5.0).abs() < 1e-7);
        // Cosine 0 opens bin 20.
        assert_eq!((statistics.histogram[0], statistics.histogram[20], statistics.histogram[39]), (2, 3, 1));
        assert_eq!(PairStatistics::bin_edges(20).0, 0.0);

        let mut twice = statistics.clone();
        twice.merge(&statistics);
        assert_eq!((twice.pairs, twice.histogram.iter().sum::<u64>()), (12, 12));
        assert_eq!(twice.mean_cosine(), statistics.mean_cosine());
    }

    #[test]
    fn a_lone_rollout_has_no_pairs() {
        let statistics = GroupGeometry::from_features(&[[1.0f32]]).unwrap().pair_statistics(&[]);
        assert_eq!(statistics.mean_cosine(), None);
        assert_eq!(statistics.duplicate_ratio(), None);
    }

    #[test]
    fn bad_features_are_refused_by_rollout() {
        let message = |features: &[&[f32]]| GroupGeometry::from_features(features).unwrap_err().to_string();
        assert_eq!(message(&[&[1.0, 0.0], &[0.0, f32::NAN]]), "rollout 1: feature component 1 is NaN");
        assert_eq!(message(&[&[f32::INFINITY]]), "rollout 0: feature component 0 is inf");
        assert_eq!(message(&[&[1.0, 0.0], &[0.0]]), "rollout 1: feature has 1 components, rollout 0 has 2");
    }

    #[test]
    fn equal_tokens_share_a_class() {
        assert_eq!(token_classes(&[vec![1, 2], vec![3], vec![1, 2], vec![]]), [0, 1, 0, 3]);
    }
}
