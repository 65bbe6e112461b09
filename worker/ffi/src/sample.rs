//! One pass over rows of logits on the CPU: softmax, draw, log-probability, entropy, residual.

use std::ptr::null_mut;

use tch::Tensor;

use crate::decode::distinct;
use crate::error::{check, pointer};
use crate::{FfiError, Result, raw};

/// How one row is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// Softmax temperature; 0 takes the most likely token, with probabilities at temperature 1.
    pub temperature: f64,
    /// Keep the k most likely tokens (ties with the k-th too).
    pub top_k: Option<u32>,
    /// Keep the smallest set of most likely tokens whose share reaches p.
    pub top_p: f64,
    /// Drop tokens less likely than this share of the most likely one.
    pub min_p: f64,
    /// The draw, in [0, 1): inverse of the cumulative distribution in token-id order.
    pub uniform: f64,
    /// Score this token instead of drawing one.
    pub given: Option<u32>,
    /// Row of the residual to add `weight * (onehot(token) - p)` to.
    pub residual_row: Option<usize>,
    /// Weight of the residual.
    pub weight: f64,
}

impl Default for SampleRow {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            uniform: 0.0,
            given: None,
            residual_row: None,
            weight: 1.0,
        }
    }
}

/// [`SampleRow`] as C sees it.
#[repr(C)]
pub(crate) struct RawRow {
    temperature: f64,
    top_p: f64,
    min_p: f64,
    uniform: f64,
    top_k: i64,
    residual_row: i64,
    given: i64,
    weight: f64,
}

/// One value for each row. Log-probability and entropy (nats) are of the full softmax at the row's
/// temperature, before top-k, top-p and min-p.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sampled {
    /// Drawn or given tokens.
    pub tokens: Vec<i64>,
    /// log p(token).
    pub logprobs: Vec<f32>,
    /// Entropy of p.
    pub entropies: Vec<f32>,
}

/// Samples each row of `logits` `[rows, vocab] f32`, contiguous on the CPU; `residual` is
/// `[any, vocab] f32`.
///
/// # Errors
/// [`FfiError`] if shapes or options do not fit, a row is not finite, or two rows name the same
/// residual row.
pub fn sample_rows(logits: &Tensor, rows: &[SampleRow], residual: Option<&Tensor>) -> Result<Sampled> {
    const NAME: &str = "sampling";
    if logits.size().first() != Some(&(rows.len() as i64)) {
        return Err(FfiError::argument(NAME, format!("logits {:?} for {} rows", logits.size(), rows.len())));
    }
    distinct(NAME, rows.iter().filter_map(|row| row.residual_row).map(|row| row as i64))?;
    let raw_row = |(index, row): (usize, &SampleRow)| {
        let valid = row.temperature >= 0.0
            && row.temperature.is_finite()
            && row.top_p > 0.0
            && (0.0..=1.0).contains(&row.min_p)
            && (0.0..1.0).contains(&row.uniform);
        if !valid {
            return Err(FfiError::argument(NAME, format!("row {index}: {row:?}")));
        }
        Ok(RawRow {
            temperature: row.temperature,
            top_p: row.top_p,
            min_p: row.min_p,
            uniform: row.uniform,
            top_k: row.top_k.map_or(0, i64::from),
            residual_row: row.residual_row.map_or(-1, |r| r as i64),
            given: row.given.map_or(-1, i64::from),
            weight: row.weight,
        })
    };
    let raw_rows = rows.iter().enumerate().map(raw_row).collect::<Result<Vec<_>>>()?;
    let mut sampled =
        Sampled { tokens: vec![0; rows.len()], logprobs: vec![0.0; rows.len()], entropies: vec![0.0; rows.len()] };
    // SAFETY: the logits have one row for each entry of the arrays; the shim checks the tensors'
    // shapes and kinds and every index before it touches memory, and residual rows are distinct.
    let message = unsafe {
        raw::g2rl_sample_rows(
            pointer(logits),
            raw_rows.as_ptr(),
            residual.map_or(null_mut(), pointer),
            sampled.tokens.as_mut_ptr(),
            sampled.logprobs.as_mut_ptr(),
            sampled.entropies.as_mut_ptr(),
        )
    };
    check(NAME, message)?;
    Ok(sampled)
}
