//! The head and the loss, forward and hand-written backward, a chunk of tokens at a time.
//!
//! In: normalised hidden states `[response tokens, hidden]` that predict the response tokens. Out:
//! the loss's gradient by those states, the head's gradients added to the buffer, and sums for the
//! report. A `[tokens, vocab]` tensor never exists: at most `head_chunk_tokens` rows at a time.
//!
//! With logits z = h W^T, log p = log_softmax(z / T), g_t = dLoss / dlog p(y_t), w_t the policy
//! weight, c the entropy coefficient and H_t the entropy:
//!
//! 1. dLoss/dz_t = (g_t (onehot(y_t) - p_t) + c w_t p_t (log p_t + H_t)) / T
//! 2. dLoss/dh_t = dLoss/dz_t W
//! 3. dLoss/dW  += sum_t dLoss/dz_t^T h_t
//!
//! The arithmetic of g_t is [`g2rl_common::objective`], in f64 on the host: one definition for
//! every device, tested against double-precision references.

use std::collections::BTreeSet;
use std::ops::Range;

use g2rl_common::ids::RolloutId;
use g2rl_common::objective::{
    ObjectiveOptions, RatioKind, TokenInput, sequence_log_ratio, sequence_objective, token_objective,
};
use g2rl_common::update::UpdateStats;
use g2rl_ffi::FfiError;
use g2rl_ffi::head::RowGradients;
use tch::Tensor;

use super::gradients::Gradients;
use super::pack::{MicroBatch, ResponseToken};
use super::softmax::SoftmaxRows;
use crate::model::Model;

/// The options of the loss.
#[derive(Debug, Clone)]
pub struct LossOptions {
    /// Clip, KL, entropy bonus, ratio.
    pub objective: ObjectiveOptions,
    /// The temperature the rollouts were sampled at; log-probabilities are taken at it.
    pub temperature: f64,
    /// Rows of logits that exist at a time.
    pub chunk: i64,
}

/// What the head's backward gives.
#[derive(Debug)]
pub struct HeadBackward {
    /// The loss's gradient by `normed`, in its shape and kind.
    pub dnormed: Tensor,
    /// Sequences with a loss, a gradient or a log-probability that is not finite, by rollout.
    pub not_finite: Vec<RolloutId>,
}

/// The gradient of one response token and what to report of it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TokenGradient {
    /// dLoss / dlog p(y_t), weights applied.
    logprob: f32,
    /// Coefficient of the entropy bonus times the token's weight.
    entropy: f32,
    /// Loss, gradient and all log-probabilities are finite.
    finite: bool,
}

/// The head's forward and backward over one micro-batch.
#[derive(Debug)]
pub struct HeadLoss<'a> {
    /// The policy.
    pub model: &'a Model,
    /// The options.
    pub options: &'a LossOptions,
    /// The tokens.
    pub batch: &'a MicroBatch,
    /// log p of the reference policy for each response token, if the objective needs it.
    pub reference_logprobs: Option<&'a [f32]>,
}

impl HeadLoss<'_> {
    /// Forward and backward. `normed` is `[response tokens, hidden]` in the compute dtype.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn backward(
        &self,
        normed: &Tensor,
        gradients: &Gradients,
        stats: &mut UpdateStats,
    ) -> Result<HeadBackward, FfiError> {
        let _guard = tch::no_grad_guard();
        let mut broken = BTreeSet::new();
        let sequence_ratios = self.sequence_log_ratios(normed)?;
        let dnormed = normed.empty_like();
        for range in chunks(self.batch.targets.len(), self.options.chunk) {
            let (start, count) = (range.start as i64, range.len() as i64);
            let hidden = normed.narrow(0, start, count);
            let logits = hidden.matmul(&self.model.head().tr());
            let rows =
                SoftmaxRows::new(logits, self.options.temperature, &self.batch.targets[range.clone()])?;

            // The loss, token by token.
            let (mut logprob, mut entropy) = (Vec::new(), Vec::new());
            for (at, t) in range.enumerate() {
                let values = (rows.logprobs()[at], rows.entropies()[at]);
                let gradient = self.token(t, values, sequence_ratios.get(t).copied(), stats);
                logprob.push(gradient.logprob);
                entropy.push(gradient.entropy);
                if !gradient.finite {
                    broken.insert(self.batch.responses.partition_point(|range| range.end <= t));
                }
            }

            // 1., 2. and 3.
            let dlogits = rows.into_gradient(RowGradients { logprob: &logprob, entropy: &entropy })?;
            let _ = dlogits.mm_out(&dnormed.narrow(0, start, count), self.model.head());
            gradients.add_product(self.model.weights().head_part(), &dlogits, &hidden)?;
        }
        let not_finite = broken.into_iter().map(|sequence| self.batch.ids[sequence]).collect();
        Ok(HeadBackward { dnormed, not_finite })
    }

    /// For each response token the mean log-ratio of its sequence; empty unless the objective's
    /// ratio is the sequence's, which needs all log-probabilities before the first gradient.
    fn sequence_log_ratios(&self, normed: &Tensor) -> Result<Vec<f64>, FfiError> {
        if self.options.objective.ratio == RatioKind::Token {
            return Ok(Vec::new());
        }
        let logprobs = target_logprobs(self.model, normed, &self.batch.targets, self.options)?;
        let mut ratios = vec![0.0; logprobs.len()];
        for range in &self.batch.responses {
            let log_ratio =
                |t: usize| f64::from(logprobs[t]) - f64::from(self.batch.streams[t].behavior_logprob);
            ratios[range.clone()].fill(sequence_log_ratio(range.clone().map(log_ratio)));
        }
        Ok(ratios)
    }

    /// The loss of response token `t` with the given log-probability and entropy, added to the sums, and its
    /// gradient.
    fn token(
        &self,
        t: usize,
        (logprob, entropy): (f32, f32),
        sequence_ratio: Option<f64>,
        stats: &mut UpdateStats,
    ) -> TokenGradient {
        let ResponseToken { behavior_logprob, advantage, policy_weight, imitation_weight } =
            self.batch.streams[t];
        let (logprob, entropy) = (f64::from(logprob), f64::from(entropy));
        let finite = logprob.is_finite() && entropy.is_finite();
        let mut gradient = TokenGradient { logprob: 0.0, entropy: 0.0, finite };
        stats.tokens += 1;
        stats.entropy += entropy;
        if policy_weight != 0.0 {
            let weight = f64::from(policy_weight);
            let input = TokenInput {
                policy_logprob: logprob,
                behavior_logprob: f64::from(behavior_logprob),
                advantage: f64::from(advantage),
                reference_logprob: self.reference_logprobs.map(|r| f64::from(r[t])),
            };
            let policy = self.options.objective.policy_term();
            let term = match sequence_ratio {
                Some(ratio) => sequence_objective(&policy, input, ratio),
                None => token_objective(&policy, input),
            };
            let drift = input.log_ratio().abs();
            let bonus = self.options.objective.entropy_coef * weight;
            stats.loss += weight * term.loss - bonus * entropy;
            stats.kl += term.kl;
            stats.clipped += u64::from(term.clipped);
            stats.ratio += term.ratio;
            stats.drift += drift;
            stats.drift_max = stats.drift_max.max(drift);
            gradient.logprob += (weight * term.dloss_dlogprob) as f32;
            gradient.entropy += bonus as f32;
            gradient.finite &= [term.loss, term.kl, drift].iter().all(|value| value.is_finite());
        }
        if imitation_weight != 0.0 {
            stats.loss -= f64::from(imitation_weight) * logprob;
            stats.negative_log_likelihood -= logprob;
            gradient.logprob -= imitation_weight;
        }
        gradient.finite &= gradient.logprob.is_finite() && gradient.entropy.is_finite();
        gradient
    }
}

/// Rows `0..rows`, at most `limit` at a time.
fn chunks(rows: usize, limit: i64) -> impl Iterator<Item = Range<usize>> {
    let limit = limit.max(1) as usize;
    (0..rows).step_by(limit).map(move |start| start..(start + limit).min(rows))
}

/// log p(target) for each row of `normed` `[tokens, hidden]`, a chunk at a time, without gradient.
///
/// # Errors
/// [`FfiError`] if libtorch refuses or a target is not in the vocabulary.
pub fn target_logprobs(
    model: &Model,
    normed: &Tensor,
    targets: &[i64],
    options: &LossOptions,
) -> Result<Vec<f32>, FfiError> {
    let _guard = tch::no_grad_guard();
    let mut logprobs = Vec::with_capacity(targets.len());
    for range in chunks(targets.len(), options.chunk) {
        let hidden = normed.narrow(0, range.start as i64, range.len() as i64);
        let rows = SoftmaxRows::new(hidden.matmul(&model.head().tr()), options.temperature, &targets[range])?;
        logprobs.extend_from_slice(rows.logprobs());
    }
    Ok(logprobs)
}
