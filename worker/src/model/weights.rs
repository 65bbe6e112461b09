//! The parameters of one model on one device: a flat buffer and views of it.
//!
//! In: a model directory or a seed. Out: [`Weights`], whose views the decoder reads and whose flat
//! tensors the optimizer, the broadcast and the digest work on.
//!
//! Invariants: `compute` always holds what `master` holds, rounded to the compute dtype; in f32 they
//! are the same memory. Nobody else writes either of them.

use std::path::Path;

use g2rl_common::config::Dtype;
use tch::{Device, Kind, TchError, Tensor};

use super::config::ModelConfig;
use super::files::{self, WeightsError};
use super::host;
use super::layout::{Layout, Part};
use super::saving;
use super::shard::{Piece, Shard};

/// The kind of tensor a compute dtype stands for.
#[must_use]
pub fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

/// Standard deviation of random matrices, as in transformers' `initializer_range`.
const INITIAL_STD: f64 = 0.02;

/// Elements whose digest is computed at a time, bounding its temporary memory.
const DIGEST_CHUNK: i64 = 1 << 24;

/// The parameters of one model.
#[derive(Debug)]
pub struct Weights {
    config: ModelConfig,
    layout: Layout,
    dtype: Dtype,
    /// Flat f32 `[parameters]`; absent for a frozen bf16 model.
    master: Option<Tensor>,
    /// Optimizer state, bf16's master weights included, lies in host memory.
    offload: bool,
    /// Flat `[parameters]` in the compute dtype.
    compute: Tensor,
}

/// Where weights go and what they are for.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// The device.
    pub device: Device,
    /// Number format of the computation.
    pub dtype: Dtype,
    /// Whether the weights will be updated (bf16 then keeps f32 master weights).
    pub trainable: bool,
    /// Whether optimizer state, bf16's master weights included, is kept in host memory.
    pub offload: bool,
}

impl Placement {
    /// f32 on the CPU, trainable.
    #[must_use]
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, dtype: Dtype::F32, trainable: true, offload: false }
    }
}

impl Weights {
    /// Reads a Hugging Face model directory.
    ///
    /// # Errors
    /// [`WeightsError`], naming the file and the tensor.
    pub fn load(dir: &Path, placement: Placement) -> Result<Self, WeightsError> {
        let config = ModelConfig::load(dir)?;
        let mut weights = Self::zeros(config, placement)?;
        let layout = weights.layout.clone();
        let target = weights.master.as_ref().unwrap_or(&weights.compute).shallow_clone();
        files::read(dir, &layout, &target)?;
        weights.refresh_compute();
        Ok(weights)
    }

    /// Random weights: normal matrices with standard deviation 0.02, norms 1. The same seed gives
    /// the same weights on every CPU; a GPU draws others.
    ///
    /// # Errors
    /// [`WeightsError::Torch`] if the memory cannot be had.
    pub fn random(config: ModelConfig, seed: u64, placement: Placement) -> Result<Self, WeightsError> {
        let mut weights = Self::zeros(config, placement)?;
        let target = weights.master.as_ref().unwrap_or(&weights.compute).shallow_clone();
        tch::manual_seed(seed as i64);
        for block in weights.layout.blocks() {
            let mut view = target.narrow(0, block.offset, block.numel());
            if block.decays() {
                let values = Tensor::f_empty([block.numel()], (Kind::Float, placement.device))?;
                view.f_copy_(&values.f_normal_functional(0.0, INITIAL_STD)?)?;
            } else {
                let bias = matches!(block.part, Part::QkvBias(_));
                let _ = view.f_fill_(if bias { 0.0 } else { 1.0 })?;
            }
        }
        weights.refresh_compute();
        Ok(weights)
    }

    /// Weights over an existing flat f32 tensor `[parameters]`, which is used as it is: if it
    /// records gradients, so does everything computed from it.
    #[must_use]
    pub fn from_flat(config: ModelConfig, flat: Tensor) -> Self {
        let layout = Layout::new(&config);
        Self {
            config,
            layout,
            dtype: Dtype::F32,
            master: Some(flat.shallow_clone()),
            offload: false,
            compute: flat,
        }
    }

    fn zeros(config: ModelConfig, placement: Placement) -> Result<Self, WeightsError> {
        let layout = Layout::new(&config);
        let flat = |kind| Tensor::f_zeros([layout.numel()], (kind, placement.device));
        let compute = flat(kind_of(placement.dtype))?;
        let master = match (placement.dtype, placement.trainable) {
            (Dtype::F32, _) => Some(compute.shallow_clone()),
            (Dtype::Bf16, true) => Some(state_zeros(layout.numel(), placement.device, placement.offload)?),
            (Dtype::Bf16, false) => None,
        };
        let offload = placement.offload && placement.trainable;
        Ok(Self { config, layout, dtype: placement.dtype, master, offload, compute })
    }

    /// The same weights in new memory, not to be updated: a reference policy.
    #[must_use]
    pub fn frozen_copy(&self) -> Self {
        let compute = self.compute.copy();
        let master = (self.dtype == Dtype::F32).then(|| compute.shallow_clone());
        Self {
            config: self.config.clone(),
            layout: self.layout.clone(),
            dtype: self.dtype,
            master,
            offload: false,
            compute,
        }
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where each parameter lies.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number format of the computation.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> Device {
        self.compute.device()
    }

    /// Whether optimizer state, bf16's master weights included, lies in host memory.
    #[must_use]
    pub fn offloads(&self) -> bool {
        self.offload
    }

    /// Zeros `[numel] f32` where these weights' optimizer state lies.
    ///
    /// # Errors
    /// [`TchError`] if the memory cannot be had.
    pub fn state_zeros(&self, numel: i64) -> Result<Tensor, TchError> {
        state_zeros(numel, self.device(), self.offload)
    }

    /// A part's parameters in the compute dtype: a view, not a copy.
    pub fn part(&self, part: Part) -> Tensor {
        let block = self.layout.block(part);
        self.compute.narrow(0, block.offset, block.numel()).view(block.shape.as_slice())
    }

    /// The head's matrix `[vocab, hidden]`, the embedding if tied.
    pub fn head(&self) -> Tensor {
        self.part(self.head_part())
    }

    /// The part that is the head.
    #[must_use]
    pub fn head_part(&self) -> Part {
        if self.config.tied_embeddings { Part::Embedding } else { Part::Head }
    }

    /// All parameters, flat f32: what the optimizer updates and what is broadcast.
    ///
    /// # Panics
    /// If the weights are not trainable.
    pub fn master(&self) -> &Tensor {
        self.master.as_ref().expect("trainable weights have a master copy")
    }

    /// Keeps the f32 master weights of one rank's pieces only; in f32 these are the weights themselves, and
    /// nothing changes. To be called once.
    ///
    /// # Errors
    /// [`TchError`] if the memory cannot be had.
    pub fn divide_master(&mut self, shard: &Shard) -> Result<(), TchError> {
        if self.dtype == Dtype::Bf16 && shard.is_divided() {
            let own = self.state_zeros(shard.len())?;
            shard.take(self.master(), &own);
            self.master = Some(own);
        }
        Ok(())
    }

    /// The f32 master weights of a piece: a view.
    ///
    /// # Panics
    /// If the weights are not trainable.
    pub fn master_piece(&self, piece: Piece) -> Tensor {
        let master = self.master();
        let whole = master.numel() as i64 == self.layout.numel();
        master.narrow(0, if whole { piece.flat } else { piece.own }, piece.length)
    }

    /// The compute weights, flat, of all parameters.
    pub fn compute(&self) -> &Tensor {
        &self.compute
    }

    /// Rounds the master weights to the compute dtype; call after each change of the master.
    pub fn refresh_compute(&mut self) {
        if let (Dtype::Bf16, Some(master)) = (self.dtype, &self.master) {
            self.compute.copy_(master);
        }
    }

    /// The same for one rank's pieces.
    pub fn refresh_pieces(&mut self, shard: &Shard) {
        if self.dtype == Dtype::Bf16 {
            for piece in shard.pieces() {
                self.compute.narrow(0, piece.flat, piece.length).copy_(&self.master_piece(piece));
            }
        }
    }

    /// A digest of the exact bits of all parameters and their places: equal weights have equal
    /// digests, and a single flipped bit or two swapped values change it. Of the master weights, or of the
    /// compute weights where the master's are divided among the ranks or in host memory.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let whole = |master: &&Tensor| master.numel() as i64 == self.layout.numel() && !self.offload;
        digest(self.master.as_ref().filter(whole).unwrap_or(&self.compute))
    }

    /// Writes config and weights as a Hugging Face model directory, in f32 or in the compute dtype.
    ///
    /// # Errors
    /// [`WeightsError`], naming the file.
    pub fn save(&self, dir: &Path) -> Result<(), WeightsError> {
        saving::write_model(dir, (&self.config, &self.layout), &self.compute, self.compute.kind()).map(|_| ())
    }
}

/// Zeros `[numel] f32` for optimizer state: on the device, or in host memory.
fn state_zeros(numel: i64, device: Device, offload: bool) -> Result<Tensor, TchError> {
    match offload {
        true => host::empty(numel, device)?.f_zero_(),
        false => Tensor::f_zeros([numel], (Kind::Float, device)),
    }
}

/// A digest of the bits of a flat tensor's f32 values: sums of the bit patterns, plain and weighted with
/// the position, both modulo 2^64.
#[must_use]
pub fn digest(flat: &Tensor) -> u64 {
    let _guard = tch::no_grad_guard();
    let (mut plain, mut weighted) = (0u64, 0u64);
    let mut start = 0;
    while start < flat.numel() as i64 {
        let length = DIGEST_CHUNK.min(flat.numel() as i64 - start);
        let values = flat.narrow(0, start, length).to_kind(Kind::Float);
        let bits = values.view_dtype(Kind::Int).to_kind(Kind::Int64);
        // Odd weights below 2^25: products of 32-bit patterns stay far inside 64 bits, and the sum
        // wraps as two's complement, the same on every device and in every order.
        let position = Tensor::arange(length, (Kind::Int64, flat.device())) * 2 + 1;
        let sum = |t: &Tensor| t.sum(Kind::Int64).int64_value(&[]) as u64;
        let chunk = (start / DIGEST_CHUNK) as u64 + 1;
        plain = plain.wrapping_add(sum(&bits));
        weighted = weighted.wrapping_add(sum(&(bits * position)).wrapping_mul(2 * chunk + 1));
        start += length;
    }
    plain.rotate_left(32) ^ weighted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_sees_a_bit_and_a_swap() {
        let flat = Tensor::from_slice(&[1.0f32, 2.0, 3.0, -4.0]);
        let same = Tensor::from_slice(&[1.0f32, 2.0, 3.0, -4.0]);
        let bit = Tensor::from_slice(&[1.0f32, 2.0, 3.000_000_2, -4.0]);
        let swap = Tensor::from_slice(&[2.0f32, 1.0, 3.0, -4.0]);
        assert_eq!(digest(&flat), digest(&same));
        assert_ne!(digest(&flat), digest(&bit));
        assert_ne!(digest(&flat), digest(&swap));
    }
}
