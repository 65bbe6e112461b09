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

use g2rl_common::objective::{
    ObjectiveOptions, RatioKind, TokenInput, sequence_log_ratio, sequence_objective, token_objective,
};
use g2rl_common::update::UpdateStats;
use tch::{Kind, Tensor};

use super::gradients::Gradients;
use super::pack::{MicroBatch, ResponseToken};
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

/// The gradient of one response token and what to report of it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct TokenGradient {
    /// dLoss / dlog p(y_t), weights applied.
    logprob: f32,
    /// Coefficient of the entropy bonus times the token's weight.
    entropy: f32,
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
    /// Forward and backward. `normed` is `[response tokens, hidden]` in the compute dtype; the
    /// result has the same shape and kind.
    pub fn backward(&self, normed: &Tensor, gradients: &Gradients, stats: &mut UpdateStats) -> Tensor {
        let _guard = tch::no_grad_guard();
        let sequence_ratios = self.sequence_log_ratios(normed);
        let head_gradient = gradients.part(self.model.weights().head_part());
        let rows = normed.size()[0];
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < rows {
            let count = self.options.chunk.min(rows - start);
            let hidden = normed.narrow(0, start, count);
            let targets = self.batch.targets.narrow(0, start, count).unsqueeze(1);
            let range = start as usize..(start + count) as usize;

            // Forward: log-probabilities of the whole vocabulary, entropy, the drawn tokens'.
            let logprobs = log_softmax(self.model.logits(&hidden), self.options.temperature);
            let drawn = to_vec(&logprobs.gather(1, &targets, false).squeeze_dim(1));
            let probabilities = logprobs.exp();
            let bonus = self.options.objective.entropy_coef > 0.0;
            let (entropy, logprobs) = row_entropy(logprobs, &probabilities, bonus);

            // The loss, token by token.
            let entropies = to_vec(&entropy);
            let tokens: Vec<TokenGradient> = range
                .clone()
                .map(|t| {
                    let at = t - range.start;
                    self.token(t, drawn[at], entropies[at], sequence_ratios.get(t).copied(), stats)
                })
                .collect();

            // 1. dLoss/dz
            let scale = 1.0 / self.options.temperature;
            let column = |f: fn(&TokenGradient) -> f32| {
                let values: Vec<f32> = tokens.iter().map(f).collect();
                (Tensor::from_slice(&values) * scale).to_device(hidden.device()).unsqueeze(1)
            };
            let drawn_gradient = column(|t| t.logprob);
            let entropy_gradient = logprobs
                .map(|logprobs| (logprobs + entropy.unsqueeze(1)) * &probabilities * column(|t| t.entropy));
            let mut dlogits = probabilities * -&drawn_gradient;
            let _ = dlogits.scatter_add_(1, &targets, &drawn_gradient);
            if let Some(gradient) = entropy_gradient {
                dlogits += gradient;
            }

            // 2. and 3.
            let dlogits = dlogits.to_kind(hidden.kind());
            pieces.push(dlogits.matmul(self.model.head()));
            accumulate_product(&head_gradient, &dlogits, &hidden);
            start += count;
        }
        match pieces.len() {
            1 => pieces.remove(0),
            _ => Tensor::cat(&pieces, 0),
        }
    }

    /// For each response token the mean log-ratio of its sequence; empty unless the objective's
    /// ratio is the sequence's, which needs all log-probabilities before the first gradient.
    fn sequence_log_ratios(&self, normed: &Tensor) -> Vec<f64> {
        if self.options.objective.ratio == RatioKind::Token {
            return Vec::new();
        }
        let logprobs = target_logprobs(self.model, normed, &self.batch.targets, self.options);
        let mut ratios = vec![0.0; logprobs.len()];
        for range in &self.batch.responses {
            let log_ratio =
                |t: usize| f64::from(logprobs[t]) - f64::from(self.batch.streams[t].behavior_logprob);
            ratios[range.clone()].fill(sequence_log_ratio(range.clone().map(log_ratio)));
        }
        ratios
    }

    /// The loss of response token `t`, added to the sums, and its gradient.
    fn token(
        &self,
        t: usize,
        logprob: f32,
        entropy: f32,
        sequence_ratio: Option<f64>,
        stats: &mut UpdateStats,
    ) -> TokenGradient {
        let ResponseToken { behavior_logprob, advantage, policy_weight, imitation_weight } =
            self.batch.streams[t];
        let (logprob, entropy) = (f64::from(logprob), f64::from(entropy));
        let mut gradient = TokenGradient { logprob: 0.0, entropy: 0.0 };
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
        }
        if imitation_weight != 0.0 {
            stats.loss -= f64::from(imitation_weight) * logprob;
            stats.negative_log_likelihood -= logprob;
            gradient.logprob -= imitation_weight;
        }
        gradient
    }
}

/// log softmax(logits / T), in place of the logits.
fn log_softmax(mut logits: Tensor, temperature: f64) -> Tensor {
    if temperature != 1.0 {
        let _ = logits.g_div_scalar_(temperature);
    }
    let normalizer = logits.logsumexp(-1, true);
    logits.g_sub_(&normalizer)
}

/// Entropy of each row, and the log-probabilities if they are still needed (else their memory is
/// used for the products).
fn row_entropy(mut logprobs: Tensor, probabilities: &Tensor, keep: bool) -> (Tensor, Option<Tensor>) {
    let sum = |products: &Tensor| -products.sum_dim_intlist(-1, false, Kind::Float);
    if keep {
        return (sum(&(&logprobs * probabilities)), Some(logprobs));
    }
    (sum(&logprobs.g_mul_(probabilities)), None)
}

/// Adds `left^T right` to an f32 gradient.
fn accumulate_product(gradient: &Tensor, left: &Tensor, right: &Tensor) {
    let mut gradient = gradient.shallow_clone();
    if left.kind() == Kind::Float {
        let _ = gradient.addmm_(&left.tr(), right);
    } else {
        let _ = gradient.g_add_(&left.tr().matmul(right));
    }
}

fn to_vec(values: &Tensor) -> Vec<f32> {
    Vec::try_from(values.to_kind(Kind::Float)).expect("a one-dimensional f32 tensor converts")
}

/// log p(target) for each row of `normed` `[tokens, hidden]`, a chunk at a time, without gradient.
#[must_use]
pub fn target_logprobs(model: &Model, normed: &Tensor, targets: &Tensor, options: &LossOptions) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    let rows = normed.size()[0];
    let mut logprobs = Vec::with_capacity(rows as usize);
    let mut start = 0;
    while start < rows {
        let count = options.chunk.min(rows - start);
        let mut logits = model.logits(&normed.narrow(0, start, count));
        if options.temperature != 1.0 {
            let _ = logits.g_div_scalar_(options.temperature);
        }
        let drawn = logits.gather(1, &targets.narrow(0, start, count).unsqueeze(1), false).squeeze_dim(1);
        logprobs.extend(to_vec(&(drawn - logits.logsumexp(-1, false))));
        start += count;
    }
    logprobs
}
