//! AdamW over the flat buffers, or over this rank's part of them, on the device or in host memory.
//!
//! Matrices decay, norms do not: the layout's neighbours with the same rule are updated in one
//! piece, so a layer costs two calls whatever its number of tensors.

use std::path::Path;

use g2rl_common::config::OptimizerConfig;
use g2rl_ffi::kernels::{AdamWOptions, AdamWTensors, fused_adamw};
use g2rl_ffi::process_group::ProcessGroup;
use g2rl_hub::manifest::FileEntry;
use tch::{Device, Tensor};

use super::UpdateError;
use super::offload::{CHUNK, Chunk, Offload, chunks};
use crate::model::Weights;
use crate::model::files::read_pieces;
use crate::model::host;
use crate::model::layout::Layout;
use crate::model::saving::write_tensors;
use crate::model::shard::{Piece, Shard};

/// Added to the norm before dividing by it, as in PyTorch's `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// First and second moments of a shard's parameters, flat f32, and the number of steps behind them.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    shard: Shard,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: u64,
    /// What decays and what does not, each the union of neighbouring blocks, cut to the shard.
    segments: [Vec<Piece>; 2],
}

impl Optimizer {
    /// An optimizer that has not stepped yet.
    ///
    /// # Errors
    /// [`UpdateError::Torch`] if the memory cannot be had.
    pub fn new(config: OptimizerConfig, weights: &Weights) -> Result<Self, UpdateError> {
        Self::of_shard(config, weights, Shard::whole(weights.layout()))
    }

    /// An optimizer of one rank's part that has not stepped yet.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_shard(config: OptimizerConfig, weights: &Weights, shard: Shard) -> Result<Self, UpdateError> {
        let zeros = || weights.state_zeros(shard.len());
        let (exp_avg, exp_avg_sq) = (zeros()?, zeros()?);
        let segments = [true, false].map(|decays| cut(&segments(weights.layout(), decays), &shard));
        Ok(Self { config, shard, exp_avg, exp_avg_sq, steps: 0, segments })
    }

    /// Which part this is.
    #[must_use]
    pub fn shard(&self) -> &Shard {
        &self.shard
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Number of steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments, to be broadcast to a rank that joins.
    pub fn state(&self) -> [&Tensor; 2] {
        [&self.exp_avg, &self.exp_avg_sq]
    }

    /// Takes over the number of steps behind moments that were received or read.
    pub fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }

    /// One step of the shard's parameters. `gradients` is the flat sum over all ranks, complete where the shard
    /// is, with norm `gradient_norm`; it is scaled down in place if clipping applies.
    ///
    /// # Errors
    /// [`UpdateError`] if libtorch refuses; the weights are then unchanged or the process ends.
    pub fn step(
        &mut self,
        weights: &mut Weights,
        gradients: &Tensor,
        gradient_norm: f64,
        learning_rate: f64,
    ) -> Result<(), UpdateError> {
        let _guard = tch::no_grad_guard();
        let limit = self.config.max_grad_norm;
        if limit > 0.0 && gradient_norm > limit {
            let _ = gradients.shallow_clone().g_mul_scalar_(limit / (gradient_norm + CLIP_EPS));
        }
        self.steps += 1;
        let options = [self.config.weight_decay, 0.0].map(|weight_decay| AdamWOptions {
            lr: learning_rate,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            weight_decay,
        });
        let segments = self.segments.iter().zip(&options);
        if weights.offloads() {
            let mut offload = Offload::new(weights.device())?;
            for (pieces, options) in segments {
                for piece in pieces.iter().flat_map(|piece| chunks(*piece, CHUNK)) {
                    offload.step(self.chunk(weights, gradients, piece), self.steps, options)?;
                }
            }
            return offload.finish();
        }
        for (pieces, options) in segments.filter(|(pieces, _)| !pieces.is_empty()) {
            let of = |piece: fn(&Chunk) -> &Tensor| -> Vec<Tensor> {
                let chunks = pieces.iter().map(|at| self.chunk(weights, gradients, *at));
                chunks.map(|chunk| piece(&chunk).shallow_clone()).collect()
            };
            let tensors = AdamWTensors {
                params: &of(|chunk| &chunk.master),
                grads: &of(|chunk| &chunk.gradients),
                exp_avgs: &of(|chunk| &chunk.exp_avg),
                exp_avg_sqs: &of(|chunk| &chunk.exp_avg_sq),
            };
            fused_adamw(&tensors, self.steps, options)?;
        }
        weights.refresh_pieces(&self.shard);
        Ok(())
    }

    /// Views of what a step of `piece` reads and writes.
    fn chunk(&self, weights: &Weights, gradients: &Tensor, piece: Piece) -> Chunk {
        Chunk {
            master: weights.master_piece(piece),
            exp_avg: self.exp_avg.narrow(0, piece.own, piece.length),
            exp_avg_sq: self.exp_avg_sq.narrow(0, piece.own, piece.length),
            gradients: gradients.narrow(0, piece.flat, piece.length),
            compute: weights.compute().narrow(0, piece.flat, piece.length),
        }
    }

    /// The moments of all parameters and the f32 master weights, to be written; a model file in bf16 has lost
    /// their low bits. These are the tensors themselves, unless they are divided: then every rank must call it,
    /// and only rank 0 gets them, in host memory.
    ///
    /// # Errors
    /// [`UpdateError::Ffi`] if a peer is gone or too slow.
    pub fn whole_state(
        &self,
        weights: &Weights,
        group: Option<&ProcessGroup>,
    ) -> Result<Option<OptimizerState>, UpdateError> {
        let _guard = tch::no_grad_guard();
        if self.shard.is_divided() {
            let state = self.shard.is_first().then(|| OptimizerState::empty(weights)).transpose()?;
            return self.copy_state(weights, group, state);
        }
        let [exp_avg, exp_avg_sq] = self.state().map(Tensor::shallow_clone);
        Ok(Some(OptimizerState { master: weights.master().shallow_clone(), exp_avg, exp_avg_sq }))
    }

    /// Copies the same into `state`, which rank 0 has. Where it is divided every rank must call it.
    ///
    /// # Errors
    /// [`UpdateError::Ffi`] if a peer is gone or too slow; the copy is then of no use.
    pub fn copy_state(
        &self,
        weights: &Weights,
        group: Option<&ProcessGroup>,
        state: Option<OptimizerState>,
    ) -> Result<Option<OptimizerState>, UpdateError> {
        let _guard = tch::no_grad_guard();
        let own = [weights.master(), &self.exp_avg, &self.exp_avg_sq];
        for (index, own) in own.into_iter().enumerate() {
            let whole = state.as_ref().map(|state| state.tensors()[index].1);
            let divided = (own.numel() as i64) < weights.layout().numel();
            match (group.filter(|_| divided), whole) {
                (Some(group), whole) => self.shard.collect(group, own, whole, weights.device())?,
                (None, Some(whole)) => whole.shallow_clone().f_copy_(own)?,
                (None, None) => {}
            }
        }
        Ok(state)
    }

    /// Reads this rank's part of what [`OptimizerState::save`] wrote after `steps` steps, and all master
    /// weights, which must not have been divided yet.
    ///
    /// # Errors
    /// [`UpdateError::Weights`], naming the file.
    pub fn load(&mut self, path: &Path, weights: &mut Weights, steps: u64) -> Result<(), UpdateError> {
        let numel = weights.layout().numel();
        read_pieces(
            path,
            &[("master", weights.master())],
            numel,
            &[Piece { flat: 0, own: 0, length: numel }],
        )?;
        let moments = [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)];
        read_pieces(path, &moments, numel, &self.shard.pieces())?;
        weights.refresh_compute();
        self.steps = steps;
        Ok(())
    }
}

/// What a checkpoint keeps of an optimizer: `[parameters] f32` each.
#[derive(Debug)]
pub struct OptimizerState {
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl OptimizerState {
    /// Host memory for the state of these weights; pinned for those of a GPU, where that can be had, so that the copy
    /// is fast.
    ///
    /// # Errors
    /// [`UpdateError::Torch`] if the memory cannot be had.
    pub fn empty(weights: &Weights) -> Result<Self, UpdateError> {
        // Only what comes from a GPU goes faster into pinned memory.
        let source = if weights.offloads() { Device::Cpu } else { weights.device() };
        let empty = || host::empty(weights.layout().numel(), source);
        Ok(Self { master: empty()?, exp_avg: empty()?, exp_avg_sq: empty()? })
    }

    /// Whether it has the size of these weights' state.
    #[must_use]
    pub fn fits(&self, weights: &Weights) -> bool {
        self.master.numel() as i64 == weights.layout().numel()
    }

    /// The f32 master weights, flat.
    pub fn master(&self) -> &Tensor {
        &self.master
    }

    fn tensors(&self) -> [(&str, &Tensor); 3] {
        [("master", &self.master), ("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)]
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// [`UpdateError::Weights`], naming the file.
    pub fn save(&self, path: &Path) -> Result<FileEntry, UpdateError> {
        Ok(write_tensors(path, &self.tensors())?)
    }
}

/// The parts of flat ranges (first element, number of elements) that a shard holds.
fn cut(ranges: &[(i64, i64)], shard: &Shard) -> Vec<Piece> {
    let mut found = Vec::new();
    for piece in shard.pieces() {
        for (start, length) in ranges {
            let (from, to) = (piece.flat.max(*start), (piece.flat + piece.length).min(start + length));
            if from < to {
                found.push(Piece { flat: from, own: piece.own + from - piece.flat, length: to - from });
            }
        }
    }
    found
}

/// Neighbouring blocks with the same decay rule, joined: (first element, number of elements).
fn segments(layout: &Layout, decays: bool) -> Vec<(i64, i64)> {
    let mut joined: Vec<(i64, i64)> = Vec::new();
    for block in layout.blocks().iter().filter(|b| b.decays() == decays) {
        match joined.last_mut() {
            Some((start, length)) if *start + *length == block.offset => *length += block.numel(),
            _ => joined.push((block.offset, block.numel())),
        }
    }
    joined
}
