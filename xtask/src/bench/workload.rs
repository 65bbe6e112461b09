//! What is measured: a Qwen3 shape and the size of a step.

use serde_json::{Value, json};

/// A model's shape and a step's size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) hidden: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head_dim: u64,
    pub(super) inner: u64,
    pub(super) vocab: u64,
    pub(super) prompts: u64,
    pub(super) group_size: u64,
    pub(super) prompt_tokens: u64,
    pub(super) new_tokens: u64,
    /// Completions of a micro-batch with which TRL is fastest.
    pub(super) trl_micro: u64,
}

const W1: Workload = Workload {
    name: "W1",
    hidden: 256,
    layers: 4,
    heads: 8,
    kv_heads: 4,
    head_dim: 32,
    inner: 768,
    vocab: 2048,
    prompts: 16,
    group_size: 8,
    prompt_tokens: 32,
    new_tokens: 128,
    trl_micro: 32,
};

const W2: Workload = Workload {
    name: "W2",
    hidden: 512,
    layers: 8,
    head_dim: 64,
    inner: 1536,
    vocab: 8192,
    prompts: 8,
    trl_micro: 16,
    ..W1
};

impl Workload {
    pub(super) fn named(name: &str) -> Self {
        if name == "W2" { W2 } else { W1 }
    }

    /// Sequences of a step.
    pub(super) fn batch(&self) -> u64 {
        self.prompts * self.group_size
    }

    /// The `config.json` of the shape.
    pub(super) fn config(&self) -> Value {
        json!({
            "model_type": "qwen3", "hidden_act": "silu", "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "intermediate_size": self.inner, "vocab_size": self.vocab, "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0, "max_position_embeddings": 2048, "tie_word_embeddings": true,
        })
    }

    /// Values of the layers' matrices; norms and biases do not count.
    fn layer_matrices(&self) -> f64 {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let layer = self.hidden * (queries + 2 * keys) + queries * self.hidden + 3 * self.inner * self.hidden;
        (self.layers * layer) as f64
    }

    /// Values of all matrices that a token is multiplied with.
    fn matrices(&self) -> f64 {
        self.layer_matrices() + (self.vocab * self.hidden) as f64
    }

    /// Tokens of an update, with prompts shared.
    fn update_tokens(&self) -> f64 {
        (self.prompts * self.prompt_tokens + self.batch() * self.new_tokens) as f64
    }

    /// Floating-point operations of the products of one generated token.
    pub(super) fn decode_flops(&self) -> f64 {
        2.0 * self.matrices()
    }

    /// Those of a step's update: forward, twice that backward, and the reference's forward, with prompts shared.
    pub(super) fn update_flops(&self) -> f64 {
        8.0 * self.matrices() * self.update_tokens()
    }

    /// Those of the layers' products alone, without the reference's.
    pub(super) fn update_layer_flops(&self) -> f64 {
        6.0 * self.layer_matrices() * self.update_tokens()
    }

    /// Tokens of a rollout that go through the decoder: the first of each sequence comes from its prompt.
    pub(super) fn decoded_tokens(&self) -> f64 {
        (self.batch() * (self.new_tokens - 1)) as f64
    }

    /// Keys and values that the attention of a rollout reads, given the bytes of one number.
    pub(super) fn cache_bytes(&self, bytes: u64) -> f64 {
        let lengths: u64 = (1..self.new_tokens).map(|own| self.prompt_tokens + own).sum();
        (2 * bytes * self.layers * self.kv_heads * self.head_dim * self.batch() * lengths) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_have_the_sizes_they_are_known_by() {
        assert_eq!(W1.matrices(), 3_670_016.0);
        assert_eq!((W1.batch(), W2.batch()), (128, 64));
        assert_eq!(W2.matrices(), 29_360_128.0);
        // 127 steps over 33 to 159 tokens, 96 on average; 1,024 f32 numbers of a token and layer.
        assert_eq!(W1.cache_bytes(4), 128.0 * 127.0 * 96.0 * 4.0 * 1024.0);
    }
}
