//! What the worker needs from libtorch and tch does not give, behind a safe interface.
//!
//! In: tensors of tch. Out: results, or a [`FfiError`] that names the operation; no C++ exception
//! leaves the shim. This crate is the only place of the project with `unsafe` code; every other
//! crate forbids it. The interface is the same with and without CUDA: without, what needs a GPU
//! returns [`FfiError::NoCuda`].
//!
//! - [`process_group`]: collectives over Gloo and NCCL, with deadlines and abort
//! - [`autograd`]: gradients with given output gradients, preset gradients, inference mode
//! - [`kernels`]: fused AdamW, global norm
//! - [`decode`]: attention of one new token over ragged caches (CPU)
//! - [`flash`]: attention of packed sequences, with its gradient (GPU)
//! - [`decoder`]: one token of every sequence through all layers (CPU)
//! - [`layer`]: norm, rotation and gating over packed tokens, with their gradients (CPU)
//! - [`attention`]: causal attention over packed segments, with its gradient (CPU)
//! - [`head`]: softmax statistics of logits, the loss's gradient by them, residual sums times the head (CPU)
//! - [`sampling`]: softmax statistics, sampling and the residual accumulator in one pass (CPU)
//! - [`gpu`]: kernels of the project's own in bf16 (GPU)
//! - [`cuda`]: allocator statistics, streams, events, graphs
//! - [`mmap`]: read-only mapped files
//! - [`process`]: the end of a process whose engine hangs

pub mod attention;
pub mod autograd;
pub mod cuda;
pub mod decode;
pub mod decoder;
pub mod error;
pub mod flash;
pub mod gpu;
pub mod head;
pub mod kernels;
pub mod layer;
pub mod mmap;
pub mod process;
pub mod process_group;
mod raw;
pub mod sampling;

pub use error::{FfiError, Result};

/// Whether this build contains the CUDA parts. Whether a GPU is there is another question:
/// [`cuda::is_available`].
pub const CUDA_BUILD: bool = cfg!(g2rl_cuda);
