//! Attention of one new token per row over its prompt's and its own extent of a pool.

use tch::{Device, Kind, Tensor};

use super::{Argument, Kernel, Launch, Module, fits, module, require, takes};
use crate::error::Result;

const OPERATION: &str = "gpu::attention";

/// Blocks that keep a GPU busy: a few on each of its processors.
const ENOUGH_BLOCKS: i64 = 512;

/// Tokens that a block reads in one turn; fewer are not worth a block.
const TURN: i64 = 64;

const MODULE_64: Module = module!("attention_64");
const MODULE_128: Module = module!("attention_128");
const NAMES: [&str; 8] =
    ["attend_1", "attend_2", "attend_3", "attend_4", "attend_5", "attend_6", "attend_7", "attend_8"];

/// Inputs of [`decode_attention`]; all on one GPU.
#[derive(Debug, Clone, Copy)]
pub struct DecodeAttention<'a> {
    /// `[rows, heads, d]` bf16, rows at any distance.
    pub query: &'a Tensor,
    /// The new token's `[rows, kv_heads, d]`, likewise.
    pub key: &'a Tensor,
    /// Like `key`.
    pub value: &'a Tensor,
    /// The pool `[tokens, kv_heads, d]` bf16. The new token's come to `own_starts + own_lengths`.
    pub keys: &'a Tensor,
    /// Like `keys`.
    pub values: &'a Tensor,
    /// The rows' places.
    pub places: Places<'a>,
    /// No extents together are longer; it only decides how the work is split.
    pub longest: i64,
    /// Factor of the scores.
    pub scale: f64,
}

/// Where the rows' extents are, contiguous `[rows] i64` each.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// First token of the prompt.
    pub prompt_starts: &'a Tensor,
    /// Its tokens; may be 0.
    pub prompt_lengths: &'a Tensor,
    /// First own token.
    pub own_starts: &'a Tensor,
    /// Own tokens before the new one; may be 0.
    pub own_lengths: &'a Tensor,
    /// 0 for rows that read and write nothing and get 0.
    pub alive: &'a Tensor,
}

/// Whether there is a kernel for heads of this shape on this device.
#[must_use]
pub fn supports(device: Device, kind: Kind, (heads, kv_heads, d): (i64, i64, i64)) -> bool {
    super::BUILT
        && matches!(device, Device::Cuda(_))
        && kind == Kind::BFloat16
        && matches!(d, 64 | 128)
        && kv_heads > 0
        && heads % kv_heads == 0
        && heads / kv_heads <= NAMES.len() as i64
}

/// Softmax attention `[rows, heads, d]` bf16 over both extents and the new token.
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn decode_attention(inputs: &DecodeAttention<'_>) -> Result<Tensor> {
    let DecodeAttention { query, key, value, keys, values, places, longest, scale } = *inputs;
    let Places { prompt_starts, prompt_lengths, own_starts, own_lengths, alive } = places;
    let ([rows, heads, d], [_, kv_heads, _]) = (size(query)?, size(keys)?);
    let shape = (heads, kv_heads, d);
    require(OPERATION, supports(query.device(), query.kind(), shape), "no kernel for such heads")?;
    require(
        OPERATION,
        fits(keys, query) && fits(values, query) && values.size() == keys.size(),
        "no such pool",
    )?;
    for (token, heads) in [(query, heads), (key, kv_heads), (value, kv_heads)] {
        let strides = token.stride();
        // Loads are of 16 bytes.
        let aligned = strides[0] % 8 == 0 && (token.data_ptr() as usize).is_multiple_of(16);
        let found = takes(token) && token.size() == [rows, heads, d] && strides[1..] == [d, 1] && aligned;
        require(OPERATION, found, "query, key and value must be rows of heads")?;
    }
    for place in [prompt_starts, prompt_lengths, own_starts, own_lengths, alive] {
        let found = place.kind() == Kind::Int64 && place.size() == [rows] && place.is_contiguous();
        require(OPERATION, found && place.device() == query.device(), "places must be [rows] i64")?;
    }

    let splits = (ENOUGH_BLOCKS / (rows * kv_heads).max(1)).clamp(1, (longest / TURN).max(1));
    let output = Tensor::empty([rows, heads, d], (Kind::BFloat16, query.device()));
    let partial = match splits {
        1 => None,
        _ => Some(Tensor::empty([rows, heads, splits, d + 2], (Kind::Float, query.device()))),
    };
    let module = if d == 64 { MODULE_64 } else { MODULE_128 };
    let mut arguments = Vec::with_capacity(16);
    for token in [query, key, value] {
        arguments.extend([Argument::of(token), Argument::Long(token.stride()[0])]);
    }
    arguments.extend([Argument::of(keys), Argument::of(values)]);
    arguments.extend([prompt_starts, prompt_lengths, own_starts, own_lengths, alive].map(Argument::of));
    arguments.extend([
        Argument::of(&output),
        Argument::optional(partial.as_ref()),
        Argument::Float(scale as f32),
    ]);
    let kernel = Kernel::new(module, NAMES[(heads / kv_heads) as usize - 1]);
    let sizes = Launch { grid: [kv_heads, rows, splits], block: 128, shared_bytes: 0 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked. The values of the places are the caller's
    // promise: one that leaves the pool would reach other memory of the GPU, never of this process.
    unsafe { kernel.launch(OPERATION, query, sizes, &arguments) }?;
    if let Some(partial) = partial {
        let arguments = [Argument::of(&partial), Argument::of(&output), Argument::Int(splits as i32)];
        let sizes = Launch { grid: [rows * heads, 1, 1], block: d as u32, shared_bytes: 0 };
        // SAFETY: these are the kernel's arguments, with the sizes it was given above.
        unsafe { Kernel::new(module, "merge_splits").launch(OPERATION, query, sizes, &arguments) }?;
    }
    Ok(output)
}

fn size(tensor: &Tensor) -> Result<[i64; 3]> {
    let size = tensor.size();
    size.try_into().map_err(|size| crate::FfiError::invalid(OPERATION, format!("a tensor of {size:?}")))
}
