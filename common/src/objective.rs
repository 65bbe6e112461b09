//! `advantages -> update`: the loss of one token, and how tokens are weighed into the loss of a
//! mini-batch.
//!
//! In: log-probabilities of a response token under policy, behaviour policy and reference policy,
//! and its advantage. Out: its loss (to be minimised) and the derivative by the policy's
//! log-probability ([`TokenTerm`]), both before the weight ([`token_weights`]). Must not know:
//! logits, tensors, the algorithm. The entropy bonus needs the whole distribution and is added by
//! the worker: `-entropy_coef` times the entropy, with the same weight.
//!
//! All log-probabilities are those of softmax(logits / T) at the sampling temperature T.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::option::{OptionError, require};

/// Log-ratios are cut here before they are exponentiated, as in verl: beyond, the policies have
/// nothing in common, and infinities would poison the sum.
pub const LOG_RATIO_LIMIT: f64 = 20.0;

/// What the importance ratio compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RatioKind {
    /// Each token (PPO, GRPO).
    #[default]
    Token,
    /// The sequence: exp of the mean log-ratio of its tokens (GSPO).
    Sequence,
}

/// How tokens are weighed; always over the global mini-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Aggregation {
    /// Each response token alike (DAPO).
    TokenMean,
    /// Each sequence alike, and inside it each response token (GRPO).
    #[default]
    SequenceMeanTokenMean,
    /// Each response token by 1 / (sequences x tokens), whatever the lengths (Dr. GRPO). In TOML:
    /// `aggregation = { constant = { tokens = 4096 } }`.
    Constant {
        /// The constant, such as the longest response allowed; at least 1.
        tokens: u32,
    },
}

/// `[objective]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveOptions {
    /// Ratios below 1 - clip_low are clipped, 0 to 1; default 0.2 (PPO).
    #[schemars(range(min = 0, max = 1))]
    pub clip_low: f64,
    /// Ratios above 1 + clip_high are clipped, at least 0; default 0.2 (PPO; DAPO: 0.28).
    #[schemars(range(min = 0, max = 1e6))]
    pub clip_high: f64,
    /// Bounds the loss of a token with negative advantage at this multiple of it, above 1;
    /// default none (dual-clip PPO: 3).
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub dual_clip: Option<f64>,
    /// What the importance ratio compares; default `token`.
    pub ratio: RatioKind,
    /// Coefficient of KL(policy || reference), at least 0; default 0.001 (the paper). With 0 no
    /// reference model is loaded.
    #[schemars(range(min = 0, max = 1e6))]
    pub kl_coef: f64,
    /// Coefficient of the entropy bonus, at least 0; default 0.
    #[schemars(range(min = 0, max = 1e6))]
    pub entropy_coef: f64,
    /// How tokens are weighed; default `sequence_mean_token_mean` (GRPO).
    pub aggregation: Aggregation,
    /// Coefficient of the negative log-likelihood of given solutions, at least 0; default 1.
    #[schemars(range(min = 0, max = 1e6))]
    pub imitation_coef: f64,
}

impl Default for ObjectiveOptions {
    fn default() -> Self {
        Self {
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: None,
            ratio: RatioKind::Token,
            kl_coef: 0.001,
            entropy_coef: 0.0,
            aggregation: Aggregation::SequenceMeanTokenMean,
            imitation_coef: 1.0,
        }
    }
}

impl ObjectiveOptions {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`OptionError`] with the first option that is out of its range.
    pub fn validate(&self) -> Result<(), OptionError> {
        let coefficient =
            |key, value: f64| require((0.0..=1e6).contains(&value), key, value, "between 0 and 1000000");
        require((0.0..=1.0).contains(&self.clip_low), "clip_low", self.clip_low, "between 0 and 1")?;
        coefficient("clip_high", self.clip_high)?;
        if let Some(c) = self.dual_clip {
            require(c > 1.0 && c.is_finite(), "dual_clip", c, "above 1 and finite")?;
        }
        coefficient("kl_coef", self.kl_coef)?;
        coefficient("entropy_coef", self.entropy_coef)?;
        coefficient("imitation_coef", self.imitation_coef)?;
        if let Aggregation::Constant { tokens } = self.aggregation {
            require(tokens > 0, "aggregation.constant.tokens", tokens, "at least 1")?;
        }
        Ok(())
    }

    /// Whether log-probabilities of a reference policy are needed.
    #[must_use]
    pub fn needs_reference(&self) -> bool {
        self.kl_coef > 0.0
    }

    /// The part that decides a token's loss.
    #[must_use]
    pub fn policy_term(&self) -> PolicyTerm {
        PolicyTerm {
            clip_low: self.clip_low,
            clip_high: self.clip_high,
            dual_clip: self.dual_clip,
            kl_coef: self.kl_coef,
        }
    }
}

/// The options that decide a token's loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyTerm {
    /// See [`ObjectiveOptions::clip_low`].
    pub clip_low: f64,
    /// See [`ObjectiveOptions::clip_high`].
    pub clip_high: f64,
    /// See [`ObjectiveOptions::dual_clip`].
    pub dual_clip: Option<f64>,
    /// See [`ObjectiveOptions::kl_coef`].
    pub kl_coef: f64,
}

/// One response token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenInput {
    /// log p of the policy being trained.
    pub policy_logprob: f64,
    /// log p of the policy that generated the token.
    pub behavior_logprob: f64,
    /// Its rollout's advantage.
    pub advantage: f64,
    /// log p of the reference policy; `None` without reference, then the KL is 0.
    pub reference_logprob: Option<f64>,
}

impl TokenInput {
    /// log of the token's importance ratio.
    #[must_use]
    pub fn log_ratio(&self) -> f64 {
        self.policy_logprob - self.behavior_logprob
    }
}

/// The loss of one response token, before its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenTerm {
    /// To be minimised.
    pub loss: f64,
    /// Derivative of the loss by `policy_logprob`.
    pub dloss_dlogprob: f64,
    /// The importance ratio used.
    pub ratio: f64,
    /// k3 estimate of KL(policy || reference), nats; 0 without reference.
    pub kl: f64,
    /// The clip removed the gradient of the policy objective.
    pub clipped: bool,
}

/// The loss of one token with the token's own importance ratio (`ratio = "token"`).
#[must_use]
pub fn token_objective(term: &PolicyTerm, token: TokenInput) -> TokenTerm {
    objective_at(term, token, token.log_ratio())
}

/// The loss of one token of a sequence whose [`sequence_log_ratio`] is given (`ratio =
/// "sequence"`).
///
/// The sequence's ratio s = exp(mean log-ratio) depends on each of its L tokens by ds/dlogp_t =
/// s / L; all L tokens share one loss and one weight, so that the L contributions to logp_t add up
/// to the derivative by the log-ratio itself.
#[must_use]
pub fn sequence_objective(term: &PolicyTerm, token: TokenInput, sequence_log_ratio: f64) -> TokenTerm {
    objective_at(term, token, sequence_log_ratio)
}

/// Mean of the tokens' log-ratios (GSPO, arXiv 2507.18071, equation 7); 0 of an empty sequence.
#[must_use]
pub fn sequence_log_ratio(log_ratios: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0u64);
    for log_ratio in log_ratios {
        sum += log_ratio;
        count += 1;
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

fn objective_at(term: &PolicyTerm, token: TokenInput, log_ratio: f64) -> TokenTerm {
    let advantage = token.advantage;
    // 1. Importance ratio; constant beyond the limit.
    let within_limit = log_ratio.abs() <= LOG_RATIO_LIMIT;
    let ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp();
    // 2. The pessimistic one of the plain and the clipped objective.
    let plain = ratio * advantage;
    let bounded = ratio.clamp(1.0 - term.clip_low, 1.0 + term.clip_high) * advantage;
    let mut objective = plain.min(bounded);
    let mut clipped = bounded < plain;
    // 3. Dual clip: a negative advantage costs at most its multiple.
    if let Some(c) = term.dual_clip
        && advantage < 0.0
        && objective < c * advantage
    {
        objective = c * advantage;
        clipped = true;
    }
    let dobjective = if clipped || !within_limit { 0.0 } else { plain };
    // 4. KL to the reference.
    let (kl, dkl) =
        token.reference_logprob.map_or((0.0, 0.0), |reference| k3(token.policy_logprob, reference));
    TokenTerm {
        loss: -objective + term.kl_coef * kl,
        dloss_dlogprob: -dobjective + term.kl_coef * dkl,
        ratio,
        kl,
        clipped,
    }
}

/// The k3 estimate of KL(policy || reference) from a token that the policy drew, and its
/// derivative by the policy's log-probability: with d = log p_ref - log p, exp(d) - d - 1 and
/// 1 - exp(d) (Schulman, "Approximating KL divergence"). Beyond [`LOG_RATIO_LIMIT`] it goes on as
/// a straight line.
#[must_use]
pub fn k3(policy_logprob: f64, reference_logprob: f64) -> (f64, f64) {
    let d = reference_logprob - policy_logprob;
    let cut = d.min(LOG_RATIO_LIMIT);
    // exp_m1 keeps the digits that exp(d) - 1 - d loses for policies close together.
    let slope = cut.exp_m1();
    (slope - cut + (d - cut) * slope, -slope)
}

/// Weight of each token of each sequence in the loss of the global mini-batch whose response
/// lengths are given: the loss is the sum over sequences and tokens of weight x [`TokenTerm::loss`].
///
/// An empty sequence has weight 0 but counts as a sequence.
#[must_use]
pub fn token_weights(aggregation: Aggregation, lengths: &[usize]) -> Vec<f64> {
    let total: usize = lengths.iter().sum();
    let sequences = lengths.len() as f64;
    let weight = |&length: &usize| match aggregation {
        _ if length == 0 => 0.0,
        Aggregation::TokenMean => 1.0 / total as f64,
        Aggregation::SequenceMeanTokenMean => 1.0 / (sequences * length as f64),
        Aggregation::Constant { tokens } => 1.0 / (sequences * f64::from(tokens)),
    };
    lengths.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: PolicyTerm = PolicyTerm { clip_low: 0.2, clip_high: 0.28, dual_clip: None, kl_coef: 0.0 };

    fn token(ratio: f64, advantage: f64) -> TokenInput {
        let behavior_logprob = -1.5;
        let policy_logprob = behavior_logprob + ratio.ln();
        TokenInput { policy_logprob, behavior_logprob, advantage, reference_logprob: None }
    }

    /// The clip only takes away what would move the ratio further out.
    #[test]
    fn the_clip_is_one_sided() {
        for (ratio, advantage, loss, clipped) in [
            (1.5, 2.0, -2.56, true), // 1.28 x 2
            (0.5, 2.0, -1.0, false), // 0.5 x 2
            (1.5, -2.0, 3.0, false), // 1.5 x 2
            (0.5, -2.0, 1.6, true),  // 0.8 x 2
            (1.1, -2.0, 2.2, false),
            (9.0, 0.0, 0.0, false),
        ] {
            let found = token_objective(&TERM, token(ratio, advantage));
            assert!((found.loss - loss).abs() < 1e-12, "ratio {ratio}, advantage {advantage}: {found:?}");
            assert_eq!(found.clipped, clipped, "ratio {ratio}, advantage {advantage}");
            let derivative = if clipped { 0.0 } else { -ratio * advantage };
            assert!((found.dloss_dlogprob - derivative).abs() < 1e-12);
        }
    }

    #[test]
    fn the_dual_clip_bounds_negative_advantages_alone() {
        let term = PolicyTerm { dual_clip: Some(3.0), ..TERM };
        let far = token_objective(&term, token(5.0, -2.0));
        assert_eq!((far.loss, far.dloss_dlogprob, far.clipped), (6.0, 0.0, true));
        let near = token_objective(&term, token(2.0, -2.0));
        assert!((near.loss - 4.0).abs() < 1e-12 && !near.clipped);
        assert_eq!(token_objective(&term, token(0.9, 2.0)), token_objective(&TERM, token(0.9, 2.0)));
    }

    #[test]
    fn derivatives_agree_with_differences() {
        let term = PolicyTerm { kl_coef: 0.3, ..TERM };
        for (ratio, advantage, reference_logprob) in
            [(1.1, 0.7, -1.0), (0.7, 0.7, -3.0), (2.0, -0.4, -0.1), (2.0, 0.4, -2.0), (1.0, 0.0, -30.0)]
        {
            let at = |shift: f64| {
                let mut input = token(ratio, advantage);
                input.policy_logprob += shift;
                input.reference_logprob = Some(reference_logprob);
                token_objective(&term, input)
            };
            // Central difference of step h: error of order h^2.
            let difference = (at(1e-5).loss - at(-1e-5).loss) / 2e-5;
            assert!((at(0.0).dloss_dlogprob - difference).abs() < 1e-8);
        }
    }

    /// The derivative by one token's log-probability of the sequence's summed loss.
    #[test]
    fn the_sequence_derivative_is_that_of_the_summed_loss() {
        let tokens = [token(1.2, 0.8), token(0.7, 0.8), token(1.3, 0.8)];
        let loss = |shift: f64| -> f64 {
            let mut moved = tokens;
            moved[1].policy_logprob += shift;
            let log_ratio = sequence_log_ratio(moved.iter().map(TokenInput::log_ratio));
            moved.iter().map(|&t| sequence_objective(&TERM, t, log_ratio).loss).sum()
        };
        let log_ratio = sequence_log_ratio(tokens.iter().map(TokenInput::log_ratio));
        let found = sequence_objective(&TERM, tokens[1], log_ratio);
        let difference = (loss(1e-5) - loss(-1e-5)) / 2e-5;
        assert!((found.dloss_dlogprob - difference).abs() < 1e-8);
        // Geometric mean of the ratios.
        assert!((found.ratio - (1.2f64 * 0.7 * 1.3).cbrt()).abs() < 1e-12);
        assert_eq!(sequence_log_ratio([]), 0.0);
    }

    #[test]
    fn policies_far_apart_stay_finite() {
        let term = PolicyTerm { kl_coef: 0.1, ..TERM };
        for (policy_logprob, behavior_logprob) in [(-1e4, -0.1), (-0.1, -1e4)] {
            for advantage in [-1.0, 1.0] {
                let reference_logprob = Some(behavior_logprob);
                let input = TokenInput { policy_logprob, behavior_logprob, advantage, reference_logprob };
                let found = token_objective(&term, input);
                assert!(found.loss.is_finite() && found.dloss_dlogprob.is_finite(), "{found:?}");
            }
        }
        // d = 1e-9: d^2 / 2, of which exp(d) - d - 1 would leave nothing.
        assert!((k3(-1e-9, 0.0).0 / 0.5e-18 - 1.0).abs() < 1e-5);
    }

    #[test]
    fn weights_follow_the_aggregation() {
        let lengths = [4, 0, 1];
        assert_eq!(token_weights(Aggregation::TokenMean, &lengths), [0.2, 0.0, 0.2]);
        let sequence_mean = token_weights(Aggregation::SequenceMeanTokenMean, &lengths);
        assert_eq!(sequence_mean, [1.0 / 12.0, 0.0, 1.0 / 3.0]);
        let constant = token_weights(Aggregation::Constant { tokens: 10 }, &lengths);
        assert_eq!(constant, [1.0 / 30.0, 0.0, 1.0 / 30.0]);
        assert!(token_weights(Aggregation::TokenMean, &[]).is_empty());
    }
}
