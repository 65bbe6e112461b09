//! One token of every running sequence through a whole decoder, on a CPU with AVX-512, in f32 or bf16.
//!
//! Weights are copied once per policy into the order in which products read them; norms, rotation,
//! cache, attention, gating and residuals run in the same threads, without a tensor between them. A
//! sequence's logits depend neither on the others of the batch nor on the number of threads.

use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::{Kind, Tensor};

use crate::error::{FfiError, Result, check};
use crate::raw::{self, Borrowed, pointer};

/// A decoder's weights: contiguous f32 or bf16 on the CPU, one tensor for each layer in each list.
#[derive(Debug, Clone, Copy)]
pub struct DecoderWeights<'a> {
    /// `[(heads + 2 kv_heads) head_dim, hidden]`
    pub qkv: &'a [Tensor],
    /// `[(heads + 2 kv_heads) head_dim]`; empty if the model has none.
    pub bias: &'a [Tensor],
    /// `[hidden, heads head_dim]`
    pub output: &'a [Tensor],
    /// `[2 intermediate, hidden]`, the gates first.
    pub gate_up: &'a [Tensor],
    /// `[hidden, intermediate]`
    pub down: &'a [Tensor],
    /// `[hidden]`
    pub input_norm: &'a [Tensor],
    /// `[hidden]`
    pub post_norm: &'a [Tensor],
    /// `[head_dim]`; empty if the model has none.
    pub query_norm: &'a [Tensor],
    /// Like `query_norm`.
    pub key_norm: &'a [Tensor],
    /// `[vocab, hidden]`
    pub embedding: &'a Tensor,
    /// `[hidden]`
    pub final_norm: &'a Tensor,
    /// `[vocab, hidden]`
    pub head: &'a Tensor,
    /// Cosines and sines of the rotation, `[positions, head_dim / 2]` each.
    pub rotary: (&'a Tensor, &'a Tensor),
    /// Number of query heads and of key heads, and their width.
    pub heads: (i64, i64, i64),
    /// Added to the mean square in the norms.
    pub eps: f64,
}

/// The new tokens of a step, one of each sequence, and where the sequences' keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct DecodeStep<'a> {
    /// Token ids.
    pub tokens: &'a [i64],
    /// Their positions.
    pub positions: &'a [i64],
    /// Row of each sequence's prompt in the prompt caches.
    pub prompt_row: &'a [i64],
    /// Live tokens of that row.
    pub prompt_length: &'a [i64],
    /// Row of each sequence in its own caches.
    pub slot: &'a [i64],
    /// Live tokens of that row, the new one included; its keys and values are written there.
    pub length: &'a [i64],
    /// `[rows, kv_heads, capacity, head_dim]` for each layer.
    pub prompt_keys: &'a [Tensor],
    /// Like `prompt_keys`.
    pub prompt_values: &'a [Tensor],
    /// Like `prompt_keys`; written to.
    pub keys: &'a [Tensor],
    /// Like `keys`.
    pub values: &'a [Tensor],
}

/// Where the time of a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeTimes {
    /// Matrix products.
    pub products: Duration,
    /// Attention with norms and rotation of the heads and the cache.
    pub attention: Duration,
    /// Norms before the products.
    pub rows: Duration,
}

/// A decoder with packed weights.
#[derive(Debug)]
pub struct CpuDecoder {
    raw: NonNull<raw::Decoder>,
    times: DecodeTimes,
}

// SAFETY: the decoder is used by one thread at a time (its step takes `&mut self`) and is not tied to
// the thread that made it.
unsafe impl Send for CpuDecoder {}

impl CpuDecoder {
    /// Whether this machine can run it with weights of a kind: f32 needs AVX-512, bf16 AVX512-BF16.
    #[must_use]
    pub fn is_supported(kind: Kind) -> bool {
        // SAFETY: looks at the processor's features only.
        let supports = |bf16| unsafe { raw::g2rl_decoder_supported(bf16) };
        match kind {
            Kind::Float => supports(false),
            Kind::BFloat16 => supports(true),
            _ => false,
        }
    }

    /// Packs weights. Later changes of the given tensors are not seen, except of the embedding's rows.
    ///
    /// # Errors
    /// [`FfiError::InvalidInput`] if the machine cannot run it, or shapes or kinds do not fit.
    pub fn new(weights: &DecoderWeights<'_>) -> Result<Self> {
        const NAME: &str = "decoder::new";
        if !Self::is_supported(weights.embedding.kind()) {
            let message = "the processor cannot run it".to_owned();
            return Err(FfiError::InvalidInput { operation: NAME, message });
        }
        let lists = [
            weights.qkv,
            weights.bias,
            weights.output,
            weights.gate_up,
            weights.down,
            weights.input_norm,
            weights.post_norm,
            weights.query_norm,
            weights.key_norm,
        ]
        .map(Borrowed::new);
        let [qkv, bias, output, gate_up, down, input_norm, post_norm, query_norm, key_norm] =
            lists.each_ref().map(Borrowed::slice);
        let call = raw::DecoderWeights {
            qkv,
            bias,
            output,
            gate_up,
            down,
            input_norm,
            post_norm,
            query_norm,
            key_norm,
            embedding: pointer(weights.embedding),
            final_norm: pointer(weights.final_norm),
            head: pointer(weights.head),
            cos: pointer(weights.rotary.0),
            sin: pointer(weights.rotary.1),
            heads: weights.heads.0,
            kv_heads: weights.heads.1,
            head_dim: weights.heads.2,
            eps: weights.eps,
        };
        let mut decoder = ptr::null_mut();
        // SAFETY: the tensors live for the call; the function checks kinds and shapes before it reads, and
        // writes a new decoder if it succeeds.
        check(NAME, unsafe { raw::g2rl_decoder_new(&call, &mut decoder) })?;
        let raw = NonNull::new(decoder)
            .ok_or(FfiError::InvalidInput { operation: NAME, message: "no decoder was made".to_owned() })?;
        Ok(Self { raw, times: DecodeTimes::default() })
    }

    /// Where the time of the last step went.
    #[must_use]
    pub fn times(&self) -> DecodeTimes {
        self.times
    }

    /// Runs one step: logits `[batch, vocab] f32`.
    ///
    /// # Errors
    /// [`FfiError::InvalidInput`] if lists differ in length, caches do not fit, or an index is out of
    /// range.
    pub fn step(&mut self, step: &DecodeStep<'_>) -> Result<Tensor> {
        const NAME: &str = "decoder::step";
        let batch = step.tokens.len();
        let lists = [step.positions, step.prompt_row, step.prompt_length, step.slot, step.length];
        if lists.iter().any(|list| list.len() != batch) {
            let message = "there must be one position, row and length for each token".to_owned();
            return Err(FfiError::InvalidInput { operation: NAME, message });
        }
        let caches = [step.prompt_keys, step.prompt_values, step.keys, step.values].map(Borrowed::new);
        let [prompt_keys, prompt_values, keys, values] = caches.each_ref().map(Borrowed::slice);
        let call = raw::DecodeStep {
            tokens: step.tokens.as_ptr(),
            positions: step.positions.as_ptr(),
            prompt_row: step.prompt_row.as_ptr(),
            prompt_length: step.prompt_length.as_ptr(),
            slot: step.slot.as_ptr(),
            length: step.length.as_ptr(),
            batch: batch as i64,
            prompt_keys,
            prompt_values,
            keys,
            values,
        };
        let (mut logits, mut times) = (ptr::null_mut(), raw::DecodeTimes::default());
        // SAFETY: the decoder is alive and borrowed alone; lists have `batch` entries and tensors live for
        // the call; the function checks caches and indices before it reads or writes through them.
        check(NAME, unsafe { raw::g2rl_decoder_step(self.raw.as_ptr(), &call, &mut logits, &mut times) })?;
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        self.times = DecodeTimes {
            products: seconds(times.products),
            attention: seconds(times.attention),
            rows: seconds(times.rows),
        };
        // SAFETY: on success `logits` is a new tensor, and this is its only owner.
        Ok(unsafe { Tensor::from_ptr(logits) })
    }
}

impl Drop for CpuDecoder {
    fn drop(&mut self) {
        // SAFETY: made by the shim, owned by `self`, freed once.
        unsafe { raw::g2rl_decoder_free(self.raw.as_ptr()) };
    }
}
