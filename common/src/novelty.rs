//! `geometry -> novelty`: how much of each rollout the rest of its group does not explain.
//!
//! In: the cosines of a group and its base rewards. Out: [`NoveltyScores`]. Must not know: how
//! novelty changes a reward ([`crate::shaping`]).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::geometry::{FEATURE_EPS, GroupGeometry};
use crate::numeric::range;

/// A group whose linear scores differ by no more has no geometry to reward: the eps in the norms
/// alone moves the scores of identical features by about 1e-9, and min-max would blow that up.
pub const DEGENERATE_TOLERANCE: f64 = 1e-6;

/// How novelty follows from the explained energy q.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoveltyKind {
    /// sqrt(max(1 - q, 0)): the part of the unit feature that the others leave.
    #[default]
    Sqrt,
    /// max(1 - q, 0): its energy.
    Linear,
}

/// How novel each rollout of a group is.
#[derive(Debug, Clone, PartialEq)]
pub struct NoveltyScores {
    /// w, row-major `[size, size]`: exp(r_j) / (sum over k != i of exp(r_k) + eps), 0 on the
    /// diagonal.
    pub weights: Vec<f64>,
    /// q_i = sum_j w_ij S_ij^2, in [0, 1].
    pub explained: Vec<f64>,
    /// nu, in [0, 1].
    pub novelty: Vec<f64>,
    /// nu-bar: novelty stretched to [0, 1] inside the group; all 0 in a degenerate group.
    pub novelty_normalized: Vec<f64>,
    /// The linear scores differ by at most [`DEGENERATE_TOLERANCE`].
    pub degenerate: bool,
}

impl NoveltyScores {
    /// Scores a group from its geometry and base rewards (arXiv 2512.15687, section on the
    /// exploration score).
    ///
    /// # Panics
    /// If there is not one reward for each rollout.
    #[must_use]
    pub fn new(geometry: &GroupGeometry, rewards: &[f64], kind: NoveltyKind) -> Self {
        let size = geometry.size();
        assert_eq!(rewards.len(), size, "one reward for each rollout");

        // 1. Weights: better rollouts explain more.
        let mut weights = vec![0.0; size * size];
        for i in 0..size {
            weight_row(&mut weights[i * size..][..size], i, rewards);
        }
        // 2. Explained energy.
        let explained: Vec<f64> = weights
            .chunks_exact(size.max(1))
            .zip(geometry.rows())
            .map(|(w, s)| w.iter().zip(s).map(|(w, s)| w * s * s).sum())
            .collect();
        // 3. Novelty, and its range. Degeneracy is judged on the linear score in both variants:
        //    the square root stretches rounding noise near 0.
        let linear: Vec<f64> = explained.iter().map(|q| (1.0 - q).max(0.0)).collect();
        let degenerate = range(&linear) <= DEGENERATE_TOLERANCE;
        let novelty = match kind {
            NoveltyKind::Linear => linear,
            NoveltyKind::Sqrt => linear.iter().map(|nu| nu.sqrt()).collect(),
        };
        // 4. Min-max inside the group.
        let novelty_normalized = if degenerate {
            vec![0.0; size]
        } else {
            let low = novelty.iter().copied().fold(f64::INFINITY, f64::min);
            let span = range(&novelty);
            novelty.iter().map(|nu| (nu - low) / span).collect()
        };
        Self { weights, explained, novelty, novelty_normalized, degenerate }
    }
}

/// Row `i` of the weights, with the largest exponent taken out so that no reward overflows.
fn weight_row(row: &mut [f64], i: usize, rewards: &[f64]) {
    /// The eps is absolute: for rewards far below 0 it would swallow the sum, so it stops growing
    /// here (a reward of -10).
    const LARGEST_EXPONENT: f64 = 10.0;

    let others = || rewards.iter().enumerate().filter(|&(j, _)| j != i);
    let largest = others().map(|(_, &r)| r).fold(f64::NEG_INFINITY, f64::max);
    let eps = FEATURE_EPS * (-largest).min(LARGEST_EXPONENT).exp();
    let sum: f64 = others().map(|(_, r)| (r - largest).exp()).sum();
    for (j, r) in others() {
        row[j] = (r - largest).exp() / (sum + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rewards that would overflow exp, or vanish beside the eps, still weigh by their differences.
    #[test]
    fn extreme_rewards_keep_their_weights() {
        let geometry = GroupGeometry::from_cosine(3, vec![1.0; 9]);
        for offset in [1000.0, -1000.0] {
            let rewards = [offset, offset, offset + 1.0];
            let scores = NoveltyScores::new(&geometry, &rewards, NoveltyKind::Linear);
            // Row 0: rollouts 1 and 2 by 1 : e.
            let e = std::f64::consts::E;
            assert!((scores.weights[1] - 1.0 / (1.0 + e)).abs() < 1e-3, "{:?}", scores.weights);
            assert!((scores.weights[2] - e / (1.0 + e)).abs() < 1e-3, "{:?}", scores.weights);
        }
    }
}
