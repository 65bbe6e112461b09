//! Rollouts of an exact length: end tokens do not end them.

use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion};
use g2rl_common::rollout::{GroupLease, Purpose, Rollout, Sampling};
use g2rl_common::seed::CounterRng;

use super::report::Report;
use super::{SizeArgs, synchronize};
use crate::model::Model;
use crate::rollout::{DeviceOptions, EngineOptions, RolloutEngine, RolloutRequest, TextDecoder};

/// Measures nothing but tokens.
struct NoText;

impl TextDecoder for NoText {
    fn decode(&self, _tokens: &[u32]) -> String {
        String::new()
    }
}

pub(super) fn measure(sizes: &SizeArgs, report: &mut Report) -> anyhow::Result<()> {
    let model = sizes.load()?;
    let mut engine = engine(sizes, &model)?;
    let mut version = 0;
    report.tokens((sizes.batch * sizes.new_tokens) as u64);
    report.set("features", (sizes.features == "on").into());
    report.repeat(sizes.repetitions, || {
        version += 1;
        generate(sizes, &model, &mut engine, version)?;
        synchronize(model.weights().device())
    })
}

/// An engine with a slot for every sequence.
pub(super) fn engine(sizes: &SizeArgs, model: &Model) -> anyhow::Result<RolloutEngine> {
    let options = EngineOptions {
        slots: sizes.batch,
        features: sizes.features == "on",
        evaluation_features: false,
        run_seed: 0,
        end_tokens: Vec::new(),
        cpu_decoder: true,
        device: DeviceOptions::new(
            sizes.batch as u64,
            sizes.prompt_tokens as u64,
            sizes.new_tokens as u64,
            sizes.group_size as u64,
        ),
    };
    Ok(RolloutEngine::new(model, options)?)
}

/// One batch of rollouts of random prompts.
pub(super) fn generate(
    sizes: &SizeArgs,
    model: &Model,
    engine: &mut RolloutEngine,
    version: u64,
) -> anyhow::Result<Vec<Rollout>> {
    let mut random = CounterRng::new(version, "bench prompts");
    for group in 0..(sizes.batch / sizes.group_size) as u64 {
        let vocab = model.config().vocab_size as u64;
        let prompt: Vec<u32> = (0..sizes.prompt_tokens).map(|_| random.below(vocab) as u32).collect();
        let lease = GroupLease {
            lease: LeaseId(group),
            group: GroupId(group),
            purpose: Purpose::Train,
            policy_version: PolicyVersion(version),
            prompt_id: group.to_string().as_str().into(),
            problem: String::new(),
            first_rollout: 0,
            rollouts: sizes.group_size as u32,
            stream_offset: 0,
            given_response: None,
            sampling: Sampling { max_new_tokens: sizes.new_tokens as u32, ..Sampling::default() },
        };
        engine.submit(RolloutRequest { lease, prompt_tokens: prompt.into() })?;
    }
    let mut rollouts = Vec::new();
    while !engine.is_idle() {
        rollouts.extend(engine.step(model, &NoText)?.into_iter().map(|done| done.rollout));
    }
    anyhow::ensure!(
        rollouts.iter().all(|r| r.response_tokens.len() == sizes.new_tokens),
        "a rollout ended early"
    );
    Ok(rollouts)
}
