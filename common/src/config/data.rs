//! `[data]` and `[prompt]`: the problems, and what becomes of them before a model reads them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BadRow {
    /// The run does not start; the error names file and line.
    #[default]
    Error,
    /// The row is left out and counted.
    Skip,
}

/// Which column holds what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnNames {
    /// Unique id; rows without one are named by file and line.
    pub id: String,
    /// The problem's text.
    pub problem: String,
    /// The reference answer.
    pub answer: String,
    /// A worked solution, for `kind = "sft"`.
    pub solution: String,
    /// Multiple choice: a list of all options, in their order. `answer` is then the right one's letter, or
    /// its place as a number from 0.
    pub options: Option<String>,
    /// Multiple choice: columns with one wrong option each. `answer` is then the right option's text; the row's
    /// id decides their order.
    pub wrong: Vec<String>,
}

impl ColumnNames {
    /// Rows are questions with options.
    #[must_use]
    pub fn has_options(&self) -> bool {
        self.options.is_some() || !self.wrong.is_empty()
    }
}

impl Default for ColumnNames {
    fn default() -> Self {
        Self {
            id: "id".into(),
            problem: "problem".into(),
            answer: "answer".into(),
            solution: "solution".into(),
            options: None,
            wrong: Vec::new(),
        }
    }
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training problems: a file (.jsonl, .json, .parquet), a directory of such files, or a data set of the
    /// Hugging Face hub (`owner/name`, with `@revision` if not `main`).
    pub train: String,
    /// Folder of a data set that has several.
    #[serde(default)]
    pub subset: Option<String>,
    /// Split of a directory or data set; unset is `train`.
    #[serde(default)]
    pub split: Option<String>,
    /// Column names.
    #[serde(default)]
    pub columns: ColumnNames,
    /// What happens to unusable rows.
    #[serde(default)]
    pub on_bad_row: BadRow,
    /// Use only the first problems.
    #[serde(default)]
    pub max_problems: Option<u64>,
    /// Leave out problems with fewer characters.
    #[serde(default)]
    pub min_problem_chars: Option<u64>,
    /// Leave out problems with more characters.
    #[serde(default)]
    pub max_problem_chars: Option<u64>,
    /// A regular expression whose one group cuts the answer out of its column, as `#### (.+)` does for
    /// GSM8K; the last match counts. `\boxed{}` takes what the last box holds, as in MATH's solutions.
    #[serde(default)]
    pub answer_pattern: Option<String>,
    /// The user's turn, with `{problem}` and, for multiple choice, `{options}` in it. Unset is the problem
    /// itself, with its options below.
    #[serde(default)]
    pub template: Option<String>,
    /// Draw problems in a new order in each pass; otherwise in the order of the files.
    #[serde(default = "super::yes")]
    pub shuffle: bool,
}

impl DataConfig {
    /// Training problems from one place, all else by default.
    #[must_use]
    pub fn from_train(train: &str) -> Self {
        Self {
            train: train.to_owned(),
            subset: None,
            split: None,
            columns: ColumnNames::default(),
            on_bad_row: BadRow::default(),
            max_problems: None,
            min_problem_chars: None,
            max_problem_chars: None,
            answer_pattern: None,
            template: None,
            shuffle: true,
        }
    }
}

/// How a problem's text becomes prompt tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptFormat {
    /// The tokenizer's chat template if it has one, else `raw`.
    #[default]
    Auto,
    /// The tokenizer's chat template; an error without one.
    Chat,
    /// System prompt, a blank line and the problem, without template.
    Raw,
}

/// `[prompt]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptConfig {
    /// How a problem's text becomes prompt tokens.
    pub format: PromptFormat,
    /// System prompt.
    pub system: Option<String>,
    /// Passed to the chat template as `enable_thinking`; unset leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// Longer prompts are skipped and counted, tokens.
    #[schemars(range(min = 1))]
    pub max_tokens: u32,
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self { format: PromptFormat::Auto, system: None, enable_thinking: None, max_tokens: 2048 }
    }
}
