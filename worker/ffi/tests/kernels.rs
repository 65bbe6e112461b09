//! Fused AdamW and the norm against the formulas in f64.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::FfiError;
use g2rl_ffi::kernels::{AdamWOptions, AdamWTensors, fused_adamw, l2_norm};
use tch::{Device, Kind, Tensor};

const OPTIONS: AdamWOptions =
    AdamWOptions { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// AdamW of arXiv 1711.05101, algorithm 2, with the learning rate on the decay as PyTorch has it.
fn reference(param: &mut [f64], grad: &[f64], moments: &mut [(f64, f64)], step: i32, o: &AdamWOptions) {
    for ((p, g), (m, v)) in param.iter_mut().zip(grad).zip(moments) {
        *p -= o.lr * o.weight_decay * *p;
        *m = o.beta1 * *m + (1.0 - o.beta1) * g;
        *v = o.beta2 * *v + (1.0 - o.beta2) * g * g;
        let (m_hat, v_hat) = (*m / (1.0 - o.beta1.powi(step)), *v / (1.0 - o.beta2.powi(step)));
        *p -= o.lr * m_hat / (v_hat.sqrt() + o.eps);
    }
}

#[test]
fn adamw_follows_the_formula_over_several_steps() {
    let sizes = [7usize, 1030, 3];
    tch::manual_seed(1);
    let fresh = |n: usize| Tensor::randn([n as i64], (Kind::Float, Device::Cpu));
    let params: Vec<Tensor> = sizes.iter().map(|n| fresh(*n).set_requires_grad(true)).collect();
    let zeros = || -> Vec<Tensor> { params.iter().map(|p| p.detach().zeros_like()).collect() };
    let (exp_avgs, exp_avg_sqs) = (zeros(), zeros());
    let as_f64 = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double)).unwrap();
    let mut expected: Vec<Vec<f64>> = params.iter().map(as_f64).collect();
    let mut moments: Vec<Vec<(f64, f64)>> = sizes.iter().map(|n| vec![(0.0, 0.0); *n]).collect();
    for step in 1..=5 {
        let grads: Vec<Tensor> = sizes.iter().map(|n| fresh(*n)).collect();
        let tensors =
            AdamWTensors { params: &params, grads: &grads, exp_avgs: &exp_avgs, exp_avg_sqs: &exp_avg_sqs };
        fused_adamw(&tensors, step, &OPTIONS).unwrap();
        for i in 0..sizes.len() {
            reference(&mut expected[i], &as_f64(&grads[i]), &mut moments[i], step as i32, &OPTIONS);
            for (found, wanted) in as_f64(&params[i]).iter().zip(&expected[i]) {
                // f32 arithmetic, about ten roundings of values near 1 for each step
                assert!((found - wanted).abs() < 5e-6, "step {step}: {found} instead of {wanted}");
            }
        }
    }
}

#[test]
fn views_of_a_flat_buffer_are_updated_in_place() {
    let zeros = || Tensor::zeros([8], (Kind::Float, Device::Cpu));
    let (flat, m, v) = (zeros(), zeros(), zeros());
    let half = |t: &Tensor| [t.narrow(0, 4, 4)];
    let ones = [Tensor::ones([4], (Kind::Float, Device::Cpu))];
    let tensors =
        AdamWTensors { params: &half(&flat), grads: &ones, exp_avgs: &half(&m), exp_avg_sqs: &half(&v) };
    fused_adamw(&tensors, 1, &OPTIONS).unwrap();
    let found: Vec<f32> = Vec::try_from(&flat).unwrap();
    assert_eq!(&found[..4], [0.0; 4]);
    // The first step of Adam is lr times the gradient's sign.
    assert!(found[4..].iter().all(|p| (p + 0.01).abs() < 1e-6), "{found:?}");
}

#[test]
fn adamw_refuses_what_does_not_fit() {
    let t = |n: i64| vec![Tensor::zeros([n], (Kind::Float, Device::Cpu))];
    let (two, three) = (t(2), t(3));
    let tensors = AdamWTensors { params: &two, grads: &three, exp_avgs: &two, exp_avg_sqs: &two };
    assert!(matches!(fused_adamw(&tensors, 1, &OPTIONS), Err(FfiError::InvalidInput { .. })));
    let tensors = AdamWTensors { params: &two, grads: &two, exp_avgs: &[], exp_avg_sqs: &two };
    assert!(matches!(fused_adamw(&tensors, 1, &OPTIONS), Err(FfiError::InvalidInput { .. })));
    let tensors = AdamWTensors { params: &two, grads: &two, exp_avgs: &two, exp_avg_sqs: &two };
    assert!(matches!(fused_adamw(&tensors, 0, &OPTIONS), Err(FfiError::InvalidInput { .. })));
}

#[test]
fn the_norm_is_that_of_all_elements_together() {
    let a = Tensor::from_slice(&[3.0f32, 0.0]);
    let b = Tensor::from_slice(&[4.0f32]).to_kind(Kind::BFloat16);
    let c = Tensor::from_slice(&[12.0f64]);
    assert_eq!(l2_norm(&[&a, &b, &c]).unwrap(), 13.0);
    assert_eq!(l2_norm::<Tensor>(&[]).unwrap(), 0.0);
    assert!(l2_norm(&[Tensor::from_slice(&[f32::NAN])]).unwrap().is_nan());
}

#[test]
fn the_norm_is_accumulated_in_f64_whatever_the_threads() {
    // In f32, adding 1e-8 to 1 changes nothing: a single f32 sum would give exactly 1.
    let n = 1_000_003i64;
    let x = Tensor::full([n], 1e-4, (Kind::Float, Device::Cpu));
    let _ = x.narrow(0, 0, 1).fill_(1.0);
    let small = f64::from(1e-4f32);
    let expected = (1.0 + (n - 1) as f64 * small * small).sqrt();
    tch::set_num_threads(1);
    let one = l2_norm(&[&x]).unwrap();
    tch::set_num_threads(2);
    let two = l2_norm(&[&x]).unwrap();
    assert!((one / expected - 1.0).abs() < 1e-12, "{one} instead of {expected}");
    assert_eq!(one.to_bits(), two.to_bits());
}
