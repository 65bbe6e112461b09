//! The GPU's kernels against the same arithmetic in double precision. Skipped with a message where there is no GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::cuda;
use g2rl_ffi::flash::{FlashAttention, Spans};
use g2rl_ffi::gpu::attention::{DecodeAttention, Places, decode_attention, supports};
use g2rl_ffi::gpu::sampling::{DrawInputs, add_residuals, draw};
use g2rl_ffi::gpu::{self, head, rows};
use g2rl_ffi::head::RowGradients;
use g2rl_ffi::kernels::add_product;
use g2rl_ffi::layer::{NormBackward, Rotary};
use tch::{Device, Kind, Tensor};

fn gpu() -> Option<Device> {
    if !cuda::is_available() || !gpu::BUILT {
        println!("skipped: no GPU");
        return None;
    }
    tch::manual_seed(7);
    Some(Device::Cuda(0))
}

fn bf16(size: &[i64], device: Device) -> Tensor {
    Tensor::randn(size, (Kind::BFloat16, device))
}

fn double(tensor: &Tensor) -> Tensor {
    tensor.to_device(Device::Cpu).to_kind(Kind::Double)
}

/// The largest difference, in parts of the largest expected value.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = |t: Tensor| t.abs().max().double_value(&[]);
    largest(double(found) - expected) / largest(expected.shallow_clone())
}

/// Softmax attention of one row `[heads, d]` over tokens `[tokens, kv_heads, d]`, in f64.
fn attend(query: &Tensor, keys: &Tensor, values: &Tensor) -> Tensor {
    let (group, d) = (query.size()[0] / keys.size()[1], query.size()[1]);
    let per_head = |t: &Tensor| t.repeat_interleave_self_int(group, 1, None);
    let scores = query.unsqueeze(1).bmm(&per_head(keys).permute([1, 2, 0])) / (d as f64).sqrt();
    scores.softmax(-1, Kind::Double).bmm(&per_head(values).transpose(0, 1)).squeeze_dim(1)
}

#[test]
fn nothing_is_taken_from_elsewhere() {
    let cpu = Tensor::zeros([2, 8], (Kind::BFloat16, Device::Cpu));
    assert!(!gpu::takes(&cpu) && rows::gate(&cpu).is_err());
    assert!(!supports(Device::Cpu, Kind::BFloat16, (8, 2, 64)));
}

#[test]
fn decode_attention_is_one_softmax_over_both_extents_and_the_token() {
    let Some(device) = gpu() else { return };
    let tokens = 3000i64;
    // Start and length of prompts and own extents; the third row is dead, the fourth has no prompt, the fifth nothing.
    let prompts = [(1700, 513), (1, 3), (0, 40), (5, 0), (9, 0), (1700, 513)];
    let own = [(100, 700), (900, 1), (0, 10), (1000, 77), (2990, 0), (2300, 64)];
    let alive = [1i64, 1, 0, 1, 1, 1];
    let rows = alive.len() as i64;
    for (heads, kv_heads, d) in
        [(16, 8, 128), (8, 8, 64), (32, 8, 128), (12, 4, 64), (14, 2, 128), (16, 2, 64)]
    {
        // Rows of queries, keys and values side by side, as the worker has them.
        let fused = bf16(&[rows, heads + 2 * kv_heads, d], device);
        let (query, key, value) = (
            fused.narrow(1, 0, heads),
            fused.narrow(1, heads, kv_heads),
            fused.narrow(1, heads + kv_heads, kv_heads),
        );
        let (keys, values) = (bf16(&[tokens, kv_heads, d], device), bf16(&[tokens, kv_heads, d], device));
        let before = (keys.copy(), values.copy());
        let place = |values: Vec<i64>| Tensor::from_slice(&values).to_device(device);
        let column = |pairs: [(i64, i64); 6], second: bool| {
            place(pairs.iter().map(|pair| if second { pair.1 } else { pair.0 }).collect())
        };
        let found = decode_attention(&DecodeAttention {
            query: &query,
            key: &key,
            value: &value,
            keys: &keys,
            values: &values,
            places: Places {
                prompt_starts: &column(prompts, false),
                prompt_lengths: &column(prompts, true),
                own_starts: &column(own, false),
                own_lengths: &column(own, true),
                alive: &place(alive.to_vec()),
            },
            longest: 2048,
            scale: (d as f64).powf(-0.5),
        })
        .unwrap();
        for row in 0..rows {
            let at = row as usize;
            if alive[at] == 0 {
                assert_eq!(found.get(row).abs().max().double_value(&[]), 0.0);
                continue;
            }
            let all = |pool: &Tensor, new: &Tensor| {
                let part = |(start, length): (i64, i64)| pool.narrow(0, start, length);
                double(&Tensor::cat(&[part(prompts[at]), part(own[at]), new.narrow(0, row, 1)], 0))
            };
            let expected = attend(&double(&query.get(row)), &all(&before.0, &key), &all(&before.1, &value));
            let difference = error(&found.get(row), &expected);
            assert!(difference < 8e-3, "{heads}/{kv_heads}/{d}, row {row}: {difference:.1e}");
            // The new token came into the pool, and nothing else did.
            let to = own[at].0 + own[at].1;
            for (pool, new, before) in [(&keys, &key, &before.0), (&values, &value, &before.1)] {
                assert!(pool.get(to).equal(&new.get(row)));
                before.get(to).copy_(&new.get(row));
            }
        }
        assert!(keys.equal(&before.0) && values.equal(&before.1));
    }
}

#[test]
fn rows_and_their_gradients_are_those_of_double_precision() {
    let Some(device) = gpu() else { return };
    let tokens = 1003;
    // 1. Norm.
    let width = 2048;
    let (x, dy, residual) =
        (bf16(&[tokens, width], device), bf16(&[tokens, width], device), bf16(&[tokens, width], device));
    let weight = bf16(&[width], device);
    let dweight = Tensor::ones([width], (Kind::Float, device));
    let dx = rows::rms_norm_backward(&NormBackward {
        dy: &dy,
        x: &x,
        weight: &weight,
        residual: Some(&residual),
        dweight: &dweight,
        eps: 1e-6,
    })
    .unwrap();
    let leaves = [&x, &weight].map(|t| double(t).set_requires_grad(true));
    let output = leaves[0].rms_norm([width], Some(&leaves[1]), 1e-6);
    (output * double(&dy)).sum(Kind::Double).backward();
    assert!(error(&dx, &(leaves[0].grad() + double(&residual))) < 8e-3);
    assert!(error(&dweight, &(leaves[1].grad() + 1.0)) < 1e-4);

    // 2. Gate.
    let (gate_up, d) = (bf16(&[tokens, 2 * 768], device), bf16(&[tokens, 768], device));
    let leaf = double(&gate_up).set_requires_grad(true);
    let halves = leaf.chunk(2, -1);
    let output = halves[0].silu() * &halves[1];
    (&output * double(&d)).sum(Kind::Double).backward();
    let output = output.detach();
    assert!(error(&rows::gate(&gate_up).unwrap(), &output) < 8e-3);
    let (dgate_up, gated) = rows::gate_backward(&d, &gate_up).unwrap();
    assert!(error(&gated, &output) < 8e-3 && error(&dgate_up, &leaf.grad()) < 8e-3);

    // 3. Norm and rotation, and rotation alone.
    let (heads, kv_heads) = (6, 2);
    for (d, with_norms) in [(128, true), (64, true), (128, false)] {
        let qkv = bf16(&[tokens, (heads + 2 * kv_heads) * d], device);
        let dturned = bf16(&[tokens, heads + kv_heads, d], device);
        let norms = [bf16(&[d], device), bf16(&[d], device)];
        let (cos, sin) = (bf16(&[tokens, d / 2], device), bf16(&[tokens, d / 2], device));
        let rotary = Rotary {
            norms: with_norms.then_some((&norms[0], &norms[1])),
            cos: &cos,
            sin: &sin,
            heads: (heads, kv_heads, d),
            eps: 1e-6,
        };
        let leaves = [&qkv, &norms[0], &norms[1]].map(|t| double(t).set_requires_grad(true));
        let parts = leaves[0].view([tokens, heads + 2 * kv_heads, d]);
        let part = |start, count, norm: &Tensor| {
            let part = parts.narrow(1, start, count);
            if with_norms { part.rms_norm([d], Some(norm), 1e-6) } else { part }
        };
        let x = Tensor::cat(&[part(0, heads, &leaves[1]), part(heads, kv_heads, &leaves[2])], 1);
        let halves = x.chunk(2, -1);
        let (c, s) = (double(&cos).unsqueeze(1), double(&sin).unsqueeze(1));
        let output = Tensor::cat(&[&halves[0] * &c - &halves[1] * &s, &halves[1] * &c + &halves[0] * &s], -1);
        (&output * double(&dturned)).sum(Kind::Double).backward();
        assert!(error(&rows::turn(&rotary, &qkv).unwrap(), &output.detach()) < 8e-3);
        let dqkv = qkv.zeros_like();
        let dnorms = [(); 2].map(|()| Tensor::ones([d], (Kind::Float, device)));
        let sums = with_norms.then_some((&dnorms[0], &dnorms[1]));
        rows::turn_backward(&rotary, &qkv, &dturned, &dqkv, sums).unwrap();
        assert!(error(&dqkv, &leaves[0].grad()) < 8e-3, "{d}, norms {with_norms}");
        if with_norms {
            for (found, leaf) in dnorms.iter().zip(&leaves[1..]) {
                assert!(error(found, &(leaf.grad() + 1.0)) < 1e-4);
            }
        }
    }
}

#[test]
fn tokens_are_drawn_by_the_inverse_of_the_cumulative_distribution() {
    let Some(device) = gpu() else { return };
    for vocab in [8i64, 2048, 5000, 151_936] {
        let rows = 9i64;
        let logits = bf16(&[rows, vocab], device) * 3.0;
        let numbers =
            |f: fn(i64) -> f64| Tensor::from_slice(&(0..rows).map(f).collect::<Vec<_>>()).to_device(device);
        let temperatures = numbers(|row| 0.5 + row as f64 / 4.0);
        let uniforms = Tensor::rand([3, rows + 2], (Kind::Double, device));
        let greedy = numbers(|row| f64::from(u8::from(row == 4))).to_kind(Kind::Int64);
        let inputs = DrawInputs {
            logits: &logits,
            temperatures: &temperatures,
            uniforms: &uniforms,
            step: &Tensor::from_slice(&[2i64]).to_device(device),
            greedy: &greedy,
        };
        let drawn = draw(&inputs).unwrap();
        let scaled = double(&logits) / double(&temperatures).unsqueeze(1);
        let logs = scaled.log_softmax(-1, Kind::Double);
        let sums = logs.exp().cumsum(1, Kind::Double);
        let tokens: Vec<i64> = Vec::try_from(drawn.tokens.to_device(Device::Cpu)).unwrap();
        for (row, token) in tokens.iter().enumerate() {
            let (at, row) = (*token, row as i64);
            if row == 4 {
                assert_eq!(at, scaled.get(row).argmax(0, false).int64_value(&[]));
            } else {
                let uniform = uniforms.double_value(&[2, row]);
                let before = if at == 0 { 0.0 } else { sums.double_value(&[row, at - 1]) };
                let after = sums.double_value(&[row, at]);
                assert!(before - 1e-5 <= uniform && uniform <= after + 1e-5, "row {row}");
            }
            let difference = logs.double_value(&[row, at]) - drawn.logprobs.double_value(&[row]);
            assert!(difference.abs() < 2e-5, "row {row}: {difference:e}");
        }
        let entropies = -(logs.exp() * &logs).sum_dim_intlist(-1, false, Kind::Double);
        assert!((double(&drawn.entropies) - entropies).abs().max().double_value(&[]) < 1e-4);

        let weights = numbers(|row| f64::from(u8::from(row != 2)));
        let alive = numbers(|row| f64::from(u8::from(row != 3))).to_kind(Kind::Int64);
        let residuals = Tensor::ones([rows, vocab], (Kind::Float, device));
        add_residuals(&inputs, &drawn, (&weights, &alive), &residuals).unwrap();
        let mut expected = -logs.exp();
        let one = Tensor::ones([rows, 1], (Kind::Double, Device::Cpu));
        let _ = expected.scatter_add_(1, &drawn.tokens.to_device(Device::Cpu).unsqueeze(1), &one);
        for row in [2, 3] {
            let _ = expected.get(row).zero_();
        }
        assert!((double(&residuals) - expected - 1.0).abs().max().double_value(&[]) < 1e-5);
    }
}

#[test]
fn the_heads_statistics_and_gradient_are_those_of_double_precision() {
    let Some(device) = gpu() else { return };
    for (vocab, temperature) in [(64i64, 1.0), (5000, 0.7), (151_936, 1.3)] {
        let rows = 5i64;
        let logits = bf16(&[rows, vocab], device) * 3.0;
        let targets: Vec<i64> = (0..rows).map(|row| row * (vocab - 1) / 4).collect();
        let leaf = double(&logits).set_requires_grad(true);
        let logs = (&leaf / temperature).log_softmax(-1, Kind::Double);
        let index = Tensor::from_slice(&targets).unsqueeze(1);
        let logprobs = logs.gather(1, &index, false).squeeze_dim(1);
        let entropies = -(logs.exp() * &logs).sum_dim_intlist(-1, false, Kind::Double);
        let statistics = head::statistics(&logits, temperature, &targets).unwrap();
        for (found, expected) in [(&statistics.logprobs, &logprobs), (&statistics.entropies, &entropies)] {
            assert!((double(found) - expected.detach()).abs().max().double_value(&[]) < 1e-4);
        }
        let (g, c) = ([0.5f32, -1.0, 0.0, 2.0, 1.0], [0.1f32, 0.0, 0.3, 0.0, 0.2]);
        let column = |values: [f32; 5]| Tensor::from_slice(&values).to_kind(Kind::Double);
        (logprobs * column(g) - entropies * column(c)).sum(Kind::Double).backward();
        let gradients = RowGradients { logprob: &g, entropy: &c };
        head::gradient_in_place(&logits, temperature, &statistics, gradients).unwrap();
        assert!(error(&logits, &leaf.grad()) < 8e-3, "{vocab}");
        assert!(head::statistics(&logits, 1.0, &[vocab; 5]).is_err());
    }
}

#[test]
fn products_are_added_in_full_precision() {
    let Some(device) = gpu() else { return };
    let (left, right) = (bf16(&[300, 64], device), bf16(&[300, 48], device));
    let sum = Tensor::ones([64, 48], (Kind::Float, device));
    add_product(&sum, &left.tr(), &right).unwrap();
    assert!(error(&sum, &(double(&left).tr().matmul(&double(&right)) + 1.0)) < 1e-5);
}

#[test]
fn flash_attention_and_its_gradient_are_those_of_double_precision() {
    let Some(device) = gpu() else { return };
    let (heads, kv_heads, d) = (4, 2, 64);
    let lengths = [5i64, 130, 64];
    let tokens: i64 = lengths.iter().sum();
    let [query, dout] = [(); 2].map(|()| bf16(&[tokens, heads, d], device));
    let [key, value] = [(); 2].map(|()| bf16(&[tokens, kv_heads, d], device));
    let spans = Spans::new(&lengths, device);
    let attention = FlashAttention {
        query: &query,
        key: &key,
        value: &value,
        query_spans: &spans,
        key_spans: &spans,
        causal: true,
    };
    let (output, normalizers) = attention.forward().unwrap();
    assert_eq!(normalizers.size(), [heads, tokens]);
    let gradients = attention.backward(&dout, &output, &normalizers).unwrap();

    let leaves = [&query, &key, &value].map(|t| double(t).set_requires_grad(true));
    let (mut outputs, mut start) = (Vec::new(), 0);
    for length in lengths {
        let part = |leaf: &Tensor| leaf.narrow(0, start, length).transpose(0, 1);
        let per_head = |leaf: &Tensor| part(leaf).repeat_interleave_self_int(heads / kv_heads, 0, None);
        let scores = part(&leaves[0]).bmm(&per_head(&leaves[1]).transpose(1, 2)) / (d as f64).sqrt();
        let later = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).triu(1);
        let scores = scores.masked_fill(&later, f64::NEG_INFINITY);
        let sums = scores.logsumexp([-1i64].as_slice(), false).detach();
        assert!((double(&normalizers.narrow(1, start, length)) - sums).abs().max().double_value(&[]) < 1e-3);
        outputs.push(scores.softmax(-1, Kind::Double).bmm(&per_head(&leaves[2])).transpose(0, 1));
        start += length;
    }
    let expected = Tensor::cat(&outputs, 0);
    (&expected * double(&dout)).sum(Kind::Double).backward();
    assert!(error(&output, &expected.detach()) < 1e-2);
    for (found, leaf) in gradients.iter().zip(&leaves) {
        assert!(error(found, &leaf.grad()) < 2e-2);
    }
}
