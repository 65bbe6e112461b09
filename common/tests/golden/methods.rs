//! The methods beside G2RL and GRPO against `golden_methods.json`.

use crate::support::{assert_close, flat, golden, number, rows};
use g2rl_common::advantage::AdvantageKind;
use g2rl_common::algorithm::{AlgorithmKind, AlgorithmOptions, GroupInput, OverlongOptions, build};
use g2rl_common::objective::{
    Aggregation, ObjectiveOptions, RatioKind, TokenInput, sequence_log_ratio, sequence_objective,
    token_weights,
};
use serde_json::Value;

/// The cases of a method.
fn cases(method: &str, count: usize) -> Vec<Value> {
    let cases = golden("golden_methods.json")[method].as_array().expect("cases of the method").clone();
    assert_eq!(cases.len(), count, "{method}");
    cases
}

fn flags(value: &Value) -> Vec<bool> {
    value.as_array().expect("a list").iter().map(|flag| flag.as_bool().expect("true or false")).collect()
}

fn integers(value: &Value) -> Vec<u32> {
    flat(value).into_iter().map(|x| x as u32).collect()
}

#[test]
fn evol_rewards_and_advantages() {
    let evol = build(&AlgorithmOptions { kind: AlgorithmKind::Evol, ..AlgorithmOptions::default() });
    for case in cases("evol", 8) {
        let (correct, answered) = (flags(&case["correct"]), flags(&case["answered"]));
        let base: Vec<f64> = correct.iter().map(|&right| if right { 1.0 } else { -1.0 }).collect();
        let narrow = |row: &Vec<f64>| row.iter().map(|&x| x as f32).collect();
        let embeddings: Vec<Vec<f32>> = rows(&case["embeddings"]).iter().map(narrow).collect();
        let group = GroupInput {
            rewards: &base,
            correct: &correct,
            answered: &answered,
            embeddings: &embeddings,
            ..GroupInput::default()
        };
        let found = evol.group_advantages(&group).unwrap();
        assert_close(&format!("{} reward", case["name"]), &found.shaped_rewards, &flat(&case["rewards"]));
        assert_close(&format!("{} advantage", case["name"]), &found.advantages, &flat(&case["advantages"]));
    }
}

#[test]
fn dapo_penalties_and_weights() {
    for case in cases("dapo", 3) {
        let (max_tokens, cache_tokens) = (number(&case["max_tokens"]), number(&case["cache_tokens"]));
        let overlong = OverlongOptions { max_tokens: max_tokens as u32, cache_tokens: cache_tokens as u32 };
        let kind = AlgorithmKind::Dapo;
        let dapo = build(&AlgorithmOptions { kind, overlong, ..AlgorithmOptions::default() });
        let (base, lengths) = (flat(&case["base_rewards"]), integers(&case["lengths"]));
        let group = GroupInput { rewards: &base, lengths: &lengths, ..GroupInput::default() };
        let found = dapo.group_advantages(&group).unwrap();
        assert_close("dapo reward", &found.shaped_rewards, &flat(&case["rewards"]));
        assert_close("dapo advantage", &found.advantages, &flat(&case["advantages"]));
        let lengths: Vec<usize> = lengths.iter().map(|&length| length as usize).collect();
        let weights = token_weights(Aggregation::TokenMean, &lengths);
        assert_close("dapo weight", &weights, &flat(&case["token_weights"]));
    }
}

#[test]
fn dr_grpo_advantages_and_weights() {
    let (kind, advantage) = (AlgorithmKind::DrGrpo, AdvantageKind::MeanOnly);
    let dr_grpo = build(&AlgorithmOptions { kind, advantage, ..AlgorithmOptions::default() });
    for case in cases("dr_grpo", 2) {
        let base = flat(&case["base_rewards"]);
        let group = GroupInput { rewards: &base, ..GroupInput::default() };
        let found = dr_grpo.group_advantages(&group).unwrap();
        assert_close("dr_grpo advantage", &found.advantages, &flat(&case["advantages"]));
        let lengths: Vec<usize> = flat(&case["lengths"]).into_iter().map(|length| length as usize).collect();
        let tokens = number(&case["max_tokens"]) as u32;
        let weights = token_weights(Aggregation::Constant { tokens }, &lengths);
        assert_close("dr_grpo weight", &weights, &flat(&case["token_weights"]));
    }
}

#[test]
fn gspo_losses_and_gradients() {
    for case in cases("gspo", 3) {
        let options = ObjectiveOptions {
            clip_low: number(&case["clip_low"]),
            clip_high: number(&case["clip_high"]),
            ratio: RatioKind::Sequence,
            kl_coef: 0.0,
            ..ObjectiveOptions::default()
        };
        let (policy, behavior) = (rows(&case["policy_logprobs"]), rows(&case["behavior_logprobs"]));
        let (advantages, clipped) = (flat(&case["advantages"]), flags(&case["clipped"]));
        let lengths: Vec<usize> = policy.iter().map(Vec::len).collect();
        let weights = token_weights(Aggregation::SequenceMeanTokenMean, &lengths);
        let (mut loss, mut ratios, mut gradients) = (0.0, Vec::new(), Vec::new());
        for (i, (policy, behavior)) in policy.iter().zip(&behavior).enumerate() {
            let tokens: Vec<TokenInput> = policy
                .iter()
                .zip(behavior)
                .map(|(&policy_logprob, &behavior_logprob)| TokenInput {
                    policy_logprob,
                    behavior_logprob,
                    advantage: advantages[i],
                    reference_logprob: None,
                })
                .collect();
            let log_ratio = sequence_log_ratio(tokens.iter().map(TokenInput::log_ratio));
            for &token in &tokens {
                let term = sequence_objective(&options.policy_term(), token, log_ratio);
                loss += weights[i] * term.loss;
                gradients.push(weights[i] * term.dloss_dlogprob);
                assert_eq!(term.clipped, clipped[i], "sequence {i}");
            }
            ratios.push(log_ratio.exp());
        }
        assert_close("gspo loss", &[loss], &[number(&case["loss"])]);
        assert_close("gspo ratio", &ratios, &flat(&case["ratios"]));
        assert_close("gspo gradient", &gradients, &flat(&case["gradients"]));
    }
}
