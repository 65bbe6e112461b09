//! The hand-written update against plain autograd over the whole model, and against itself when
//! the work is divided.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use g2rl_common::config::{Dtype, OptimizerConfig, Recompute};
use g2rl_common::ids::{GroupId, RolloutId};
use g2rl_common::objective::{ObjectiveOptions, RatioKind};
use g2rl_common::update::TrainSequence;
use g2rl_worker::model::config::RopeScaling;
use g2rl_worker::model::weights::digest;
use g2rl_worker::model::{Model, ModelConfig, Placement, Weights};
use g2rl_worker::update::loss::LossOptions;
use g2rl_worker::update::optimizer::Optimizer;
use g2rl_worker::update::{Updater, UpdaterOptions};
use tch::{Device, Kind, Tensor};

use crate::ranks::over_gloo;

#[path = "support/plain.rs"]
mod plain;
#[path = "support/ranks.rs"]
mod ranks;

/// The tied model has norms of queries and keys (Qwen3), the untied one biases (Qwen2).
fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: 24,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        intermediate_size: 40,
        vocab_size: 37,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 64,
        tied_embeddings: tied,
        qk_norm: tied,
        qkv_bias: !tied,
        raw: serde_json::json!({}),
    }
}

/// Weights large enough that every path matters: matrices with standard deviation 0.3, norms
/// around 1.
fn weights(tied: bool, seed: i64) -> Weights {
    let weights = Weights::random(config(tied), 1, Placement::cpu()).unwrap();
    tch::manual_seed(seed);
    for block in weights.layout().blocks() {
        let mut view = weights.master().narrow(0, block.offset, block.numel());
        let (mean, std) = if block.decays() { (0.0, 0.3) } else { (1.0, 0.2) };
        view.copy_(&view.normal_functional(mean, std));
    }
    weights
}

/// Sequences of different lengths with advantages of both signs and behaviour log-probabilities
/// far enough from the policy's that some tokens are clipped.
fn sequences() -> Vec<TrainSequence> {
    let shapes = [
        (3usize, 5usize, 0.9f32),
        (2, 1, -0.7),
        (5, 9, -1.3),
        (1, 5, 0.4),
        (3, 4, 1.1),
        (3, 5, 0.0),
        (2, 3, 0.6),
    ];
    // Groups of one prompt each: 0, 4 and 5; 1 and 6; the others alone.
    let group = [0usize, 1, 2, 3, 0, 0, 1];
    let token = |i: usize, t: usize, prompt: usize| {
        (7 * if t < prompt { group[i] } else { i } + 5 * t * t + 3 * t) % 37
    };
    let sequence = |(i, &(prompt, response, advantage)): (usize, &(usize, usize, f32))| TrainSequence {
        id: RolloutId { group: GroupId(group[i] as u64), index: i as u32 },
        tokens: (0..prompt + response).map(|t| token(i, t, prompt) as u32).collect(),
        prompt_length: prompt as u32,
        behavior_logprobs: (0..response).map(|t| -3.0 - ((t + i) % 4) as f32 * 0.4).collect(),
        advantage,
        policy_weight: 1.0 / (7.0 * response as f32),
        imitation_weight: if i % 3 == 2 { 0.02 } else { 0.0 },
    };
    shapes.iter().enumerate().map(sequence).collect()
}

fn objective(ratio: RatioKind, kl_coef: f64, entropy_coef: f64) -> ObjectiveOptions {
    ObjectiveOptions { ratio, kl_coef, entropy_coef, clip_high: 0.28, ..ObjectiveOptions::default() }
}

/// Log-probabilities `[response]` and entropies `[response]` of one sequence, with autograd, in f64.
fn reference_forward(
    flat: &Tensor,
    tied: bool,
    sequence: &TrainSequence,
    temperature: f64,
) -> (Tensor, Tensor) {
    let tokens: Vec<i64> = sequence.tokens.iter().map(|t| i64::from(*t)).collect();
    let (length, prompt) = (tokens.len() as i64, i64::from(sequence.prompt_length));
    let logits = plain::logits(&config(tied), flat, &tokens) / temperature;
    let all = logits.log_softmax(-1, Kind::Double).narrow(0, prompt - 1, length - prompt);
    let targets = Tensor::from_slice(&tokens).narrow(0, prompt, length - prompt).unsqueeze(1);
    let entropy = -(all.exp() * &all).sum_dim_intlist(-1, false, Kind::Double);
    (all.gather(1, &targets, false).squeeze_dim(1), entropy)
}

/// The loss as tensor operations straight from its definition, differentiated by libtorch.
fn reference_gradient(
    policy: &Weights,
    tied: bool,
    reference: Option<&Model>,
    options: &LossOptions,
) -> (f64, Tensor) {
    let leaf = policy.master().to_kind(Kind::Double).set_requires_grad(true);
    let frozen = reference.map(|reference| reference.weights().master().to_kind(Kind::Double));
    let objective = &options.objective;
    let mut loss = Tensor::from(0.0f64);
    for sequence in sequences() {
        let (logprobs, entropy) = reference_forward(&leaf, tied, &sequence, options.temperature);
        let log_ratio = &logprobs - Tensor::from_slice(&sequence.behavior_logprobs).to_kind(Kind::Double);
        let ratio = match objective.ratio {
            RatioKind::Token => log_ratio.exp(),
            // GSPO: every token of the sequence has the ratio exp(mean log-ratio).
            RatioKind::Sequence => log_ratio.mean(Kind::Double).exp().expand_as(&log_ratio),
        };
        let advantage = f64::from(sequence.advantage);
        let bounded = ratio.clamp(1.0 - objective.clip_low, 1.0 + objective.clip_high) * advantage;
        let mut term = -(ratio * advantage).minimum(&bounded);
        if let Some(frozen) = &frozen {
            let d = reference_forward(frozen, tied, &sequence, options.temperature).0.detach() - &logprobs;
            term += objective.kl_coef * (d.exp() - &d - 1.0);
        }
        term -= objective.entropy_coef * entropy;
        loss = loss + f64::from(sequence.policy_weight) * term.sum(Kind::Double)
            - f64::from(sequence.imitation_weight) * logprobs.sum(Kind::Double);
    }
    loss.backward();
    (loss.double_value(&[]), leaf.grad())
}

fn updater(
    weights: &Weights,
    options: &LossOptions,
    reference: Option<Model>,
    (pack, recompute): (usize, Recompute),
) -> Updater {
    let optimizer = Optimizer::new(OptimizerConfig::default(), weights).unwrap();
    let options = UpdaterOptions { loss: options.clone(), tokens_per_microbatch: pack, recompute };
    Updater::new(options, optimizer, weights, reference).unwrap()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[test]
fn gradients_equal_plain_autograd() {
    let cases = [
        (true, RatioKind::Token, 0.0, 0.0, 1.0),
        (true, RatioKind::Token, 0.05, 0.01, 1.0),
        (false, RatioKind::Token, 0.05, 0.01, 0.7),
        (true, RatioKind::Sequence, 0.05, 0.0, 1.3),
    ];
    for (tied, ratio, kl_coef, entropy_coef, temperature) in cases {
        let policy = weights(tied, 11);
        let reference = || (kl_coef > 0.0).then(|| Model::new(weights(tied, 12)));
        let options =
            LossOptions { objective: objective(ratio, kl_coef, entropy_coef), temperature, chunk: 7 };
        let (loss, expected) = reference_gradient(&policy, tied, reference().as_ref(), &options);
        // One sequence a micro-batch, a few, all: packing must not matter, and what is computed again neither.
        for (pack, recompute) in
            [(1, Recompute::Nothing), (20, Recompute::AllButAttention), (1000, Recompute::Layer)]
        {
            let model = Model::new(weights(tied, 11));
            let mut updater = updater(model.weights(), &options, reference(), (pack, recompute));
            let report = updater.compute(&model, &sequences(), None).unwrap();
            let difference = largest_difference(updater.gradients().flat(), &expected);
            let scale = expected.abs().max().double_value(&[]);
            assert!(
                difference < 1e-5 * scale.max(1.0),
                "tied {tied} {ratio:?} pack {pack}: {difference:e} of {scale}"
            );
            assert!(
                (report.stats.loss - loss).abs() < 1e-5 * loss.abs().max(1.0),
                "{} {loss}",
                report.stats.loss
            );
            let norm = expected.norm().double_value(&[]);
            assert!((report.gradient_norm - norm).abs() < 1e-5 * norm);
            assert_eq!(report.stats.tokens, 32);
            assert!(report.stats.clipped > 0 || ratio == RatioKind::Sequence);
        }
    }
}

#[test]
fn shares_add_up_to_the_whole() {
    let options =
        LossOptions { objective: objective(RatioKind::Token, 0.0, 0.01), temperature: 1.0, chunk: 64 };
    let model = Model::new(weights(true, 11));
    let mut updater = updater(model.weights(), &options, None, (64, Recompute::Nothing));
    updater.compute(&model, &sequences(), None).unwrap();
    let whole = updater.gradients().flat().copy();
    let mut sum = whole.zeros_like();
    for share in [&sequences()[..2], &sequences()[2..], &[]] {
        updater.compute(&model, share, None).unwrap();
        sum += updater.gradients().flat();
    }
    assert!(largest_difference(&whole, &sum) < 1e-6);
}

#[test]
fn a_step_is_adamw_with_clipping_and_without_decay_of_norms() {
    let settings = OptimizerConfig {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        ..OptimizerConfig::default()
    };
    let options =
        LossOptions { objective: objective(RatioKind::Token, 0.0, 0.0), temperature: 1.0, chunk: 64 };
    let mut model = Model::new(weights(true, 11));
    let optimizer = Optimizer::new(settings.clone(), model.weights()).unwrap();
    let updater_options =
        UpdaterOptions { loss: options, tokens_per_microbatch: 64, recompute: Recompute::Nothing };
    let mut updater = Updater::new(updater_options, optimizer, model.weights(), None).unwrap();

    // The formula in f64: first and second moments with bias correction, decoupled decay.
    let mut expected = model.weights().master().to_kind(Kind::Double);
    let decay = Tensor::zeros_like(&expected);
    for block in model.weights().layout().blocks().iter().filter(|b| b.decays()) {
        let _ = decay.narrow(0, block.offset, block.numel()).fill_(settings.weight_decay);
    }
    let (mut first, mut second) = (expected.zeros_like(), expected.zeros_like());
    for step in 1..=3 {
        let report = updater.compute(&model, &sequences(), None).unwrap();
        assert!(report.gradient_norm > settings.max_grad_norm);
        let scale = settings.max_grad_norm / (report.gradient_norm + 1e-6);
        let gradient = updater.gradients().flat().to_kind(Kind::Double) * scale;
        first = first * settings.beta1 + &gradient * (1.0 - settings.beta1);
        second = second * settings.beta2 + gradient.square() * (1.0 - settings.beta2);
        let m = &first / (1.0 - settings.beta1.powi(step));
        let v = &second / (1.0 - settings.beta2.powi(step));
        expected = &expected * (1.0 - settings.learning_rate * &decay);
        expected -= settings.learning_rate * m / (v.sqrt() + settings.eps);
        updater.apply(model.weights_mut(), settings.learning_rate, None).unwrap();
        assert!(largest_difference(&model.weights().master().to_kind(Kind::Double), &expected) < 1e-6);
    }
    assert!(updater.apply(model.weights_mut(), 0.01, None).is_err(), "gradients are applied once");
}

/// Gradients on a GPU against double precision: in f32 as close as a CPU's, in bf16 (flash attention with shared prompts,
/// the project's kernels) about as close as a CPU's in bf16.
#[test]
fn a_gpus_gradients_are_a_cpus() {
    if !g2rl_ffi::cuda::is_available() {
        println!("skipped: no GPU");
        return;
    }
    for tied in [true, false] {
        let options =
            LossOptions { objective: objective(RatioKind::Token, 0.0, 0.01), temperature: 1.0, chunk: 7 };
        let rounded = weights(tied, 11);
        let rounded = rounded.master().to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let on = |device, dtype| {
            let placement = Placement { device, dtype, trainable: true, offload: false };
            let mut weights = Weights::random(config(tied), 1, placement).unwrap();
            tch::no_grad(|| weights.master().shallow_clone().copy_(&rounded));
            weights.refresh_compute();
            Model::new(weights)
        };
        let (cpu, gpu) = (Device::Cpu, Device::Cuda(0));
        let (_, expected) = reference_gradient(on(cpu, Dtype::F32).weights(), tied, None, &options);
        let error = |device, dtype, recompute| {
            let model = on(device, dtype);
            let mut updater = updater(model.weights(), &options, None, (1000, recompute));
            updater.compute(&model, &sequences(), None).unwrap();
            let found = updater.gradients().flat().to_device(cpu).to_kind(Kind::Double);
            (found - &expected).norm().double_value(&[]) / expected.norm().double_value(&[])
        };
        for recompute in [Recompute::Nothing, Recompute::AllButAttention, Recompute::Layer] {
            let found = error(gpu, Dtype::F32, recompute);
            assert!(found < 1e-4, "tied {tied}, f32, {recompute:?}: {found:e}");
            let (found, usual) = (error(gpu, Dtype::Bf16, recompute), error(cpu, Dtype::Bf16, recompute));
            println!("tied {tied}, bf16, {recompute:?}: {found:.1e} on the GPU, {usual:.1e} on the CPU");
            assert!(found < 2.0 * usual + 5e-3, "{found:e} {usual:e}");
        }
    }
}

/// A rollout of rank 1 is spoilt: that rank names it and has nothing to apply. Where the gradient takes part, no rank
/// has; else the coordinator tells none. The next mini-batch is as if nothing had been.
#[test]
fn a_rollout_that_is_not_finite_is_named_and_not_applied() {
    let options =
        LossOptions { objective: objective(RatioKind::Token, 0.0, 0.0), temperature: 1.0, chunk: 4 };
    type Spoil = fn(&mut TrainSequence);
    let spoilt: [(Spoil, bool); 3] = [
        (|sequence| sequence.advantage = f32::NAN, true),
        (|sequence| sequence.advantage = f32::INFINITY, true),
        // A ratio beyond its limit has no gradient, and this one is beyond any.
        (|sequence| sequence.behavior_logprobs[2] = f32::NAN, false),
    ];
    let start: Vec<f32> = Vec::try_from(weights(true, 11).master()).unwrap();
    for (spoil, spreads) in spoilt {
        let digests = over_gloo(2, |rank, group| {
            let flat = Tensor::from_slice(&start);
            let mut model = Model::new(Weights::from_flat(config(true), flat.copy()));
            let mut updater = updater(model.weights(), &options, None, (64, Recompute::Nothing));
            let mut share = sequences().split_off(4 * rank as usize);
            share.truncate(4);
            let good = share.clone();
            if rank == 1 {
                spoil(&mut share[1]);
            }
            let report = updater.compute(&model, &share, Some(group)).unwrap();
            assert_eq!(report.gradient_norm.is_finite(), !spreads, "{}", report.gradient_norm);
            // The second of rank 1 is the sixth of all, an answer to the first prompt.
            let named: Vec<String> = report.not_finite.iter().map(ToString::to_string).collect();
            assert_eq!(named, if rank == 1 { vec!["0.5"] } else { vec![] });
            assert_eq!(report.is_finite(), rank == 0 && !spreads);
            if !report.is_finite() {
                assert!(updater.apply(model.weights_mut(), 0.01, Some(group)).is_err());
            }
            assert!(model.weights().master().equal(&flat));

            assert!(updater.compute(&model, &good, Some(group)).unwrap().is_finite());
            updater.apply(model.weights_mut(), 0.01, Some(group)).unwrap();
            assert_eq!(updater.optimizer().steps(), 1);
            model.weights().digest()
        });
        assert_eq!(digests[0], digests[1]);
        assert_ne!(digests[0], digest(&Tensor::from_slice(&start)));
    }
}
