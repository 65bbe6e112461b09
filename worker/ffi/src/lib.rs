//! A safe API over what tch does not offer of libtorch: process groups, autograd with given output
//! gradients, the fused optimizer, CPU decode kernels, CUDA memory, streams and graphs.
//!
//! Three layers: `csrc` (C++ that catches every exception and returns a message), [`raw`] (the C
//! declarations), and the modules here, which own what they allocate and check what they are given.
//! This is the only crate of the project with `unsafe` code.
//!
//! Without CUDA the API is the same and returns [`FfiError`]; [`CUDA_BUILD`] tells which it is.

pub mod autograd;
pub mod cuda;
pub mod decode;
mod error;
pub mod kernels;
pub mod mmap;
pub mod process_group;
mod raw;
pub mod sample;

pub use error::{FfiError, Result};

/// Whether the CUDA parts (NCCL, streams, graphs, memory statistics) are built in.
pub const CUDA_BUILD: bool = cfg!(g2rl_cuda);
