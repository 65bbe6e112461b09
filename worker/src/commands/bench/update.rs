//! One optimizer step over a batch, and the whole step with the rollouts before it.

use anyhow::anyhow;
use g2rl_common::config::OptimizerConfig;
use g2rl_common::objective::ObjectiveOptions;
use g2rl_common::rollout::Rollout;
use g2rl_common::update::TrainSequence;
use g2rl_ffi::process_group::ProcessGroup;

use super::collective::Rendezvous;
use super::report::Report;
use super::{SizeArgs, rollout, synchronize};
use crate::model::Model;
use crate::model::shard::Shard;
use crate::planner::MemoryPlan;
use crate::rollout::RolloutEngine;
use crate::update::loss::LossOptions;
use crate::update::optimizer::Optimizer;
use crate::update::{Updater, UpdaterOptions};

/// Response tokens whose logits exist at a time.
pub(super) const HEAD_CHUNK: i64 = 1024;

pub(super) fn measure(sizes: &SizeArgs, report: &mut Report) -> anyhow::Result<()> {
    let mut rank = Rank::new(sizes, report)?;
    let sequences = rank.roll_out(1)?;
    report.tokens((sizes.batch * (sizes.prompt_tokens + sizes.new_tokens)) as u64);
    report.repeat(sizes.repetitions, || rank.update(&sequences, None))
}

pub(super) fn measure_step(sizes: &SizeArgs, report: &mut Report) -> anyhow::Result<()> {
    report.tokens((sizes.batch * sizes.new_tokens) as u64);
    report.set("ranks", sizes.ranks.into());
    if sizes.ranks == 1 {
        let mut rank = Rank::new(sizes, report)?;
        return report.repeat(sizes.repetitions, || rank.step(None));
    }
    let share = sizes.share()?;
    let store = Rendezvous::open(sizes.ranks as u32)?;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let peers: Vec<_> = (1..sizes.ranks as u32)
            .map(|number| {
                let (share, store) = (&share, &store);
                scope.spawn(move || -> anyhow::Result<()> {
                    let mut unused = Report::new("step", share);
                    let group = store.join(number)?;
                    let mut rank = Rank::new(share, &mut unused)?;
                    rank.divide(number)?;
                    // Warm-up and repetitions, in step with the first rank.
                    (0..=share.repetitions).try_for_each(|_| rank.step(Some(&group)))
                })
            })
            .collect();
        let group = store.join(0)?;
        let mut rank = Rank::new(&share, report)?;
        rank.divide(0)?;
        report.repeat(sizes.repetitions, || rank.step(Some(&group)))?;
        peers.into_iter().try_for_each(|peer| peer.join().map_err(|_| anyhow!("a rank panicked"))?)
    })
}

/// A rank with everything it needs for a step.
struct Rank<'a> {
    sizes: &'a SizeArgs,
    model: Model,
    engine: RolloutEngine,
    updater: Updater,
    version: u64,
}

impl<'a> Rank<'a> {
    fn new(sizes: &'a SizeArgs, report: &mut Report) -> anyhow::Result<Self> {
        // The number of threads is a thread's own.
        if let Some(threads) = sizes.threads {
            tch::set_num_threads(threads);
        }
        let plan = sizes.plan(&sizes.shape()?)?;
        report.plan(&plan);
        let model = sizes.load()?;
        let engine = rollout::engine(sizes, &model)?;
        let updater = updater(sizes, &plan, &model)?;
        Ok(Self { sizes, model, engine, updater, version: 0 })
    }

    /// Keeps a part of the optimizer state, if that was asked for.
    fn divide(&mut self, rank: u32) -> anyhow::Result<()> {
        if !self.sizes.shard {
            return Ok(());
        }
        let weights = self.model.weights_mut();
        let shard = Shard::new(weights.layout(), rank, self.sizes.of_ranks as u32);
        Ok(self.updater.divide(weights, shard, None)?)
    }

    fn roll_out(&mut self, version: u64) -> anyhow::Result<Vec<TrainSequence>> {
        Ok(sequences(&rollout::generate(self.sizes, &self.model, &mut self.engine, version)?))
    }

    fn update(&mut self, sequences: &[TrainSequence], group: Option<&ProcessGroup>) -> anyhow::Result<()> {
        self.updater.compute(&self.model, sequences, group)?;
        self.updater.apply(self.model.weights_mut(), 1e-6, group)?;
        synchronize(self.model.weights().device())
    }

    fn step(&mut self, group: Option<&ProcessGroup>) -> anyhow::Result<()> {
        self.version += 1;
        let sequences = self.roll_out(self.version)?;
        self.update(&sequences, group)
    }
}

fn updater(sizes: &SizeArgs, plan: &MemoryPlan, model: &Model) -> anyhow::Result<Updater> {
    let reference = (sizes.kl_coef > 0.0).then(|| Model::new(model.weights().frozen_copy()));
    let objective = ObjectiveOptions { kl_coef: sizes.kl_coef, ..ObjectiveOptions::default() };
    let loss = LossOptions { objective, temperature: 1.0, chunk: HEAD_CHUNK };
    let optimizer = Optimizer::new(OptimizerConfig::default(), model.weights())?;
    let options =
        UpdaterOptions { loss, tokens_per_microbatch: plan.microbatch as usize, recompute: plan.recompute };
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
