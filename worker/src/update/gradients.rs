//! The gradients of all parameters: one flat f32 buffer, a view for each part, and their sum over
//! the ranks.

use g2rl_ffi::FfiError;
use g2rl_ffi::kernels::{add_product, l2_norm};
use g2rl_ffi::process_group::{ProcessGroup, ReduceOp, Work};
use tch::{Device, Kind, Tensor};

use super::UpdateError;
use crate::failpoint;
use crate::model::Weights;
use crate::model::layout::{Layout, Part};
use crate::model::shard::Shard;
use crate::profile::{self, Phase};

/// Flat f32 gradients `[parameters]`, laid out as the parameters are.
#[derive(Debug)]
pub struct Gradients {
    flat: Tensor,
    layout: Layout,
}

impl Gradients {
    /// Zeros for the given weights.
    ///
    /// # Errors
    /// [`UpdateError::Torch`] if the memory cannot be had.
    pub fn new(weights: &Weights) -> Result<Self, UpdateError> {
        let layout = weights.layout().clone();
        let flat = Tensor::f_zeros([layout.numel()], (Kind::Float, weights.device()))?;
        Ok(Self { flat, layout })
    }

    /// All gradients.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// A part's gradients, in the part's shape: a view.
    pub fn part(&self, part: Part) -> Tensor {
        let block = self.layout.block(part);
        self.flat.narrow(0, block.offset, block.numel()).view(block.shape.as_slice())
    }

    /// Sets all to zero.
    pub fn clear(&mut self) {
        let _ = self.flat.zero_();
    }

    /// Adds a part's gradients, of any float kind.
    pub fn add(&self, part: Part, gradient: &Tensor) {
        let _ = self.part(part).g_add_(gradient);
    }

    /// Adds `left^T right`, the gradient by the matrix of a product over tokens: `left` `[tokens, out]` is
    /// the gradient by its result, `right` `[tokens, in]` what went into it.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn add_product(&self, part: Part, left: &Tensor, right: &Tensor) -> Result<(), FfiError> {
        let mut gradient = self.part(part);
        profile::time(Phase::Products, || {
            if left.kind() != Kind::Float && left.device() != Device::Cpu {
                return add_product(&gradient, &left.tr(), right);
            }
            let _ = match left.kind() {
                Kind::Float => gradient.addmm_(&left.tr(), right),
                _ => gradient.g_add_(&left.tr().matmul(right)),
            };
            Ok(())
        })
    }

    /// The gradients of the bucket at `index` of [`Layout::buckets`]: a view.
    fn bucket(&self, index: usize) -> Tensor {
        let range = &self.layout.buckets()[index];
        self.flat.narrow(0, range.start, range.end - range.start)
    }
}

/// Which bucket of gradients is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    /// Final norm and untied head.
    Head,
    /// A layer.
    Layer(usize),
    /// The embedding, with a tied head's share.
    Embedding,
}

/// Sums buckets over the ranks as they become complete, while the backward goes on.
///
/// Every rank must start the buckets in the same order: head, layers from last to first,
/// embedding. The backward does so, whatever its micro-batches are.
#[derive(Debug)]
pub struct GradientReduction<'a> {
    gradients: &'a Gradients,
    group: Option<&'a ProcessGroup>,
    shard: &'a Shard,
    running: Vec<Work>,
}

impl<'a> GradientReduction<'a> {
    /// A reduction over `group`; without one the gradients are already the sum. Where the optimizer state is
    /// divided, a rank gets the sums of its shard only.
    #[must_use]
    pub fn new(gradients: &'a Gradients, group: Option<&'a ProcessGroup>, shard: &'a Shard) -> Self {
        Self { gradients, group, shard, running: Vec::new() }
    }

    /// Starts the sum of a complete bucket.
    ///
    /// # Errors
    /// [`UpdateError::Ffi`] if a peer is gone.
    pub fn start(&mut self, bucket: Bucket) -> Result<(), UpdateError> {
        if let Bucket::Layer(0) = bucket {
            failpoint::reach("all_reduce");
        }
        let Some(group) = self.group else { return Ok(()) };
        let index = match bucket {
            Bucket::Embedding => 0,
            Bucket::Layer(layer) => layer + 1,
            Bucket::Head => self.gradients.layout.buckets().len() - 1,
        };
        if self.shard.is_divided() {
            self.running.extend(self.shard.reduce(group, &self.gradients.flat, index)?);
        } else {
            self.running.push(group.all_reduce(&self.gradients.bucket(index), ReduceOp::Sum)?);
        }
        Ok(())
    }

    /// Waits until all sums are there. Returns the norm of the summed gradient, the same on every rank.
    ///
    /// # Errors
    /// [`UpdateError::Ffi`] if a peer is gone or the deadline passed.
    pub fn finish(self) -> Result<f64, UpdateError> {
        for work in self.running {
            work.wait(None)?;
        }
        let flat = &self.gradients.flat;
        let Some(group) = self.group.filter(|_| self.shard.is_divided()) else {
            return Ok(l2_norm(&[flat])?);
        };
        let pieces: Vec<Tensor> =
            self.shard.pieces().iter().map(|piece| flat.narrow(0, piece.flat, piece.length)).collect();
        let own = match pieces.is_empty() {
            true => 0.0,
            false => l2_norm(&pieces.iter().collect::<Vec<_>>())?,
        };
        let square = Tensor::from_slice(&[own * own]).to_device(flat.device());
        group.all_reduce(&square, ReduceOp::Sum)?.wait(None)?;
        Ok(square.double_value(&[0]).sqrt())
    }
}
