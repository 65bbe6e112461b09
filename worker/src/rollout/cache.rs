//! Keys and values of prompts and of running rollouts, and the attention of a new token over them.
//!
//! Both are `[rows, kv_heads, capacity, head_dim]`. Capacities start small and double when a sequence
//! reaches them, so a long limit costs nothing until it is used.

use g2rl_ffi::decode::{DecodeAttention, decode_attention};
use tch::{Device, Kind, Tensor};

use super::RolloutError;
use crate::model::Model;
use crate::model::layer::AttentionInput;
use crate::model::ops::Attended;
use crate::model::weights::kind_of;

/// Capacities are multiples of this number of tokens.
const CAPACITY_STEP: i64 = 64;

/// What a cache's size follows from.
#[derive(Debug, Clone, Copy)]
pub(super) struct CacheShape {
    layers: usize,
    kv_heads: i64,
    head_dim: i64,
    kind: Kind,
    device: Device,
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
pub(super) struct OwnCache {
    shape: CacheShape,
    rows: i64,
    capacity: i64,
    /// `[rows, kv_heads, capacity, head_dim]` for each layer.
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

/// One layer of a cache.
#[derive(Debug)]
pub(super) struct LayerCache<'a> {
    pub(super) keys: &'a Tensor,
    pub(super) values: &'a Tensor,
}

impl LayerCache<'_> {
    /// Stores a prompt's keys and values `[length, kv_heads, head_dim]` in a row.
    pub(super) fn write_prompt(&self, row: i64, key: &Tensor, value: &Tensor) {
        let length = key.size()[0];
        self.keys.get(row).narrow(1, 0, length).copy_(&key.permute([1, 0, 2]));
        self.values.get(row).narrow(1, 0, length).copy_(&value.permute([1, 0, 2]));
    }
}

impl OwnCache {
    pub(super) fn new(shape: CacheShape, rows: i64) -> Self {
        Self { shape, rows, capacity: 0, keys: Vec::new(), values: Vec::new() }
    }

    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    pub(super) fn layer(&self, layer: usize) -> LayerCache<'_> {
        LayerCache { keys: &self.keys[layer], values: &self.values[layer] }
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

/// Where a sequence's tokens are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheRow {
    /// Row of the prompt cache.
    pub(super) prompt_row: i64,
    /// Prompt tokens, shared with the row's other sequences.
    pub(super) prompt_length: i64,
    /// Row of the own cache.
    pub(super) slot: i64,
    /// Tokens in the own cache before the new one.
    pub(super) length: i64,
}

/// The sequences of one decode step, as index tensors that all layers share.
#[derive(Debug)]
pub(super) struct Batch {
    prompt_row: Tensor,
    prompt_length: Tensor,
    slot: Tensor,
    /// Own tokens, the new one included.
    length: Tensor,
    /// Where the new token's keys go in a cache seen as `[rows kv_heads capacity, head_dim]`.
    places: Tensor,
    /// `[batch, 1, 1, prompt + own]`, 0 where live and -inf elsewhere; only for devices without the
    /// CPU kernel.
    mask: Option<Tensor>,
    longest: (i64, i64),
}

impl Batch {
    /// The sequences at `rows` of a cache `own`.
    pub(super) fn new(rows: &[CacheRow], own: &OwnCache) -> Self {
        let CacheShape { kv_heads, device, .. } = own.shape;
        let column = |f: fn(&CacheRow) -> i64| -> Vec<i64> { rows.iter().map(f).collect() };
        let place = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let places: Vec<i64> = rows
            .iter()
            .flat_map(|row| {
                (0..kv_heads).map(move |head| (row.slot * kv_heads + head) * own.capacity + row.length)
            })
            .collect();
        let longest = |f: fn(&CacheRow) -> i64| rows.iter().map(f).max().unwrap_or(0);
        let mut batch = Self {
            prompt_row: place(&column(|row| row.prompt_row)),
            prompt_length: place(&column(|row| row.prompt_length)),
            slot: place(&column(|row| row.slot)),
            length: place(&column(|row| row.length + 1)),
            places: place(&places),
            mask: None,
            longest: (longest(|row| row.prompt_length), longest(|row| row.length + 1)),
        };
        if device != Device::Cpu {
            batch.mask = Some(batch.build_mask(device));
        }
        batch
    }

    fn build_mask(&self, device: Device) -> Tensor {
        let dead = |limits: &Tensor, size: i64| {
            Tensor::arange(size, (Kind::Int64, device)).unsqueeze(0).ge_tensor(&limits.unsqueeze(1))
        };
        let dead =
            Tensor::cat(&[dead(&self.prompt_length, self.longest.0), dead(&self.length, self.longest.1)], 1);
        let mask = Tensor::zeros(dead.size(), (Kind::Float, device)).masked_fill(&dead, f64::NEG_INFINITY);
        mask.unsqueeze(1).unsqueeze(1)
    }

    /// Appends the new tokens' keys and values and attends from them to prompt and response so far:
    /// `[batch, heads, head_dim]`.
    pub(super) fn attend(
        &self,
        input: &AttentionInput,
        prompts: &LayerCache<'_>,
        own: &LayerCache<'_>,
    ) -> Result<Attended, RolloutError> {
        let head_dim = input.heads.2;
        for (cache, new) in [(own.keys, input.key()), (own.values, input.value())] {
            let rows = new.f_reshape([-1, head_dim])?;
            let _ = cache.f_view([-1, head_dim])?.f_index_copy_(0, &self.places, &rows)?;
        }
        let normalizers = Tensor::new();
        if let Some(mask) = &self.mask {
            let output = self.attend_masked(&input.query(), prompts, own, mask)?;
            return Ok(Attended { output, normalizers });
        }
        let output = decode_attention(&DecodeAttention {
            query: &input.query(),
            prompt_keys: prompts.keys,
            prompt_values: prompts.values,
            prompt_row: &self.prompt_row,
            prompt_length: &self.prompt_length,
            keys: own.keys,
            values: own.values,
            slot: &self.slot,
            length: &self.length,
            scale: (head_dim as f64).powf(-0.5),
        })?;
        Ok(Attended { output, normalizers })
    }

    /// The attention in tensor operations: live extents are gathered to the longest length of the
    /// batch and masked.
    fn attend_masked(
        &self,
        query: &Tensor,
        prompts: &LayerCache<'_>,
        own: &LayerCache<'_>,
        mask: &Tensor,
    ) -> Result<Tensor, tch::TchError> {
        let (batch, heads, head_dim) = query.size3()?;
        let kv_heads = own.keys.size()[1];
        let side_by_side = |prompt: &Tensor, own: &Tensor| {
            let prompt = prompt.f_narrow(2, 0, self.longest.0)?.f_index_select(0, &self.prompt_row)?;
            Tensor::f_cat(&[prompt, own.f_narrow(2, 0, self.longest.1)?.f_index_select(0, &self.slot)?], 2)
        };
        let keys = side_by_side(prompts.keys, own.keys)?;
        let values = side_by_side(prompts.values, own.values)?;
        // All query heads of a key head together.
        let query = query.f_reshape([batch, kv_heads, heads / kv_heads, head_dim])?;
        let scores = query.f_matmul(&keys.f_transpose(2, 3)?)?.f_to_kind(Kind::Float)?;
        let weights = (scores / (head_dim as f64).sqrt() + mask)
            .f_softmax(-1, Kind::Float)?
            .f_to_kind(values.kind())?;
        weights.f_matmul(&values)?.f_reshape([batch, heads, head_dim])
    }
}
