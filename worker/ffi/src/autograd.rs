//! Autograd with output gradients, which tch's `run_backward` does not take.

use std::marker::PhantomData;
use std::ptr;

use tch::Tensor;

use crate::error::{FfiError, Result, check};
use crate::raw::{self, Borrowed, pointer};

/// Gradients of `outputs`, weighted by `grad_outputs` (same shapes), by `inputs`. `None` where an
/// input has no part in the outputs. The graph is freed; gradients of parameters are not touched.
///
/// # Errors
/// [`FfiError`] if outputs and weights differ in number or shape, or libtorch refuses.
pub fn grad(outputs: &[Tensor], grad_outputs: &[Tensor], inputs: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
    const NAME: &str = "autograd::grad";
    same_shapes(NAME, outputs, grad_outputs)?;
    let (outputs, grad_outputs, borrowed) =
        (Borrowed::new(outputs), Borrowed::new(grad_outputs), Borrowed::new(inputs));
    let mut gradients = vec![ptr::null_mut(); inputs.len()];
    // SAFETY: the slices borrow live tensors for the call, and `gradients` has room for one pointer
    // of each input, as the function requires.
    let status = unsafe {
        raw::g2rl_autograd_grad(
            outputs.slice(),
            grad_outputs.slice(),
            borrowed.slice(),
            gradients.as_mut_ptr(),
        )
    };
    check(NAME, status)?;
    let own = |tensor: *mut torch_sys::C_tensor| {
        // SAFETY: a pointer that is not null is a new tensor, and this is its only owner.
        (!tensor.is_null()).then(|| unsafe { Tensor::from_ptr(tensor) })
    };
    Ok(gradients.into_iter().map(own).collect())
}

/// Adds the gradients of `outputs`, weighted by `grad_outputs`, to the leaves' own gradients.
///
/// # Errors
/// [`FfiError`] if outputs and weights differ in number or shape, or libtorch refuses.
pub fn backward(outputs: &[Tensor], grad_outputs: &[Tensor]) -> Result<()> {
    const NAME: &str = "autograd::backward";
    same_shapes(NAME, outputs, grad_outputs)?;
    let (outputs, grad_outputs) = (Borrowed::new(outputs), Borrowed::new(grad_outputs));
    // SAFETY: the slices borrow live tensors for the call.
    check(NAME, unsafe { raw::g2rl_autograd_backward(outputs.slice(), grad_outputs.slice()) })
}

/// Presets the gradient of a leaf: later backwards add into `gradient`'s memory in place, for
/// instance a view of one flat buffer.
///
/// # Errors
/// [`FfiError`] if `parameter` is no leaf, or shape, kind or device differ.
pub fn set_grad(parameter: &Tensor, gradient: &Tensor) -> Result<()> {
    // SAFETY: both tensors live for the call; the parameter keeps a reference of its own.
    check("autograd::set_grad", unsafe { raw::g2rl_set_grad(pointer(parameter), pointer(gradient)) })
}

/// libtorch itself would sum a weight of another shape down to the output's.
fn same_shapes(operation: &'static str, outputs: &[Tensor], grad_outputs: &[Tensor]) -> Result<()> {
    if outputs.len() != grad_outputs.len() {
        let message = format!("{} outputs, but {} output gradients", outputs.len(), grad_outputs.len());
        return Err(FfiError::invalid(operation, message));
    }
    match outputs.iter().zip(grad_outputs).position(|(output, gradient)| output.size() != gradient.size()) {
        None => Ok(()),
        Some(at) => {
            let (output, gradient) = (outputs[at].size(), grad_outputs[at].size());
            let message = format!("output {at} has shape {output:?}, its gradient {gradient:?}");
            Err(FfiError::invalid(operation, message))
        }
    }
}

/// Inference mode of this thread until the guard is dropped: cheaper than no-grad. Tensors made
/// under it can never take part in autograd.
#[derive(Debug)]
pub struct InferenceMode {
    guard: *mut raw::InferenceGuard,
    /// The mode belongs to a thread, so the guard stays on it.
    _not_send: PhantomData<*mut ()>,
}

impl InferenceMode {
    /// Enters inference mode.
    ///
    /// # Errors
    /// [`FfiError`] if memory is exhausted.
    pub fn enter() -> Result<Self> {
        let mut guard = ptr::null_mut();
        // SAFETY: `guard` is a valid place for the result.
        check("autograd::InferenceMode", unsafe { raw::g2rl_inference_mode_enter(&mut guard) })?;
        Ok(Self { guard, _not_send: PhantomData })
    }
}

impl Drop for InferenceMode {
    fn drop(&mut self) {
        // SAFETY: the guard was made by `enter` on this thread (the type is not Send) and is left once.
        unsafe { raw::g2rl_inference_mode_leave(self.guard) };
    }
}
