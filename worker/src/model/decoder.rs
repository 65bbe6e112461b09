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

use g2rl_ffi::FfiError;
use g2rl_ffi::attention::Segments;
use g2rl_ffi::decoder::{CpuDecoder, DecoderWeights};
use tch::{Kind, Tensor};

use super::attention::{Attended, Attention};
use super::config::ModelConfig;
use super::files::WeightsError;
use super::layer::{AttentionInput, LayerTrace, LayerWeights, RotaryRows};
use super::layout::Part;
use super::ops;
use super::weights::{Placement, Weights};

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

    /// Whether [`Self::cpu_decoder`] can run the model: not on GPUs, nor on CPUs without AVX-512 (in bf16
    /// without AVX512-BF16), where tensor operations do.
    #[must_use]
    pub fn has_cpu_decoder(&self) -> bool {
        self.weights.device() == tch::Device::Cpu && CpuDecoder::is_supported(self.embedding.kind())
    }

    /// A copy of the weights for decoding on this machine's CPU.
    ///
    /// # Errors
    /// [`FfiError`] if [`Self::has_cpu_decoder`] is false, or the weights are refused, which would be a fault of
    /// this program.
    pub fn cpu_decoder(&self) -> Result<CpuDecoder, FfiError> {
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

    /// The rotary rows of positions.
    #[must_use]
    pub fn rotary_rows(&self, positions: &[i64]) -> RotaryRows {
        self.rotary_rows_at(&Tensor::from_slice(positions).to_device(self.weights.device()))
    }

    /// The same of positions `[tokens] i64` on the model's device.
    pub fn rotary_rows_at(&self, positions: &Tensor) -> RotaryRows {
        let rows = |table: &Tensor| table.index_select(0, positions);
        RotaryRows { cos: rows(&self.rotary.0), sin: rows(&self.rotary.1) }
    }

    /// The attention of the model's layers over packed segments.
    #[must_use]
    pub fn attention<'a>(&self, segments: &'a Segments) -> Attention<'a> {
        Attention::new(segments, self.weights.device(), self.embedding.kind())
    }

    /// One layer over packed tokens: `[tokens, hidden]` to `[tokens, hidden]`. `attend` maps queries,
    /// keys and values to the attention's output.
    ///
    /// # Errors
    /// What `attend` returns, or [`FfiError`] if libtorch refuses.
    pub fn layer<E: From<FfiError>>(
        &self,
        layer: usize,
        x: &Tensor,
        rotary: &RotaryRows,
        attend: impl FnOnce(&AttentionInput) -> Result<Attended, E>,
    ) -> Result<Tensor, E> {
        let weights = &self.layers[layer];
        Ok(LayerTrace::run(self.config(), weights, x, rotary, attend)?.output(weights)?)
    }

    /// The norm before the head: `[tokens, hidden]` to `[tokens, hidden]`.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn final_norm(&self, x: &Tensor) -> Result<Tensor, FfiError> {
        ops::rms_norm(x, &self.final_norm, self.config().rms_norm_eps)
    }

    /// Logits `[tokens, vocab] f32` of hidden states that went through the final norm.
    pub fn logits(&self, normed: &Tensor) -> Tensor {
        normed.matmul(&self.head.tr()).to_kind(Kind::Float)
    }

    /// Hidden states before the final norm of packed segments.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn hidden_states(&self, tokens: &Tensor, segments: &Segments) -> Result<Tensor, FfiError> {
        let rotary = self.rotary_rows(&segments.positions());
        let attention = self.attention(segments);
        let mut x = self.embed(tokens);
        for layer in 0..self.layers.len() {
            x = self.layer(layer, &x, &rotary, |input| attention.forward(input))?;
        }
        Ok(x)
    }
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
