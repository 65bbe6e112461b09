//! `rollout -> reward`: is the answer right?
//!
//! In: the reference answer and a response's text. Out: a [`Verdict`]. Pure and bounded: whatever the
//! response holds, a verdict comes in a fraction of a second, so that it can run on a thread pool
//! while other rollouts are still generated. Must not know: groups, advantages, tokens.

pub mod countdown;
pub mod math;

use g2rl_common::config::{RewardConfig, RewardKindName};

/// What a verifier says about a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The answer equals the reference.
    pub correct: bool,
    /// The answer as it stands in the response; `None` if there is none.
    pub extracted: Option<String>,
    /// The answer in a normal form: equal answers have equal forms, for majority votes and counts of
    /// distinct answers.
    pub canonical: Option<String>,
    /// Why, for people.
    pub reason: String,
}

impl Verdict {
    fn without_answer(reason: &str) -> Self {
        Self { correct: false, extracted: None, canonical: None, reason: reason.to_owned() }
    }
}

/// Judges responses.
pub trait Reward: Send + Sync {
    /// Its name in configuration and logs.
    fn name(&self) -> &'static str;

    /// Judges a response against the reference answer.
    fn verify(&self, gold: &str, response: &str) -> Verdict;
}

/// The verifier that a configuration names.
#[must_use]
pub fn build(config: &RewardConfig) -> Box<dyn Reward> {
    match config.kind {
        RewardKindName::Math => Box::new(math::MathReward { last_number: config.last_number }),
        RewardKindName::Countdown => Box::new(countdown::CountdownReward),
    }
}

/// What a response says after its last `</think>`.
fn after_thinking(response: &str) -> &str {
    response.rsplit_once("</think>").map_or(response, |(_, answer)| answer)
}
