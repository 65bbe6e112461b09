//! Attention of one new token per sequence over extents of a pool, on a GPU, by libtorch's flash attention.
//!
//! The kernel's interface for sequences of different lengths takes cumulative starts of the keys. Where it
//! is also told how many keys are in use, it reads only the first of two neighbouring starts, so that
//! `starts` may name any places of the pool, in any order.
//!
//! The call is asynchronous and can be captured in a graph: it looks at no value on the GPU.

use std::ptr;

use tch::{Device, Kind, Tensor};

use crate::error::{FfiError, Result, check};
use crate::raw::{self, owned, pointer};

/// Widest head the kernels are built for.
const WIDEST_HEAD: i64 = 256;

/// Inputs of [`flash_attention`]; all on one GPU.
#[derive(Debug, Clone, Copy)]
pub struct FlashAttention<'a> {
    /// `[rows, heads, d]`, bf16 or f16; neighbouring query heads share a key head.
    pub query: &'a Tensor,
    /// `[tokens, kv_heads, d]`, like the query.
    pub keys: &'a Tensor,
    /// Like `keys`.
    pub values: &'a Tensor,
    /// 0, 1, 2, ... `[rows + 1] i32`.
    pub query_starts: &'a Tensor,
    /// First token of each row's extent `[rows + 1] i32`; the last entry is not used.
    pub starts: &'a Tensor,
    /// Live tokens of each extent `[rows] i32`; may be 0.
    pub lengths: &'a Tensor,
    /// No length is above it. It only decides how the work is split.
    pub longest: i64,
    /// Factor of the scores, `1 / sqrt(d)`.
    pub scale: f64,
}

/// Softmax attention `[rows, heads, d]` in the query's kind, and the logarithms of the softmaxes' sums
/// `[heads, rows] f32`. For a row without live tokens they are 0 and plus infinity.
///
/// # Errors
/// [`FfiError::NoCuda`] without a GPU, [`FfiError::InvalidInput`] if shapes or kinds disagree,
/// [`FfiError::Failed`] if the GPU or the kind has no such kernel.
pub fn flash_attention(inputs: &FlashAttention<'_>) -> Result<(Tensor, Tensor)> {
    let call = raw::FlashAttention {
        query: pointer(inputs.query),
        keys: pointer(inputs.keys),
        values: pointer(inputs.values),
        query_starts: pointer(inputs.query_starts),
        starts: pointer(inputs.starts),
        lengths: pointer(inputs.lengths),
        longest: inputs.longest,
        scale: inputs.scale,
    };
    let (mut output, mut normalizers) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the tensors live for the call, which checks devices, kinds and shapes before it launches
    // anything, and writes two new tensors if it succeeds. The values of starts and lengths are the
    // caller's promise: one that leaves the pool would read other memory of the GPU, never of this process.
    check("flash::flash_attention", unsafe {
        raw::g2rl_flash_attention(&call, &mut output, &mut normalizers)
    })?;
    // SAFETY: the call succeeded, so both are new, and these are their only owners.
    Ok(unsafe { (owned(output), owned(normalizers)) })
}

/// Tries the kernel on a pool of one token. `Err` says why a device has none for heads of this shape.
///
/// # Errors
/// As [`flash_attention`].
pub fn probe(device: Device, kind: Kind, (heads, kv_heads, d): (i64, i64, i64)) -> Result<()> {
    if d > WIDEST_HEAD || d % 8 != 0 {
        let message = format!("a head's width must be a multiple of 8 up to {WIDEST_HEAD}, not {d}");
        return Err(FfiError::invalid("flash::probe", message));
    }
    let Device::Cuda(index) = device else {
        return Err(FfiError::NoCuda { operation: "flash::probe", message: format!("{device:?} is no GPU") });
    };
    let tensor = |heads: i64| Tensor::ones([1, heads, d], (kind, device));
    let starts = Tensor::from_slice(&[0i32, 1]).to_device(device);
    let keys = tensor(kv_heads);
    let _ = flash_attention(&FlashAttention {
        query: &tensor(heads),
        keys: &keys,
        values: &keys,
        query_starts: &starts,
        starts: &starts,
        lengths: &Tensor::from_slice(&[1i32]).to_device(device),
        longest: 1,
        scale: 1.0,
    })?;
    crate::cuda::synchronize(index)
}
