//! AdamW over the flat buffers.
//!
//! Matrices decay, norms do not: the layout's neighbours with the same rule are updated in one
//! piece, so a layer costs two calls whatever its number of tensors.

use std::path::Path;

use g2rl_common::config::OptimizerConfig;
use g2rl_ffi::kernels::{AdamWOptions, AdamWTensors, fused_adamw};
use tch::{Kind, Tensor};

use super::UpdateError;
use crate::model::files::{read_tensors, write_tensors};
use crate::model::{Weights, layout::Layout};

/// Added to the norm before dividing by it, as in PyTorch's `clip_grad_norm_`.
const CLIP_EPS: f64 = 1e-6;

/// First and second moments of all parameters, flat f32, and the number of steps behind them.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: u64,
    /// Element ranges with decay and without, each the union of neighbouring blocks.
    segments: [Vec<(i64, i64)>; 2],
}

impl Optimizer {
    /// An optimizer that has not stepped yet.
    ///
    /// # Errors
    /// [`UpdateError::Torch`] if the memory cannot be had.
    pub fn new(config: OptimizerConfig, weights: &Weights) -> Result<Self, UpdateError> {
        let zeros = || Tensor::f_zeros([weights.layout().numel()], (Kind::Float, weights.device()));
        let segments = [segments(weights.layout(), true), segments(weights.layout(), false)];
        Ok(Self { config, exp_avg: zeros()?, exp_avg_sq: zeros()?, steps: 0, segments })
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

    /// One step. `gradients` is the flat sum over all ranks with norm `gradient_norm`; it is
    /// scaled down in place if clipping applies.
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
        for (segments, weight_decay) in self.segments.iter().zip([self.config.weight_decay, 0.0]) {
            let views = |flat: &Tensor| -> Vec<Tensor> {
                segments.iter().map(|(start, length)| flat.narrow(0, *start, *length)).collect()
            };
            let tensors = AdamWTensors {
                params: &views(weights.master()),
                grads: &views(gradients),
                exp_avgs: &views(&self.exp_avg),
                exp_avg_sqs: &views(&self.exp_avg_sq),
            };
            let options = AdamWOptions {
                lr: learning_rate,
                beta1: self.config.beta1,
                beta2: self.config.beta2,
                eps: self.config.eps,
                weight_decay,
            };
            fused_adamw(&tensors, self.steps, &options)?;
        }
        weights.refresh_compute();
        Ok(())
    }

    /// Writes the moments and the f32 master weights: a model file in bf16 has lost their low bits.
    ///
    /// # Errors
    /// [`UpdateError::Weights`], naming the file.
    pub fn save(&self, path: &Path, weights: &Weights) -> Result<(), UpdateError> {
        Ok(write_tensors(path, &self.tensors(weights))?)
    }

    /// Reads what [`Self::save`] wrote after `steps` steps.
    ///
    /// # Errors
    /// [`UpdateError::Weights`], naming the file.
    pub fn load(&mut self, path: &Path, weights: &mut Weights, steps: u64) -> Result<(), UpdateError> {
        read_tensors(path, &self.tensors(weights))?;
        weights.refresh_compute();
        self.steps = steps;
        Ok(())
    }

    fn tensors<'a>(&'a self, weights: &'a Weights) -> [(&'static str, &'a Tensor); 3] {
        [("master", weights.master()), ("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)]
    }
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
