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

use serde::{Deserialize, Serialize};

use crate::option::{OptionError, require};

/// Log-ratios are cut here before they are exponentiated, as in verl: beyond, the policies have
/// nothing in common, and infinities would poison the sum.
pub const LOG_RATIO_LIMIT: f64 = 20.0;

/// What the importance ratio compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioKind {
    /// Each token (PPO, GRPO).
    #[default]
    Token,
    /// The sequence: exp of the mean log-ratio of its tokens (GSPO).
    Sequence,
}

/// How tokens are weighed; always over the global mini-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveOptions {
    /// Ratios below 1 - clip_low are clipped, 0 to 1; default 0.2 (PPO).
    pub clip_low: f64,
    /// Ratios above 1 + clip_high are clipped, at least 0; default 0.2 (PPO; DAPO: 0.28).
    pub clip_high: f64,
    /// Bounds the loss of a token with negative advantage at this multiple of it, above 1;
    /// default none (dual-clip PPO: 3).
    pub dual_clip: Option<f64>,
    /// What the importance ratio compares; default `token`.
    pub ratio: RatioKind,
    /// Coefficient of KL(policy || reference), at least 0; default 0.001 (the paper). With 0 no
    /// reference model is loaded.
    pub kl_coef: f64,
    /// Coefficient of the entropy bonus, at least 0; default 0.
    pub entropy_coef: f64,
    /// How tokens are weighed; default `sequence_mean_token_mean` (GRPO).
    pub aggregation: Aggregation,
    /// Coefficient of the negative log-likelihood of given solutions, at least 0; default 1.
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
