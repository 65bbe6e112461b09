//! Keys and values of prompts and responses: one flat pool for each layer, and its free extents.
//!
//! Invariants: the tensors stay in place until [`Pool::grow`], so that captured graphs may read and write
//! them. Nothing in them is ever not a number unless the model computed it: attention multiplies dead
//! values with 0.

use tch::Tensor;

use super::super::RolloutError;
use super::super::cache::CacheShape;
use super::extents::{Extent, Extents};

/// The pool of all layers.
#[derive(Debug)]
pub(super) struct Pool {
    shape: CacheShape,
    /// `[tokens, kv_heads, head_dim]` for each layer.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    extents: Extents,
}

impl Pool {
    /// A pool with room for so many tokens.
    pub(super) fn new(shape: CacheShape, tokens: i64) -> Result<Self, RolloutError> {
        let mut pool = Self { shape, keys: Vec::new(), values: Vec::new(), extents: Extents::new(1) };
        pool.grow(tokens)?;
        Ok(pool)
    }

    /// Another pool, with room for so many tokens. Everything in the old one is lost.
    pub(super) fn grow(&mut self, tokens: i64) -> Result<(), RolloutError> {
        let CacheShape { layers, kv_heads, head_dim, kind, device } = self.shape;
        // The first token belongs to nobody.
        let tokens = tokens.max(1) + 1;
        (self.keys, self.values) = (Vec::new(), Vec::new());
        for _ in 0..layers {
            for list in [&mut self.keys, &mut self.values] {
                list.push(Tensor::f_zeros([tokens, kv_heads, head_dim], (kind, device))?);
            }
        }
        self.extents = Extents::new(tokens);
        Ok(())
    }

    /// Tokens that fit.
    pub(super) fn tokens(&self) -> i64 {
        self.extents.tokens() - 1
    }

    pub(super) fn extents(&mut self) -> &mut Extents {
        &mut self.extents
    }

    /// Keys and values of a layer.
    pub(super) fn layer(&self, layer: usize) -> (&Tensor, &Tensor) {
        (&self.keys[layer], &self.values[layer])
    }

    /// Stores a prompt's keys and values `[length, kv_heads, head_dim]`.
    pub(super) fn write(
        &self,
        layer: usize,
        extent: Extent,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(), RolloutError> {
        for (pool, new) in [(&self.keys[layer], keys), (&self.values[layer], values)] {
            pool.f_narrow(0, extent.start, extent.length)?.f_copy_(new)?;
        }
        Ok(())
    }
}
