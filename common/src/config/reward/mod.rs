//! `[reward]`: how answers are judged.
//!
//! In: the section as written. Out: the parts of a reward ([`RewardConfig::parts`]); a reward of one
//! kind is a sum of one part, so that there is one way to build both.

mod validate;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What judges an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardKindName {
    /// The last `\boxed{}` against the reference answer.
    #[default]
    Math,
    /// Countdown: reach the target with the given numbers.
    Countdown,
    /// Ladder: from a start to a target in at most three steps.
    Ladder,
    /// The answer's text equals the reference.
    Exact,
    /// The letter of a multiple-choice answer, A to J.
    Choice,
    /// A regular expression finds the answer, or is all that is asked for.
    Regex,
    /// The response has the required form; says nothing about its answer.
    Format,
    /// A service of the user's.
    Http,
    /// The weighted mean of `parts`.
    Sum,
}

/// `[reward]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// What judges an answer.
    pub kind: RewardKindName,
    /// Reward of score 1, a correct answer.
    pub correct: f64,
    /// Reward of score 0, a wrong answer.
    pub wrong: f64,
    /// Take the last number of a response without `\boxed{}` as its answer (`math`).
    pub last_number: bool,
    /// A verification on this machine that takes longer counts as wrong, milliseconds.
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// Options of `exact`.
    pub exact: ExactOptions,
    /// Options of `regex`.
    pub regex: Option<RegexOptions>,
    /// Options of `format`.
    pub format: Option<FormatOptions>,
    /// Options of `http`.
    pub http: Option<HttpRewardConfig>,
    /// The parts of `sum`.
    pub parts: Vec<RewardPart>,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            kind: RewardKindName::Math,
            correct: 1.0,
            wrong: -1.0,
            last_number: false,
            timeout_ms: 5_000,
            exact: ExactOptions::default(),
            regex: None,
            format: None,
            http: None,
            parts: Vec::new(),
        }
    }
}

/// One `[[reward.parts]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardPart {
    /// What judges; not `sum`.
    pub kind: RewardKindName,
    /// Its share of the score, relative to the other parts' weights; above 0.
    #[serde(default = "one")]
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0))]
    pub weight: f64,
    /// Take the last number of a response without `\boxed{}` as its answer (`math`).
    #[serde(default)]
    pub last_number: bool,
    /// Options of `exact`.
    #[serde(default)]
    pub exact: ExactOptions,
    /// Options of `regex`.
    #[serde(default)]
    pub regex: Option<RegexOptions>,
    /// Options of `format`.
    #[serde(default)]
    pub format: Option<FormatOptions>,
    /// Options of `http`.
    #[serde(default)]
    pub http: Option<HttpRewardConfig>,
}

fn one() -> f64 {
    1.0
}

/// `[reward.exact]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactOptions {
    /// Letters are equal to their capitals.
    pub case_insensitive: bool,
    /// Only what follows the last `</think>` is the answer.
    pub after_thinking: bool,
}

impl Default for ExactOptions {
    fn default() -> Self {
        Self { case_insensitive: false, after_thinking: true }
    }
}

/// `[reward.regex]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegexOptions {
    /// With one capture group: the group of the last match is the answer, equal to the reference or
    /// not. Without: a response that matches is right.
    pub pattern: String,
    /// Letters of answer and reference are equal to their capitals.
    #[serde(default)]
    pub case_insensitive: bool,
    /// Only what follows the last `</think>` is looked at.
    #[serde(default = "yes")]
    pub after_thinking: bool,
}

fn yes() -> bool {
    true
}

/// `[reward.format]`: the score is the share of requirements that are met.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FormatOptions {
    /// Names of tags, such as `think`: each `<think>...</think>` once, in this order. One requirement
    /// each.
    pub tags: Vec<String>,
    /// A `\boxed{}` after the last of the tags.
    pub boxed: bool,
    /// Regular expressions that must match the response. One requirement each.
    pub patterns: Vec<String>,
}

/// `[reward.http]`: a service that scores responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpRewardConfig {
    /// Where batches are posted to.
    pub url: String,
    /// Environment variable of the coordinator whose value is sent as the header `authorization`.
    pub authorization_env: Option<String>,
    /// Responses of a request at most.
    #[schemars(range(min = 1))]
    pub batch_size: u32,
    /// Time a request waits for more responses, milliseconds.
    pub linger_ms: u64,
    /// Requests under way at most.
    #[schemars(range(min = 1))]
    pub concurrency: u32,
    /// Deadline of a request, milliseconds.
    #[schemars(range(min = 1))]
    pub timeout_ms: u64,
    /// Further attempts of a request before the service counts as down.
    pub retries: u32,
    /// Pause before the first further attempt, milliseconds; each next one is twice as long.
    #[schemars(range(min = 1))]
    pub backoff_ms: u64,
    /// Longest pause between attempts, milliseconds.
    pub max_backoff_ms: u64,
    /// Failures in a row, over all requests, after which the service counts as down.
    #[schemars(range(min = 1))]
    pub breaker_failures: u32,
    /// Time between attempts while the service is down, milliseconds.
    #[schemars(range(min = 1))]
    pub probe_ms: u64,
    /// A request that has failed for so long ends the run, seconds; 0 waits for ever.
    pub give_up_after_s: u64,
    /// The service's score of the worst response.
    pub lowest: f64,
    /// The service's score of the best response.
    pub highest: f64,
    /// Scores from here on count as correct, after mapping to 0 to 1.
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub correct_from: f64,
}

impl Default for HttpRewardConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            authorization_env: None,
            batch_size: 64,
            linger_ms: 20,
            concurrency: 8,
            timeout_ms: 30_000,
            retries: 4,
            backoff_ms: 250,
            max_backoff_ms: 10_000,
            breaker_failures: 5,
            probe_ms: 10_000,
            give_up_after_s: 1_800,
            lowest: 0.0,
            highest: 1.0,
            correct_from: 0.5,
        }
    }
}

impl RewardConfig {
    /// The parts of a sum; of any other kind one part of weight 1.
    #[must_use]
    pub fn parts(&self) -> Vec<RewardPart> {
        if self.kind == RewardKindName::Sum {
            return self.parts.clone();
        }
        vec![RewardPart {
            kind: self.kind,
            weight: 1.0,
            last_number: self.last_number,
            exact: self.exact,
            regex: self.regex.clone(),
            format: self.format.clone(),
            http: self.http.clone(),
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(text: &str) -> RewardConfig {
        toml::from_str(text).unwrap()
    }

    fn refused(text: &str) -> String {
        reward(text).validate().unwrap_err().to_string()
    }

    #[test]
    fn sections_of_before_stay_as_they_were() {
        let config = reward("kind = 'math'\ncorrect = 1\nwrong = 0\nlast_number = true\ntimeout_ms = 9");
        config.validate().unwrap();
        let parts = config.parts();
        assert_eq!((parts.len(), parts[0].weight, parts[0].last_number), (1, 1.0, true));
    }

    #[test]
    fn a_sum_reads_and_survives_a_round_trip() {
        let config = reward(
            "kind = 'sum'\n[[parts]]\nkind = 'math'\nweight = 0.8\n[[parts]]\nkind = 'format'\nweight = 0.2\n\
             format = { tags = ['think'], boxed = true }\n[[parts]]\nkind = 'http'\n[parts.http]\n\
             url = 'http://judge:8000/score'",
        );
        config.validate().unwrap();
        assert_eq!(config.parts()[1].format.as_ref().unwrap().tags, ["think"]);
        assert_eq!(config.parts()[2].http.as_ref().unwrap().batch_size, 64);
        let again: RewardConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, key) in [
            ("kind = 'sum'", "reward.parts"),
            ("[[parts]]\nkind = 'math'", "reward.parts"),
            ("kind = 'sum'\n[[parts]]\nkind = 'sum'", "reward.parts.0.kind"),
            ("kind = 'sum'\n[[parts]]\nkind = 'math'\nweight = 0.0", "reward.parts.0.weight"),
            ("kind = 'sum'\n[[parts]]\nkind = 'regex'", "reward.parts.0.regex.pattern"),
            ("kind = 'regex'", "reward.regex.pattern"),
            ("kind = 'regex'\nregex = { pattern = '(' }", "reward.regex.pattern"),
            ("kind = 'regex'\nregex = { pattern = '(a)(b)' }", "2 capture groups"),
            ("kind = 'format'", "reward.format"),
            ("kind = 'format'\nformat = { tags = ['a b'] }", "reward.format.tags"),
            ("kind = 'format'\nformat = { patterns = ['a', '['] }", "reward.format.patterns.1"),
            ("kind = 'http'", "reward.http.url"),
            ("kind = 'http'\nhttp = { url = 'judge:80' }", "reward.http.url"),
            ("kind = 'http'\nhttp = { url = 'http://j', batch_size = 0 }", "reward.http.batch_size"),
            ("kind = 'http'\nhttp = { url = 'http://j', highest = 0.0 }", "reward.http.highest"),
            ("correct = inf", "reward.correct"),
            ("wrong = nan", "reward.wrong"),
            ("timeout_ms = 0", "reward.timeout_ms"),
        ] {
            assert!(refused(text).contains(key), "{text}: {}", refused(text));
        }
        let unknown = toml::from_str::<RewardConfig>("[exact]\ncase = true").unwrap_err().to_string();
        assert!(unknown.contains("case"), "{unknown}");
    }
}
