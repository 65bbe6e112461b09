//! Where each parameter lies in the one flat buffer that holds them all.
//!
//! All parameters of the policy are one contiguous tensor, and so are its gradients and the
//! optimizer's moments. That makes one broadcast, one digest, one gradient norm and a handful of
//! optimizer calls serve any model, and a layer's gradients one contiguous bucket to all-reduce.
//!
//! Invariants: blocks do not overlap and cover the buffer; the blocks of a bucket are contiguous;
//! q, k, v (and gate, up) of a layer follow each other, so that the fused matrix is a view.

use std::ops::Range;

use super::config::ModelConfig;

/// What a block of parameters is for. Matrices are `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Token embedding `[vocab, hidden]`, also the head if tied.
    Embedding,
    /// Queries, keys and values `[(heads + 2 kv_heads) head_dim, hidden]`.
    Qkv(usize),
    /// Biases of queries, keys and values `[(heads + 2 kv_heads) head_dim]`.
    QkvBias(usize),
    /// Attention output `[hidden, heads head_dim]`.
    AttentionOutput(usize),
    /// Gate and up `[2 intermediate, hidden]`.
    GateUp(usize),
    /// Down `[hidden, intermediate]`.
    Down(usize),
    /// Norm before the attention `[hidden]`.
    InputNorm(usize),
    /// Norm before the feed-forward `[hidden]`.
    PostNorm(usize),
    /// Norm of a query head `[head_dim]`.
    QueryNorm(usize),
    /// Norm of a key head `[head_dim]`.
    KeyNorm(usize),
    /// Norm before the head `[hidden]`.
    FinalNorm,
    /// Untied head `[vocab, hidden]`.
    Head,
}

/// A tensor of the model files inside a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// Its name in the safetensors files.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<i64>,
    /// First element inside the flat buffer.
    pub offset: i64,
}

impl FileTensor {
    /// Number of elements.
    #[must_use]
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }
}

/// Parameters that the decoder uses as one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What for.
    pub part: Part,
    /// Shape of the tensor.
    pub shape: Vec<i64>,
    /// First element inside the flat buffer.
    pub offset: i64,
    /// The tensors of the model files it is made of, in order.
    pub files: Vec<FileTensor>,
}

impl Block {
    /// Number of elements.
    #[must_use]
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Whether weight decay applies: to matrices, not to norms.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// The places of all parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    blocks: Vec<Block>,
    /// Element range of each bucket: embedding, the layers in order, final norm and untied head.
    buckets: Vec<Range<i64>>,
}

impl Layout {
    /// The layout of a model.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let mut builder = Builder { blocks: Vec::new(), buckets: Vec::new(), next: 0 };
        let (h, d, v) = (config.hidden_size, config.head_dim, config.vocab_size);
        let (q, kv, inner) = (config.heads * d, config.kv_heads * d, config.intermediate_size);

        builder.block(Part::Embedding, &[h], &[("model.embed_tokens.weight".to_owned(), v)]);
        builder.end_bucket();
        for layer in 0..config.layers as usize {
            let name = |tail: &str| format!("model.layers.{layer}.{tail}.weight");
            let qkv = [
                (name("self_attn.q_proj"), q),
                (name("self_attn.k_proj"), kv),
                (name("self_attn.v_proj"), kv),
            ];
            builder.block(Part::Qkv(layer), &[h], &qkv);
            if config.qkv_bias {
                let bias = |(name, rows): &(String, i64)| (name.replace(".weight", ".bias"), *rows);
                builder.block(Part::QkvBias(layer), &[], &qkv.each_ref().map(bias));
            }
            builder.block(Part::AttentionOutput(layer), &[q], &[(name("self_attn.o_proj"), h)]);
            builder.block(
                Part::GateUp(layer),
                &[h],
                &[(name("mlp.gate_proj"), inner), (name("mlp.up_proj"), inner)],
            );
            builder.block(Part::Down(layer), &[inner], &[(name("mlp.down_proj"), h)]);
            builder.block(Part::InputNorm(layer), &[], &[(name("input_layernorm"), h)]);
            builder.block(Part::PostNorm(layer), &[], &[(name("post_attention_layernorm"), h)]);
            if config.qk_norm {
                builder.block(Part::QueryNorm(layer), &[], &[(name("self_attn.q_norm"), d)]);
                builder.block(Part::KeyNorm(layer), &[], &[(name("self_attn.k_norm"), d)]);
            }
            builder.end_bucket();
        }
        builder.block(Part::FinalNorm, &[], &[("model.norm.weight".to_owned(), h)]);
        if !config.tied_embeddings {
            builder.block(Part::Head, &[h], &[("lm_head.weight".to_owned(), v)]);
        }
        builder.end_bucket();
        Self { blocks: builder.blocks, buckets: builder.buckets }
    }

    /// All blocks, by offset.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The block of a part.
    ///
    /// # Panics
    /// If the model has no such part.
    #[must_use]
    pub fn block(&self, part: Part) -> &Block {
        self.blocks.iter().find(|b| b.part == part).expect("the model has this part")
    }

    /// Element ranges that are all-reduced together: embedding, layers in order, final norm with
    /// the untied head.
    #[must_use]
    pub fn buckets(&self) -> &[Range<i64>] {
        &self.buckets
    }

    /// Number of parameters.
    #[must_use]
    pub fn numel(&self) -> i64 {
        self.buckets.last().map_or(0, |b| b.end)
    }
}

struct Builder {
    blocks: Vec<Block>,
    buckets: Vec<Range<i64>>,
    next: i64,
}

impl Builder {
    /// Adds a block of file tensors stacked along their first dimension.
    fn block(&mut self, part: Part, tail: &[i64], files: &[(String, i64)]) {
        let width: i64 = tail.iter().product();
        let (start, mut tensors, mut rows) = (self.next, Vec::new(), 0);
        for (name, size) in files {
            let shape = std::iter::once(*size).chain(tail.iter().copied()).collect();
            tensors.push(FileTensor { name: name.clone(), shape, offset: start + rows * width });
            rows += size;
        }
        let shape = std::iter::once(rows).chain(tail.iter().copied()).collect();
        self.blocks.push(Block { part, shape, offset: start, files: tensors });
        self.next += rows * width;
    }

    fn end_bucket(&mut self) {
        let start = self.buckets.last().map_or(0, |b| b.end);
        self.buckets.push(start..self.next);
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::RopeScaling;
    use super::*;

    fn config(tied: bool) -> ModelConfig {
        ModelConfig {
            hidden_size: 6,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
            intermediate_size: 10,
            vocab_size: 11,
            rms_norm_eps: 1e-6,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            max_positions: 64,
            tied_embeddings: tied,
            qk_norm: true,
            qkv_bias: false,
            raw: serde_json::Value::Null,
        }
    }

    #[test]
    fn blocks_and_buckets_tile_the_buffer() {
        for tied in [true, false] {
            let config = config(tied);
            let layout = Layout::new(&config);
            let mut next = 0;
            for block in layout.blocks() {
                assert_eq!(block.offset, next);
                assert_eq!(block.files.iter().map(FileTensor::numel).sum::<i64>(), block.numel());
                next += block.numel();
            }
            assert_eq!(next, layout.numel());
            assert_eq!(next, config.parameters());
            assert_eq!(layout.buckets().len(), 4);
        }
    }

    #[test]
    fn fused_matrices_follow_each_other_in_file_order() {
        let layout = Layout::new(&config(true));
        let block = layout.block(Part::Qkv(1));
        assert_eq!(block.shape, [32, 6]);
        assert_eq!(block.files[1].name, "model.layers.1.self_attn.k_proj.weight");
        assert_eq!(block.files[1].offset, block.offset + 16 * 6);
    }
}
