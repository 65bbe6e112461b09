//! Attention of packed sequences and its gradient, on a GPU, by libtorch's flash attention.
//!
//! In bf16 or f16. The gradient needs the output and the normalizers only, so that it can be taken part by part where
//! several attentions make one softmax: each part gets the whole output and the sums of all.

use std::ptr;

use tch::{Device, Tensor};

use crate::error::{Result, check};
use crate::raw::{self, owned, pointer};

/// Where sequences of tokens lie one after another.
#[derive(Debug)]
pub struct Spans {
    /// First token of each sequence and the end of the last, `[sequences + 1] i32`.
    starts: Tensor,
    longest: i64,
}

impl Spans {
    /// Sequences of these lengths.
    #[must_use]
    pub fn new(lengths: &[i64], device: Device) -> Self {
        let mut end = 0;
        let mut starts = vec![0];
        starts.extend(lengths.iter().map(|length| {
            end += *length as i32;
            end
        }));
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Self { starts: Tensor::from_slice(&starts).to_device(device), longest }
    }
}

/// Inputs of an attention; all on one GPU and of one kind. The last dimension is contiguous.
#[derive(Debug, Clone, Copy)]
pub struct FlashAttention<'a> {
    /// `[tokens, heads, d]`; neighbouring query heads share a key head.
    pub query: &'a Tensor,
    /// `[key tokens, kv_heads, d]`
    pub key: &'a Tensor,
    /// Like `key`.
    pub value: &'a Tensor,
    /// The sequences of queries.
    pub query_spans: &'a Spans,
    /// As many sequences of keys: each is what one of the queries' attends to.
    pub key_spans: &'a Spans,
    /// Whether a query attends to keys at its own place and before only, counted from the ends of both sequences.
    pub causal: bool,
}

impl FlashAttention<'_> {
    fn call(&self) -> raw::FlashAttention {
        raw::FlashAttention {
            query: pointer(self.query),
            key: pointer(self.key),
            value: pointer(self.value),
            query_starts: pointer(&self.query_spans.starts),
            key_starts: pointer(&self.key_spans.starts),
            longest_query: self.query_spans.longest,
            longest_key: self.key_spans.longest,
            causal: i32::from(self.causal),
            scale: (self.query.size()[2] as f64).powf(-0.5),
        }
    }

    /// The output `[tokens, heads, d]`, and the logarithms of the softmaxes' sums `[heads, tokens] f32`.
    ///
    /// # Errors
    /// [`FfiError::NoCuda`](crate::FfiError::NoCuda) without a GPU, [`FfiError`](crate::FfiError) if shapes or kinds
    /// do not fit.
    pub fn forward(&self) -> Result<(Tensor, Tensor)> {
        let (mut output, mut normalizers) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the tensors live for the call, which checks devices and shapes before it launches anything, and makes
        // two new tensors if it succeeds. Starts come from `Spans`; if they go beyond the tokens, other memory of the GPU
        // is read, never of this process.
        check("flash::forward", unsafe {
            raw::g2rl_flash_forward(&self.call(), &mut output, &mut normalizers)
        })?;
        // SAFETY: the call succeeded, so both are new, and these are their only owners.
        Ok(unsafe { (owned(output), owned(normalizers)) })
    }

    /// The gradients by query, key and value from that by the output.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn backward(&self, doutput: &Tensor, output: &Tensor, normalizers: &Tensor) -> Result<[Tensor; 3]> {
        let mut gradients = [ptr::null_mut(); 3];
        // SAFETY: as for the forward; `gradients` has room for the three new tensors.
        check("flash::backward", unsafe {
            raw::g2rl_flash_backward(
                &self.call(),
                pointer(doutput),
                pointer(output),
                pointer(normalizers),
                gradients.as_mut_ptr(),
            )
        })?;
        // SAFETY: the call succeeded, so all are new, and these are their only owners.
        Ok(gradients.map(|gradient| unsafe { owned(gradient) }))
    }
}
