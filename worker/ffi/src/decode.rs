//! Attention of one new token per sequence over its cache, on the CPU.

use std::ptr::null_mut;

use tch::Tensor;

use crate::error::{check, pointer};
use crate::{FfiError, Result, raw};

/// Capacities of cache extents are multiples of this number of tokens.
pub const CAPACITY_STEP: i64 = 64;

/// Where a sequence's tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CacheRow {
    /// Row of the prompt extent.
    pub prompt_row: i64,
    /// Prompt tokens, shared with the row's other sequences.
    pub prompt_length: i64,
    /// Row of the sequence's own extent.
    pub slot: i64,
    /// Tokens in the own extent before the new one.
    pub length: i64,
}

/// The caches of one layer. Keys are stored by column, `[rows, kv_heads, head_dim, capacity]`, values
/// by row, `[rows, kv_heads, capacity, head_dim]`; all in the query's kind.
#[derive(Debug, Clone, Copy)]
pub struct LayerCaches<'a> {
    /// Keys of prompts.
    pub prompt_keys: &'a Tensor,
    /// Values of prompts.
    pub prompt_values: &'a Tensor,
    /// Keys of the sequences' own tokens; the new ones are written here.
    pub keys: &'a Tensor,
    /// Values of the sequences' own tokens; the new ones are written here.
    pub values: &'a Tensor,
}

/// Appends one token to each sequence's own extent and attends from it to the prompt and to
/// everything the sequence has so far. `query` is `[b, heads, head_dim]`, `key` and `value` are
/// `[b, kv_heads, head_dim]`, and so is the result as the query. f32 or bf16, computed in f32 with
/// scale `head_dim^-1/2`. Each result depends on its own sequence only.
///
/// # Errors
/// [`FfiError`] if shapes, kinds or rows do not fit, or two sequences name the same slot.
pub fn decode_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    caches: &LayerCaches<'_>,
    rows: &[CacheRow],
) -> Result<Tensor> {
    const NAME: &str = "decode attention";
    let (q, k, v) = (query.size(), key.size(), value.size());
    let kv_heads = caches.keys.size().get(1).copied().unwrap_or(0);
    let fits = |shape: &[i64], heads: i64| matches!(*shape, [b, h, d] if b == rows.len() as i64 && h == heads && d == q[2]);
    if q.len() != 3 || q[0] != rows.len() as i64 || !fits(&k, kv_heads) || !fits(&v, kv_heads) {
        let problem = format!("query {q:?}, key {k:?}, value {v:?} for {} sequences", rows.len());
        return Err(FfiError::argument(NAME, problem));
    }
    if key.kind() != query.kind() || value.kind() != query.kind() {
        return Err(FfiError::argument(NAME, "query, key and value have different kinds"));
    }
    distinct(NAME, rows.iter().map(|row| row.slot))?;
    let list = [caches.prompt_keys, caches.prompt_values, caches.keys, caches.values].map(pointer);
    let mut out = null_mut();
    // SAFETY: all tensors are valid and the batch sizes were compared above, so the shim reads four
    // numbers for each of the query's rows; it checks every extent before it touches memory, and no
    // two sequences write the same slot.
    let message = unsafe {
        raw::g2rl_decode_attention(
            pointer(query),
            pointer(key),
            pointer(value),
            list.as_ptr(),
            rows.as_ptr().cast(),
            &mut out,
        )
    };
    check(NAME, message)?;
    // SAFETY: on success the shim hands over one tensor.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Refuses rows that would be written by two threads at once.
pub(crate) fn distinct(name: &'static str, rows: impl Iterator<Item = i64>) -> Result<()> {
    let mut sorted: Vec<i64> = rows.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(FfiError::argument(name, format!("row {} is named twice", pair[0]))),
        None => Ok(()),
    }
}
