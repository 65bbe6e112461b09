//! A control for G2RL: the same bonus, for no reason.
//!
//! Each group's normalised novelty is dealt out to its rollouts at random, so that the sizes of the shaped
//! rewards are G2RL's and their places mean nothing. What it "gains" over GRPO is what chance gives at the
//! number of seeds of an experiment.

use super::g2rl::{PRESET, scaled, stretched};
use super::{Algorithm, AlgorithmError, AlgorithmOptions, GroupInput, Needs};
use crate::novelty::NoveltyScores;
use crate::seed::CounterRng;

/// G2RL with shuffled novelty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Random;

impl Algorithm for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn needs(&self) -> Needs {
        Needs { features: true, ..Needs::default() }
    }

    fn preset(&self, _max_new_tokens: u32) -> String {
        PRESET.to_owned()
    }

    fn shaped_rewards(
        &self,
        options: &AlgorithmOptions,
        group: &GroupInput<'_>,
        scores: Option<&NoveltyScores>,
    ) -> Result<Vec<f64>, AlgorithmError> {
        let mut novelty = stretched(scores);
        CounterRng::new(group.seed, "random novelty").shuffle(&mut novelty);
        Ok(scaled(options, group.rewards, &novelty))
    }
}

#[cfg(test)]
mod tests {
    use crate::algorithm::{AlgorithmKind, AlgorithmOptions, GroupInput, build};

    /// Each of four rollouts is the bonus's in a quarter of 2,000 groups: 500, within five standard
    /// deviations of sqrt(2,000 x 3/16) = 19.4.
    #[test]
    fn the_bonus_falls_on_everybody_alike_and_the_seed_decides() {
        let features: [&[f32]; 4] = [&[1.0, 0.0], &[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        let random = build(&AlgorithmOptions { kind: AlgorithmKind::Random, ..AlgorithmOptions::default() });
        let mut most = [0i32; 4];
        for seed in 0..2_000 {
            let group = GroupInput { rewards: &[1.0; 4], features: &features, seed, ..GroupInput::default() };
            let result = random.group_advantages(&group).unwrap();
            assert_eq!(result, random.group_advantages(&group).unwrap());
            // The bonus of one outlier: 2, and 1 for the others up to eps.
            let winner = result.shaped_rewards.iter().position(|r| *r == 2.0).unwrap();
            assert!((result.shaped_rewards.iter().sum::<f64>() - 5.0).abs() < 1e-5);
            most[winner] += 1;
        }
        assert!(most.iter().all(|count| (count - 500).abs() < 97), "{most:?}");
    }
}
