//! `prompt -> lease -> rollout`: what is asked of a worker and what it gives back.
//!
//! The coordinator makes a [`GroupLease`]; the worker answers with one [`Rollout`] for each
//! rollout index of the lease, in any order. A lease says everything that decides the tokens
//! (prompt, indices, sampling, policy version), so that any worker that holds the policy produces
//! the same rollouts.

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, LeaseId, PolicyVersion, PromptId, RolloutId};

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Softmax temperature T; 0 takes the most likely token.
    pub temperature: f64,
    /// Keep the k most likely tokens; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of most likely tokens with at least this probability; 1 keeps all.
    pub top_p: f64,
    /// Drop tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f64,
    /// A response ends after this many tokens (the end token included).
    pub max_new_tokens: u32,
    /// Strings that end a response; the text of the response keeps them.
    pub stop: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: 1.0, min_p: 0.0, max_new_tokens: 1024, stop: Vec::new() }
    }
}

/// What the rollouts of a group are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// They become training data.
    Train,
    /// They measure the policy.
    Evaluate,
}

/// Some rollouts of one group, for one worker.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupLease {
    /// This lease.
    pub lease: LeaseId,
    /// The group the rollouts belong to.
    pub group: GroupId,
    /// Why they are wanted.
    pub purpose: Purpose,
    /// The policy that must generate them; part of the random stream.
    pub policy_version: PolicyVersion,
    /// The prompt's id; part of the random stream.
    pub prompt_id: PromptId,
    /// The problem's text, before system prompt and chat template.
    pub problem: String,
    /// First rollout index of this lease inside the group.
    pub first_rollout: u32,
    /// Number of rollouts, at least 1.
    pub rollouts: u32,
    /// Added to the rollout index in the random stream: not 0 only when the same prompt appears
    /// again in one step, so that its groups differ.
    pub stream_offset: u32,
    /// A solution to imitate. If given, nothing is generated: the response is this text, and the
    /// rollout comes back without log-probabilities and feature.
    pub given_response: Option<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Why a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token was drawn (it is the last response token).
    EndToken,
    /// A stop string appeared.
    StopString,
    /// `max_new_tokens` were generated, or the context is full.
    Length,
}

impl FinishReason {
    /// The name in files, metrics and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EndToken => "end_token",
            Self::StopString => "stop_string",
            Self::Length => "length",
        }
    }
}

/// One response of the policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// Which one.
    pub id: RolloutId,
    /// The policy that generated it.
    pub policy_version: PolicyVersion,
    /// Token ids of the rendered prompt.
    pub prompt_tokens: Vec<u32>,
    /// Token ids of the response, the end token included.
    pub response_tokens: Vec<u32>,
    /// `behavior_logprobs[t]` is the log-probability of `response_tokens[t]` under the full softmax at the sampling
    /// temperature; same length as `response_tokens`, or empty for a given response.
    pub behavior_logprobs: Vec<f32>,
    /// Mean entropy (nats) of the full softmax over the response's positions.
    pub mean_entropy: f32,
    /// The response as text, without the end token.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Last-layer sensitivity feature Phi `[hidden]`, the mean over response tokens of
    /// (onehot(y_t) - p_t) W; `None` where features are off.
    pub feature: Option<Vec<f32>>,
}
