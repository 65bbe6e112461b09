//! Sampling and residuals against the definitions in f64.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::FfiError;
use g2rl_ffi::sampling::{Residual, ResidualRows, SampleRows, SampledRows, residual_rows, sample_rows};
use tch::{Device, Kind, Tensor};

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Softmax at a temperature in f64.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let top = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let weights: Vec<f64> = logits.iter().map(|x| ((f64::from(*x) - top) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn entropy(p: &[f64]) -> f64 {
    p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
}

/// The rows' values.
fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
    Vec::try_from(logits).unwrap()
}

fn plain<'a>(logits: &'a Tensor, temperature: f64, uniforms: &'a [f64]) -> SampleRows<'a> {
    SampleRows { logits, temperature, top_k: None, top_p: 1.0, min_p: 0.0, uniforms, residual: None }
}

/// What transformers' warpers keep: top-k (ties stay), then top-p over ascending probabilities
/// (those with cumulative mass <= 1 - p go, the largest stays), then min-p.
fn warped(p: &[f64], top_k: Option<i64>, top_p: f64, min_p: f64) -> Vec<f64> {
    let mut kept = p.to_vec();
    let normalise = |kept: &mut Vec<f64>| {
        let mass: f64 = kept.iter().sum();
        kept.iter_mut().for_each(|p| *p /= mass);
    };
    if let Some(k) = top_k {
        let mut sorted = kept.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted[(k as usize).min(p.len()) - 1];
        kept.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
        normalise(&mut kept);
    }
    if top_p < 1.0 {
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|a, b| kept[*a].total_cmp(&kept[*b]));
        let mut mass = 0.0;
        for i in &order[..order.len() - 1] {
            mass += kept[*i];
            if mass <= 1.0 - top_p {
                kept[*i] = 0.0;
            }
        }
        normalise(&mut kept);
    }
    let top = kept.iter().copied().fold(0.0, f64::max);
    kept.iter_mut().filter(|p| **p < min_p * top).for_each(|p| *p = 0.0);
    normalise(&mut kept);
    kept
}

/// The token whose interval of the cumulative distribution holds `uniform`, and the distance to the
/// interval's nearer end: closer than f32's rounding, its neighbour is right too.
fn inverse(p: &[f64], uniform: f64) -> (usize, f64) {
    let mut below = 0.0;
    let last = p.iter().rposition(|p| *p > 0.0).unwrap();
    for (token, p) in p.iter().enumerate() {
        if *p > 0.0 && (uniform < below + p || token == last) {
            return (token, (uniform - below).min(below + p - uniform).abs());
        }
        below += p;
    }
    unreachable!("the last possible token is returned")
}

fn check_statistics(found: &SampledRows, logits: &Tensor, temperature: f64) {
    for (i, row) in rows(logits).iter().enumerate() {
        let p = softmax(row, temperature);
        let expected = p[found.tokens[i] as usize].ln();
        assert!((f64::from(found.logprobs[i]) - expected).abs() < 2e-6 * (1.0 + expected.abs()), "row {i}");
        assert!((f64::from(found.entropies[i]) - entropy(&p)).abs() < 3e-6, "row {i}");
    }
}

#[test]
fn tokens_follow_the_inverse_cdf() {
    tch::manual_seed(3);
    for vocab in [1i64, 5, 16, 255, 257, 1000, 32003] {
        for temperature in [0.7, 1.0, 1.3] {
            let logits = Tensor::randn([6, vocab], OPTIONS) * 3.0;
            let uniforms = [0.0, 0.123, 0.5, 0.77, 0.999, 1.0 - f64::EPSILON / 2.0];
            let found = sample_rows(&plain(&logits, temperature, &uniforms)).unwrap();
            check_statistics(&found, &logits, temperature);
            for (i, row) in rows(&logits).iter().enumerate() {
                let (token, distance) = inverse(&softmax(row, temperature), uniforms[i]);
                let same = found.tokens[i] == token as i64;
                assert!(same || distance < 1e-6, "vocab {vocab}, row {i}: {} for {token}", found.tokens[i]);
            }
        }
    }
}

#[test]
fn the_ends_of_the_uniform_give_the_first_and_last_possible_token() {
    // Weights 0 (underflow), 1, 1, 0: only tokens 1 and 2 can be drawn.
    let logits = Tensor::from_slice(&[-200.0f32, 0.0, 0.0, -200.0]).repeat([2, 1]);
    let found = sample_rows(&plain(&logits, 1.0, &[0.0, 1.0 - f64::EPSILON / 2.0])).unwrap();
    assert_eq!(found.tokens, [1, 2]);
    assert!((found.logprobs[0] - 0.5f32.ln()).abs() < 1e-6);
    assert!((found.entropies[0] - 2.0f32.ln()).abs() < 1e-6);
}

#[test]
fn frequencies_are_the_probabilities() {
    // 4000 equidistant uniforms: each token's count is its probability times 4000, within 1.
    let count = 4000;
    let logits = Tensor::from_slice(&[1.0f32, -1.0, 0.5, 2.0, 0.0]).repeat([count, 1]);
    let uniforms: Vec<f64> = (0..count).map(|i| (i as f64 + 0.5) / count as f64).collect();
    let found = sample_rows(&plain(&logits, 0.7, &uniforms)).unwrap();
    let p = softmax(&rows(&logits)[0], 0.7);
    for (token, p) in p.iter().enumerate() {
        let times = found.tokens.iter().filter(|t| **t == token as i64).count() as f64;
        assert!((times - p * count as f64).abs() <= 1.0, "token {token}: {times} times");
    }
}

#[test]
fn saturated_logits() {
    let logits = Tensor::from_slice2(&[[1e4f32, -1e4, 0.0], [3e38, -3e38, 3e38], [0.0, 0.0, 0.0]]);
    let found = sample_rows(&plain(&logits, 0.7, &[0.99, 0.99, 0.5])).unwrap();
    assert_eq!(found.tokens, [0, 2, 1]);
    assert_eq!(found.logprobs[0], 0.0);
    assert_eq!(found.entropies[0], 0.0);
    assert!((found.entropies[1] - 2.0f32.ln()).abs() < 1e-6);
    assert!((found.entropies[2] - 3.0f32.ln()).abs() < 1e-6);
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let logits = Tensor::from_slice(&[0.0f32, 2.0, 1.0, 2.0]).unsqueeze(0);
    let found = sample_rows(&plain(&logits, 0.0, &[])).unwrap();
    assert_eq!(found.tokens, [1]);
    check_statistics(&found, &logits, 1.0);
}

#[test]
fn truncation_is_that_of_transformers() {
    tch::manual_seed(4);
    let uniforms = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0 - f64::EPSILON / 2.0];
    for vocab in [3i64, 17, 1000] {
        let logits = Tensor::randn([6, vocab], OPTIONS) * 2.0;
        for (top_k, top_p, min_p) in [
            (Some(1), 1.0, 0.0),
            (Some(3), 1.0, 0.0),
            (Some(5000), 1.0, 0.0),
            (None, 0.9, 0.0),
            (None, 1e-9, 0.0),
            (None, 1.0, 0.2),
            (None, 1.0, 1.0),
            (Some(10), 0.8, 0.05),
        ] {
            let inputs = SampleRows { top_k, top_p, min_p, ..plain(&logits, 1.3, &uniforms) };
            let found = sample_rows(&inputs).unwrap();
            check_statistics(&found, &logits, 1.3);
            for (i, row) in rows(&logits).iter().enumerate() {
                let kept = warped(&softmax(row, 1.3), top_k, top_p, min_p);
                let (token, distance) = inverse(&kept, uniforms[i]);
                assert!(
                    found.tokens[i] == token as i64
                        || (kept[found.tokens[i] as usize] > 0.0 && distance < 1e-6),
                    "vocab {vocab}, {top_k:?} {top_p} {min_p}, row {i}: {} for {token}",
                    found.tokens[i]
                );
            }
        }
    }
}

#[test]
fn ties_with_the_kth_logit_stay() {
    let logits = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 0.0]).repeat([3, 1]);
    let inputs = SampleRows { top_k: Some(1), ..plain(&logits, 1.0, &[0.1, 0.5, 0.9]) };
    assert_eq!(sample_rows(&inputs).unwrap().tokens, [0, 1, 2]);
}

#[test]
fn the_residual_is_onehot_minus_softmax() {
    tch::manual_seed(5);
    for vocab in [5i64, 1003] {
        let logits = Tensor::randn([3, vocab], OPTIONS) * 2.0;
        let residual = Tensor::ones([4, vocab], OPTIONS);
        let slots = [2, 0, 3];
        let inputs = SampleRows {
            residual: Some(Residual { tensor: &residual, slots: &slots }),
            top_k: Some(2),
            ..plain(&logits, 0.7, &[0.1, 0.5, 0.9])
        };
        let found = sample_rows(&inputs).unwrap();
        let sums = rows(&residual);
        assert!(sums[1].iter().all(|r| *r == 1.0), "a slot that was not named");
        for (i, row) in rows(&logits).iter().enumerate() {
            for (token, p) in softmax(row, 0.7).iter().enumerate() {
                let expected = 1.0 + f64::from(u8::from(found.tokens[i] == token as i64)) - p;
                let found = f64::from(sums[slots[i] as usize][token]);
                assert!((found - expected).abs() < 5e-7, "row {i}, token {token}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn given_tokens_have_the_same_statistics() {
    tch::manual_seed(6);
    let logits = Tensor::randn([3, 77], OPTIONS) * 4.0;
    let residual = Tensor::zeros([3, 77], OPTIONS);
    let (slots, weights) = ([0, 1, 2], [1.0f32, 0.25, -2.0]);
    let drawn = sample_rows(&plain(&logits, 1.3, &[0.3, 0.6, 0.9])).unwrap();
    let inputs = ResidualRows {
        logits: &logits,
        temperature: 1.3,
        tokens: &drawn.tokens,
        weights: &weights,
        residual: Some(Residual { tensor: &residual, slots: &slots }),
    };
    let scored = residual_rows(&inputs).unwrap();
    assert_eq!((scored.logprobs, scored.entropies), (drawn.logprobs, drawn.entropies));
    for (i, row) in rows(&logits).iter().enumerate() {
        for (token, p) in softmax(row, 1.3).iter().enumerate() {
            let onehot = f64::from(u8::from(drawn.tokens[i] == token as i64));
            let expected = f64::from(weights[i]) * (onehot - p);
            assert!((f64::from(rows(&residual)[i][token]) - expected).abs() < 5e-7);
        }
    }
}

#[test]
fn a_row_depends_on_itself_only() {
    tch::manual_seed(8);
    let logits = Tensor::randn([5, 4099], OPTIONS) * 3.0;
    let uniforms = [0.1, 0.3, 0.5, 0.7, 0.9];
    tch::set_num_threads(2);
    let together = sample_rows(&plain(&logits, 0.7, &uniforms)).unwrap();
    tch::set_num_threads(1);
    for i in 0..5 {
        let row = logits.narrow(0, i as i64, 1);
        let alone = sample_rows(&plain(&row, 0.7, &uniforms[i..=i])).unwrap();
        assert_eq!(alone.tokens[0], together.tokens[i]);
        assert_eq!(alone.logprobs[0].to_bits(), together.logprobs[i].to_bits());
        assert_eq!(alone.entropies[0].to_bits(), together.entropies[i].to_bits());
    }
}

#[test]
fn rows_that_are_not_finite_are_named() {
    for (bad, at) in [(f32::NAN, 0), (f32::INFINITY, 18), (f32::NEG_INFINITY, 7)] {
        let logits = Tensor::zeros([3, 19], OPTIONS);
        let _ = logits.get(1).narrow(0, at, 1).fill_(f64::from(bad));
        let error = sample_rows(&plain(&logits, 1.0, &[0.5; 3])).unwrap_err();
        assert!(matches!(error, FfiError::NotFinite { row: 1, .. }), "{error}");
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let logits = Tensor::zeros([2, 4], OPTIONS);
    let residual = Tensor::zeros([2, 4], OPTIONS);
    let base = plain(&logits, 1.0, &[0.5, 0.5]);
    let with_slots = |slots| SampleRows { residual: Some(Residual { tensor: &residual, slots }), ..base };
    let doubles = logits.to_kind(Kind::Double);
    let columns = Tensor::zeros([4, 2], OPTIONS).transpose(0, 1);
    for inputs in [
        SampleRows { temperature: -1.0, ..base },
        SampleRows { temperature: f64::NAN, ..base },
        SampleRows { top_k: Some(0), ..base },
        SampleRows { top_p: 0.0, ..base },
        SampleRows { min_p: 1.5, ..base },
        SampleRows { uniforms: &[0.5], ..base },
        SampleRows { uniforms: &[0.5, 1.0], ..base },
        SampleRows { logits: &doubles, ..base },
        SampleRows { logits: &columns, ..base },
        with_slots(&[0]),
        with_slots(&[0, 2]),
        with_slots(&[1, 1]),
    ] {
        assert!(matches!(sample_rows(&inputs), Err(FfiError::InvalidInput { .. })), "{inputs:?}");
    }
    let given = ResidualRows {
        logits: &logits,
        temperature: 1.0,
        tokens: &[0, 4],
        weights: &[1.0; 2],
        residual: None,
    };
    assert!(matches!(residual_rows(&given), Err(FfiError::InvalidInput { .. })));
}
