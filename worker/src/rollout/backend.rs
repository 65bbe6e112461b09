//! What the engine needs of a device: places for keys and values, and tokens.
//!
//! Two kinds implement it: the CPU's own decoder ([`super::cpu`]) and tensor operations over fixed buffers
//! ([`super::device`]). The engine knows queue, groups and when responses end; a backend knows where things
//! are.

use std::fmt::Debug;

use tch::Tensor;

use super::RolloutError;
use super::device::extents::Extent;
use super::feature::Residuals;
use super::slot::Slot;
use crate::model::Model;

/// A token that was drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DrawnToken {
    pub(super) token: u32,
    /// Of the full softmax at the temperature.
    pub(super) logprob: f32,
    /// Of the same, nats.
    pub(super) entropy: f32,
}

/// What a slot drew, in order.
#[derive(Debug)]
pub(super) struct SlotTokens {
    pub(super) slot: usize,
    /// At least one; those after the first that ends the response are left out by the backend, except after a
    /// stop string, which is looked for after every token.
    pub(super) drawn: Vec<DrawnToken>,
}

/// Places and tokens on one device.
pub(super) trait Backend: Debug + Send {
    /// So many more prompts will be taken now.
    fn expect_prompts(&mut self, _prompts: usize) -> Result<(), RolloutError> {
        Ok(())
    }

    /// A place for a prompt of so many tokens; `None` until others give theirs back.
    fn take_prompt(&mut self, tokens: i64) -> Result<Option<Extent>, RolloutError>;

    /// Nobody reads the prompt any more.
    fn give_prompt(&mut self, prompt: Extent);

    /// Stores a layer's keys and values of a prompt, `[tokens, kv_heads, head_dim]` each.
    fn write_prompt(
        &self,
        layer: usize,
        prompt: Extent,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(), RolloutError>;

    /// A place for the tokens of a response; `None` until others give theirs back.
    fn take_own(&mut self, tokens: i64) -> Option<Extent>;

    /// The response is complete.
    fn give_own(&mut self, own: Extent);

    /// Takes all places back.
    fn clear(&mut self);

    /// Takes all places back, and makes sure that a prompt and a response of so many tokens together fit.
    fn make_room(&mut self, tokens: i64) -> Result<(), RolloutError>;

    /// At least one token of every taken slot, added to its residual sums where its rollout wants a feature.
    /// Slots may change places, and their sums with them.
    fn generate(
        &mut self,
        model: &Model,
        slots: &mut [Option<Slot>],
        residuals: Option<&Residuals>,
    ) -> Result<Vec<SlotTokens>, RolloutError>;
}
