//! From logits to tokens, log-probabilities, entropies and residuals in one pass over a row (CPU).
//!
//! With temperature T, p = softmax(logits / T) in f32 with sums in f64. A row is computed by one
//! thread in a fixed order, so its results depend neither on the batch nor on the number of threads.

use std::ptr;

use tch::Tensor;

use crate::error::{FfiError, Result, check};
use crate::raw::{self, pointer};

/// Smallest temperature above 0; below it every row is as good as greedy and f32 overflows.
const MIN_TEMPERATURE: f64 = 1e-6;

/// Residual accumulators `[slots, v] f32` (contiguous) and the slot of each row of logits. No slot
/// may be named twice.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    /// `[slots, v] f32`.
    pub tensor: &'a Tensor,
    /// One for each row.
    pub slots: &'a [i64],
}

/// Inputs of [`sample_rows`].
#[derive(Debug, Clone, Copy)]
pub struct SampleRows<'a> {
    /// `[b, v] f32`, rows contiguous.
    pub logits: &'a Tensor,
    /// 0 takes the most probable token (the first of several).
    pub temperature: f64,
    /// Keeps the k largest logits and all equal to the k-th.
    pub top_k: Option<i64>,
    /// Then keeps the most probable tokens until their mass reaches this; 1 keeps all.
    pub top_p: f64,
    /// Then keeps tokens with at least this fraction of the largest probability; 0 keeps all.
    pub min_p: f64,
    /// One number in `[0, 1)` for each row; not looked at for temperature 0.
    pub uniforms: &'a [f64],
    /// `onehot(token) - p` is added to the row's slot.
    pub residual: Option<Residual<'a>>,
}

/// Outcome of [`sample_rows`], one entry for each row.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledRows {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// ln p of the token, before truncation.
    pub logprobs: Vec<f32>,
    /// Entropy of p in nats, before truncation.
    pub entropies: Vec<f32>,
}

/// Draws one token for each row by inverse CDF in token-id order over the kept tokens. Truncation
/// is as in transformers' logits warpers, in their order (top-k, top-p, min-p), and keeps at least
/// one token. For temperature 0, p is the softmax at temperature 1.
///
/// # Errors
/// [`FfiError::NotFinite`] naming the first row with NaN or infinity; rows without may then have
/// been added to the residual. [`FfiError::InvalidInput`] if shapes, kinds or ranges are wrong.
pub fn sample_rows(inputs: &SampleRows<'_>) -> Result<SampledRows> {
    const NAME: &str = "sampling::sample_rows";
    let rows = rows_of(NAME, inputs.logits)?;
    check_sampling(NAME, inputs, rows)?;
    let (residual, slots) = residual_parts(NAME, inputs.residual, rows)?;
    let call = raw::SampleRows {
        logits: pointer(inputs.logits),
        temperature: inputs.temperature,
        top_k: inputs.top_k.unwrap_or(0),
        top_p: inputs.top_p,
        min_p: inputs.min_p,
        uniforms: inputs.uniforms.as_ptr(),
        residual,
        slots,
    };
    let mut out =
        SampledRows { tokens: vec![0; rows], logprobs: vec![0.0; rows], entropies: vec![0.0; rows] };
    // SAFETY: tensors and slices live for the call; slices and outputs have one entry for each row
    // (checked above, uniforms unless greedy, when they are not read); the function checks shapes,
    // kinds and slots before it uses them.
    let status = unsafe {
        raw::g2rl_sample_rows(
            &call,
            out.tokens.as_mut_ptr(),
            out.logprobs.as_mut_ptr(),
            out.entropies.as_mut_ptr(),
        )
    };
    check(NAME, status)?;
    Ok(out)
}

fn check_sampling(operation: &'static str, inputs: &SampleRows<'_>, rows: usize) -> Result<()> {
    check_temperature(operation, inputs.temperature, true)?;
    let invalid = |message: String| Err(FfiError::invalid(operation, message));
    if inputs.top_k.is_some_and(|k| k < 1) {
        return invalid(format!("top_k is {:?}, at least 1 is needed", inputs.top_k));
    }
    if !(inputs.top_p > 0.0 && inputs.top_p <= 1.0) {
        return invalid(format!("top_p is {}, outside (0, 1]", inputs.top_p));
    }
    if !(0.0..=1.0).contains(&inputs.min_p) {
        return invalid(format!("min_p is {}, outside [0, 1]", inputs.min_p));
    }
    if inputs.temperature > 0.0 {
        if inputs.uniforms.len() != rows {
            return invalid(format!("{} uniforms for {rows} rows", inputs.uniforms.len()));
        }
        if let Some(row) = inputs.uniforms.iter().position(|u| !(0.0..1.0).contains(u)) {
            return invalid(format!("the uniform of row {row} is {}, outside [0, 1)", inputs.uniforms[row]));
        }
    }
    Ok(())
}

/// Inputs of [`residual_rows`].
#[derive(Debug, Clone, Copy)]
pub struct ResidualRows<'a> {
    /// `[b, v] f32`, rows contiguous.
    pub logits: &'a Tensor,
    /// Above 0.
    pub temperature: f64,
    /// The token of each row.
    pub tokens: &'a [i64],
    /// Factor of each row's residual.
    pub weights: &'a [f32],
    /// `weight * (onehot(token) - p)` is added to the row's slot.
    pub residual: Option<Residual<'a>>,
}

/// Outcome of [`residual_rows`], one entry for each row.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredRows {
    /// ln p of the given token.
    pub logprobs: Vec<f32>,
    /// Entropy of p in nats.
    pub entropies: Vec<f32>,
}

/// The same quantities as [`sample_rows`] for given tokens (teacher forcing).
///
/// # Errors
/// As [`sample_rows`]; a token outside the vocabulary is [`FfiError::InvalidInput`].
pub fn residual_rows(inputs: &ResidualRows<'_>) -> Result<ScoredRows> {
    const NAME: &str = "sampling::residual_rows";
    let rows = rows_of(NAME, inputs.logits)?;
    check_temperature(NAME, inputs.temperature, false)?;
    if inputs.tokens.len() != rows || inputs.weights.len() != rows {
        let message =
            format!("{} tokens and {} weights for {rows} rows", inputs.tokens.len(), inputs.weights.len());
        return Err(FfiError::invalid(NAME, message));
    }
    let (residual, slots) = residual_parts(NAME, inputs.residual, rows)?;
    let call = raw::ResidualRows {
        logits: pointer(inputs.logits),
        temperature: inputs.temperature,
        tokens: inputs.tokens.as_ptr(),
        weights: inputs.weights.as_ptr(),
        residual,
        slots,
    };
    let mut out = ScoredRows { logprobs: vec![0.0; rows], entropies: vec![0.0; rows] };
    // SAFETY: as in `sample_rows`; the tokens' range is checked by the function before use.
    let status =
        unsafe { raw::g2rl_residual_rows(&call, out.logprobs.as_mut_ptr(), out.entropies.as_mut_ptr()) };
    check(NAME, status)?;
    Ok(out)
}

fn rows_of(operation: &'static str, logits: &Tensor) -> Result<usize> {
    match logits.size().as_slice() {
        [rows, _] => Ok(*rows as usize),
        other => Err(FfiError::invalid(operation, format!("the logits have shape {other:?}, not [b, v]"))),
    }
}

fn check_temperature(operation: &'static str, temperature: f64, greedy: bool) -> Result<()> {
    if (greedy && temperature == 0.0) || (temperature.is_finite() && temperature >= MIN_TEMPERATURE) {
        return Ok(());
    }
    Err(FfiError::invalid(operation, format!("the temperature {temperature} is out of range")))
}

fn residual_parts(
    operation: &'static str,
    residual: Option<Residual<'_>>,
    rows: usize,
) -> Result<(*mut torch_sys::C_tensor, *const i64)> {
    match residual {
        None => Ok((ptr::null_mut(), ptr::null())),
        Some(residual) if residual.slots.len() == rows => {
            Ok((pointer(residual.tensor), residual.slots.as_ptr()))
        }
        Some(residual) => {
            Err(FfiError::invalid(operation, format!("{} slots for {rows} rows", residual.slots.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_accurate() {
        // All of the range that softmax uses, in steps that fall on no grid of the algorithm.
        let x: Vec<f32> = (0..2_000_003).map(|i| -87.2 * (i as f32) / 2_000_003.0).collect();
        let mut e = vec![0.0f32; x.len()];
        // SAFETY: both slices have `x.len()` elements.
        unsafe { raw::g2rl_exponential(x.as_ptr(), e.as_mut_ptr(), x.len() as i64) };
        let worst = x
            .iter()
            .zip(&e)
            .map(|(x, e)| {
                let exact = f64::from(*x).exp();
                ((f64::from(*e) - exact) / exact).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "relative error {worst:e}");
        println!("largest relative error {worst:e}");
    }

    #[test]
    fn the_exponential_at_the_ends() {
        let x = [0.0f32, -87.4, -1000.0, f32::MIN];
        let mut e = [9.0f32; 4];
        // SAFETY: both arrays have 4 elements.
        unsafe { raw::g2rl_exponential(x.as_ptr(), e.as_mut_ptr(), 4) };
        assert_eq!(e, [1.0, 0.0, 0.0, 0.0]);
    }
}
