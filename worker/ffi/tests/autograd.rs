//! Gradients with given output gradients, against derivatives by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::autograd::{InferenceMode, backward, grad, set_grad};
use tch::{Kind, Tensor};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor).unwrap()
}

#[test]
fn gradients_are_weighted_by_the_output_gradients() {
    // y = a * b: dy/da = b, dy/db = a, weighted by g = [1, 10].
    let (a, b, unused) = (leaf(&[2.0, 3.0]), leaf(&[5.0, 7.0]), leaf(&[1.0]));
    let y = &a * &b;
    let found = grad(&[y], &[Tensor::from_slice(&[1.0, 10.0])], &[a, b, unused]).unwrap();
    assert_eq!(values(found[0].as_ref().unwrap()), [5.0, 70.0]);
    assert_eq!(values(found[1].as_ref().unwrap()), [2.0, 30.0]);
    assert!(found[2].is_none());
}

#[test]
fn gradients_of_parameters_are_not_touched() {
    let a = leaf(&[2.0]);
    let y = &a * &a;
    grad(&[y], &[Tensor::from_slice(&[1.0])], &[a.shallow_clone()]).unwrap();
    assert!(!a.grad().defined());
}

#[test]
fn preset_gradients_accumulate_in_the_flat_buffer() {
    // Two parameters whose gradients are neighbours in one buffer. y1 = 3 a, y2 = b^2.
    let flat = Tensor::zeros([5], (Kind::Double, tch::Device::Cpu));
    let (a, b) = (leaf(&[1.0, 2.0]), leaf(&[4.0, 5.0, 6.0]));
    set_grad(&a, &flat.narrow(0, 0, 2)).unwrap();
    set_grad(&b, &flat.narrow(0, 2, 3)).unwrap();
    for round in 1..=3 {
        let outputs = [&a * 3.0, &b * &b];
        let ones = [Tensor::ones_like(&outputs[0]), Tensor::ones_like(&outputs[1])];
        backward(&outputs, &ones).unwrap();
        let expected = [3.0, 3.0, 8.0, 10.0, 12.0].map(|g| g * f64::from(round));
        assert_eq!(values(&flat), expected);
        assert_eq!(a.grad().data_ptr(), flat.data_ptr());
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let a = leaf(&[1.0]);
    assert!(grad(&[&a * 2.0], &[], std::slice::from_ref(&a)).is_err());
    assert!(grad(&[&a * 2.0], &[Tensor::from_slice(&[1.0, 1.0])], &[a.shallow_clone()]).is_err());
    // What libtorch refuses comes back as its message: here, an output without a graph.
    let constant = Tensor::from_slice(&[1.0]);
    let error = grad(&[constant.shallow_clone()], &[constant], &[a.shallow_clone()]).unwrap_err();
    assert!(error.to_string().starts_with("autograd::grad: "), "{error}");
    assert!(error.to_string().contains("does not require grad"), "{error}");
    assert!(set_grad(&a, &Tensor::from_slice(&[1.0f32])).is_err());
    assert!(set_grad(&(&a * 2.0), &Tensor::from_slice(&[1.0])).is_err());
}

#[test]
fn inference_mode_lasts_as_long_as_its_guard() {
    let a = leaf(&[1.0]);
    {
        let _guard = InferenceMode::enter().unwrap();
        assert!(!(&a * 2.0).requires_grad());
    }
    assert!((&a * 2.0).requires_grad());
}
