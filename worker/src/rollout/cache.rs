//! Caches of the CPU's own decoder: keys and values of prompts and of running rollouts.
//!
//! Both are `[rows, kv_heads, capacity, head_dim]`. Capacities start small and double when a sequence
//! reaches them, so a long limit costs nothing until it is used.

use tch::{Device, Kind, Tensor};

use super::RolloutError;
use crate::model::Model;
use crate::model::weights::kind_of;

/// Capacities are multiples of this number of tokens.
const CAPACITY_STEP: i64 = 64;

/// What a cache's size follows from.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheShape {
    pub(super) layers: usize,
    pub(super) kv_heads: i64,
    pub(super) head_dim: i64,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

impl CacheShape {
    pub(super) fn of(model: &Model) -> Self {
        let config = model.config();
        Self {
            layers: config.layers as usize,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            kind: kind_of(model.weights().dtype()),
            device: model.weights().device(),
        }
    }
}

/// Rows of keys and values for every layer.
#[derive(Debug)]
pub(super) struct RowCache {
    shape: CacheShape,
    rows: i64,
    capacity: i64,
    /// `[rows, kv_heads, capacity, head_dim]` for each layer.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl RowCache {
    pub(super) fn new(shape: CacheShape, rows: i64) -> Self {
        Self { shape, rows, capacity: 0, keys: Vec::new(), values: Vec::new() }
    }

    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    /// Stores a prompt's keys and values `[length, kv_heads, head_dim]` in a row.
    pub(super) fn write(
        &self,
        layer: usize,
        row: i64,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(), RolloutError> {
        for (cache, new) in [(&self.keys[layer], keys), (&self.values[layer], values)] {
            let length = new.size()[0];
            cache.f_get(row)?.f_narrow(1, 0, length)?.f_copy_(&new.f_permute([1, 0, 2])?)?;
        }
        Ok(())
    }

    /// Keys and values of all layers.
    pub(super) fn layers(&self) -> (&[Tensor], &[Tensor]) {
        (&self.keys, &self.values)
    }

    /// Makes room for `tokens` tokens in every row.
    pub(super) fn reserve(&mut self, tokens: i64) -> Result<(), RolloutError> {
        if tokens <= self.capacity && !self.keys.is_empty() {
            return Ok(());
        }
        let wanted = tokens.max(2 * self.capacity).max(1);
        self.resize(self.rows, (wanted + CAPACITY_STEP - 1) / CAPACITY_STEP * CAPACITY_STEP)
    }

    /// Makes room for `rows` rows.
    pub(super) fn reserve_rows(&mut self, rows: i64) -> Result<(), RolloutError> {
        self.resize(rows, self.capacity.max(CAPACITY_STEP))
    }

    fn resize(&mut self, rows: i64, capacity: i64) -> Result<(), RolloutError> {
        let CacheShape { layers, kv_heads, head_dim, kind, device } = self.shape;
        let (old_rows, old_capacity) = (self.rows.min(rows), self.capacity.min(capacity));
        for tensors in [&mut self.keys, &mut self.values] {
            for layer in 0..layers {
                let empty = Tensor::f_zeros([rows, kv_heads, capacity, head_dim], (kind, device))?;
                // One after the other, so that old and new never exist whole at the same time.
                match tensors.get_mut(layer) {
                    Some(old) => {
                        let live = |t: &Tensor| t.narrow(0, 0, old_rows).narrow(2, 0, old_capacity);
                        live(&empty).copy_(&live(old));
                        *old = empty;
                    }
                    None => tensors.push(empty),
                }
            }
        }
        (self.rows, self.capacity) = (rows, capacity);
        Ok(())
    }
}
