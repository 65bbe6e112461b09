//! Rollouts: what they are made of does not depend on how they are scheduled, and every number that
//! comes with them agrees with a forward pass over the finished tokens.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod support;

use std::sync::Arc;

use g2rl_common::config::Dtype;
use g2rl_common::rollout::{FinishReason, GroupLease, Rollout, Sampling};
use g2rl_worker::model::{Model, Placement};
use g2rl_worker::rollout::RolloutRequest;
use support::{Letters, MODELS, cases, engine, engine_with, golden, lease, model, run, teacher_forced};
use tch::{Kind, Tensor};

fn sampling(max_new_tokens: u32) -> Sampling {
    Sampling { max_new_tokens, ..Sampling::default() }
}

fn leases(groups: u64, rollouts: u32, max_new_tokens: u32) -> Vec<GroupLease> {
    (0..groups).map(|group| lease(group, rollouts, sampling(max_new_tokens))).collect()
}

fn tokens(rollouts: &[Rollout]) -> Vec<Vec<u32>> {
    rollouts.iter().map(|rollout| rollout.response_tokens.clone()).collect()
}

#[test]
fn greedy_decoding_equals_transformers() {
    for name in MODELS {
        let model = model(name);
        for case in cases(name) {
            let mut engine = engine(&model, 2, &[]);
            let greedy = Sampling { temperature: 0.0, ..sampling(case.greedy.len() as u32) };
            let prompt_tokens: Arc<[u32]> = case.tokens.iter().map(|t| *t as u32).collect();
            engine.submit(RolloutRequest { lease: lease(0, 1, greedy), prompt_tokens }).unwrap();
            let mut done = Vec::new();
            while !engine.is_idle() {
                done.extend(engine.step(&model, &Letters).unwrap());
            }
            assert_eq!(done[0].rollout.response_tokens, case.greedy, "{name}");
        }
    }
}

/// The CPU's own decoder gives every bit again, log-probabilities and features too; tensor operations the tokens.
fn assert_same(model: &Model, rollouts: &[Rollout], reference: &[Rollout]) {
    assert_eq!(tokens(rollouts), tokens(reference));
    if model.has_cpu_decoder() {
        assert!(rollouts == reference, "log-probabilities or features differ in their last bits");
    }
}

#[test]
fn the_same_seed_gives_the_same_rollouts_however_they_are_scheduled() {
    for name in ["qwen3_tied", "qwen2_untied_bf16"] {
        the_same_however_scheduled(&model(name));
    }
}

fn the_same_however_scheduled(model: &Model) {
    let ends = [5, 17];
    let reference = run(&mut engine(model, 64, &ends), model, leases(8, 8, 40));
    for slots in [1, 7] {
        assert_same(model, &run(&mut engine(model, slots, &ends), model, leases(8, 8, 40)), &reference);
    }
    // Two workers, each with a part of every group, in opposite orders.
    let part = |first: u32, count: u32, backwards: bool| {
        let mut all = leases(8, count, 40);
        all.iter_mut().for_each(|lease| lease.first_rollout = first);
        if backwards {
            all.reverse();
        }
        run(&mut engine(model, 16, &ends), model, all)
    };
    let mut both = part(0, 3, false);
    both.extend(part(3, 5, true));
    both.sort_by_key(|rollout| rollout.id);
    assert_same(model, &both, &reference);
    // Another policy version or seed is another stream.
    let mut other = leases(8, 8, 40);
    other.iter_mut().for_each(|lease| lease.policy_version = lease.policy_version.next());
    assert_ne!(tokens(&run(&mut engine(model, 64, &ends), model, other)), tokens(&reference));
}

#[test]
fn logprobs_entropies_and_features_equal_a_forward_over_the_result() {
    for (name, temperature) in [("qwen3_tied", 1.0), ("qwen3_untied", 0.7)] {
        let model = model(name);
        let settings = Sampling { temperature, ..sampling(30) };
        let leases = (0..4).map(|group| lease(group, 4, settings.clone())).collect();
        let mut engine = engine(&model, 6, &[5, 17]);
        let rollouts = run(&mut engine, &model, leases);
        assert_eq!(engine.prefills(), 4, "each prompt goes through the model once");
        for rollout in &rollouts {
            let logprobs = teacher_forced(&model, rollout, temperature);
            let ids: Vec<i64> = rollout.response_tokens.iter().map(|t| i64::from(*t)).collect();
            let ids = Tensor::from_slice(&ids).unsqueeze(1);
            let drawn = logprobs.gather(1, &ids, false).squeeze_dim(1);
            let behavior = Tensor::from_slice(&rollout.behavior_logprobs).to_kind(Kind::Double);
            assert!((drawn - behavior).abs().max().double_value(&[]) < 1e-4);

            let p = logprobs.exp();
            let entropy = -(&p * &logprobs).sum(Kind::Double) / ids.size()[0] as f64;
            assert!((entropy.double_value(&[]) - f64::from(rollout.mean_entropy)).abs() < 1e-4);

            // Phi = mean over t of (onehot(y_t) - p_t) W
            let mut residual = -p.sum_dim_intlist(0, false, Kind::Double);
            let ones = Tensor::ones([ids.size()[0]], (Kind::Double, tch::Device::Cpu));
            let _ = residual.scatter_add_(0, &ids.squeeze_dim(1), &ones);
            let expected =
                residual.unsqueeze(0).matmul(&model.head().to_kind(Kind::Double)) / ids.size()[0] as f64;
            let feature = Tensor::from_slice(rollout.feature.as_ref().unwrap()).to_kind(Kind::Double);
            assert!((expected.squeeze_dim(0) - feature).abs().max().double_value(&[]) < 1e-4);
        }
    }
}

#[test]
fn the_cpu_decoder_equals_tensor_operations() {
    for name in MODELS {
        let mut model = model(name);
        for change in 0..2 {
            // Greedy, so that both continue the same texts.
            let greedy = |group| lease(group, 2, Sampling { temperature: 0.0, ..sampling(40) });
            let [own, plain] = [true, false].map(|cpu_decoder| {
                run(&mut engine_with(&model, 5, &[5], cpu_decoder), &model, (0..4).map(greedy).collect())
            });
            assert_eq!(tokens(&own), tokens(&plain), "{name}");
            let logprobs = |rollouts: &[Rollout]| -> Vec<f32> {
                rollouts.iter().flat_map(|rollout| rollout.behavior_logprobs.clone()).collect()
            };
            let largest =
                logprobs(&own).iter().zip(logprobs(&plain)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name}, change {change}: largest difference {largest:.1e}");
            assert!(largest < 1e-4, "{name}: {largest}");
            // Changed weights are seen.
            let mut weights = model.weights_mut().master().shallow_clone();
            let _ = tch::no_grad(|| weights.g_mul_scalar_(1.05));
        }
    }
}

/// In bf16 the decoder must be no further from the f32 model than tensor operations are.
#[test]
fn the_bf16_decoder_is_as_exact_as_tensor_operations() {
    for name in ["qwen3_bf16", "qwen2_untied_bf16", "llama3_tied_bf16"] {
        let exact = model(name);
        let rounded =
            Model::load(&golden(name), Placement { dtype: Dtype::Bf16, ..Placement::cpu() }).unwrap();
        let [own, plain] = [true, false].map(|cpu_decoder| {
            let rollouts = run(&mut engine_with(&rounded, 8, &[], cpu_decoder), &rounded, leases(6, 4, 30));
            let (mut total, mut count) = (0.0, 0.0);
            for rollout in &rollouts {
                let logprobs = teacher_forced(&exact, rollout, 1.0);
                for (t, token) in rollout.response_tokens.iter().enumerate() {
                    let truth = logprobs.double_value(&[t as i64, i64::from(*token)]);
                    total += (truth - f64::from(rollout.behavior_logprobs[t])).abs();
                    count += 1.0;
                }
            }
            total / count
        });
        println!("{name}: mean difference {own:.1e}, with tensor operations {plain:.1e}");
        assert!(own < 1.1 * plain, "{name}: {own} {plain}");
        assert!(own < 2e-2, "{name}: {own}");
    }
}

#[test]
fn responses_end_where_they_should() {
    let model = model("qwen3_tied");
    let free = run(&mut engine(&model, 8, &[]), &model, leases(4, 2, 25));
    assert!(free.iter().all(|r| r.finish_reason == FinishReason::Length && r.response_tokens.len() == 25));

    // An end token ends the response, is counted, and has no text.
    let end = free[0].response_tokens[4];
    let ended = run(&mut engine(&model, 8, &[end]), &model, leases(4, 2, 25));
    let first = &ended[0];
    let at = free[0].response_tokens.iter().position(|t| *t == end).unwrap();
    assert_eq!(first.response_tokens, free[0].response_tokens[..=at]);
    assert_eq!(first.behavior_logprobs.len(), at + 1);
    assert_eq!(first.text.chars().count(), at);
    assert_eq!(first.finish_reason, FinishReason::EndToken);

    // A stop string ends it too, and stays in the text.
    let stop: String = free[1].text.chars().skip(6).take(2).collect();
    let mut with_stop = leases(4, 2, 25);
    with_stop.iter_mut().for_each(|lease| lease.sampling.stop = vec![stop.clone()]);
    let stopped = run(&mut engine(&model, 8, &[]), &model, with_stop);
    assert!(stopped[1].text.ends_with(&stop) && stopped[1].text.len() <= 8);
    assert_eq!(stopped[1].finish_reason, FinishReason::StopString);

    // The model's positions are a limit.
    let long = run(&mut engine(&model, 8, &[]), &model, leases(1, 1, 1000));
    let tokens = long[0].prompt_tokens.len() + long[0].response_tokens.len();
    assert_eq!(tokens as i64, model.config().max_positions);
}

#[test]
fn different_sampling_shares_a_batch() {
    let model = model("qwen3_tied");
    let greedy = |group| lease(group, 2, Sampling { temperature: 0.0, ..sampling(20) });
    let top = |group| lease(group, 2, Sampling { top_k: Some(3), temperature: 0.8, ..sampling(20) });
    let alone: Vec<Rollout> = [vec![greedy(0)], vec![top(1)]]
        .into_iter()
        .flat_map(|l| run(&mut engine(&model, 8, &[]), &model, l))
        .collect();
    let together = run(&mut engine(&model, 8, &[]), &model, vec![greedy(0), top(1)]);
    assert_eq!(tokens(&alone), tokens(&together));
}
