//! `[evaluation]`: what is measured on held-out problems, and when.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::validate::{at_least_one, refuse, within};

/// `[evaluation]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Held-out problems, in the forms of `data.train`. Unset takes `fraction` of the training problems.
    #[serde(default)]
    pub data: Option<String>,
    /// Folder of a data set that has several.
    #[serde(default)]
    pub subset: Option<String>,
    /// Split of a directory or data set; unset is `test`.
    #[serde(default)]
    pub split: Option<String>,
    /// Share of the training problems that is held out, where `data` is unset. The problem's text and
    /// `run.seed` decide.
    #[serde(default)]
    #[schemars(range(min = 0.000_1, max = 0.9))]
    pub fraction: Option<f64>,
    /// Training steps between evaluations; 0 evaluates only at the start and the end.
    #[serde(default)]
    pub every: u64,
    /// Also before the first step.
    #[serde(default = "yes")]
    pub at_start: bool,
    /// Also after the last step.
    #[serde(default = "yes")]
    pub at_end: bool,
    /// Answers for each problem.
    #[serde(default = "sixteen")]
    #[schemars(range(min = 1))]
    pub samples: u32,
    /// The k of pass@k and maj@k.
    #[serde(default = "default_k")]
    pub k: Vec<u32>,
    /// Softmax temperature of the answers; 0 takes the most likely token.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 100))]
    pub temperature: f64,
    /// Longest response, tokens; unset takes the rollout's.
    #[serde(default)]
    pub max_new_tokens: Option<u32>,
    /// Use only the first rows of the file.
    #[serde(default)]
    pub max_problems: Option<u64>,
    /// Name of the problems in tables and files.
    #[serde(default = "held_out")]
    pub name: String,
    /// Also compute the answers' sensitivity features, and write their cosines beside them. Needs a temperature.
    #[serde(default)]
    pub features: bool,
    /// More data sets, measured at the same time.
    #[serde(default)]
    pub more: Vec<EvaluationSet>,
}

/// One `[[evaluation.more]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSet {
    /// Name of the problems in tables and files; another for each set: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Problems, in the forms of `data.train`.
    pub data: String,
    /// Folder of a data set that has several.
    #[serde(default)]
    pub subset: Option<String>,
    /// Split of a directory or data set; unset is `test`.
    #[serde(default)]
    pub split: Option<String>,
    /// Use only the first rows of the file.
    #[serde(default)]
    pub max_problems: Option<u64>,
}

impl EvaluationConfig {
    /// The names of the scores: pass@k of every k, then maj@k of those above 1, without repetitions.
    #[must_use]
    pub fn score_names(&self) -> Vec<String> {
        let pass = self.distinct_k().into_iter().map(|k| format!("pass@{k}"));
        let majority = self.distinct_k().into_iter().filter(|k| *k > 1).map(|k| format!("maj@{k}"));
        pass.chain(majority).collect()
    }

    /// Every k once, in order.
    #[must_use]
    pub fn distinct_k(&self) -> Vec<u32> {
        self.k.iter().copied().collect::<BTreeSet<u32>>().into_iter().collect()
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match (&self.data, self.fraction) {
            (Some(_), None) => {}
            (None, Some(fraction)) => within("evaluation.fraction", fraction, 0.000_1..=0.9)?,
            _ => return Err(refuse("evaluation.data", "set either evaluation.data or evaluation.fraction")),
        }
        at_least_one("evaluation.samples", self.samples.into())?;
        within("evaluation.temperature", self.temperature, 0.0..=100.0)?;
        for &k in &self.k {
            at_least_one("evaluation.k", k.into())?;
            if k > self.samples {
                let message = format!("pass@{k} needs at least {k} samples, got {}", self.samples);
                return Err(refuse("evaluation.k", message));
            }
        }
        if self.features && self.temperature == 0.0 {
            return Err(refuse("evaluation.features", "a temperature of 0 has no gradient features"));
        }
        let mut names = BTreeSet::new();
        for name in std::iter::once(&self.name).chain(self.more.iter().map(|set| &set.name)) {
            // They name files.
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                let message = format!("{name:?} is not made of letters, digits, -, _ and .");
                return Err(refuse("evaluation.name", message));
            }
            if !names.insert(name) {
                return Err(refuse("evaluation.name", format!("{name} is the name of two data sets")));
            }
        }
        Ok(())
    }
}

fn yes() -> bool {
    true
}

fn held_out() -> String {
    "heldout".to_owned()
}

fn sixteen() -> u32 {
    16
}

fn default_k() -> Vec<u32> {
    vec![1, 8]
}

fn one() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        toml::from_str::<EvaluationConfig>(text).unwrap().validate().unwrap_err().to_string()
    }

    #[test]
    fn scores_are_named_once_in_order() {
        let config: EvaluationConfig = toml::from_str("data = 'd'\nk = [16, 1, 4, 4]").unwrap();
        config.validate().unwrap();
        assert_eq!(config.score_names(), ["pass@1", "pass@4", "pass@16", "maj@4", "maj@16"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, key) in [
            ("k = [1]", "evaluation.data"),
            ("data = 'd'\nfraction = 0.1", "evaluation.data"),
            ("data = 'd'\nk = [17]", "pass@17 needs at least 17 samples"),
            ("data = 'd'\ntemperature = 0\nfeatures = true", "evaluation.features"),
            ("data = 'd'\n[[more]]\nname = 'heldout'\ndata = 'e'", "two data sets"),
            ("data = 'd'\n[[more]]\nname = '../e'\ndata = 'e'", "evaluation.name"),
        ] {
            assert!(refused(text).contains(key), "{text}: {}", refused(text));
        }
    }
}
