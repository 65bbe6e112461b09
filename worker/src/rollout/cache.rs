//! Keys and values of prompts and of running rollouts, and the attention of a new token over them.
//!
//! Keys are stored by column, `[rows, kv_heads, head_dim, capacity]`, values by row,
//! `[rows, kv_heads, capacity, head_dim]`. Capacities start small and double when a sequence reaches
//! them, so a long limit costs nothing until it is used.

use g2rl_ffi::decode::{CAPACITY_STEP, CacheRow, LayerCaches, decode_attention};
use tch::{Device, Kind, Tensor};

use super::RolloutError;
use crate::model::Model;
use crate::model::decoder::Qkv;
use crate::model::weights::kind_of;

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
    layers: Vec<(Tensor, Tensor)>,
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
        self.keys.get(row).narrow(2, 0, length).copy_(&key.permute([1, 2, 0]));
        self.values.get(row).narrow(1, 0, length).copy_(&value.permute([1, 0, 2]));
    }
}

impl OwnCache {
    pub(super) fn new(shape: CacheShape, rows: i64) -> Self {
        Self { shape, rows, capacity: 0, layers: Vec::new() }
    }

    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    pub(super) fn layer(&self, layer: usize) -> LayerCache<'_> {
        let (keys, values) = &self.layers[layer];
        LayerCache { keys, values }
    }

    /// Makes room for `tokens` tokens in every row.
    pub(super) fn reserve(&mut self, tokens: i64) -> Result<(), RolloutError> {
        if tokens <= self.capacity && !self.layers.is_empty() {
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
        for layer in 0..layers {
            let keys = Tensor::f_zeros([rows, kv_heads, head_dim, capacity], (kind, device))?;
            let values = Tensor::f_zeros([rows, kv_heads, capacity, head_dim], (kind, device))?;
            // One layer after the other, so that old and new never exist whole at the same time.
            if let Some((old_keys, old_values)) = self.layers.get_mut(layer) {
                let target = keys.narrow(0, 0, old_rows).narrow(3, 0, old_capacity);
                target.shallow_clone().copy_(&old_keys.narrow(0, 0, old_rows).narrow(3, 0, old_capacity));
                let target = values.narrow(0, 0, old_rows).narrow(2, 0, old_capacity);
                target.shallow_clone().copy_(&old_values.narrow(0, 0, old_rows).narrow(2, 0, old_capacity));
                (*old_keys, *old_values) = (keys, values);
            } else {
                self.layers.push((keys, values));
            }
        }
        (self.rows, self.capacity) = (rows, capacity);
        Ok(())
    }
}

/// The sequences of one decode step: rows for the CPU kernel, or index tensors for a GPU.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    rows: &'a [CacheRow],
    gathered: Option<Gathered>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(rows: &'a [CacheRow], device: Device) -> Self {
        Self { rows, gathered: (device != Device::Cpu).then(|| Gathered::new(rows, device)) }
    }
}

/// Appends the new token's key and value and attends from it to prompt and response so far:
/// `[batch, heads, head_dim]`.
pub(super) fn attend(
    qkv: &Qkv,
    prompts: &LayerCache<'_>,
    own: &LayerCache<'_>,
    batch: &Batch<'_>,
) -> Result<Tensor, RolloutError> {
    if let Some(gathered) = &batch.gathered {
        return Ok(gathered.attend(qkv, prompts, own)?);
    }
    let caches = LayerCaches {
        prompt_keys: prompts.keys,
        prompt_values: prompts.values,
        keys: own.keys,
        values: own.values,
    };
    Ok(decode_attention(&qkv.query, &qkv.key, &qkv.value, &caches, batch.rows)?)
}

/// The same attention in tensor operations, for devices without the CPU kernel: live extents are
/// gathered to the longest length of the batch and masked.
#[derive(Debug)]
struct Gathered {
    prompt_rows: Tensor,
    slots: Tensor,
    lengths: Tensor,
    longest: (i64, i64),
    /// `[batch, 1, 1, prompt + own]`, 0 where live and -inf elsewhere.
    mask: Tensor,
}

impl Gathered {
    fn new(rows: &[CacheRow], device: Device) -> Self {
        let column = |f: fn(&CacheRow) -> i64| -> Vec<i64> { rows.iter().map(f).collect() };
        let place = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let (prompts, lengths) = (column(|r| r.prompt_length), column(|r| r.length));
        let longest_prompt = prompts.iter().copied().max().unwrap_or(0);
        let longest_own = lengths.iter().copied().max().unwrap_or(0) + 1;
        let dead = |limits: Tensor, size: i64| {
            Tensor::arange(size, (Kind::Int64, device)).unsqueeze(0).ge_tensor(&limits.unsqueeze(1))
        };
        let dead =
            Tensor::cat(&[dead(place(&prompts), longest_prompt), dead(place(&lengths) + 1, longest_own)], 1);
        let mask = Tensor::zeros(dead.size(), (Kind::Float, device)).masked_fill(&dead, f64::NEG_INFINITY);
        Self {
            prompt_rows: place(&column(|r| r.prompt_row)),
            slots: place(&column(|r| r.slot)),
            lengths: place(&lengths),
            longest: (longest_prompt, longest_own),
            mask: mask.unsqueeze(1).unsqueeze(1),
        }
    }

    fn attend(&self, qkv: &Qkv, prompts: &LayerCache<'_>, own: &LayerCache<'_>) -> Result<Tensor, tch::TchError> {
        let (batch, heads, head_dim) = qkv.query.size3()?;
        let kv_heads = qkv.key.size()[1];
        // 1. The new token joins its own extent: keys at [slot, :, :, length], values at
        //    [slot, :, length, :].
        let index = [Some(&self.slots), None, None, Some(&self.lengths)];
        let _ = own.keys.shallow_clone().f_index_put_(&index, &qkv.key, false)?;
        let index = [Some(&self.slots), None, Some(&self.lengths)];
        let _ = own.values.shallow_clone().f_index_put_(&index, &qkv.value, false)?;
        // 2. Live extents, side by side.
        let (prompt, longest) = self.longest;
        let keys = Tensor::f_cat(
            &[
                prompts.keys.f_narrow(3, 0, prompt)?.f_index_select(0, &self.prompt_rows)?,
                own.keys.f_narrow(3, 0, longest)?.f_index_select(0, &self.slots)?,
            ],
            3,
        )?;
        let values = Tensor::f_cat(
            &[
                prompts.values.f_narrow(2, 0, prompt)?.f_index_select(0, &self.prompt_rows)?,
                own.values.f_narrow(2, 0, longest)?.f_index_select(0, &self.slots)?,
            ],
            2,
        )?;
        // 3. Attention of all query heads of a key head together.
        let query = qkv.query.f_view([batch, kv_heads, heads / kv_heads, head_dim])?;
        let scores = query.f_matmul(&keys)?.f_to_kind(Kind::Float)? / (head_dim as f64).sqrt() + &self.mask;
        let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(values.kind())?;
        weights.f_matmul(&values)?.f_reshape([batch, heads, head_dim])
    }
}
