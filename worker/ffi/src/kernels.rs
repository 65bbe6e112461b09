//! Fused AdamW and the global norm, on any device.

use std::borrow::Borrow;

use tch::Tensor;

use crate::error::{FfiError, Result, check};
use crate::raw::{self, Borrowed};

/// The tensors of one optimizer step, in the same order in each list.
#[derive(Debug, Clone, Copy)]
pub struct AdamWTensors<'a> {
    /// Parameters, updated in place.
    pub params: &'a [Tensor],
    /// Their gradients.
    pub grads: &'a [Tensor],
    /// First moments, updated in place.
    pub exp_avgs: &'a [Tensor],
    /// Second moments, updated in place.
    pub exp_avg_sqs: &'a [Tensor],
}

/// Coefficients of AdamW (Loshchilov and Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

/// One AdamW step over all tensors in one pass. `step` is this step's number, from 1.
///
/// # Errors
/// [`FfiError::InvalidInput`] if the lists differ in length or shape or `step` is 0; otherwise what
/// libtorch refuses.
pub fn fused_adamw(tensors: &AdamWTensors<'_>, step: u64, options: &AdamWOptions) -> Result<()> {
    const NAME: &str = "kernels::fused_adamw";
    let lists = [tensors.grads, tensors.exp_avgs, tensors.exp_avg_sqs];
    for list in lists {
        if list.len() != tensors.params.len() {
            return Err(FfiError::invalid(NAME, "the lists differ in length"));
        }
        for (index, (param, other)) in tensors.params.iter().zip(list).enumerate() {
            if param.size() != other.size() || param.device() != other.device() {
                let message = format!("tensor {index} differs from its parameter in shape or device");
                return Err(FfiError::invalid(NAME, message));
            }
        }
    }
    let step = match i64::try_from(step) {
        Ok(step) if step > 0 => step,
        _ => return Err(FfiError::invalid(NAME, "steps count from 1")),
    };
    let [params, grads, exp_avgs, exp_avg_sqs] =
        [tensors.params, lists[0], lists[1], lists[2]].map(Borrowed::new);
    let call = raw::AdamW {
        params: params.slice(),
        grads: grads.slice(),
        exp_avgs: exp_avgs.slice(),
        exp_avg_sqs: exp_avg_sqs.slice(),
        step,
        lr: options.lr,
        beta1: options.beta1,
        beta2: options.beta2,
        eps: options.eps,
        weight_decay: options.weight_decay,
    };
    // SAFETY: `call` and the tensors its slices borrow live for the call; lengths and shapes agree.
    check(NAME, unsafe { raw::g2rl_fused_adamw(&call) })
}

/// Adds the product of two bf16 matrices on a GPU to `sum` f32, accumulated and added in f32.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn add_product(sum: &Tensor, left: &Tensor, right: &Tensor) -> Result<()> {
    // SAFETY: the tensors live for the call, and libtorch checks them.
    check("kernels::add_product", unsafe {
        raw::g2rl_add_product(raw::pointer(sum), raw::pointer(left), raw::pointer(right))
    })
}

/// The Euclidean norm of all elements of all tensors together, accumulated in f64. On a CPU it does
/// not depend on the number of threads.
///
/// # Errors
/// [`FfiError`] if libtorch refuses.
pub fn l2_norm<T: Borrow<Tensor>>(tensors: &[T]) -> Result<f64> {
    let tensors = Borrowed::new(tensors);
    let mut norm = 0.0;
    // SAFETY: the slice borrows live tensors for the call, and `norm` is a valid place.
    check("kernels::l2_norm", unsafe { raw::g2rl_l2_norm(tensors.slice(), &mut norm) })?;
    Ok(norm)
}
