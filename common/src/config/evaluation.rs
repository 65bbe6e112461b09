//! `[evaluation]`: what is measured on held-out problems, and when.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::validate::{at_least_one, refuse, within};
use super::{ColumnNames, ConfigError, DataConfig, RewardKindName, RewardPart};

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
    #[serde(default = "super::yes")]
    pub at_start: bool,
    /// Also after the last step.
    #[serde(default = "super::yes")]
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
    /// Which column holds what, all of them; unset is `data.columns`.
    #[serde(default)]
    pub columns: Option<ColumnNames>,
    /// Cuts the answer out of its column; unset is `data.answer_pattern`, an empty text is none.
    #[serde(default)]
    pub answer_pattern: Option<String>,
    /// The user's turn; unset is `data.template`, an empty text is none.
    #[serde(default)]
    pub template: Option<String>,
    /// What judges the answers; unset is `[reward]`.
    #[serde(default)]
    pub reward: Option<RewardPart>,
    /// Also compute the answers' sensitivity features, and write their cosines beside them. Needs a temperature.
    #[serde(default)]
    pub features: bool,
    /// More data sets, measured at the same time.
    #[serde(default)]
    pub more: Vec<EvaluationSet>,
}

/// One `[[evaluation.more]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Which column holds what, all of them; unset is `data.columns`.
    #[serde(default)]
    pub columns: Option<ColumnNames>,
    /// Cuts the answer out of its column; unset is `data.answer_pattern`, an empty text is none.
    #[serde(default)]
    pub answer_pattern: Option<String>,
    /// The user's turn; unset is `data.template`, an empty text is none.
    #[serde(default)]
    pub template: Option<String>,
    /// What judges the answers; unset is `[reward]`.
    #[serde(default)]
    pub reward: Option<RewardPart>,
}

impl EvaluationSet {
    /// Problems of one place, all else by default.
    #[must_use]
    pub fn new(name: String, data: String) -> Self {
        Self {
            name,
            data,
            subset: None,
            split: None,
            max_problems: None,
            columns: None,
            answer_pattern: None,
            template: None,
            reward: None,
        }
    }
}

impl EvaluationConfig {
    /// The set that `[evaluation]` itself names; `None` where it is a part of the training problems.
    #[must_use]
    pub fn first_set(&self) -> Option<EvaluationSet> {
        Some(EvaluationSet {
            name: self.name.clone(),
            data: self.data.clone()?,
            subset: self.subset.clone(),
            split: self.split.clone(),
            max_problems: self.max_problems,
            columns: self.columns.clone(),
            answer_pattern: self.answer_pattern.clone(),
            template: self.template.clone(),
            reward: self.reward.clone(),
        })
    }

    /// The same measurement of other sets.
    ///
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn with_sets(&self, sets: &[EvaluationSet]) -> Self {
        let (first, more) = sets.split_first().expect("an evaluation has at least one data set");
        let first = first.clone();
        Self {
            name: first.name,
            data: Some(first.data),
            fraction: None,
            subset: first.subset,
            split: first.split,
            max_problems: first.max_problems,
            columns: first.columns,
            answer_pattern: first.answer_pattern,
            template: first.template,
            reward: first.reward,
            more: more.to_vec(),
            ..self.clone()
        }
    }

    /// What judges each set, in their order, with its key; `None` where `[reward]` does.
    #[must_use]
    pub fn rewards(&self) -> Vec<(String, Option<&RewardPart>)> {
        let more = self.more.iter().enumerate();
        let more = more.map(|(at, set)| (format!("evaluation.more.{at}.reward"), set.reward.as_ref()));
        std::iter::once(("evaluation.reward".to_owned(), self.reward.as_ref())).chain(more).collect()
    }

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

    /// Checks how the rows of its sets become problems and are judged.
    pub(super) fn validate_rows(&self, data: &DataConfig) -> Result<(), ConfigError> {
        if let Some(first) = self.first_set() {
            first.row_form(data, "evaluation").validate()?;
        }
        for (at, set) in self.more.iter().enumerate() {
            set.row_form(data, &format!("evaluation.more.{at}")).validate()?;
        }
        for (key, reward) in self.rewards() {
            let Some(reward) = reward else { continue };
            if reward.kind == RewardKindName::Sum {
                return Err(refuse(&format!("{key}.kind"), "the reward of a set cannot be a sum"));
            }
            reward.validate(&key)?;
        }
        Ok(())
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match (&self.data, self.fraction) {
            (Some(_), None) => {}
            (None, Some(fraction)) => {
                within("evaluation.fraction", fraction, 0.000_1..=0.9)?;
                let rows = self.columns.is_some() || self.answer_pattern.is_some() || self.template.is_some();
                if rows || self.reward.is_some() {
                    let message = "training problems are read and judged as [data] and [reward] say: leave out \
                                   evaluation.columns, answer_pattern, template and reward";
                    return Err(refuse("evaluation.fraction", message));
                }
            }
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
