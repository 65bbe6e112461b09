//! `advantages -> update`: one mini-batch's gradients, and the optimizer step.
//!
//! In: this rank's share of a mini-batch ([`TrainSequence`]s, weights normalised over the global
//! mini-batch). Out: a report, then, when told, new weights. The two halves are apart because an
//! optimizer step is committed only when every rank's gradients are ready.
//!
//! Must not know: algorithms, rewards, groups, who the other ranks are.
//!
//! Invariants: after [`Updater::compute`] every rank of the process group holds the same gradient
//! sum; [`Updater::apply`] uses it exactly once.

pub mod gradients;
pub mod layers;
pub mod loss;
pub mod offload;
pub mod optimizer;
pub mod pack;
pub mod softmax;

use std::path::Path;

use g2rl_common::config::{Recompute, RunConfig};
use g2rl_common::ids::RolloutId;
use g2rl_common::update::{TrainSequence, UpdateStats};
use g2rl_ffi::FfiError;
use g2rl_ffi::process_group::ProcessGroup;
use tch::TchError;

use self::gradients::{Bucket, GradientReduction, Gradients};
use self::layers::SavedForward;
use self::loss::{HeadLoss, LossOptions, target_logprobs};
use self::optimizer::Optimizer;
use self::pack::{MicroBatch, PackError, PackLimits, pack};
use crate::failpoint;
use crate::model::attention::knows_prefixes;
use crate::model::files::WeightsError;
use crate::model::shard::Shard;
use crate::model::{Model, Weights};
use crate::planner::MemoryPlan;
use crate::profile::{self, Phase};

/// Why an update failed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The share cannot be used.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// libtorch or a peer failed.
    #[error(transparent)]
    Ffi(#[from] FfiError),
    /// libtorch refused, most likely for lack of memory.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// Optimizer state cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The new weights of a divided optimizer did not come together.
    #[error(
        "a rank was lost while the weights of optimizer.shard were brought together after a step; its part of \
         the optimizer state is gone, so go on from the last checkpoint with --resume: {0}"
    )]
    Gather(#[source] FfiError),
    /// There are no gradients to apply.
    #[error("told to apply gradients that were not computed")]
    NothingToApply,
}

/// What a rank reports when its gradients are ready.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientReport {
    /// This rank's sums.
    pub stats: UpdateStats,
    /// Norm of the gradient over all ranks, before clipping.
    pub gradient_norm: f64,
    /// Sequences of this rank whose own loss or log-probabilities are not finite.
    pub not_finite: Vec<RolloutId>,
}

impl GradientReport {
    /// Whether the gradients may be applied, as far as this rank knows.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        self.gradient_norm.is_finite() && self.stats.loss.is_finite() && self.not_finite.is_empty()
    }
}

/// Options of the update.
#[derive(Debug, Clone)]
pub struct UpdaterOptions {
    /// The loss.
    pub loss: LossOptions,
    /// Tokens of a packed micro-batch.
    pub tokens_per_microbatch: usize,
    /// What the backward computes again.
    pub recompute: Recompute,
}

impl UpdaterOptions {
    /// As a run's configuration says, with what the memory plan has chosen.
    #[must_use]
    pub fn from_config(config: &RunConfig, plan: &MemoryPlan) -> Self {
        let loss = LossOptions {
            objective: config.objective.clone(),
            temperature: config.rollout.temperature,
            chunk: config.update.head_chunk_tokens.into(),
        };
        Self { loss, tokens_per_microbatch: plan.microbatch as usize, recompute: plan.recompute }
    }
}

/// Computes gradients and applies them.
#[derive(Debug)]
pub struct Updater {
    options: UpdaterOptions,
    optimizer: Optimizer,
    gradients: Gradients,
    /// The reference policy, loaded only if the objective has a KL term.
    reference: Option<Model>,
    /// Norm of gradients that wait to be applied.
    pending: Option<f64>,
}

impl Updater {
    /// An updater for the given weights.
    ///
    /// # Errors
    /// [`UpdateError::Torch`] if the memory cannot be had.
    pub fn new(
        options: UpdaterOptions,
        optimizer: Optimizer,
        weights: &Weights,
        reference: Option<Model>,
    ) -> Result<Self, UpdateError> {
        Ok(Self { options, optimizer, gradients: Gradients::new(weights)?, reference, pending: None })
    }

    /// The optimizer, to be saved or broadcast.
    #[must_use]
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The optimizer, to be read or received.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// The gradients, for inspection.
    #[must_use]
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Forward, backward and sum over the ranks of this rank's share, which may be empty. Gradients that are
    /// not finite cannot be applied.
    ///
    /// # Errors
    /// [`UpdateError`]; nothing is pending then.
    pub fn compute(
        &mut self,
        model: &Model,
        sequences: &[TrainSequence],
        group: Option<&ProcessGroup>,
    ) -> Result<GradientReport, UpdateError> {
        self.pending = None;
        self.gradients.clear();
        let limits = PackLimits {
            tokens_per_microbatch: self.options.tokens_per_microbatch,
            vocab_size: model.config().vocab_size,
            max_positions: model.config().max_positions,
            share_prompts: knows_prefixes(model.weights().device(), model.head().kind()),
        };
        let batches = pack(sequences, limits, model.weights().device())?;
        let stats = UpdateStats { sequences: sequences.len() as u64, ..UpdateStats::default() };
        let mut report = GradientReport { stats, gradient_norm: 0.0, not_finite: Vec::new() };
        let mut reduction = GradientReduction::new(&self.gradients, group, self.optimizer.shard());
        for (index, batch) in batches.iter().enumerate() {
            let last = (index + 1 == batches.len()).then_some(&mut reduction);
            self.micro_batch(model, batch, &mut report, last)?;
        }
        if batches.is_empty() {
            start_all(model, &mut reduction)?;
        }
        report.gradient_norm = profile::time(Phase::Reduction, || reduction.finish())?;
        self.pending = report.is_finite().then_some(report.gradient_norm);
        Ok(report)
    }

    fn micro_batch(
        &self,
        model: &Model,
        batch: &MicroBatch,
        report: &mut GradientReport,
        reduction: Option<&mut GradientReduction<'_>>,
    ) -> Result<(), UpdateError> {
        let reference = match &self.reference {
            Some(reference) => {
                let logprobs = profile::time(Phase::Reference, || self.reference_logprobs(reference, batch))?;
                Some(logprobs)
            }
            None => None,
        };
        let saved = SavedForward::run(model, batch, self.options.recompute)?;
        let head =
            HeadLoss { model, options: &self.options.loss, batch, reference_logprobs: reference.as_deref() };
        let normed = saved.normed()?;
        let head = profile::time(Phase::Head, || head.backward(&normed, &self.gradients, &mut report.stats))?;
        report.not_finite.extend(head.not_finite);
        saved.backward(&head.dnormed, &self.gradients, reduction)
    }

    fn reference_logprobs(&self, reference: &Model, batch: &MicroBatch) -> Result<Vec<f32>, FfiError> {
        let _guard = tch::no_grad_guard();
        let hidden = reference.hidden_states(&batch.tokens, &batch.segments)?;
        let normed = reference.final_norm(&hidden.index_select(0, &batch.predictors))?;
        target_logprobs(reference, &normed, &batch.targets, &self.options.loss)
    }

    /// Keeps the optimizer state and master weights of one rank's part only. To be called once, before the
    /// first step, with weights that are equal on all ranks; `checkpoint` names the optimizer file to go on
    /// from and the steps behind it.
    ///
    /// # Errors
    /// [`UpdateError`] if the file cannot be read or the memory not be had.
    pub fn divide(
        &mut self,
        weights: &mut Weights,
        shard: Shard,
        checkpoint: Option<(&Path, u64)>,
    ) -> Result<(), UpdateError> {
        let config = self.optimizer.config().clone();
        self.optimizer = Optimizer::of_shard(config, weights, shard)?;
        if let Some((path, steps)) = checkpoint {
            self.optimizer.load(path, weights, steps)?;
        }
        Ok(weights.divide_master(self.optimizer.shard())?)
    }

    /// The optimizer step with the gradients of the last [`Self::compute`]. Where the optimizer state is
    /// divided, `group` brings every rank's new weights to all.
    ///
    /// # Errors
    /// [`UpdateError::NothingToApply`] without computed gradients; [`UpdateError::Gather`] if a peer is lost
    /// in between: this rank's weights are then of no use.
    pub fn apply(
        &mut self,
        weights: &mut Weights,
        learning_rate: f64,
        group: Option<&ProcessGroup>,
    ) -> Result<(), UpdateError> {
        let norm = self.pending.take().ok_or(UpdateError::NothingToApply)?;
        let gradients = self.gradients.flat();
        profile::time(Phase::Optimizer, || self.optimizer.step(weights, gradients, norm, learning_rate))?;
        let shard = self.optimizer.shard();
        match group.filter(|_| shard.is_divided()) {
            Some(group) => {
                failpoint::reach("gather");
                let _guard = tch::no_grad_guard();
                let gather = || shard.gather(group, weights.compute());
                profile::time(Phase::Reduction, gather).map_err(UpdateError::Gather)
            }
            None => Ok(()),
        }
    }
}

/// Starts every bucket in the order of a backward, for a rank without sequences.
fn start_all(model: &Model, reduction: &mut GradientReduction<'_>) -> Result<(), UpdateError> {
    reduction.start(Bucket::Head)?;
    for layer in (0..model.config().layers as usize).rev() {
        reduction.start(Bucket::Layer(layer))?;
    }
    reduction.start(Bucket::Embedding)
}
