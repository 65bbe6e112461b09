//! One running rollout.

use std::sync::Arc;

use g2rl_common::ids::RolloutId;
use g2rl_common::rollout::{FinishReason, Purpose, Rollout};
use g2rl_common::seed::{RolloutStream, StreamKey, prompt_hash};

use super::backend::DrawnToken;
use super::device::extents::Extent;
use super::{EngineOptions, RolloutRequest, TextDecoder};

/// Tokens beyond the longest stop string's characters that are looked at for it: a character may be
/// split over several tokens, and special tokens have no text.
const STOP_MARGIN: usize = 8;

/// One running rollout.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) request: Arc<RolloutRequest>,
    /// Rollout index in its group.
    pub(super) index: u32,
    /// Where the prompt's keys and values are.
    pub(super) prompt: Extent,
    /// Where the response's are.
    pub(super) own: Extent,
    /// Tokens at which the response ends.
    limit: i64,
    wants_feature: bool,
    stream: RolloutStream,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    entropy: f64,
}

impl Slot {
    pub(super) fn new(
        (request, index): (&Arc<RolloutRequest>, u32),
        (prompt, own): (Extent, Extent),
        max_positions: i64,
        options: &EngineOptions,
    ) -> Self {
        let lease = &request.lease;
        let stream = RolloutStream::new(&StreamKey {
            run_seed: options.run_seed,
            policy_version: lease.policy_version.0,
            prompt: prompt_hash(&lease.prompt_id.0),
            rollout_index: u64::from(index) + u64::from(lease.stream_offset),
        });
        Self {
            request: request.clone(),
            index,
            prompt,
            own,
            limit: request.limit(max_positions),
            wants_feature: match lease.purpose {
                Purpose::Train => options.features,
                Purpose::Evaluate => options.evaluation_features,
            },
            stream,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            entropy: 0.0,
        }
    }

    /// The draw of a token, 0 for the next one: it depends on the position, not on when it is made.
    pub(super) fn uniform_ahead(&self, ahead: u64) -> f64 {
        self.stream.uniform(self.tokens.len() as u64 + ahead)
    }

    /// Tokens at which the response ends.
    pub(super) fn limit(&self) -> i64 {
        self.limit
    }

    /// Tokens until the response ends by its length.
    pub(super) fn tokens_left(&self) -> i64 {
        self.limit - self.tokens.len() as i64
    }

    /// Whether residuals are to be summed.
    pub(super) fn wants_feature(&self) -> bool {
        self.wants_feature
    }

    /// Tokens already in the own cache, and the token that comes next into it.
    pub(super) fn decode_input(&self) -> (i64, i64) {
        let last = *self.tokens.last().expect("a slot has its first token from the prompt's logits");
        (self.tokens.len() as i64 - 1, i64::from(last))
    }

    pub(super) fn response_length(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn push(&mut self, drawn: DrawnToken) {
        self.tokens.push(drawn.token);
        self.logprobs.push(drawn.logprob);
        self.entropy += f64::from(drawn.entropy);
    }

    /// Why the response ends with its last token, if it does.
    pub(super) fn finish_reason(
        &self,
        end_tokens: &[u32],
        decoder: &dyn TextDecoder,
    ) -> Option<FinishReason> {
        let sampling = &self.request.lease.sampling;
        if self.tokens.last().is_some_and(|token| end_tokens.contains(token)) {
            return Some(FinishReason::EndToken);
        }
        if !sampling.stop.is_empty() {
            let characters = sampling.stop.iter().map(|s| s.chars().count()).max().unwrap_or(0);
            let start = self.tokens.len().saturating_sub(characters + STOP_MARGIN);
            let tail = decoder.decode(&self.tokens[start..]);
            if sampling.stop.iter().any(|stop| tail.contains(stop.as_str())) {
                return Some(FinishReason::StopString);
            }
        }
        (self.tokens_left() <= 0).then_some(FinishReason::Length)
    }

    pub(super) fn into_rollout(
        self,
        id: RolloutId,
        finish_reason: FinishReason,
        feature: Option<Vec<f32>>,
        (decoder, end_tokens): (&dyn TextDecoder, &[u32]),
    ) -> Rollout {
        let visible = match self.tokens.split_last() {
            Some((last, before)) if end_tokens.contains(last) => before,
            _ => &self.tokens[..],
        };
        Rollout {
            id,
            policy_version: self.request.lease.policy_version,
            prompt_tokens: self.request.prompt_tokens.to_vec(),
            text: decoder.decode(visible),
            mean_entropy: (self.entropy / self.tokens.len().max(1) as f64) as f32,
            response_tokens: self.tokens,
            behavior_logprobs: self.logprobs,
            finish_reason,
            feature,
        }
    }
}
