//! Prompts of running groups: each goes through the model once and is then read by all rollouts of
//! its group.

use std::collections::BTreeMap;
use std::sync::Arc;

use g2rl_common::ids::GroupId;
use g2rl_ffi::attention::Segments;
use tch::Tensor;

use super::RolloutError;
use super::cache::{CacheShape, LayerCache, OwnCache};
use crate::model::Model;
use crate::model::ops;

/// A prompt in the cache.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Its row.
    pub(super) row: i64,
    /// Its tokens.
    pub(super) length: i64,
    /// Logits after its last token `[1, vocab] f32`.
    pub(super) logits: Tensor,
}

/// The prompts of groups that wait or run.
#[derive(Debug)]
pub(super) struct Prompts {
    cache: OwnCache,
    ready: BTreeMap<GroupId, Prompt>,
    /// Rollouts that will still read the prompt.
    readers: BTreeMap<GroupId, u32>,
    free_rows: Vec<i64>,
    prefills: u64,
}

impl Prompts {
    pub(super) fn new(shape: CacheShape) -> Self {
        Self {
            cache: OwnCache::new(shape, 0),
            ready: BTreeMap::new(),
            readers: BTreeMap::new(),
            free_rows: Vec::new(),
            prefills: 0,
        }
    }

    /// One more rollout of the group will come.
    pub(super) fn expect(&mut self, group: GroupId) {
        *self.readers.entry(group).or_default() += 1;
    }

    /// A rollout of the group is complete; after the last one the prompt's row is free.
    pub(super) fn release(&mut self, group: GroupId) {
        let readers = self.readers.get_mut(&group).expect("a released group was expected");
        *readers -= 1;
        if *readers == 0 {
            self.readers.remove(&group);
            if let Some(prompt) = self.ready.remove(&group) {
                self.free_rows.push(prompt.row);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.readers.clear();
        let rows = std::mem::take(&mut self.ready).into_values().map(|prompt| prompt.row);
        self.free_rows.extend(rows);
    }

    pub(super) fn is_ready(&self, group: GroupId) -> bool {
        self.ready.contains_key(&group)
    }

    pub(super) fn get(&self, group: GroupId) -> &Prompt {
        self.ready.get(&group).expect("the prompt went through the model")
    }

    pub(super) fn prefills(&self) -> u64 {
        self.prefills
    }

    pub(super) fn layer(&self, layer: usize) -> LayerCache<'_> {
        self.cache.layer(layer)
    }

    /// Keys and values of all layers.
    pub(super) fn layers(&self) -> (&[Tensor], &[Tensor]) {
        self.cache.layers()
    }

    /// Runs prompts through the model together and keeps their keys, values and last logits.
    pub(super) fn prefill(
        &mut self,
        model: &Model,
        prompts: &[(GroupId, Arc<[u32]>)],
    ) -> Result<(), RolloutError> {
        let lengths: Vec<i64> = prompts.iter().map(|(_, tokens)| tokens.len() as i64).collect();
        let missing = prompts.len().saturating_sub(self.free_rows.len()) as i64;
        if missing > 0 {
            let have = self.cache.rows();
            let rows = (have + missing).max(2 * have);
            self.cache.reserve_rows(rows)?;
            self.free_rows.extend((have..rows).rev());
        }
        self.cache.reserve(lengths.iter().copied().max().unwrap_or(0))?;
        let rows: Vec<i64> =
            prompts.iter().map(|_| self.free_rows.pop().expect("rows were reserved above")).collect();

        let device = model.weights().device();
        let ids: Vec<i64> =
            prompts.iter().flat_map(|(_, tokens)| tokens.iter().map(|t| i64::from(*t))).collect();
        let mut segments = Segments::default();
        lengths.iter().for_each(|length| segments.push(*length, None));
        let rotary = model.rotary_rows(&segments.positions());
        let mut x = model.embed(&Tensor::from_slice(&ids).to_device(device));
        for layer in 0..model.config().layers as usize {
            let cache = self.cache.layer(layer);
            x = model.layer(layer, &x, &rotary, |input| {
                let (keys, values) = (input.key(), input.value());
                let mut start = 0;
                for (row, length) in rows.iter().zip(&lengths) {
                    cache.write_prompt(
                        *row,
                        &keys.narrow(0, start, *length),
                        &values.narrow(0, start, *length),
                    );
                    start += length;
                }
                ops::attention(input, &segments)
            })?;
        }
        let mut end = 0;
        let last: Vec<i64> = lengths
            .iter()
            .map(|length| {
                end += length;
                end - 1
            })
            .collect();
        let last = x.index_select(0, &Tensor::from_slice(&last).to_device(device));
        let logits = model.logits(&model.final_norm(&last)?);
        for (at, (group, _)) in prompts.iter().enumerate() {
            let prompt = Prompt {
                row: rows[at],
                length: lengths[at],
                logits: logits.narrow(0, at as i64, 1).contiguous(),
            };
            self.ready.insert(*group, prompt);
        }
        self.prefills += prompts.len() as u64;
        Ok(())
    }
}
