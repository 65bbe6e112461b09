//! One request to a reward service and its answer.
//!
//! In: the cases of a batch. Out: a score in [0, 1] for each, or a [`Failure`] that says whether asking
//! again can help.

use g2rl_common::config::HttpRewardConfig;
use serde::{Deserialize, Serialize};

use super::super::{Case, RewardError, unusable};
use crate::endpoint::{Endpoint, Failure, beginning};

#[derive(Serialize)]
struct Request<'a> {
    items: Vec<RequestItem<'a>>,
}

#[derive(Serialize)]
struct RequestItem<'a> {
    id: &'a str,
    prompt: &'a str,
    response: &'a str,
    answer: &'a str,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Named { scores: Vec<f64> },
    Plain(Vec<f64>),
}

/// Asks one service.
#[derive(Debug)]
pub(super) struct ServiceClient {
    endpoint: Endpoint,
    lowest: f64,
    highest: f64,
}

impl ServiceClient {
    /// `key` is the configuration key of the part, for errors.
    pub(super) fn new(config: &HttpRewardConfig, key: &str) -> Result<Self, RewardError> {
        let endpoint = Endpoint::new(&config.url, config.authorization_env.as_deref(), config.timeout_ms)
            .map_err(|bad| unusable(key, &format!("http.{}", bad.key), &bad.cause))?;
        Ok(Self { endpoint, lowest: config.lowest, highest: config.highest })
    }

    /// The scores of the cases, in their order.
    pub(super) async fn score(&self, cases: &[&Case]) -> Result<Vec<f64>, Failure> {
        let items = cases
            .iter()
            .map(|c| RequestItem { id: &c.id, prompt: &c.prompt, response: &c.response, answer: &c.answer })
            .collect();
        let body = serde_json::to_vec(&Request { items }).map_err(|e| Failure::Refused(e.to_string()))?;
        let answer = self.endpoint.post(body).await?;
        self.scores(&answer, cases.len())
    }

    /// Reads an answer.
    fn scores(&self, answer: &[u8], expected: usize) -> Result<Vec<f64>, Failure> {
        let wrong = |what: String| Failure::Unavailable(format!("{what}: {}", beginning(answer)));
        let scores = match serde_json::from_slice(answer) {
            Ok(Answer::Named { scores } | Answer::Plain(scores)) => scores,
            Err(_) => {
                return Err(wrong("the answer is neither {\"scores\":[numbers]} nor [numbers]".to_owned()));
            }
        };
        if scores.len() != expected {
            return Err(wrong(format!("{} scores for {expected} responses", scores.len())));
        }
        let (lowest, highest) = (self.lowest, self.highest);
        scores
            .iter()
            .map(|&score| match (lowest..=highest).contains(&score) {
                true => Ok((score - lowest) / (highest - lowest)),
                false => Err(wrong(format!("score {score} is not between {lowest} and {highest}"))),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(lowest: f64, highest: f64) -> ServiceClient {
        let url = "http://127.0.0.1:1/".to_owned();
        let config = HttpRewardConfig { url, lowest, highest, ..HttpRewardConfig::default() };
        ServiceClient::new(&config, "reward").unwrap()
    }

    #[test]
    fn answers_are_read_and_mapped() {
        assert_eq!(client(0.0, 1.0).scores(b"{\"scores\":[0, 0.5, 1]}", 3).unwrap(), [0.0, 0.5, 1.0]);
        assert_eq!(client(-1.0, 1.0).scores(b" [-1, 0, 1] ", 3).unwrap(), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn other_answers_are_failures_of_the_service() {
        for (answer, cause) in [
            ("{\"scores\":[1]}", "1 scores for 2"),
            ("[1, NaN]", "neither"),
            ("[1, null]", "neither"),
            ("[1, 1e999]", "neither"),
            ("[1, 1.5]", "score 1.5 is not between 0 and 1"),
            ("<html>busy", "<html>busy"),
            ("", "neither"),
        ] {
            match client(0.0, 1.0).scores(answer.as_bytes(), 2) {
                Err(Failure::Unavailable(text)) => assert!(text.contains(cause), "{answer}: {text}"),
                other => panic!("{answer}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let refused =
            |config: HttpRewardConfig| ServiceClient::new(&config, "reward.parts.1").unwrap_err().to_string();
        let url = || "http://127.0.0.1:1/".to_owned();
        let text = refused(HttpRewardConfig { url: "http://:".to_owned(), ..HttpRewardConfig::default() });
        assert!(text.contains("reward.parts.1.http.url"), "{text}");
        let authorization_env = Some("G2RL_TEST_THAT_IS_NOT_SET".to_owned());
        let text = refused(HttpRewardConfig { url: url(), authorization_env, ..HttpRewardConfig::default() });
        assert!(text.contains("authorization_env") && text.contains("G2RL_TEST_THAT_IS_NOT_SET"), "{text}");
    }
}
