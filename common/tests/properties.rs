//! Properties that hold for every group, not only for those of the golden files.

use g2rl_common::advantage::AdvantageKind;
use g2rl_common::algorithm::{
    AlgorithmKind, AlgorithmOptions, Exploration, GroupAdvantages, GroupInput, OverlongOptions, build,
    overlong_penalty,
};
use g2rl_common::bootstrap::{BootstrapOptions, mean_interval};
use g2rl_common::novelty::NoveltyKind;
use g2rl_common::objective::{Aggregation, token_weights};
use g2rl_common::passk::{majority, pass_at_k};
use g2rl_common::seed::{StreamKey, prompt_hash, uniform};
use g2rl_common::shaping::{DegenerateGroups, Scaler};
use proptest::prelude::*;

/// A group: features of 5 components with rewards in [-3, 3], often +-1.
#[derive(Debug, Clone)]
struct Group {
    features: Vec<Vec<f32>>,
    rewards: Vec<f64>,
    answered: Vec<bool>,
    lengths: Vec<u32>,
}

impl Group {
    fn advantages(&self, options: &AlgorithmOptions) -> GroupAdvantages {
        let features: Vec<&[f32]> = self.features.iter().map(Vec::as_slice).collect();
        let correct: Vec<bool> = self.rewards.iter().map(|r| *r > 0.0).collect();
        let input = GroupInput {
            rewards: &self.rewards,
            features: &features,
            embeddings: &self.features,
            correct: &correct,
            answered: &self.answered,
            lengths: &self.lengths,
            seed: 5,
            ..GroupInput::default()
        };
        build(options).group_advantages(&input).expect("the group is finite and complete")
    }
}

fn reward() -> impl Strategy<Value = f64> {
    prop_oneof![Just(1.0), Just(-1.0), -3.0..3.0f64]
}

fn groups() -> impl Strategy<Value = Group> {
    let rollout = (prop::collection::vec(-2.0..2.0f32, 5), reward(), any::<bool>(), 0..200u32);
    prop::collection::vec(rollout, 1..10).prop_map(|rollouts| {
        let mut group =
            Group { features: Vec::new(), rewards: Vec::new(), answered: Vec::new(), lengths: Vec::new() };
        for (feature, reward, answered, length) in rollouts {
            group.features.push(feature);
            group.rewards.push(reward);
            group.answered.push(answered);
            group.lengths.push(length);
        }
        group
    })
}

fn options() -> impl Strategy<Value = AlgorithmOptions> {
    let novelty = prop_oneof![Just(NoveltyKind::Sqrt), Just(NoveltyKind::Linear)];
    let scaler = prop_oneof![Just(Scaler::Amplify), Just(Scaler::Equation)];
    let advantage = prop_oneof![Just(AdvantageKind::Std), Just(AdvantageKind::MeanOnly)];
    let degenerate_groups = prop_oneof![
        Just(DegenerateGroups::Shape),
        Just(DegenerateGroups::Centered),
        Just(DegenerateGroups::Skip),
        Just(DegenerateGroups::SkipWrong)
    ];
    (novelty, scaler, advantage, degenerate_groups, 0.0..3.0f64, 0.5..4.0f64).prop_map(
        |(novelty, scaler, advantage, degenerate_groups, lambda, clip)| AlgorithmOptions {
            kind: AlgorithmKind::G2rl,
            advantage,
            novelty,
            scaler,
            lambda,
            clip,
            degenerate_groups,
            ..AlgorithmOptions::default()
        },
    )
}

/// Everything that generates rollouts.
fn kinds() -> impl Strategy<Value = AlgorithmKind> {
    prop_oneof![
        Just(AlgorithmKind::G2rl),
        Just(AlgorithmKind::Grpo),
        Just(AlgorithmKind::Entropy),
        Just(AlgorithmKind::Evol),
        Just(AlgorithmKind::DrGrpo),
        Just(AlgorithmKind::Dapo),
        Just(AlgorithmKind::Gspo),
        Just(AlgorithmKind::Random),
    ]
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn advantages_sum_to_zero_and_everything_stays_in_its_range(group in groups(), options in options()) {
        let result = group.advantages(&options);
        prop_assert!(result.advantages.iter().sum::<f64>().abs() < 1e-9);
        prop_assert!(result.shaped_rewards.iter().all(|r| r.abs() <= options.clip));
        prop_assert!(result.novelty.iter().all(|nu| (0.0..=1.0).contains(nu)));
        prop_assert!(result.novelty_normalized.iter().all(|nu| (0.0..=1.0).contains(nu)));
        if !result.degenerate_geometry {
            prop_assert!(result.novelty_normalized.contains(&0.0));
            prop_assert!(result.novelty_normalized.contains(&1.0));
        }
        prop_assert!(result.advantages.iter().all(|a| a.is_finite()));
    }

    /// Rotating the group rotates the result. Sums in another order move a shaped reward by about
    /// 1e-15, which the smallest deviation may divide by 1e-6.
    #[test]
    fn the_order_of_rollouts_means_nothing(group in groups(), options in options(), by in 0..10usize) {
        let by = by % group.rewards.len();
        let mut rotated = group.clone();
        rotated.features.rotate_left(by);
        rotated.rewards.rotate_left(by);
        let (mut result, rotated) = (group.advantages(&options), rotated.advantages(&options));
        result.advantages.rotate_left(by);
        result.novelty.rotate_left(by);
        prop_assert_eq!(result.degenerate_geometry, rotated.degenerate_geometry);
        prop_assert!(close(&result.novelty, &rotated.novelty, 1e-9));
        prop_assert!(close(&result.advantages, &rotated.advantages, 1e-7));
    }

    /// Powers of two scale f32 without rounding, and only upwards, so that the eps beside the norm
    /// stays small: cosines move by about eps / norm.
    #[test]
    fn the_length_of_features_means_nothing(group in groups(), exponent in 0..20i32) {
        prop_assume!(group.features.iter().all(|f| f.iter().map(|x| x * x).sum::<f32>() > 0.01));
        let mut scaled = group.clone();
        for (i, feature) in scaled.features.iter_mut().enumerate() {
            let factor = 2.0f32.powi((exponent + i as i32) % 20);
            feature.iter_mut().for_each(|x| *x *= factor);
        }
        let options = AlgorithmOptions { novelty: NoveltyKind::Linear, ..AlgorithmOptions::default() };
        let (result, scaled) = (group.advantages(&options), scaled.advantages(&options));
        prop_assert!(close(&result.novelty, &scaled.novelty, 1e-6));
    }

    #[test]
    fn every_algorithm_gives_finite_advantages_around_zero(
        group in groups(),
        options in options(),
        kind in kinds(),
        cache_tokens in 0..100u32,
    ) {
        let overlong = OverlongOptions { max_tokens: 150, cache_tokens };
        let options = AlgorithmOptions { kind, overlong, ..options };
        let result = group.advantages(&options);
        prop_assert_eq!(result.advantages.len(), group.rewards.len());
        prop_assert!(result.advantages.iter().all(|a| a.is_finite()));
        prop_assert!(result.advantages.iter().sum::<f64>().abs() < 1e-9);
        let drops = match options.degenerate_groups {
            DegenerateGroups::Skip | DegenerateGroups::Refill => true,
            DegenerateGroups::SkipWrong => group.rewards[0] <= 0.0,
            DegenerateGroups::Shape | DegenerateGroups::Centered => false,
        };
        prop_assert_eq!(result.skipped, drops && result.equal_rewards);
    }

    /// Only the novelty is borrowed: what shapes the rewards of another algorithm gives its own advantages.
    #[test]
    fn exploration_beside_another_algorithm_is_the_same(group in groups(), options in options()) {
        let own = group.advantages(&options);
        let kind = AlgorithmKind::Gspo;
        let borrowed = AlgorithmOptions { kind, explore: Exploration::G2rl, ..options };
        prop_assert_eq!(group.advantages(&borrowed), own);
    }

    /// A right answer earns 1/2 to 1, a wrong one -1 to -1/2: novelty never turns a verdict around.
    #[test]
    fn evol_keeps_to_its_bands(group in groups()) {
        let options = AlgorithmOptions { kind: AlgorithmKind::Evol, ..AlgorithmOptions::default() };
        let shaped = group.advantages(&options).shaped_rewards;
        for ((reward, shaped), answered) in group.rewards.iter().zip(&shaped).zip(&group.answered) {
            let band = match (answered, *reward > 0.0) {
                (false, _) => -1.0..=-1.0,
                (true, true) => 0.5..=1.0,
                (true, false) => -1.0..=-0.5,
            };
            prop_assert!(band.contains(shaped), "{} not in {:?}", shaped, band);
        }
    }

    /// The control deals out what the group has: where all answers are equally good, the same shaped rewards come out,
    /// to others.
    #[test]
    fn the_control_deals_out_the_groups_own_novelty(group in groups(), options in options()) {
        let mut group = group;
        group.rewards.fill(1.0);
        let shaped = |kind| {
            let mut shaped = group.advantages(&AlgorithmOptions { kind, ..options.clone() }).shaped_rewards;
            shaped.sort_by(f64::total_cmp);
            shaped
        };
        prop_assert_eq!(shaped(AlgorithmKind::Random), shaped(AlgorithmKind::G2rl));
    }

    /// Without its deviation an advantage grows with the rewards; with it, the rewards' scale means nothing.
    #[test]
    fn the_scale_of_rewards_counts_for_dr_grpo_only(group in groups(), exponent in 1..4i32) {
        prop_assume!(group.rewards.iter().any(|reward| (reward - group.rewards[0]).abs() > 0.1));
        let factor = 2.0f64.powi(exponent);
        let mut scaled = group.clone();
        scaled.rewards.iter_mut().for_each(|reward| *reward *= factor);
        for (kind, advantage) in
            [(AlgorithmKind::DrGrpo, AdvantageKind::MeanOnly), (AlgorithmKind::Grpo, AdvantageKind::Std)]
        {
            let options = AlgorithmOptions { kind, advantage, ..AlgorithmOptions::default() };
            let grows = if advantage == AdvantageKind::MeanOnly { factor } else { 1.0 };
            let expected: Vec<f64> = group.advantages(&options).advantages.iter().map(|a| a * grows).collect();
            prop_assert!(close(&scaled.advantages(&options).advantages, &expected, 1e-4));
        }
    }

    #[test]
    fn imitation_compares_nothing(group in groups(), options in options()) {
        let result = group.advantages(&AlgorithmOptions { kind: AlgorithmKind::Sft, ..options });
        prop_assert!(!result.skipped && result.advantages.iter().all(|advantage| *advantage == 0.0));
    }

    #[test]
    fn the_overlong_penalty_falls_with_the_length(lengths in (0..500u32, 0..500u32), cache_tokens in 1..100u32) {
        let overlong = OverlongOptions { max_tokens: 150, cache_tokens };
        let (short, long) = (lengths.0.min(lengths.1), lengths.0.max(lengths.1));
        let (of_short, of_long) = (overlong_penalty(&overlong, short), overlong_penalty(&overlong, long));
        prop_assert!((-1.0..=0.0).contains(&of_long) && of_long <= of_short);
    }

    #[test]
    fn without_lambda_g2rl_is_grpo(group in groups(), options in options()) {
        let g2rl = AlgorithmOptions { lambda: 0.0, clip: 3.0, ..options };
        let grpo = AlgorithmOptions { kind: AlgorithmKind::Grpo, ..g2rl.clone() };
        prop_assert_eq!(group.advantages(&g2rl), group.advantages(&grpo));
    }

    #[test]
    fn pass_at_k_grows_with_c_and_k(n in 1..200u64, c in 0..200u64, k in 1..200u64) {
        let (c, k) = (c % (n + 1), 1 + (k - 1) % n);
        let here = pass_at_k(n, c, k).expect("in range");
        prop_assert!((0.0..=1.0).contains(&here));
        if c < n {
            prop_assert!(pass_at_k(n, c + 1, k).expect("in range") >= here - 1e-12);
        }
        if k < n {
            prop_assert!(pass_at_k(n, c, k + 1).expect("in range") >= here - 1e-12);
        }
    }

    #[test]
    fn majority_is_a_share(votes in prop::collection::vec((prop::option::of(0..3u8), any::<bool>()), 0..12)) {
        let answers: Vec<Option<String>> = votes.iter().map(|(a, _)| a.map(|a| a.to_string())).collect();
        let correct: Vec<bool> = votes.iter().map(|v| v.1).collect();
        prop_assert!((0.0..=1.0).contains(&majority(&answers, &correct)));
    }

    #[test]
    fn draws_do_not_depend_on_the_order_of_calls(
        seed in any::<u64>(),
        places in prop::collection::vec((0..8u64, 0..64u64), 1..40),
    ) {
        let draw = |&(rollout_index, position): &(u64, u64)| {
            uniform(StreamKey { run_seed: seed, policy_version: 3, prompt: prompt_hash("p"), rollout_index }, position)
        };
        let forward: Vec<f64> = places.iter().map(draw).collect();
        let mut backward: Vec<f64> = places.iter().rev().map(draw).collect();
        backward.reverse();
        prop_assert_eq!(&forward, &backward);
        prop_assert!(forward.iter().all(|u| (0.0..1.0).contains(u)));
    }

    /// The weights of all tokens sum to 1 for `token_mean`, and to the share of sequences that are
    /// not empty for `sequence_mean_token_mean`.
    #[test]
    fn token_weights_are_a_mean(lengths in prop::collection::vec(0..50usize, 1..20)) {
        let sum = |aggregation| -> f64 {
            token_weights(aggregation, &lengths).iter().zip(&lengths).map(|(w, &l)| w * l as f64).sum()
        };
        let filled = lengths.iter().filter(|&&l| l > 0).count();
        let expected = f64::from(u8::from(filled > 0));
        prop_assert!((sum(Aggregation::TokenMean) - expected).abs() < 1e-12);
        let expected = filled as f64 / lengths.len() as f64;
        prop_assert!((sum(Aggregation::SequenceMeanTokenMean) - expected).abs() < 1e-12);
    }

    #[test]
    fn intervals_hold_their_mean(values in prop::collection::vec(0.0..1.0f64, 1..30), seed in any::<u64>()) {
        let options = BootstrapOptions { seed, resamples: 200, level: 0.95 };
        let interval = mean_interval(&values, &options).expect("there are values");
        prop_assert!(interval.low <= interval.mean + 1e-12 && interval.mean <= interval.high + 1e-12);
    }
}
