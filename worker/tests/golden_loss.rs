//! The head's hand-written backward against double-precision reference values: from hidden states,
//! head and advantages to the loss and its gradients.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use g2rl_common::ids::{GroupId, RolloutId};
use g2rl_common::objective::ObjectiveOptions;
use g2rl_common::update::UpdateStats;
use g2rl_ffi::attention::Segments;
use g2rl_worker::model::config::RopeScaling;
use g2rl_worker::model::layout::Part;
use g2rl_worker::model::{Model, ModelConfig, Placement, Weights};
use g2rl_worker::update::gradients::Gradients;
use g2rl_worker::update::loss::{HeadLoss, LossOptions};
use g2rl_worker::update::pack::{MicroBatch, ResponseToken};
use serde_json::Value;
use tch::{Kind, Tensor};

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

/// A model that is nothing but the reference's head.
fn model(case: &Value) -> Model {
    let config = ModelConfig {
        hidden_size: case["d"].as_i64().unwrap(),
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        intermediate_size: 2,
        vocab_size: case["V"].as_i64().unwrap(),
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        max_positions: 64,
        tied_embeddings: false,
        qk_norm: true,
        qkv_bias: false,
        raw: Value::Null,
    };
    let weights = Weights::random(config, 0, Placement::cpu()).unwrap();
    let head = Tensor::from_slice(&numbers(&case["W"])).to_kind(Kind::Float);
    weights.part(Part::Head).view([-1]).copy_(&head);
    Model::new(weights)
}

#[test]
fn loss_and_gradients_equal_the_reference() {
    let text = include_str!("../../common/tests/golden/golden_grpo.json");
    let golden: Value = serde_json::from_str(text).unwrap();
    let case = &golden["end_to_end"];
    let (m, l, d) = (case["m"].as_u64().unwrap() as usize, case["L"].as_u64().unwrap() as usize, 6);
    let model = model(case);
    let [mask, targets, behavior, reference, hidden] =
        ["mask", "y", "old_logprob", "ref_logprob", "h"].map(|key| numbers(&case[key]));
    let live: Vec<usize> = (0..m * l).filter(|at| mask[*at] != 0.0).collect();
    let pick = |values: &[f64]| -> Vec<f32> { live.iter().map(|at| values[*at] as f32).collect() };
    let rows = |values: &[f64]| -> Vec<f64> {
        live.iter().flat_map(|at| values[at * d..(at + 1) * d].to_vec()).collect()
    };
    let length = |sequence: usize| live.iter().filter(|at| **at / l == sequence).count();
    let options = LossOptions {
        objective: ObjectiveOptions {
            clip_low: case["clip_low"].as_f64().unwrap(),
            clip_high: case["clip_high"].as_f64().unwrap(),
            kl_coef: case["beta"].as_f64().unwrap(),
            ..ObjectiveOptions::default()
        },
        temperature: case["temperature"].as_f64().unwrap(),
        chunk: 7,
    };
    let (behavior, reference) = (pick(&behavior), pick(&reference));
    for (name, variant) in case["variants"].as_object().unwrap() {
        let advantages = numbers(&variant["advantage"]);
        let streams = live.iter().enumerate().map(|(at, place)| ResponseToken {
            behavior_logprob: behavior[at],
            advantage: advantages[place / l] as f32,
            policy_weight: 1.0 / (m * length(place / l)) as f32,
            imitation_weight: 0.0,
        });
        let ids: Vec<i64> = live.iter().map(|at| targets[*at] as i64).collect();
        let batch = MicroBatch {
            tokens: Tensor::from_slice(&ids),
            segments: Segments::default(),
            predictors: Tensor::from_slice(&ids),
            targets: ids.clone(),
            streams: streams.collect(),
            responses: std::iter::once(0..ids.len()).collect(),
            ids: vec![RolloutId { group: GroupId(0), index: 0 }],
        };
        let normed = Tensor::from_slice(&rows(&hidden)).to_kind(Kind::Float).view([-1, d as i64]);
        let gradients = Gradients::new(model.weights()).unwrap();
        let mut stats = UpdateStats::default();
        let head = HeadLoss {
            model: &model,
            options: &options,
            batch: &batch,
            reference_logprobs: Some(&reference),
        };
        let dhidden = head.backward(&normed, &gradients, &mut stats).unwrap().dnormed;

        let loss = variant["loss"].as_f64().unwrap();
        assert!((stats.loss - loss).abs() < 1e-5, "{name}: loss {} {loss}", stats.loss);
        let close = |what: &str, got: &Tensor, want: Vec<f64>| {
            let want = Tensor::from_slice(&want).view(got.size().as_slice());
            let difference = (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{name}: {what} off by {difference:e}");
        };
        close("gradient by hidden states", &dhidden, rows(&numbers(&variant["grad_h"])));
        close("gradient by the head", &gradients.part(Part::Head), numbers(&variant["grad_W"]));
        let kl = variant["mean_kl"].as_f64().unwrap();
        assert!((stats.per_token(stats.kl) - kl).abs() < 1e-5, "{name}: KL");
        let clipped = variant["clip_fraction"].as_f64().unwrap();
        assert!((stats.per_token(stats.clipped as f64) - clipped).abs() < 1e-9, "{name}: clip fraction");
    }
}
