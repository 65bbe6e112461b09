//! The decoder's forward pass over packed tokens.
//!
//! In: token ids and positions of any number of sequences, one after the other, without padding.
//! Out: hidden states `[tokens, hidden]` in the compute dtype, and from them logits in f32.
//!
//! The pass is written once. Training, prefill and decoding differ only in how a token attends to
//! earlier ones, so each hands its own attention to [`Model::layer`].
//!
//! Alignment: the hidden state of position t predicts the token at t + 1.

use std::path::Path;

use g2rl_common::config::Dtype;
use g2rl_ffi::FfiError;
use g2rl_ffi::decoder::{CpuDecoder, DecoderWeights};
use tch::{Kind, Tensor};

use super::config::ModelConfig;
use super::files::WeightsError;
use super::layout::Part;
use super::weights::{Placement, Weights};

/// One layer's parameters: views of the flat buffer, or leaves of an autograd graph.
#[derive(Debug)]
pub struct LayerWeights {
    /// `[(heads + 2 kv_heads) head_dim, hidden]`
    pub qkv: Tensor,
    /// `[(heads + 2 kv_heads) head_dim]`
    pub qkv_bias: Option<Tensor>,
    /// `[hidden, heads head_dim]`
    pub attention_output: Tensor,
    /// `[2 intermediate, hidden]`
    pub gate_up: Tensor,
    /// `[hidden, intermediate]`
    pub down: Tensor,
    /// `[hidden]`
    pub input_norm: Tensor,
    /// `[hidden]`
    pub post_norm: Tensor,
    /// `[head_dim]` each, for queries and keys.
    pub qk_norm: Option<(Tensor, Tensor)>,
}

impl LayerWeights {
    fn new(weights: &Weights, layer: usize) -> Self {
        let qk_norm = weights
            .config()
            .qk_norm
            .then(|| (weights.part(Part::QueryNorm(layer)), weights.part(Part::KeyNorm(layer))));
        let qkv_bias = weights.config().qkv_bias.then(|| weights.part(Part::QkvBias(layer)));
        Self {
            qkv: weights.part(Part::Qkv(layer)),
            qkv_bias,
            attention_output: weights.part(Part::AttentionOutput(layer)),
            gate_up: weights.part(Part::GateUp(layer)),
            down: weights.part(Part::Down(layer)),
            input_norm: weights.part(Part::InputNorm(layer)),
            post_norm: weights.part(Part::PostNorm(layer)),
            qk_norm,
        }
    }

    /// The same values as leaves that record gradients, and their parts in the order of
    /// [`Self::tensors`].
    #[must_use]
    pub fn leaves(&self) -> Self {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        Self {
            qkv: leaf(&self.qkv),
            qkv_bias: self.qkv_bias.as_ref().map(leaf),
            attention_output: leaf(&self.attention_output),
            gate_up: leaf(&self.gate_up),
            down: leaf(&self.down),
            input_norm: leaf(&self.input_norm),
            post_norm: leaf(&self.post_norm),
            qk_norm: self.qk_norm.as_ref().map(|(q, k)| (leaf(q), leaf(k))),
        }
    }

    /// All tensors with their parts.
    #[must_use]
    pub fn tensors(&self, layer: usize) -> Vec<(Part, &Tensor)> {
        let mut tensors = vec![
            (Part::Qkv(layer), &self.qkv),
            (Part::AttentionOutput(layer), &self.attention_output),
            (Part::GateUp(layer), &self.gate_up),
            (Part::Down(layer), &self.down),
            (Part::InputNorm(layer), &self.input_norm),
            (Part::PostNorm(layer), &self.post_norm),
        ];
        if let Some(bias) = &self.qkv_bias {
            tensors.push((Part::QkvBias(layer), bias));
        }
        if let Some((query, key)) = &self.qk_norm {
            tensors.push((Part::QueryNorm(layer), query));
            tensors.push((Part::KeyNorm(layer), key));
        }
        tensors
    }
}

/// Cosines and sines of the tokens of a batch, `[tokens, 1, head_dim / 2]` in the compute dtype.
#[derive(Debug)]
pub struct RotaryRows {
    cos: Tensor,
    sin: Tensor,
}

/// Queries, keys and values of a layer after norm and rotation.
#[derive(Debug)]
pub struct Qkv {
    /// `[tokens, heads, head_dim]`
    pub query: Tensor,
    /// `[tokens, kv_heads, head_dim]`
    pub key: Tensor,
    /// `[tokens, kv_heads, head_dim]`
    pub value: Tensor,
}

/// A decoder with its weights.
#[derive(Debug)]
pub struct Model {
    weights: Weights,
    layers: Vec<LayerWeights>,
    embedding: Tensor,
    final_norm: Tensor,
    head: Tensor,
    /// `[positions, head_dim / 2]` in the compute dtype.
    rotary: (Tensor, Tensor),
    /// Counts up whenever the weights may have changed.
    generation: u64,
}

impl Model {
    /// A decoder over the given weights.
    #[must_use]
    pub fn new(weights: Weights) -> Self {
        let rotary = rotary_table(&weights);
        let layers = (0..weights.config().layers as usize).map(|i| LayerWeights::new(&weights, i)).collect();
        let (embedding, final_norm) = (weights.part(Part::Embedding), weights.part(Part::FinalNorm));
        let head = weights.head();
        Self { weights, layers, embedding, final_norm, head, rotary, generation: 0 }
    }

    /// Reads a Hugging Face model directory.
    ///
    /// # Errors
    /// [`WeightsError`], naming the file and the tensor.
    pub fn load(dir: &Path, placement: Placement) -> Result<Self, WeightsError> {
        Ok(Self::new(Weights::load(dir, placement)?))
    }

    /// The parameters.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The parameters, to be updated in place.
    pub fn weights_mut(&mut self) -> &mut Weights {
        self.generation += 1;
        &mut self.weights
    }

    /// A number that differs after the weights may have changed.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    /// A copy of the weights for decoding on this machine's CPU; `None` where only tensor operations
    /// can run the model: on GPUs, in bf16, on CPUs without AVX-512.
    ///
    /// # Errors
    /// [`FfiError`] if the weights are refused, which would be a fault of this program.
    pub fn cpu_decoder(&self) -> Result<Option<CpuDecoder>, FfiError> {
        let on_cpu = self.weights.device() == tch::Device::Cpu && self.weights.dtype() == Dtype::F32;
        if !on_cpu || !CpuDecoder::is_supported() {
            return Ok(None);
        }
        let each = |f: fn(&LayerWeights) -> Option<&Tensor>| -> Vec<Tensor> {
            self.layers.iter().filter_map(f).map(Tensor::detach).collect()
        };
        let config = self.config();
        CpuDecoder::new(&DecoderWeights {
            qkv: &each(|layer| Some(&layer.qkv)),
            bias: &each(|layer| layer.qkv_bias.as_ref()),
            output: &each(|layer| Some(&layer.attention_output)),
            gate_up: &each(|layer| Some(&layer.gate_up)),
            down: &each(|layer| Some(&layer.down)),
            input_norm: &each(|layer| Some(&layer.input_norm)),
            post_norm: &each(|layer| Some(&layer.post_norm)),
            query_norm: &each(|layer| layer.qk_norm.as_ref().map(|(query, _)| query)),
            key_norm: &each(|layer| layer.qk_norm.as_ref().map(|(_, key)| key)),
            embedding: &self.embedding.detach(),
            final_norm: &self.final_norm.detach(),
            head: &self.head.detach(),
            rotary: (&self.rotary.0, &self.rotary.1),
            heads: (config.heads, config.kv_heads, config.head_dim),
            eps: config.rms_norm_eps,
        })
        .map(Some)
    }

    /// A layer's parameters.
    #[must_use]
    pub fn layer_weights(&self, layer: usize) -> &LayerWeights {
        &self.layers[layer]
    }

    /// The norm before the head `[hidden]`.
    pub fn final_norm_weight(&self) -> &Tensor {
        &self.final_norm
    }

    /// The head's matrix `[vocab, hidden]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }

    /// Token embeddings: ids `[tokens] i64` to `[tokens, hidden]`.
    pub fn embed(&self, tokens: &Tensor) -> Tensor {
        self.embedding.index_select(0, tokens)
    }

    /// The rotary rows of positions `[tokens] i64`.
    #[must_use]
    pub fn rotary_rows(&self, positions: &Tensor) -> RotaryRows {
        let rows = |table: &Tensor| table.index_select(0, positions).unsqueeze(1);
        RotaryRows { cos: rows(&self.rotary.0), sin: rows(&self.rotary.1) }
    }

    /// One layer over packed tokens: `[tokens, hidden]` to `[tokens, hidden]`. `attend` maps
    /// queries, keys and values to the attention's output `[tokens, heads, head_dim]`.
    pub fn layer(
        &self,
        weights: &LayerWeights,
        x: &Tensor,
        rotary: &RotaryRows,
        attend: impl FnOnce(&Qkv) -> Tensor,
    ) -> Tensor {
        let config = self.config();
        let (heads, kv_heads, tokens) = (config.heads, config.kv_heads, x.size()[0]);

        // 1. Attention input: norm, then queries, keys and values in one product.
        let normed = self.norm(x, &weights.input_norm);
        let qkv = normed.linear(&weights.qkv, weights.qkv_bias.as_ref());
        let qkv = qkv.view([tokens, heads + 2 * kv_heads, config.head_dim]);
        let parts = qkv.split_with_sizes([heads, kv_heads, kv_heads], 1);

        // 2. Per-head norm, then rotation.
        let (query, key) = match &weights.qk_norm {
            Some((q, k)) => (self.norm(&parts[0], q), self.norm(&parts[1], k)),
            None => (parts[0].shallow_clone(), parts[1].shallow_clone()),
        };
        let qkv =
            Qkv { query: rotate(&query, rotary), key: rotate(&key, rotary), value: parts[2].shallow_clone() };

        // 3. Attention and its output projection, added to the residual stream.
        let attended = attend(&qkv).reshape([tokens, heads * config.head_dim]);
        let x = x + attended.matmul(&weights.attention_output.tr());

        // 4. Gated feed-forward, added to the residual stream.
        let normed = self.norm(&x, &weights.post_norm);
        let gate_up = normed.matmul(&weights.gate_up.tr()).chunk(2, -1);
        let inner = gate_up[0].silu() * &gate_up[1];
        x + inner.matmul(&weights.down.tr())
    }

    /// Root-mean-square norm over the last dimension.
    pub fn norm(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        x.rms_norm(weight.size(), Some(weight), self.config().rms_norm_eps)
    }

    /// Logits `[tokens, vocab] f32` of hidden states that went through the final norm.
    pub fn logits(&self, normed: &Tensor) -> Tensor {
        normed.matmul(&self.head.tr()).to_kind(Kind::Float)
    }

    /// Hidden states before the final norm of packed sequences of the given lengths, each
    /// attending causally to itself only.
    pub fn hidden_states(&self, tokens: &Tensor, lengths: &[i64]) -> Tensor {
        let rotary = self.rotary_rows(&positions(lengths, tokens.device()));
        let mut x = self.embed(tokens);
        for layer in &self.layers {
            x = self.layer(layer, &x, &rotary, |qkv| causal_attention(qkv, lengths));
        }
        x
    }
}

/// Positions `[tokens] i64` of packed sequences: each counts from 0.
pub fn positions(lengths: &[i64], device: tch::Device) -> Tensor {
    let positions: Vec<i64> = lengths.iter().flat_map(|length| 0..*length).collect();
    Tensor::from_slice(&positions).to_device(device)
}

/// `x_1 cos - x_2 sin, x_2 cos + x_1 sin`, with x_1 and x_2 the halves of a head.
fn rotate(x: &Tensor, rotary: &RotaryRows) -> Tensor {
    let halves = x.chunk(2, -1);
    let (a, b) = (&halves[0], &halves[1]);
    Tensor::cat(&[a * &rotary.cos - b * &rotary.sin, b * &rotary.cos + a * &rotary.sin], -1)
}

fn rotary_table(weights: &Weights) -> (Tensor, Tensor) {
    let config = weights.config();
    let half = config.head_dim / 2;
    // Frequencies in f32 as transformers computes them: theta^(-2i / head_dim).
    let exponents = Tensor::arange(half, (Kind::Float, tch::Device::Cpu)) * (2.0 / config.head_dim as f64);
    let frequencies: Vec<f32> =
        Vec::try_from((exponents * -config.rope_theta.ln()).exp()).unwrap_or_default();
    let frequencies = Tensor::from_slice(&config.rope_scaling.stretch(&frequencies));
    let angles = Tensor::arange(config.max_positions, (Kind::Float, tch::Device::Cpu)).outer(&frequencies);
    let kind = super::weights::kind_of(weights.dtype());
    let place = |t: Tensor| t.to_kind(kind).to_device(weights.device());
    (place(angles.cos()), place(angles.sin()))
}

/// Causal attention of packed sequences, each to itself. Consecutive sequences of equal length go
/// through one call.
pub fn causal_attention(qkv: &Qkv, lengths: &[i64]) -> Tensor {
    let runs = equal_runs(lengths);
    if let [(length, count)] = runs[..] {
        return run_attention(qkv, length, count);
    }
    let sizes: Vec<i64> = runs.iter().map(|(length, count)| length * count).collect();
    let split = |t: &Tensor| t.split_with_sizes(sizes.as_slice(), 0);
    let (queries, keys, values) = (split(&qkv.query), split(&qkv.key), split(&qkv.value));
    let outputs: Vec<Tensor> = runs
        .iter()
        .zip(queries.into_iter().zip(keys).zip(values))
        .map(|((length, count), ((query, key), value))| {
            run_attention(&Qkv { query, key, value }, *length, *count)
        })
        .collect();
    Tensor::cat(&outputs, 0)
}

/// Lengths as (length, number of consecutive sequences that have it).
fn equal_runs(lengths: &[i64]) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for &length in lengths {
        match runs.last_mut() {
            Some((last, count)) if *last == length => *count += 1,
            _ => runs.push((length, 1)),
        }
    }
    runs
}

fn run_attention(qkv: &Qkv, length: i64, count: i64) -> Tensor {
    let (heads, head_dim) = (qkv.query.size()[1], qkv.query.size()[2]);
    let kv_heads = qkv.key.size()[1];
    let query = qkv.query.view([count, length, heads, head_dim]).transpose(1, 2);
    // The fused kernels want as many key heads as query heads.
    let repeat = |t: &Tensor| {
        t.view([count, length, kv_heads, 1, head_dim])
            .expand([count, length, kv_heads, heads / kv_heads, head_dim], false)
            .reshape([count, length, heads, head_dim])
            .transpose(1, 2)
    };
    let (key, value) = (repeat(&qkv.key), repeat(&qkv.value));
    let output =
        Tensor::scaled_dot_product_attention(&query, &key, &value, None::<Tensor>, 0.0, true, None, false);
    output.transpose(1, 2).reshape([count * length, heads, head_dim])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_run_together() {
        assert_eq!(equal_runs(&[3, 3, 2, 3]), [(3, 2), (2, 1), (3, 1)]);
    }
}
