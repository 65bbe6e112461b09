//! Prompts of running groups: each goes through the model once and is then read by all rollouts of
//! its group.

use std::collections::BTreeMap;
use std::sync::Arc;

use g2rl_common::ids::GroupId;
use g2rl_ffi::attention::Segments;
use tch::Tensor;

use super::RolloutError;
use super::backend::Backend;
use super::device::extents::Extent;
use crate::model::Model;

/// A prompt in the cache.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Where its keys and values are, and its tokens.
    pub(super) place: Extent,
    /// Logits after its last token `[1, vocab] f32`.
    pub(super) logits: Tensor,
}

/// A prompt that has a place and is not yet through the model.
#[derive(Debug)]
pub(super) struct NewPrompt {
    pub(super) group: GroupId,
    pub(super) tokens: Arc<[u32]>,
    pub(super) place: Extent,
}

/// The prompts of groups that wait or run.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    ready: BTreeMap<GroupId, Prompt>,
    /// Rollouts that will still read the prompt.
    readers: BTreeMap<GroupId, u32>,
    prefills: u64,
}

impl Prompts {
    /// One more rollout of the group will come.
    pub(super) fn expect(&mut self, group: GroupId) {
        *self.readers.entry(group).or_default() += 1;
    }

    /// A rollout of the group is complete; after the last one the prompt's place is free.
    pub(super) fn release(&mut self, group: GroupId) -> Option<Extent> {
        let readers = self.readers.get_mut(&group).expect("a released group was expected");
        *readers -= 1;
        if *readers > 0 {
            return None;
        }
        self.readers.remove(&group);
        self.ready.remove(&group).map(|prompt| prompt.place)
    }

    /// Forgets all groups.
    pub(super) fn clear(&mut self) {
        self.readers.clear();
        self.ready.clear();
    }

    /// Forgets where prompts are; they go through the model again when they are wanted.
    pub(super) fn evict(&mut self) {
        self.ready.clear();
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

    /// Runs prompts through the model together and keeps their keys, values and last logits.
    pub(super) fn prefill(
        &mut self,
        model: &Model,
        prompts: &[NewPrompt],
        backend: &dyn Backend,
    ) -> Result<(), RolloutError> {
        let lengths: Vec<i64> = prompts.iter().map(|prompt| prompt.tokens.len() as i64).collect();
        let device = model.weights().device();
        let ids: Vec<i64> =
            prompts.iter().flat_map(|prompt| prompt.tokens.iter().map(|t| i64::from(*t))).collect();
        let mut segments = Segments::default();
        lengths.iter().for_each(|length| segments.push(*length, None));
        let rotary = model.rotary_rows(&segments.positions());
        let attention = model.attention(&segments);
        let mut x = model.embed(&Tensor::from_slice(&ids).to_device(device));
        for layer in 0..model.config().layers as usize {
            x = model.layer(layer, &x, &rotary, |input| {
                let (keys, values) = (input.key(), input.value());
                let mut start = 0;
                for prompt in prompts {
                    let part = |t: &Tensor| t.f_narrow(0, start, prompt.place.length);
                    backend.write_prompt(layer, prompt.place, &part(&keys)?, &part(&values)?)?;
                    start += prompt.place.length;
                }
                Ok::<_, RolloutError>(attention.forward(input)?)
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
        for (at, prompt) in prompts.iter().enumerate() {
            let logits = logits.narrow(0, at as i64, 1).contiguous();
            self.ready.insert(prompt.group, Prompt { place: prompt.place, logits });
        }
        self.prefills += prompts.len() as u64;
        Ok(())
    }
}
