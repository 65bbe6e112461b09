//! `reward, novelty -> shaping`: the reward that a rollout is trained with.
//!
//! In: a base reward and a normalised novelty. Out: the shaped reward, clipped. Must not know: the
//! group's geometry, how advantages follow.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::novelty::NoveltyKind;
use crate::option::{OptionError, require};

/// How novelty scales a reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scaler {
    /// r (1 + lambda nu-bar): a novel correct answer gains, a novel wrong answer loses more, as the
    /// text of arXiv 2512.15687 describes.
    #[default]
    Amplify,
    /// r (1 + lambda r nu-bar): the paper's equations 12 and 13 as printed, which soften the
    /// penalty of a novel wrong answer.
    Equation,
}

/// What happens to a group whose base rewards are all equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DegenerateGroups {
    /// Its advantages are computed like any other's. Standardised, they have full size however
    /// small lambda is (the paper).
    #[default]
    Shape,
    /// Its advantages are the shaped rewards less their mean, not divided: lambda sets their size.
    Centered,
    /// It takes no part in the update.
    Skip,
    /// It is shaped if its rewards are above 0, and takes no part otherwise: among answers that are all wrong, `amplify`
    /// reinforces the most usual one.
    SkipWrong,
    /// It takes no part in the update, and a group of another prompt takes its place in the step (the
    /// dynamic sampling of DAPO).
    Refill,
}

/// How rewards are shaped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShapingOptions {
    /// Score of a rollout's novelty; default `sqrt` (the paper's printed text allows both).
    pub novelty: NoveltyKind,
    /// How novelty scales a reward; default `amplify`.
    pub scaler: Scaler,
    /// Strength of the scaling, 0 to 100; default 1 (the paper).
    pub lambda: f64,
    /// Shaped rewards are clipped to [-clip, clip], above 0; default 3 (the paper).
    pub clip: f64,
    /// Groups whose base rewards are all equal; default `shape` (the paper's formulas as they stand).
    pub degenerate_groups: DegenerateGroups,
}

impl Default for ShapingOptions {
    fn default() -> Self {
        Self {
            novelty: NoveltyKind::Sqrt,
            scaler: Scaler::Amplify,
            lambda: 1.0,
            clip: 3.0,
            degenerate_groups: DegenerateGroups::Shape,
        }
    }
}

impl ShapingOptions {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`OptionError`] with the first option that is out of its range.
    pub fn validate(&self) -> Result<(), OptionError> {
        require((0.0..=100.0).contains(&self.lambda), "lambda", self.lambda, "between 0 and 100")?;
        require(self.clip > 0.0 && self.clip.is_finite(), "clip", self.clip, "above 0 and finite")
    }

    /// The shaped reward of one rollout.
    #[must_use]
    pub fn shape(&self, reward: f64, novelty_normalized: f64) -> f64 {
        let scale = match self.scaler {
            Scaler::Amplify => 1.0 + self.lambda * novelty_normalized,
            Scaler::Equation => 1.0 + self.lambda * reward * novelty_normalized,
        };
        (reward * scale).clamp(-self.clip, self.clip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scalers_treat_wrong_answers_in_opposite_ways() {
        let amplify = ShapingOptions::default();
        let equation = ShapingOptions { scaler: Scaler::Equation, ..ShapingOptions::default() };
        // r = +-1, nu-bar = 0.5: 1.5 either way for a correct answer; -1.5 or -0.5 for a wrong one.
        assert_eq!((amplify.shape(1.0, 0.5), equation.shape(1.0, 0.5)), (1.5, 1.5));
        assert_eq!((amplify.shape(-1.0, 0.5), equation.shape(-1.0, 0.5)), (-1.5, -0.5));
        assert_eq!(amplify.shape(2.5, 1.0), 3.0);
    }

    #[test]
    fn options_out_of_range_are_named() {
        let bad = ShapingOptions { lambda: -0.5, ..ShapingOptions::default() };
        assert_eq!(bad.validate().unwrap_err().to_string(), "lambda = -0.5: must be between 0 and 100");
        let bad = ShapingOptions { clip: f64::NAN, ..ShapingOptions::default() };
        assert_eq!(bad.validate().unwrap_err().key, "clip");
    }
}
