//! Norm, rotation and gating over packed tokens, and their gradients, on a CPU.
//!
//! Tensors are contiguous and of one kind, f32 or bf16; the arithmetic is f32. Gradients of weights are
//! f32 and added to; they do not depend on the number of threads.

use std::ptr;

use tch::Tensor;

use crate::error::{Result, check};
use crate::raw::{self, optional, owned, pointer};

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
///
/// # Errors
/// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: the tensors live for the call, which checks them before it reads.
    check("layer::rms_norm", unsafe { raw::g2rl_rms_norm(pointer(x), pointer(weight), eps, &mut out) })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { owned(out) })
}

/// Inputs of [`rms_norm_backward`].
#[derive(Debug, Clone, Copy)]
pub struct NormBackward<'a> {
    /// The gradient by the norm's output.
    pub dy: &'a Tensor,
    /// The norm's input.
    pub x: &'a Tensor,
    /// The norm's weight `[size]`.
    pub weight: &'a Tensor,
    /// Added to the result: what reaches the input past the norm.
    pub residual: Option<&'a Tensor>,
    /// The weight's gradient `[size] f32`, added to.
    pub dweight: &'a Tensor,
    /// As in the forward.
    pub eps: f64,
}

/// The gradient by the norm's input.
///
/// # Errors
/// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds do not fit.
pub fn rms_norm_backward(inputs: &NormBackward<'_>) -> Result<Tensor> {
    let call = raw::NormBackward {
        dy: pointer(inputs.dy),
        x: pointer(inputs.x),
        weight: pointer(inputs.weight),
        residual: optional(inputs.residual),
        dweight: pointer(inputs.dweight),
        eps: inputs.eps,
    };
    let mut out = ptr::null_mut();
    // SAFETY: the tensors live for the call, which checks them before it reads or writes.
    check("layer::rms_norm_backward", unsafe { raw::g2rl_rms_norm_backward(&call, &mut out) })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { owned(out) })
}

/// What turns queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Norms of queries and keys `[head_dim]`, before the rotation.
    pub norms: Option<(&'a Tensor, &'a Tensor)>,
    /// Cosines of each token `[tokens, head_dim / 2]`.
    pub cos: &'a Tensor,
    /// Sines, like `cos`.
    pub sin: &'a Tensor,
    /// Query heads, key heads, their width.
    pub heads: (i64, i64, i64),
    /// Of the norms.
    pub eps: f64,
}

impl Rotary<'_> {
    fn call(&self, qkv: &Tensor) -> raw::Rotary {
        raw::Rotary {
            qkv: pointer(qkv),
            query_norm: optional(self.norms.map(|n| n.0)),
            key_norm: optional(self.norms.map(|n| n.1)),
            cos: pointer(self.cos),
            sin: pointer(self.sin),
            heads: self.heads.0,
            kv_heads: self.heads.1,
            dim: self.heads.2,
            eps: self.eps,
        }
    }

    /// `[tokens, (heads + 2 kv_heads) head_dim]` to queries and keys after norm and rotation,
    /// `[tokens, heads + kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds do not fit.
    pub fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        let mut out = ptr::null_mut();
        // SAFETY: the tensors live for the call, which checks them before it reads.
        check("layer::rotary", unsafe { raw::g2rl_rotary(&self.call(qkv), &mut out) })?;
        // SAFETY: the call succeeded.
        Ok(unsafe { owned(out) })
    }

    /// Writes the gradients by queries and keys into `dqkv`, which is like `qkv`, and adds those by the
    /// norms to `dnorms`, f32.
    ///
    /// # Errors
    /// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds do not fit.
    pub fn backward(
        &self,
        qkv: &Tensor,
        dturned: &Tensor,
        dqkv: &Tensor,
        dnorms: Option<(&Tensor, &Tensor)>,
    ) -> Result<()> {
        let call = self.call(qkv);
        let [dquery, dkey] = [dnorms.map(|n| n.0), dnorms.map(|n| n.1)].map(optional);
        // SAFETY: the tensors live for the call, which checks them before it reads or writes.
        check("layer::rotary_backward", unsafe {
            raw::g2rl_rotary_backward(&call, pointer(dturned), pointer(dqkv), dquery, dkey)
        })
    }
}

/// `silu(gate) up`: `[tokens, 2 inner]`, gates first, to `[tokens, inner]`.
///
/// # Errors
/// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds do not fit.
pub fn gate(gate_up: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: the tensor lives for the call, which checks it before it reads.
    check("layer::gate", unsafe { raw::g2rl_gate(pointer(gate_up), &mut out) })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { owned(out) })
}

/// The gradient `[tokens, 2 inner]` by gates and values, and `silu(gate) up` once more.
///
/// # Errors
/// [`FfiError::InvalidInput`](crate::FfiError::InvalidInput) if shapes or kinds do not fit.
pub fn gate_backward(d: &Tensor, gate_up: &Tensor) -> Result<(Tensor, Tensor)> {
    let (mut dgate_up, mut gated) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the tensors live for the call, which checks them before it reads.
    check("layer::gate_backward", unsafe {
        raw::g2rl_gate_backward(pointer(d), pointer(gate_up), &mut dgate_up, &mut gated)
    })?;
    // SAFETY: the call succeeded.
    Ok(unsafe { (owned(dgate_up), owned(gated)) })
}
