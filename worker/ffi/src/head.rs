//! Softmax statistics of logits and the loss's gradient by them, and residual sums times the head, on a CPU,
//! each in one pass.

use std::ptr;

use tch::Tensor;

use crate::error::{FfiError, Result, check};
use crate::raw::{self, owned, pointer};

/// Of the distribution softmax(z / T) of each row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadStatistics {
    /// log p(target).
    pub logprobs: Vec<f32>,
    /// Entropy, nats.
    pub entropies: Vec<f32>,
    /// Logarithm of the sum of exponentials.
    pub normalizers: Vec<f32>,
}

/// Statistics of logits `[rows, vocab]`, contiguous f32 or bf16 on the CPU, with one target for each row.
///
/// # Errors
/// [`FfiError::InvalidInput`] if shapes or kinds do not fit or a target is out of range.
pub fn statistics(logits: &Tensor, temperature: f64, targets: &[i64]) -> Result<HeadStatistics> {
    const NAME: &str = "head::statistics";
    let rows = checked_rows(NAME, logits, targets.len())?;
    let mut out = HeadStatistics {
        logprobs: vec![0.0; rows],
        entropies: vec![0.0; rows],
        normalizers: vec![0.0; rows],
    };
    // SAFETY: the lists have as many entries as the logits have rows; the call checks the rest.
    check(NAME, unsafe {
        raw::g2rl_head_statistics(
            pointer(logits),
            temperature,
            targets.as_ptr(),
            out.logprobs.as_mut_ptr(),
            out.entropies.as_mut_ptr(),
            out.normalizers.as_mut_ptr(),
        )
    })?;
    Ok(out)
}

/// The loss's gradient by a row's log p(target), and the weight of its entropy in the loss, negated.
#[derive(Debug, Clone, Copy)]
pub struct RowGradients<'a> {
    /// dLoss / dlog p(target).
    pub logprob: &'a [f32],
    /// c in `Loss = ... - c H`.
    pub entropy: &'a [f32],
}

/// Overwrites logits with `(g (onehot - p) + c p (log p + H)) / T`.
///
/// # Errors
/// [`FfiError::InvalidInput`] if shapes, kinds or lengths do not fit or a target is out of range.
pub fn gradient_in_place(
    logits: &Tensor,
    temperature: f64,
    targets: &[i64],
    statistics: &HeadStatistics,
    gradients: RowGradients<'_>,
) -> Result<()> {
    const NAME: &str = "head::gradient_in_place";
    let lists = [&statistics.normalizers[..], &statistics.entropies, gradients.logprob, gradients.entropy];
    for list in lists {
        checked_rows(NAME, logits, list.len())?;
    }
    checked_rows(NAME, logits, targets.len())?;
    // SAFETY: all lists have as many entries as the logits have rows; the call checks the rest.
    check(NAME, unsafe {
        raw::g2rl_head_gradient(
            pointer(logits),
            temperature,
            targets.as_ptr(),
            lists[0].as_ptr(),
            lists[1].as_ptr(),
            lists[2].as_ptr(),
            lists[3].as_ptr(),
        )
    })
}

/// Rows `slots` of `sums` `[slots, vocab] f32` times the head `[vocab, hidden]`, f32 or bf16: `[rows, hidden] f32`.
/// A row's result depends neither on the other rows nor on the number of threads.
///
/// # Errors
/// [`FfiError::InvalidInput`] if shapes, kinds or a slot do not fit.
pub fn project_residuals(sums: &Tensor, slots: &[i64], head: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: the list and the tensors live for the call, which checks them before it reads.
    check("head::project_residuals", unsafe {
        raw::g2rl_project_residuals(
            pointer(sums),
            slots.as_ptr(),
            slots.len() as i64,
            pointer(head),
            &mut out,
        )
    })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { owned(out) })
}

fn checked_rows(name: &'static str, logits: &Tensor, entries: usize) -> Result<usize> {
    match logits.size()[..] {
        [rows, _] if rows as usize == entries => Ok(entries),
        _ => Err(FfiError::invalid(name, "there must be one entry for each row of logits")),
    }
}
