//! `advantages -> update`: what a rank trains on and what it reports.
//!
//! The update knows no algorithm: everything an algorithm decides arrives here as per-sequence
//! numbers, already normalised over the global mini-batch, so that neither the number of ranks nor
//! the packing changes the gradient.

use serde::{Deserialize, Serialize};

use crate::ids::RolloutId;

/// One sequence of a mini-batch.
///
/// The loss it adds is
/// `policy_weight * sum_t objective(t) - imitation_weight * sum_t log p(token t)`
/// over its response tokens t.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSequence {
    /// The rollout it came from.
    pub id: RolloutId,
    /// Prompt and response token ids.
    pub tokens: Vec<u32>,
    /// Number of prompt tokens, at least 1; the response is `tokens[prompt_length..]`.
    pub prompt_length: u32,
    /// One value for each response token (empty if `policy_weight` is 0).
    pub behavior_logprobs: Vec<f32>,
    /// The advantage of every response token.
    pub advantage: f32,
    /// Weight of each response token's policy objective in the loss of the global mini-batch.
    pub policy_weight: f32,
    /// Weight of each response token's negative log-likelihood in the loss of the global
    /// mini-batch.
    pub imitation_weight: f32,
}

impl TrainSequence {
    /// Number of response tokens.
    #[must_use]
    pub fn response_length(&self) -> usize {
        self.tokens.len().saturating_sub(self.prompt_length as usize)
    }
}

/// Sums over the response tokens that one rank trained on; adding the sums of all ranks gives the
/// global mini-batch's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct UpdateStats {
    /// Number of response tokens.
    pub tokens: u64,
    /// Number of sequences.
    pub sequences: u64,
    /// The loss, weights applied.
    pub loss: f64,
    /// Sum of the k3 estimate of KL(policy || reference), nats.
    pub kl: f64,
    /// Number of tokens whose gradient the clip removed.
    pub clipped: u64,
    /// Sum of the full-softmax entropy, nats.
    pub entropy: f64,
    /// Sum of importance ratios.
    pub ratio: f64,
    /// Sum of |policy_logprob - behavior_logprob|, nats.
    pub drift: f64,
    /// Largest |policy_logprob - behavior_logprob|, nats.
    pub drift_max: f64,
    /// Sum of -log p(token) where an imitation weight is set, nats.
    pub negative_log_likelihood: f64,
}

impl UpdateStats {
    /// Adds another rank's or micro-batch's sums.
    pub fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.sequences += other.sequences;
        self.loss += other.loss;
        self.kl += other.kl;
        self.clipped += other.clipped;
        self.entropy += other.entropy;
        self.ratio += other.ratio;
        self.drift += other.drift;
        self.drift_max = self.drift_max.max(other.drift_max);
        self.negative_log_likelihood += other.negative_log_likelihood;
    }

    /// No sum is infinite or not a number.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        let floats = [
            self.loss,
            self.kl,
            self.entropy,
            self.ratio,
            self.drift,
            self.drift_max,
            self.negative_log_likelihood,
        ];
        floats.iter().all(|sum| sum.is_finite())
    }

    /// `sum / tokens`, or 0 where there are no tokens.
    #[must_use]
    pub fn per_token(&self, sum: f64) -> f64 {
        if self.tokens == 0 { 0.0 } else { sum / self.tokens as f64 }
    }
}
