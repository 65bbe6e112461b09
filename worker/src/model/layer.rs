//! One layer of the decoder: its parameters, its forward, and what its backward needs.

use g2rl_ffi::FfiError;
use g2rl_ffi::layer::Rotary;
use tch::Tensor;

use super::attention::Attended;
use super::layout::Part;
use super::ops;
use super::{ModelConfig, Weights};

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
    pub(super) fn new(weights: &Weights, layer: usize) -> Self {
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
}

/// Cosines and sines of the tokens of a batch, `[tokens, head_dim / 2]` in the compute dtype.
#[derive(Debug)]
pub struct RotaryRows {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl RotaryRows {
    /// What turns queries and keys of a layer with these weights.
    #[must_use]
    pub fn of<'a>(&'a self, config: &ModelConfig, weights: &'a LayerWeights) -> Rotary<'a> {
        Rotary {
            norms: weights.qk_norm.as_ref().map(|(query, key)| (query, key)),
            cos: &self.cos,
            sin: &self.sin,
            heads: (config.heads, config.kv_heads, config.head_dim),
            eps: config.rms_norm_eps,
        }
    }
}

/// What a layer's attention reads.
#[derive(Debug)]
pub struct AttentionInput {
    /// Queries, keys and values before norm and rotation `[tokens, (heads + 2 kv_heads) head_dim]`.
    pub qkv: Tensor,
    /// Queries and keys after them `[tokens, heads + kv_heads, head_dim]`.
    pub turned: Tensor,
    /// Query heads, key heads, their width.
    pub heads: (i64, i64, i64),
}

impl AttentionInput {
    /// `[tokens, heads, head_dim]`: a view.
    pub fn query(&self) -> Tensor {
        self.turned.narrow(1, 0, self.heads.0)
    }

    /// `[tokens, kv_heads, head_dim]`: a view.
    pub fn key(&self) -> Tensor {
        self.turned.narrow(1, self.heads.0, self.heads.1)
    }

    /// `[tokens, kv_heads, head_dim]`: a view.
    pub fn value(&self) -> Tensor {
        let (heads, kv_heads, dim) = self.heads;
        self.qkv.view([-1, heads + 2 * kv_heads, dim]).narrow(1, heads + kv_heads, kv_heads)
    }
}

/// A layer's forward up to its last product, with everything that its backward reads. All are
/// `[tokens, ...]` in the compute dtype.
#[derive(Debug)]
pub struct LayerTrace {
    /// `[tokens, hidden]`
    pub input: Tensor,
    /// The input after its norm.
    pub normed: Tensor,
    /// Queries, keys, values.
    pub attention: AttentionInput,
    /// The attention's output.
    pub attended: Attended,
    /// The residual stream after the attention `[tokens, hidden]`.
    pub middle: Tensor,
    /// That after its norm.
    pub post_normed: Tensor,
    /// Gates and values of the feed-forward `[tokens, 2 intermediate]`.
    pub gate_up: Tensor,
}

impl LayerTrace {
    /// Runs a layer; `attend` maps queries, keys and values to the attention's output.
    ///
    /// # Errors
    /// What `attend` returns, or [`FfiError`] if libtorch refuses.
    pub fn run<E: From<FfiError>>(
        config: &ModelConfig,
        weights: &LayerWeights,
        x: &Tensor,
        rotary: &RotaryRows,
        attend: impl FnOnce(&AttentionInput) -> Result<Attended, E>,
    ) -> Result<Self, E> {
        // 1. Norm, then queries, keys and values in one product, then their norms and rotation.
        let normed = ops::rms_norm(x, &weights.input_norm, config.rms_norm_eps)?;
        let qkv = ops::product(|| normed.linear(&weights.qkv, weights.qkv_bias.as_ref()));
        let rotary = rotary.of(config, weights);
        let turned = ops::rotary(&rotary, &qkv)?;
        let attention = AttentionInput { qkv, turned, heads: rotary.heads };

        // 2. Attention and its output projection, added to the residual stream.
        let attended = attend(&attention)?;
        let rows = attended.output.reshape([x.size()[0], config.heads * config.head_dim]);
        let middle = ops::product(|| x.addmm(&rows, &weights.attention_output.tr()));

        // 3. The wide products of the feed-forward.
        let post_normed = ops::rms_norm(&middle, &weights.post_norm, config.rms_norm_eps)?;
        let gate_up = ops::product(|| post_normed.matmul(&weights.gate_up.tr()));
        Ok(Self { input: x.shallow_clone(), normed, attention, attended, middle, post_normed, gate_up })
    }

    /// The layer's output `[tokens, hidden]`: gating and the last product, added to the residual stream.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn output(&self, weights: &LayerWeights) -> Result<Tensor, FfiError> {
        let gated = ops::gate(&self.gate_up)?;
        Ok(ops::product(|| self.middle.addmm(&gated, &weights.down.tr())))
    }
}
