//! `[algorithm]`: which algorithm, and its options.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Algorithm, dapo::Dapo, dr_grpo::DrGrpo, entropy::Entropy, evol::Evol, g2rl::G2rl, grpo::Grpo, gspo::Gspo,
    random::Random, sft::Sft,
};
use crate::advantage::AdvantageKind;
use crate::novelty::NoveltyKind;
use crate::option::{OptionError, require};
use crate::shaping::{DegenerateGroups, Scaler, ShapingOptions};

/// Which algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlgorithmKind {
    /// Gradient-guided exploration (arXiv 2512.15687).
    #[default]
    G2rl,
    /// Group relative policy optimisation (arXiv 2402.03300).
    Grpo,
    /// GRPO with an entropy bonus.
    Entropy,
    /// Novelty of the responses' meaning (EVOL-RL, arXiv 2509.15194).
    Evol,
    /// GRPO without its two biases (Dr. GRPO, arXiv 2503.20783).
    DrGrpo,
    /// Clip-higher, dynamic sampling, token mean, overlong penalty (DAPO, arXiv 2503.14476).
    Dapo,
    /// Importance ratios of sequences (GSPO, arXiv 2507.18071).
    Gspo,
    /// A control: G2RL with each group's novelty dealt out at random.
    Random,
    /// Imitation of given solutions.
    Sft,
}

impl AlgorithmKind {
    /// The algorithm.
    #[must_use]
    pub fn algorithm(self) -> &'static dyn Algorithm {
        match self {
            Self::G2rl => &G2rl,
            Self::Grpo => &Grpo,
            Self::Entropy => &Entropy,
            Self::Evol => &Evol,
            Self::DrGrpo => &DrGrpo,
            Self::Dapo => &Dapo,
            Self::Gspo => &Gspo,
            Self::Random => &Random,
            Self::Sft => &Sft,
        }
    }

    /// Whether it leaves the rewards as they are, so that [`Exploration`] may shape them.
    fn leaves_rewards(self) -> bool {
        matches!(self, Self::Grpo | Self::Entropy | Self::DrGrpo | Self::Dapo | Self::Gspo)
    }
}

/// What shapes the rewards of an algorithm that leaves them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exploration {
    /// Nothing.
    #[default]
    None,
    /// As `kind = "g2rl"`.
    G2rl,
    /// As `kind = "evol"`.
    Evol,
    /// As `kind = "random"`.
    Random,
}

impl Exploration {
    /// The algorithm whose shaping it borrows.
    pub(crate) fn algorithm(self) -> Option<&'static dyn Algorithm> {
        match self {
            Self::None => None,
            Self::G2rl => Some(&G2rl),
            Self::Evol => Some(&Evol),
            Self::Random => Some(&Random),
        }
    }
}

/// `[algorithm.overlong]`: see [`super::overlong_penalty`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OverlongOptions {
    /// Responses of this length or more have the whole penalty, tokens.
    pub max_tokens: u32,
    /// The penalty grows over so many tokens before that; 0 for no penalty.
    pub cache_tokens: u32,
}

/// `[algorithm]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AlgorithmOptions {
    /// Which algorithm; default `g2rl`. Some bring settings of other sections that the file leaves
    /// out: `config show` prints them.
    pub kind: AlgorithmKind,
    /// What shapes the rewards of `grpo`, `entropy`, `dr_grpo`, `dapo` and `gspo`; default `none`.
    pub explore: Exploration,
    /// How a group's rewards become advantages; default `std` (GRPO).
    pub advantage: AdvantageKind,
    /// Score of a rollout's novelty; default `sqrt`. Without `g2rl` it is only reported.
    pub novelty: NoveltyKind,
    /// How novelty scales a reward (`g2rl`); default `amplify`.
    pub scaler: Scaler,
    /// Strength of the scaling (`g2rl`), 0 to 100; default 1 (the paper).
    #[schemars(range(min = 0, max = 100))]
    pub lambda: f64,
    /// Shaped rewards are clipped to [-clip, clip] (`g2rl`), above 0; default 3 (the paper).
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip: f64,
    /// Groups whose base rewards are all equal; default `skip_wrong` where `g2rl` or `random` shape, `refill` for `dapo`, else
    /// `shape`, with which they teach nothing.
    pub degenerate_groups: DegenerateGroups,
    /// With `degenerate_groups = "refill"`: prompts drawn for a step at most, as a multiple of
    /// `rollout.prompts_per_step`, 1 to 1000; default 10. Then the step goes on with what it has.
    #[schemars(range(min = 1, max = 1000))]
    pub refill_limit: u32,
    /// Penalty of responses that come near the longest length; default none.
    pub overlong: OverlongOptions,
}

impl Default for AlgorithmOptions {
    fn default() -> Self {
        let ShapingOptions { novelty, scaler, lambda, clip, degenerate_groups } = ShapingOptions::default();
        Self {
            kind: AlgorithmKind::G2rl,
            explore: Exploration::None,
            advantage: AdvantageKind::Std,
            novelty,
            scaler,
            lambda,
            clip,
            degenerate_groups,
            refill_limit: 10,
            overlong: OverlongOptions::default(),
        }
    }
}

impl AlgorithmOptions {
    /// How rewards are shaped.
    #[must_use]
    pub fn shaping(&self) -> ShapingOptions {
        ShapingOptions {
            novelty: self.novelty,
            scaler: self.scaler,
            lambda: self.lambda,
            clip: self.clip,
            degenerate_groups: self.degenerate_groups,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`OptionError`] with the first option that is out of its range.
    pub fn validate(&self) -> Result<(), OptionError> {
        self.shaping().validate()?;
        let kind = self.kind.algorithm().name();
        let shapes_once = self.kind.leaves_rewards() || self.explore == Exploration::None;
        require(shapes_once, "explore", kind, "none with an algorithm that shapes rewards itself")?;
        let imitates = !self.kind.algorithm().needs().rollouts;
        let drops = matches!(
            self.degenerate_groups,
            DegenerateGroups::Skip | DegenerateGroups::SkipWrong | DegenerateGroups::Refill
        );
        require(!(imitates && drops), "degenerate_groups", kind, "shape or centered with sft")?;
        require((1..=1000).contains(&self.refill_limit), "refill_limit", self.refill_limit, "1 to 1000")?;
        let OverlongOptions { max_tokens, cache_tokens } = self.overlong;
        require(cache_tokens <= max_tokens, "overlong.cache_tokens", cache_tokens, "at most max_tokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_are_shaped_once() {
        let refused = |options: AlgorithmOptions| options.validate().unwrap_err().key;
        let explore = Exploration::G2rl;
        let with = |kind| AlgorithmOptions { kind, explore, ..AlgorithmOptions::default() };
        for kind in [AlgorithmKind::G2rl, AlgorithmKind::Evol, AlgorithmKind::Random, AlgorithmKind::Sft] {
            assert_eq!(refused(with(kind)), "explore");
        }
        for kind in [AlgorithmKind::Grpo, AlgorithmKind::Dapo, AlgorithmKind::Gspo] {
            assert_eq!(with(kind).validate(), Ok(()));
        }
    }

    #[test]
    fn options_out_of_range_are_named() {
        let refused = |options: AlgorithmOptions| options.validate().unwrap_err().key;
        let default = AlgorithmOptions::default;
        let overlong = OverlongOptions { max_tokens: 10, cache_tokens: 11 };
        assert_eq!(refused(AlgorithmOptions { overlong, ..default() }), "overlong.cache_tokens");
        assert_eq!(refused(AlgorithmOptions { refill_limit: 0, ..default() }), "refill_limit");
        let degenerate_groups = DegenerateGroups::Refill;
        let sft = AlgorithmOptions { kind: AlgorithmKind::Sft, degenerate_groups, ..default() };
        assert_eq!(refused(sft), "degenerate_groups");
    }
}
