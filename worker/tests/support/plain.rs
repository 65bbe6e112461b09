//! The decoder once more, in plain tensor operations of one sequence that libtorch can differentiate. It
//! shares the layout of the parameters with the worker, and nothing else.

use g2rl_worker::model::layout::{Layout, Part};
use g2rl_worker::model::{ModelConfig, config::RopeScaling};
use tch::{Device, Kind, Tensor};

/// Logits `[tokens, vocab]` in the kind of `flat`, which holds all parameters.
pub(crate) fn logits(config: &ModelConfig, flat: &Tensor, tokens: &[i64]) -> Tensor {
    assert_eq!(config.rope_scaling, RopeScaling::None, "the plain decoder knows no scaling");
    let layout = Layout::new(config);
    let part = |part: Part| {
        let block = layout.block(part);
        flat.narrow(0, block.offset, block.numel()).view(block.shape.as_slice())
    };
    let norm = |x: &Tensor, weight: Tensor| {
        let square = x.square().mean_dim([-1i64].as_slice(), true, None::<Kind>);
        x * (square + config.rms_norm_eps).rsqrt() * weight
    };
    let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
    let length = tokens.len() as i64;
    let positions = Tensor::arange(length, (flat.kind(), Device::Cpu)).unsqueeze(1);
    let exponents = Tensor::arange(dim / 2, (flat.kind(), Device::Cpu)) * (-2.0 / dim as f64);
    let angles = positions * (exponents * config.rope_theta.ln()).exp();
    // [tokens, 1, dim / 2]
    let (cos, sin) = (angles.cos().unsqueeze(1), angles.sin().unsqueeze(1));
    let rotate = |x: &Tensor| {
        let (a, b) = (x.narrow(2, 0, dim / 2), x.narrow(2, dim / 2, dim / 2));
        Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin], 2)
    };
    let later = Tensor::ones([length, length], (Kind::Bool, Device::Cpu)).triu(1);

    let mut x = part(Part::Embedding).index_select(0, &Tensor::from_slice(tokens));
    for layer in 0..config.layers as usize {
        let mut qkv = norm(&x, part(Part::InputNorm(layer))).matmul(&part(Part::Qkv(layer)).tr());
        if config.qkv_bias {
            qkv += part(Part::QkvBias(layer));
        }
        let qkv = qkv.view([length, heads + 2 * kv_heads, dim]);
        let (mut query, mut key) = (qkv.narrow(1, 0, heads), qkv.narrow(1, heads, kv_heads));
        if config.qk_norm {
            query = norm(&query, part(Part::QueryNorm(layer)));
            key = norm(&key, part(Part::KeyNorm(layer)));
        }
        // [heads, tokens, dim], every key head as often as it has query heads.
        let spread = |x: Tensor| x.repeat_interleave_self_int(heads / kv_heads, 1, None).transpose(0, 1);
        let value = spread(qkv.narrow(1, heads + kv_heads, kv_heads));
        let scores = rotate(&query).transpose(0, 1).matmul(&spread(rotate(&key)).transpose(1, 2));
        let scores = (scores / (dim as f64).sqrt()).masked_fill(&later, f64::NEG_INFINITY);
        let attended = scores.softmax(-1, None::<Kind>).matmul(&value).transpose(0, 1);
        let middle =
            x + attended.reshape([length, heads * dim]).matmul(&part(Part::AttentionOutput(layer)).tr());
        let gate_up = norm(&middle, part(Part::PostNorm(layer))).matmul(&part(Part::GateUp(layer)).tr());
        let inner = config.intermediate_size;
        let gated = gate_up.narrow(1, 0, inner).silu() * gate_up.narrow(1, inner, inner);
        x = middle + gated.matmul(&part(Part::Down(layer)).tr());
    }
    let head = if config.tied_embeddings { Part::Embedding } else { Part::Head };
    norm(&x, part(Part::FinalNorm)).matmul(&part(head).tr())
}
