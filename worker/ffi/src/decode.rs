//! Attention of one new token per sequence over key-value caches of unequal length, on a CPU.
//!
//! A sequence attends to the first tokens of a prompt extent, which the sequences of a group share,
//! and then to the first tokens of its own extent. Only live tokens are read. Every output is
//! computed by one thread in a fixed order, so it depends neither on the other sequences of the
//! batch nor on the number of threads.

use std::ptr;

use tch::Tensor;

use crate::error::{Result, check};
use crate::raw::{self, pointer};

/// Inputs of [`decode_attention`]. `heads` is a multiple of `kv_heads`; neighbouring query heads
/// share a key head. Caches are contiguous, f32 or bf16, all of one kind.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention<'a> {
    /// `[b, heads, d]`.
    pub query: &'a Tensor,
    /// `[prompt_rows, kv_heads, prompt_capacity, d]`.
    pub prompt_keys: &'a Tensor,
    /// Like `prompt_keys`.
    pub prompt_values: &'a Tensor,
    /// Prompt row of each sequence `[b] i64`; not looked at where the length is 0.
    pub prompt_row: &'a Tensor,
    /// Live tokens of that row `[b] i64`.
    pub prompt_length: &'a Tensor,
    /// `[slots, kv_heads, capacity, d]`.
    pub keys: &'a Tensor,
    /// Like `keys`.
    pub values: &'a Tensor,
    /// Slot of each sequence `[b] i64`; not looked at where the length is 0.
    pub slot: &'a Tensor,
    /// Live tokens of that slot, the new one included `[b] i64`.
    pub length: &'a Tensor,
    /// Factor of the scores, `1 / sqrt(d)`.
    pub scale: f64,
}

/// Softmax attention `[b, heads, d]` in the query's kind, accumulated in f32.
///
/// # Errors
/// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds disagree, a row or
/// length is out of bounds, or a sequence has no token.
pub fn decode_attention(inputs: &DecodeAttention<'_>) -> Result<Tensor> {
    let call = raw::DecodeAttention {
        query: pointer(inputs.query),
        prompt_keys: pointer(inputs.prompt_keys),
        prompt_values: pointer(inputs.prompt_values),
        prompt_row: pointer(inputs.prompt_row),
        prompt_length: pointer(inputs.prompt_length),
        keys: pointer(inputs.keys),
        values: pointer(inputs.values),
        slot: pointer(inputs.slot),
        length: pointer(inputs.length),
        scale: inputs.scale,
    };
    let mut result = ptr::null_mut();
    // SAFETY: the tensors live for the call; the function checks shapes, kinds and all indices
    // before it reads through them, and writes a new tensor to `result` if it succeeds.
    check("decode::decode_attention", unsafe { raw::g2rl_decode_attention(&call, &mut result) })?;
    // SAFETY: on success `result` is a new tensor, and this is its only owner.
    Ok(unsafe { Tensor::from_ptr(result) })
}
