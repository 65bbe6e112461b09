//! DAPO (arXiv 2503.14476): GRPO with four changes, each a setting of its own.
//!
//! - Clip-higher: ratios are clipped at 1 - 0.2 and 1 + 0.28, so that unlikely tokens can grow
//!   (`objective.clip_low`, `clip_high`).
//! - Dynamic sampling: a prompt whose rollouts all have the same base reward teaches nothing; another
//!   one takes its place in the step (`degenerate_groups = "refill"`).
//! - Token mean: every response token of the mini-batch weighs alike (`objective.aggregation`).
//! - Overlong penalty: [`overlong_penalty`] is added to the reward (`algorithm.overlong`).
//!
//! And no KL term. The paper lets a response have 20,480 tokens, of which the last 4,096 are the cache:
//! the preset takes a fifth of the longest response. Base rewards decide what is refilled, so that with
//! `explore = "g2rl"` novelty counts inside the groups that are kept.

use super::{Algorithm, OverlongOptions};

/// Decoupled clip and dynamic sampling policy optimisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dapo;

impl Algorithm for Dapo {
    fn name(&self) -> &'static str {
        "dapo"
    }

    fn preset(&self, max_new_tokens: u32) -> String {
        let cache = max_new_tokens / 5;
        format!(
            "[algorithm]\ndegenerate_groups = \"refill\"\n\
             overlong = {{ max_tokens = {max_new_tokens}, cache_tokens = {cache} }}\n\
             [objective]\nclip_low = 0.2\nclip_high = 0.28\nkl_coef = 0.0\naggregation = \"token_mean\"\n"
        )
    }
}

/// What a response's length takes from its reward (equation 13): 0 up to L_max - L_cache, then on a
/// line down to -1 at L_max, and -1 beyond.
#[must_use]
pub fn overlong_penalty(options: &OverlongOptions, length: u32) -> f64 {
    let OverlongOptions { max_tokens, cache_tokens } = *options;
    if cache_tokens == 0 {
        return 0.0;
    }
    let free = f64::from(max_tokens) - f64::from(cache_tokens);
    -((f64::from(length) - free) / f64::from(cache_tokens)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{AlgorithmError, AlgorithmKind, AlgorithmOptions, Exploration, GroupInput, build};
    use crate::shaping::DegenerateGroups;

    /// L_max 100, L_cache 20.
    const OVERLONG: OverlongOptions = OverlongOptions { max_tokens: 100, cache_tokens: 20 };

    #[test]
    fn the_penalty_is_a_line_over_the_cache() {
        for (length, penalty) in [(0, 0.0), (80, 0.0), (85, -0.25), (100, -1.0), (200, -1.0)] {
            assert_eq!(overlong_penalty(&OVERLONG, length), penalty, "{length}");
        }
        assert_eq!(overlong_penalty(&OverlongOptions::default(), 1000), 0.0);
    }

    fn options(explore: Exploration) -> AlgorithmOptions {
        let degenerate_groups = DegenerateGroups::Refill;
        let kind = AlgorithmKind::Dapo;
        AlgorithmOptions {
            kind,
            explore,
            degenerate_groups,
            overlong: OVERLONG,
            ..AlgorithmOptions::default()
        }
    }

    #[test]
    fn the_penalty_is_added_to_the_reward_and_base_rewards_decide_what_is_refilled() {
        let dapo = build(&options(Exploration::None));
        let mixed = GroupInput { rewards: &[1.0, -1.0], lengths: &[90, 10], ..GroupInput::default() };
        let result = dapo.group_advantages(&mixed).unwrap();
        assert_eq!((result.shaped_rewards, result.skipped), (vec![0.5, -1.0], false));
        // The shaped rewards differ, but the penalty alone is no reason to keep a group.
        let equal = GroupInput { rewards: &[1.0, 1.0], ..mixed };
        let result = dapo.group_advantages(&equal).unwrap();
        assert!(result.equal_rewards && result.skipped && result.advantages == [0.0; 2]);
        let lacking = GroupInput { lengths: &[], ..mixed };
        let missing = AlgorithmError::Missing { algorithm: "dapo", what: "lengths" };
        assert_eq!(dapo.group_advantages(&lacking), Err(missing));
    }

    #[test]
    fn with_g2rl_the_penalty_comes_after_the_novelty() {
        let features: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let group = GroupInput {
            rewards: &[1.0, -1.0, 1.0],
            features: &features,
            lengths: &[10, 10, 90],
            ..GroupInput::default()
        };
        let result = build(&options(Exploration::G2rl)).group_advantages(&group).unwrap();
        // The third is the most novel: 1 x (1 + 1) - 0.5.
        assert!((result.shaped_rewards[2] - 1.5).abs() < 1e-12, "{:?}", result.shaped_rewards);
    }
}
