//! What several tests need: the models that transformers wrote, and rollouts on them.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion};
use g2rl_common::rollout::{GroupLease, Purpose, Rollout, Sampling};
use g2rl_ffi::attention::Segments;
use g2rl_worker::model::{Model, Placement};
use g2rl_worker::rollout::{DeviceOptions, EngineOptions, RolloutEngine, RolloutRequest, TextDecoder};
use serde::Deserialize;
use tch::{Kind, Tensor};

/// The golden models: families, head shapes, vocabularies, number formats and files of all kinds.
pub const MODELS: [&str; 8] = [
    "qwen3_tied",
    "qwen3_untied",
    "qwen3_bf16",
    "qwen2_tied",
    "qwen2_untied_bf16",
    "llama3_untied",
    "llama3_tied_bf16",
    "llama2_untied",
];

pub fn golden(name: &str) -> PathBuf {
    // At run time too, for binaries that were carried to another machine.
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&folder).join("tests/golden").join(name)
}

pub fn model(name: &str) -> Model {
    Model::load(&golden(name), Placement::cpu()).unwrap()
}

#[derive(Debug, Deserialize)]
pub struct Case {
    pub tokens: Vec<i64>,
    pub logits: Vec<Vec<f32>>,
    pub greedy: Vec<u32>,
    /// Of all tokens, the greedy ones included, but the first; computed in f32 and in bf16.
    pub logprobs: Vec<f32>,
    pub logprobs_bf16: Vec<f32>,
}

/// What transformers computes.
pub fn cases(name: &str) -> Vec<Case> {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let text = std::fs::read_to_string(golden(name).join("expected.json")).unwrap();
    serde_json::from_str::<File>(&text).unwrap().cases
}

/// Every token is a letter, so that stop strings can be tested without a tokenizer.
pub struct Letters;

impl TextDecoder for Letters {
    fn decode(&self, tokens: &[u32]) -> String {
        tokens.iter().map(|t| char::from(b'a' + (t % 26) as u8)).collect()
    }
}

pub fn lease(group: u64, rollouts: u32, sampling: Sampling) -> GroupLease {
    GroupLease {
        lease: LeaseId(group),
        group: GroupId(group),
        purpose: Purpose::Train,
        policy_version: PolicyVersion(3),
        prompt_id: format!("prompt-{group}").as_str().into(),
        problem: String::new(),
        first_rollout: 0,
        rollouts,
        stream_offset: 0,
        given_response: None,
        sampling,
    }
}

pub fn engine(model: &Model, slots: usize, end_tokens: &[u32]) -> RolloutEngine {
    engine_with(model, slots, end_tokens, true)
}

/// `cpu_decoder` false: tensor operations, as on GPUs.
pub fn engine_with(model: &Model, slots: usize, end_tokens: &[u32], cpu_decoder: bool) -> RolloutEngine {
    let device = DeviceOptions::new(slots as u64, 8, 64, 1);
    let options = EngineOptions { cpu_decoder, ..options(slots, end_tokens, device) };
    RolloutEngine::new(model, options).unwrap()
}

/// Tensor operations with features.
pub fn options(slots: usize, end_tokens: &[u32], device: DeviceOptions) -> EngineOptions {
    let end_tokens = end_tokens.to_vec();
    EngineOptions {
        slots,
        features: true,
        evaluation_features: false,
        run_seed: 9,
        end_tokens,
        cpu_decoder: false,
        device,
    }
}

/// A prompt of `3 + group % 5` tokens.
pub fn prompt(group: u64) -> Arc<[u32]> {
    (0..3 + group % 5).map(|t| ((7 * group + 11 * t) % 129 + 2) as u32).collect()
}

/// Runs leases to the end; rollouts come sorted by id.
pub fn run(engine: &mut RolloutEngine, model: &Model, leases: Vec<GroupLease>) -> Vec<Rollout> {
    for lease in leases {
        let prompt_tokens = prompt(lease.group.0);
        engine.submit(RolloutRequest { lease, prompt_tokens }).unwrap();
    }
    let mut rollouts = Vec::new();
    while !engine.is_idle() {
        rollouts.extend(engine.step(model, &Letters).unwrap().into_iter().map(|done| done.rollout));
    }
    rollouts.sort_by_key(|rollout| rollout.id);
    rollouts
}

/// log p and p of every response position, in f64, from one forward over the finished tokens.
pub fn teacher_forced(model: &Model, rollout: &Rollout, temperature: f64) -> Tensor {
    let all: Vec<i64> =
        rollout.prompt_tokens.iter().chain(&rollout.response_tokens).map(|t| i64::from(*t)).collect();
    let mut segments = Segments::default();
    segments.push(all.len() as i64, None);
    let hidden = model.hidden_states(&Tensor::from_slice(&all), &segments).unwrap();
    let logits = model.logits(&model.final_norm(&hidden).unwrap()).to_kind(Kind::Double);
    let response = rollout.response_tokens.len() as i64;
    let first = rollout.prompt_tokens.len() as i64 - 1;
    (logits.narrow(0, first, response) / temperature).log_softmax(-1, Kind::Double)
}
