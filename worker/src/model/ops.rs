//! What a decoder does between its products, and the gradients of it.
//!
//! In and out: packed tokens, `[tokens, ...]`, on any device. On a CPU each operation is one pass of the
//! project's own kernels; elsewhere it is a few tensor operations, differentiated by libtorch.

use g2rl_ffi::FfiError;
use g2rl_ffi::attention::{PackedAttention, Segments};
use g2rl_ffi::autograd::grad;
use g2rl_ffi::layer::{self, NormBackward, Rotary};
use tch::{Device, Kind, Tensor};

use super::layer::AttentionInput;
use crate::profile::{self, Phase};

/// A matrix product, under its name in profiles.
pub(crate) fn product(work: impl FnOnce() -> Tensor) -> Tensor {
    profile::time(Phase::Products, work)
}

/// Root-mean-square norm over the last dimension.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, FfiError> {
    profile::time(Phase::Rows, || match x.device() {
        Device::Cpu => layer::rms_norm(&x.contiguous(), weight, eps),
        _ => Ok(x.rms_norm(weight.size(), Some(weight), eps)),
    })
}

/// The gradient by the norm's input; the weight's is added to `dweight`.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn rms_norm_backward(inputs: &NormBackward<'_>) -> Result<Tensor, FfiError> {
    let NormBackward { dy, x, weight, residual, dweight, eps } = *inputs;
    if x.device() == Device::Cpu {
        return profile::time(Phase::Rows, || layer::rms_norm_backward(inputs));
    }
    let [dx, gradient] =
        differentiate([x, weight], dy, |[x, weight]| Ok(x.rms_norm(weight.size(), Some(weight), eps)))?;
    let _ = dweight.shallow_clone().g_add_(&gradient);
    Ok(match residual {
        Some(residual) => dx + residual,
        None => dx,
    })
}

/// Queries and keys after norm and rotation, `[tokens, heads + kv_heads, head_dim]`.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn rotary(rotary: &Rotary<'_>, qkv: &Tensor) -> Result<Tensor, FfiError> {
    profile::time(Phase::Rows, || match qkv.device() {
        Device::Cpu => rotary.forward(qkv),
        _ => Ok(turn(rotary, qkv, rotary.norms)),
    })
}

/// Writes the gradients by queries and keys into `dqkv`; those by the norms are added to `dnorms`.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn rotary_backward(
    rotary: &Rotary<'_>,
    qkv: &Tensor,
    dturned: &Tensor,
    dqkv: &Tensor,
    dnorms: Option<(&Tensor, &Tensor)>,
) -> Result<(), FfiError> {
    if qkv.device() == Device::Cpu {
        return profile::time(Phase::Rows, || rotary.backward(qkv, dturned, dqkv, dnorms));
    }
    let turned = rotary.heads.0 + rotary.heads.1;
    let width = turned * rotary.heads.2;
    let found = match rotary.norms {
        Some((query, key)) => {
            let [dqkv, dquery, dkey] = differentiate([qkv, query, key], dturned, |[qkv, query, key]| {
                Ok(turn(rotary, qkv, Some((query, key))))
            })?;
            if let Some((query, key)) = dnorms {
                let _ = query.shallow_clone().g_add_(&dquery);
                let _ = key.shallow_clone().g_add_(&dkey);
            }
            dqkv
        }
        None => differentiate([qkv], dturned, |[qkv]| Ok(turn(rotary, qkv, None)))?[0].shallow_clone(),
    };
    dqkv.narrow(1, 0, width).copy_(&found.narrow(1, 0, width));
    Ok(())
}

/// `silu(gate) up`: `[tokens, 2 inner]`, gates first, to `[tokens, inner]`.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn gate(gate_up: &Tensor) -> Result<Tensor, FfiError> {
    profile::time(Phase::Rows, || match gate_up.device() {
        Device::Cpu => layer::gate(gate_up),
        _ => Ok(gated(gate_up)),
    })
}

/// The gradient by gates and values, and the gated values once more.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn gate_backward(d: &Tensor, gate_up: &Tensor) -> Result<(Tensor, Tensor), FfiError> {
    if d.device() == Device::Cpu {
        return profile::time(Phase::Rows, || layer::gate_backward(d, gate_up));
    }
    let [dgate_up] = differentiate([gate_up], d, |[gate_up]| Ok(gated(gate_up)))?;
    Ok((dgate_up, gated(gate_up)))
}

/// What an attention returns, and its backward needs.
#[derive(Debug)]
pub struct Attended {
    /// `[tokens, heads, head_dim]`
    pub output: Tensor,
    /// Logarithms of the softmaxes' sums `[tokens, heads] f32`; empty where the backward computes them again.
    pub normalizers: Tensor,
}

/// Causal attention of packed segments. Prefixes are known on a CPU only.
///
/// # Errors
/// [`FfiError`] if libtorch refuses or the device cannot attend to prefixes.
pub fn attention(input: &AttentionInput, segments: &Segments) -> Result<Attended, FfiError> {
    if input.qkv.device() == Device::Cpu {
        let (output, normalizers) = profile::time(Phase::Attention, || packed(input, segments).forward())?;
        return Ok(Attended { output, normalizers });
    }
    let output = attend_by_runs(input, segments)?;
    Ok(Attended { output, normalizers: Tensor::empty([0], (Kind::Float, input.qkv.device())) })
}

/// The gradients by the rotated queries and keys, and a tensor like `qkv` with that by the values.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn attention_backward(
    input: &AttentionInput,
    segments: &Segments,
    dout: &Tensor,
    attended: &Attended,
) -> Result<(Tensor, Tensor), FfiError> {
    if input.qkv.device() == Device::Cpu {
        let backward = || packed(input, segments).backward(dout, &attended.output, &attended.normalizers);
        return profile::time(Phase::Attention, backward);
    }
    let [dturned, dqkv] = differentiate([&input.turned, &input.qkv], dout, |[turned, qkv]| {
        let (turned, qkv) = (turned.shallow_clone(), qkv.shallow_clone());
        attend_by_runs(&AttentionInput { turned, qkv, heads: input.heads }, segments)
    })?;
    Ok((dturned, dqkv))
}

fn packed<'a>(input: &'a AttentionInput, segments: &'a Segments) -> PackedAttention<'a> {
    PackedAttention { turned: &input.turned, qkv: &input.qkv, heads: input.heads, segments }
}

/// The gradients of `function` at `inputs` from the gradient by its result.
fn differentiate<const N: usize>(
    inputs: [&Tensor; N],
    gradient: &Tensor,
    function: impl FnOnce([&Tensor; N]) -> Result<Tensor, FfiError>,
) -> Result<[Tensor; N], FfiError> {
    let leaves = inputs.map(|input| input.detach().set_requires_grad(true));
    let output = tch::with_grad(|| function(leaves.each_ref()))?;
    let found = grad(&[output], &[gradient.shallow_clone()], &leaves)?;
    let mut found = found.into_iter();
    Ok(inputs.map(|input| found.next().flatten().unwrap_or_else(|| input.zeros_like())))
}

fn gated(gate_up: &Tensor) -> Tensor {
    let halves = gate_up.chunk(2, -1);
    halves[0].silu() * &halves[1]
}

fn turn(rotary: &Rotary<'_>, qkv: &Tensor, norms: Option<(&Tensor, &Tensor)>) -> Tensor {
    let (heads, kv_heads, dim) = rotary.heads;
    let parts = qkv.view([-1, heads + 2 * kv_heads, dim]).split_with_sizes([heads, kv_heads, kv_heads], 1);
    let normed = |x: &Tensor, weight: &Tensor| x.rms_norm(weight.size(), Some(weight), rotary.eps);
    let x = match norms {
        Some((query, key)) => Tensor::cat(&[normed(&parts[0], query), normed(&parts[1], key)], 1),
        None => Tensor::cat(&parts[..2], 1),
    };
    let (cos, sin) = (rotary.cos.unsqueeze(1), rotary.sin.unsqueeze(1));
    let halves = x.chunk(2, -1);
    let (a, b) = (&halves[0], &halves[1]);
    Tensor::cat(&[a * &cos - b * &sin, b * &cos + a * &sin], -1)
}

/// Consecutive segments of equal length go through one call of libtorch's attention.
fn attend_by_runs(input: &AttentionInput, segments: &Segments) -> Result<Tensor, FfiError> {
    if segments.has_prefixes() {
        return Err(FfiError::InvalidInput {
            operation: "attention",
            message: "prefixes are supported on the CPU only".to_owned(),
        });
    }
    let runs = equal_runs(segments.lengths());
    let sizes: Vec<i64> = runs.iter().map(|(length, count)| length * count).collect();
    let split = |t: Tensor| t.split_with_sizes(sizes.as_slice(), 0);
    let (queries, keys, values) = (split(input.query()), split(input.key()), split(input.value()));
    let outputs: Vec<Tensor> = runs
        .iter()
        .zip(queries.iter().zip(&keys).zip(&values))
        .map(|(run, ((query, key), value))| attend_run(*run, query, key, value))
        .collect();
    Ok(if outputs.len() == 1 { outputs[0].shallow_clone() } else { Tensor::cat(&outputs, 0) })
}

/// Lengths as (length, number of consecutive segments that have it).
fn equal_runs(lengths: &[i64]) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for &length in lengths {
        match runs.last_mut() {
            Some((last, count)) if *last == length => *count += 1,
            _ => runs.push((length, 1)),
        }
    }
    runs
}

fn attend_run((length, count): (i64, i64), query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
    let (heads, head_dim) = (query.size()[1], query.size()[2]);
    let kv_heads = key.size()[1];
    let queries = query.reshape([count, length, heads, head_dim]).transpose(1, 2);
    // The fused kernels want as many key heads as query heads.
    let repeat = |t: &Tensor| {
        t.reshape([count, length, kv_heads, 1, head_dim])
            .expand([count, length, kv_heads, heads / kv_heads, head_dim], false)
            .reshape([count, length, heads, head_dim])
            .transpose(1, 2)
    };
    let (keys, values) = (repeat(key), repeat(value));
    let output = Tensor::scaled_dot_product_attention(
        &queries,
        &keys,
        &values,
        None::<Tensor>,
        0.0,
        true,
        None,
        false,
    );
    output.transpose(1, 2).reshape([count * length, heads, head_dim])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_run_together() {
        assert_eq!(equal_runs(&[3, 3, 2, 3]), [(3, 2), (2, 1), (3, 1)]);
    }
}
