//! Causal attention over packed segments, forward and backward, on a CPU.
//!
//! A segment attends to itself causally and before that to all of its prefix. The answers of a group are
//! segments with their common prompt as prefix, which is then computed once. Results do not depend on the
//! number of threads.

use std::ops::Range;
use std::ptr;

use tch::Tensor;

use crate::error::{Result, check};
use crate::raw::{self, owned, pointer};

/// Which tokens attend to which: lists of equal length, in the order of the tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments {
    starts: Vec<i64>,
    lengths: Vec<i64>,
    prefixes: Vec<i64>,
}

impl Segments {
    /// Adds a segment of `length` tokens after the ones before. `prefix` is the index of the last segment
    /// that has none itself.
    pub fn push(&mut self, length: i64, prefix: Option<usize>) {
        self.starts.push(self.tokens());
        self.lengths.push(length);
        self.prefixes.push(prefix.map_or(-1, |index| index as i64));
    }

    /// Number of segments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Number of tokens.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        self.starts.last().zip(self.lengths.last()).map_or(0, |(start, length)| start + length)
    }

    /// Length of each segment.
    #[must_use]
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// The segment that each one has as its prefix.
    pub fn prefixes(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        self.prefixes.iter().map(|prefix| usize::try_from(*prefix).ok())
    }

    /// The rows of a segment's tokens.
    #[must_use]
    pub fn rows(&self, segment: usize) -> Range<i64> {
        self.starts[segment]..self.starts[segment] + self.lengths[segment]
    }

    /// Whether any segment has a prefix.
    #[must_use]
    pub fn has_prefixes(&self) -> bool {
        self.prefixes.iter().any(|prefix| *prefix >= 0)
    }

    /// Position of each token in its sequence: behind the prefix, if there is one.
    #[must_use]
    pub fn positions(&self) -> Vec<i64> {
        let first = |prefix: i64| usize::try_from(prefix).map_or(0, |index| self.lengths[index]);
        let segments = self.lengths.iter().zip(&self.prefixes);
        segments.flat_map(|(length, prefix)| first(*prefix)..first(*prefix) + length).collect()
    }
}

/// Inputs of the attention of one layer.
#[derive(Debug, Clone, Copy)]
pub struct PackedAttention<'a> {
    /// Queries and keys after rotation `[tokens, heads + kv_heads, head_dim]`.
    pub turned: &'a Tensor,
    /// Queries, keys and values before it `[tokens, (heads + 2 kv_heads) head_dim]`; the values are read.
    pub qkv: &'a Tensor,
    /// Query heads, key heads, their width.
    pub heads: (i64, i64, i64),
    /// Who attends to whom.
    pub segments: &'a Segments,
}

impl PackedAttention<'_> {
    fn call(&self) -> raw::PackedAttention {
        raw::PackedAttention {
            turned: pointer(self.turned),
            qkv: pointer(self.qkv),
            heads: self.heads.0,
            kv_heads: self.heads.1,
            dim: self.heads.2,
            scale: 1.0 / (self.heads.2 as f64).sqrt(),
            starts: self.segments.starts.as_ptr(),
            lengths: self.segments.lengths.as_ptr(),
            prefixes: self.segments.prefixes.as_ptr(),
            segments: self.segments.len() as i64,
        }
    }

    /// The output `[tokens, heads, head_dim]`, and the logarithms of the softmaxes' sums
    /// `[tokens, heads] f32`, which the backward needs.
    ///
    /// # Errors
    /// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes, kinds or segments do not fit.
    pub fn forward(&self) -> Result<(Tensor, Tensor)> {
        let (mut out, mut normalizers) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: tensors and lists live for the call, which checks them before it reads.
        check("attention::forward", unsafe {
            raw::g2rl_packed_attention(&self.call(), &mut out, &mut normalizers)
        })?;
        // SAFETY: the call succeeded.
        Ok(unsafe { (owned(out), owned(normalizers)) })
    }

    /// From the gradient by the output and what the forward returned: the gradient by `turned`, and a
    /// tensor like `qkv` with the gradient by the values, the rest of which is still to be written.
    ///
    /// # Errors
    /// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes, kinds or segments do not fit.
    pub fn backward(&self, dout: &Tensor, out: &Tensor, normalizers: &Tensor) -> Result<(Tensor, Tensor)> {
        let (mut dturned, mut dqkv) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: tensors and lists live for the call, which checks them before it reads.
        check("attention::backward", unsafe {
            raw::g2rl_packed_attention_backward(
                &self.call(),
                pointer(dout),
                pointer(out),
                pointer(normalizers),
                &mut dturned,
                &mut dqkv,
            )
        })?;
        // SAFETY: the call succeeded.
        Ok(unsafe { (owned(dturned), owned(dqkv)) })
    }
}
