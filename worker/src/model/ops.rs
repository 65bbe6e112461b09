//! What a decoder does between its products, and the gradients of it.
//!
//! In and out: packed tokens, `[tokens, ...]`, on any device. On a CPU, and in bf16 on a GPU unless a width is odd, each
//! operation is one pass of the project's own kernels; elsewhere it is a few tensor operations, differentiated by libtorch.

use g2rl_ffi::FfiError;
use g2rl_ffi::autograd::grad;
use g2rl_ffi::gpu;
use g2rl_ffi::layer::{self, NormBackward, Rotary};
use tch::{Device, Tensor};

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
    if gpu::rows::supports_norm(x) {
        return gpu::rows::rms_norm_backward(inputs);
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
        _ if gpu::rows::supports_turn(qkv, rotary.heads.2) => gpu::rows::turn(rotary, qkv),
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
    if gpu::rows::supports_turn(qkv, rotary.heads.2) {
        return gpu::rows::turn_backward(rotary, qkv, dturned, dqkv, dnorms);
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
        _ if gpu::rows::supports_gate(gate_up) => gpu::rows::gate(gate_up),
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
    if gpu::rows::supports_gate(gate_up) {
        return gpu::rows::gate_backward(d, gate_up);
    }
    let [dgate_up] = differentiate([gate_up], d, |[gate_up]| Ok(gated(gate_up)))?;
    Ok((dgate_up, gated(gate_up)))
}

/// The gradients of `function` at `inputs` from the gradient by its result.
pub(super) fn differentiate<const N: usize>(
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
