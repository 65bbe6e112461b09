//! Drawing tokens: softmax in f32 at the temperature, optional truncation, inverse of the cumulative
//! distribution in token-id order.
//!
//! Log-probabilities and entropies are of the full softmax at the temperature, before truncation:
//! those are what the update computes again, so their ratio is 1 when the policy has not moved.
//!
//! On a CPU this is one pass of the project's own kernel, elsewhere tensor operations ([`tensors`]).

pub(super) mod tensors;

use g2rl_common::rollout::Sampling;
use g2rl_ffi::FfiError;
use g2rl_ffi::sampling::{Residual, ResidualRows, SampleRows, SampledRows, residual_rows, sample_rows};
use tch::{Device, Tensor};

/// Where a row's token comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// Drawn with this number in [0, 1).
    Uniform(f64),
    /// Given; only its log-probability is wanted.
    Given(u32),
}

/// How one row of logits is sampled.
#[derive(Debug, Clone, Copy)]
pub struct RowOptions<'a> {
    /// Temperature and truncation.
    pub sampling: &'a Sampling,
    /// Where the token comes from.
    pub draw: Draw,
    /// Row of the residual sums to add `onehot(token) - p` to.
    pub residual_row: Option<usize>,
}

/// Samples rows of logits `[rows, vocab] f32`. Either every row or none has a residual row.
///
/// # Errors
/// [`FfiError`] if a row is not finite or libtorch refuses.
pub fn sample(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<SampledRows, FfiError> {
    if logits.device() != Device::Cpu {
        return tensors::sample(logits, rows, residuals);
    }
    // The kernel takes one setting for all rows. Rows of one step nearly always agree; where they do
    // not (an evaluation beside training), each kind goes through on its own.
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for at in 0..rows.len() {
        match kinds.iter_mut().find(|kind| alike(&rows[kind[0]], &rows[at])) {
            Some(kind) => kind.push(at),
            None => kinds.push(vec![at]),
        }
    }
    if kinds.len() == 1 {
        return sample_alike(&logits.contiguous(), rows, residuals);
    }
    let mut all = SampledRows {
        tokens: vec![0; rows.len()],
        logprobs: vec![0.0; rows.len()],
        entropies: vec![0.0; rows.len()],
    };
    for kind in kinds {
        let index = Tensor::from_slice(&kind.iter().map(|at| *at as i64).collect::<Vec<_>>());
        let some: Vec<RowOptions<'_>> = kind.iter().map(|at| rows[*at]).collect();
        let sampled = sample_alike(&logits.index_select(0, &index), &some, residuals)?;
        for (from, to) in kind.into_iter().enumerate() {
            all.tokens[to] = sampled.tokens[from];
            all.logprobs[to] = sampled.logprobs[from];
            all.entropies[to] = sampled.entropies[from];
        }
    }
    Ok(all)
}

/// Whether two rows can go through the kernel together.
fn alike(a: &RowOptions<'_>, b: &RowOptions<'_>) -> bool {
    let settings = |r: &RowOptions<'_>| {
        let s = r.sampling;
        (s.temperature, s.top_k, s.top_p, s.min_p, r.residual_row.is_some(), matches!(r.draw, Draw::Given(_)))
    };
    settings(a) == settings(b)
}

fn sample_alike(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<SampledRows, FfiError> {
    let Some(first) = rows.first() else {
        return Ok(SampledRows { tokens: Vec::new(), logprobs: Vec::new(), entropies: Vec::new() });
    };
    let slots: Vec<i64> = rows.iter().filter_map(|row| row.residual_row).map(|row| row as i64).collect();
    let residual = residuals.filter(|_| !slots.is_empty()).map(|tensor| Residual { tensor, slots: &slots });
    let sampling = first.sampling;
    if matches!(first.draw, Draw::Given(_)) {
        let given =
            |row: &RowOptions<'_>| if let Draw::Given(token) = row.draw { i64::from(token) } else { 0 };
        let tokens: Vec<i64> = rows.iter().map(given).collect();
        let weights = vec![1.0; rows.len()];
        // Greedy decoding has the probabilities of temperature 1.
        let temperature = if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
        let scored = residual_rows(&ResidualRows {
            logits,
            temperature,
            tokens: &tokens,
            weights: &weights,
            residual,
        })?;
        return Ok(SampledRows { tokens, logprobs: scored.logprobs, entropies: scored.entropies });
    }
    let uniform = |row: &RowOptions<'_>| if let Draw::Uniform(uniform) = row.draw { uniform } else { 0.0 };
    let uniforms: Vec<f64> = rows.iter().map(uniform).collect();
    sample_rows(&SampleRows {
        logits,
        temperature: sampling.temperature,
        top_k: sampling.top_k.map(i64::from),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        uniforms: &uniforms,
        residual,
    })
}
