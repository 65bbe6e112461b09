//! The residual accumulator and its projection against double-precision reference values.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use g2rl_ffi::sampling::{Residual, ResidualRows, residual_rows};
use serde_json::Value;
use tch::{Kind, Tensor};

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn tensor(value: &Value, shape: &[i64]) -> Tensor {
    Tensor::from_slice(&numbers(value)).view(shape)
}

#[test]
fn features_equal_the_reference() {
    let golden: Value = serde_json::from_str(include_str!("golden/golden_features.json")).unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let size = |key: &str| case[key].as_i64().unwrap();
        let (m, l, v, d) = (size("m"), size("L"), size("V"), size("d"));
        let head = tensor(&case["W"], &[v, d]).to_kind(Kind::Float);
        let hidden = tensor(&case["h"], &[m, l, d]).to_kind(Kind::Float);
        let weights = tensor(&case["alpha_norm"], &[m, l]);
        let (mask, targets) = (tensor(&case["mask"], &[m, l]), tensor(&case["y"], &[m, l]));
        let expected = tensor(&case["Phi"], &[m, d]);
        let expected_logprobs = tensor(&case["token_logprob"], &[m, l]);
        let sums = Tensor::zeros([m, v], (Kind::Float, tch::Device::Cpu));
        for sequence in 0..m {
            for t in (0..l).filter(|t| mask.double_value(&[sequence, *t]) != 0.0) {
                let logits = hidden.get(sequence).narrow(0, t, 1).matmul(&head.tr()).contiguous();
                let scored = residual_rows(&ResidualRows {
                    logits: &logits,
                    temperature: case["temperature"].as_f64().unwrap(),
                    tokens: &[targets.double_value(&[sequence, t]) as i64],
                    weights: &[weights.double_value(&[sequence, t]) as f32],
                    residual: Some(Residual { tensor: &sums, slots: &[sequence] }),
                })
                .unwrap();
                let difference =
                    f64::from(scored.logprobs[0]) - expected_logprobs.double_value(&[sequence, t]);
                assert!(difference.abs() < 1e-4, "{}: log-probability off by {difference}", case["name"]);
            }
        }
        let features = sums.matmul(&head).to_kind(Kind::Double);
        let scale = expected.abs().max().double_value(&[]).max(1.0);
        let difference = (features - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-5 * scale, "{}: {difference:e} of {scale}", case["name"]);
    }
}
