//! One optimizer step over a batch, and the whole step with the rollouts before it.

use g2rl_common::config::OptimizerConfig;
use g2rl_common::objective::ObjectiveOptions;
use g2rl_common::rollout::Rollout;
use g2rl_common::update::TrainSequence;

use super::report::Report;
use super::{SizeArgs, rollout, synchronize};
use crate::model::Model;
use crate::update::loss::LossOptions;
use crate::update::optimizer::Optimizer;
use crate::update::{Updater, UpdaterOptions};

/// Response tokens whose logits exist at a time.
const HEAD_CHUNK: i64 = 1024;

pub(super) fn measure(sizes: &SizeArgs, report: &mut Report) -> anyhow::Result<()> {
    let mut model = sizes.load()?;
    let rollouts = {
        let mut engine = rollout::engine(sizes, &model)?;
        rollout::generate(sizes, &model, &mut engine, 1)?
    };
    let sequences = sequences(&rollouts);
    let mut updater = updater(sizes, &model)?;
    report.tokens((sizes.batch * (sizes.prompt_tokens + sizes.new_tokens)) as u64);
    report.repeat(sizes.repetitions, || step(&mut model, &mut updater, &sequences))
}

pub(super) fn measure_step(sizes: &SizeArgs, report: &mut Report) -> anyhow::Result<()> {
    let mut model = sizes.load()?;
    let mut engine = rollout::engine(sizes, &model)?;
    let mut updater = updater(sizes, &model)?;
    let mut version = 0;
    report.tokens((sizes.batch * sizes.new_tokens) as u64);
    report.repeat(sizes.repetitions, || {
        version += 1;
        let rollouts = rollout::generate(sizes, &model, &mut engine, version)?;
        step(&mut model, &mut updater, &sequences(&rollouts))
    })
}

fn step(model: &mut Model, updater: &mut Updater, sequences: &[TrainSequence]) -> anyhow::Result<()> {
    updater.compute(model, sequences, None)?;
    updater.apply(model.weights_mut(), 1e-6)?;
    synchronize(model.weights().device())
}

fn updater(sizes: &SizeArgs, model: &Model) -> anyhow::Result<Updater> {
    let reference = (sizes.kl_coef > 0.0).then(|| Model::new(model.weights().frozen_copy()));
    let objective = ObjectiveOptions { kl_coef: sizes.kl_coef, ..ObjectiveOptions::default() };
    let loss = LossOptions { objective, temperature: 1.0, chunk: HEAD_CHUNK };
    let optimizer = Optimizer::new(OptimizerConfig::default(), model.weights())?;
    let options = UpdaterOptions {
        loss,
        tokens_per_microbatch: sizes.tokens_per_microbatch,
        recompute: sizes.recompute.into(),
    };
    Ok(Updater::new(options, optimizer, model.weights(), reference)?)
}

/// Alternating advantages, each sequence weighing the same.
fn sequences(rollouts: &[Rollout]) -> Vec<TrainSequence> {
    let weight = |rollout: &Rollout| 1.0 / (rollouts.len() * rollout.response_tokens.len()) as f32;
    rollouts
        .iter()
        .map(|rollout| TrainSequence {
            id: rollout.id,
            tokens: [&rollout.prompt_tokens[..], &rollout.response_tokens[..]].concat(),
            prompt_length: rollout.prompt_tokens.len() as u32,
            behavior_logprobs: rollout.behavior_logprobs.clone(),
            advantage: if rollout.id.index.is_multiple_of(2) { 1.0 } else { -1.0 },
            policy_weight: weight(rollout),
            imitation_weight: 0.0,
        })
        .collect()
}
