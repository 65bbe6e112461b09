//! `rollout -> reward`: how good is the answer?
//!
//! In: a [`Case`], which is a problem's text, its reference answer and a response. Out: a [`Judgement`]
//! from a [`Judge`], or a [`RewardError`] that ends the run. Rewards on this machine ([`Reward`]) are pure
//! and run on threads of their own under a deadline; a service ([`http`]) is asked in batches, and while it
//! is down its cases wait. Must not know: groups, advantages, tokens.

pub mod choice;
pub mod countdown;
pub mod exact;
pub mod format;
pub mod http;
mod judge;
pub mod ladder;
mod local;
pub mod math;
pub mod regex;
mod steps;

use std::time::{Duration, Instant};

use g2rl_common::config::{RewardKindName, RewardPart};
use serde::{Deserialize, Serialize};

pub use self::judge::{Judge, Judges, Outages};

/// What is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Names it in logs and requests.
    pub id: String,
    /// The problem's text, as in the data set.
    pub prompt: String,
    /// What the policy answered.
    pub response: String,
    /// The reference answer.
    pub answer: String,
}

/// What a verifier says about a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

    /// Right or wrong, with no answer to compare.
    pub(crate) fn plain(correct: bool, reason: impl Into<String>) -> Self {
        Self { correct, extracted: None, canonical: None, reason: reason.into() }
    }
}

/// What a reward says about a response: the verdict, and how much it is worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// Right or wrong, which pass@k counts.
    pub verdict: Verdict,
    /// Worth in [0, 1]: 0 earns `reward.wrong`, 1 earns `reward.correct`.
    pub score: f64,
    /// A part of the reward took too long.
    pub timed_out: bool,
}

impl From<Verdict> for Judgement {
    /// All or nothing.
    fn from(verdict: Verdict) -> Self {
        let score = f64::from(u8::from(verdict.correct));
        Self { verdict, score, timed_out: false }
    }
}

/// When a reward must be done. One that works long looks at it now and then; one that does not is left
/// behind, and its thread is lost until it ends by itself.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// So much time from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Nobody waits for the result any more.
    #[must_use]
    pub fn has_passed(&self) -> bool {
        Instant::now() >= self.0
    }
}

/// Judges responses on this machine, without any I/O.
pub trait Reward: Send + Sync {
    /// Its name in configuration and logs.
    fn name(&self) -> &'static str;

    /// Judges a response against the reference answer.
    fn verify(&self, gold: &str, response: &str) -> Verdict;

    /// The same with a score. All or nothing unless a reward says otherwise; one that may take long
    /// returns anything once the deadline has passed.
    fn judge(&self, case: &Case, _deadline: &Deadline) -> Judgement {
        self.verify(&case.answer, &case.response).into()
    }
}

/// Why a reward cannot be given. None of these is the response's fault: they end the run.
#[derive(Debug, thiserror::Error)]
pub enum RewardError {
    /// A key of the configuration cannot be used.
    #[error("configuration key {key}: {message}")]
    Configuration {
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A reward panicked.
    #[error("the reward {reward} failed on rollout {case}")]
    Panicked {
        /// Which reward.
        reward: &'static str,
        /// On what.
        case: String,
    },
    /// The system gives no thread to judge on.
    #[error("no thread for the verification of rollout {case}: {source}")]
    NoThread {
        /// Of what.
        case: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Too many verifications hang.
    #[error("{count} verifications did not end after their time; this one is of rollout {case}")]
    Stuck {
        /// How many.
        count: usize,
        /// The last one.
        case: String,
    },
    /// A service is down for longer than the run waits.
    #[error(
        "reward service {url} failed for {seconds} s, longer than give_up_after_s; the last cause: {cause}"
    )]
    GaveUp {
        /// The service.
        url: String,
        /// For how long.
        seconds: u64,
        /// The last failure.
        cause: String,
    },
    /// A service refuses requests; asking again would not help.
    #[error("reward service {url} refused a request: {cause}")]
    Refused {
        /// The service.
        url: String,
        /// Status and the beginning of its answer.
        cause: String,
    },
}

/// The reward of one part; `None` for a service.
fn local(part: &RewardPart, key: &str) -> Result<Option<Box<dyn Reward>>, RewardError> {
    Ok(Some(match part.kind {
        RewardKindName::Math => Box::new(math::MathReward { last_number: part.last_number }),
        RewardKindName::Countdown => Box::new(countdown::CountdownReward),
        RewardKindName::Ladder => Box::new(ladder::LadderReward),
        RewardKindName::Exact => Box::new(exact::ExactReward::new(part.exact)),
        RewardKindName::Choice => Box::new(choice::ChoiceReward::new()),
        RewardKindName::Regex => {
            let options = part.regex.as_ref().ok_or_else(|| missing(key, "regex"))?;
            Box::new(regex::RegexReward::new(options).map_err(|e| unusable(key, "regex.pattern", &e))?)
        }
        RewardKindName::Format => {
            let options = part.format.as_ref().ok_or_else(|| missing(key, "format"))?;
            Box::new(format::FormatReward::new(options).map_err(|e| unusable(key, "format.patterns", &e))?)
        }
        RewardKindName::Http => return Ok(None),
        RewardKindName::Sum => return Err(unusable(key, "kind", &"a part cannot be a sum")),
    }))
}

fn missing(key: &str, section: &str) -> RewardError {
    RewardError::Configuration { key: format!("{key}.{section}"), message: "missing".to_owned() }
}

fn unusable(key: &str, name: &str, cause: &dyn std::fmt::Display) -> RewardError {
    RewardError::Configuration { key: format!("{key}.{name}"), message: cause.to_string() }
}

/// What a response says after its last `</think>`.
pub(crate) fn after_thinking(response: &str) -> &str {
    response.rsplit_once("</think>").map_or(response, |(_, answer)| answer)
}
