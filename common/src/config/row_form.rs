//! How the rows of a data set become problems: columns, what is cut out of the answer, and the user's turn.
//!
//! `[data]` says it for all sets; a set of `[evaluation]` may say otherwise.

use super::validate::refuse;
use super::{ColumnNames, ConfigError, DataConfig, EvaluationSet};

/// Stands for the problem's text in a template.
pub const PROBLEM: &str = "{problem}";

/// Stands for the options in a template, one a line: `A. text`.
pub const OPTIONS: &str = "{options}";

/// The `answer_pattern` that takes what the last box of a solution holds. Boxes nest, which no regular
/// expression follows; as one it would not compile.
pub const BOXED: &str = "\\boxed{}";

/// Options have the letters A to J.
const MOST_OPTIONS: usize = 10;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct RowForm {
    /// Where it is written, for messages: `data`, `evaluation`, `evaluation.more.0`.
    pub key: String,
    /// Which column holds what.
    pub columns: ColumnNames,
    /// Cuts the answer out of its column.
    pub answer_pattern: Option<String>,
    /// The user's turn.
    pub template: Option<String>,
}

impl DataConfig {
    /// The form of the training rows.
    #[must_use]
    pub fn row_form(&self) -> RowForm {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        RowForm {
            key: "data".to_owned(),
            columns: self.columns.clone(),
            answer_pattern: given(&self.answer_pattern),
            template: given(&self.template),
        }
    }
}

impl EvaluationSet {
    /// The form of this set's rows: what it does not say is that of the training rows; an empty text is none.
    #[must_use]
    pub fn row_form(&self, data: &DataConfig, key: &str) -> RowForm {
        let own = |text: &Option<String>, otherwise: Option<String>| match text {
            Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            None => otherwise,
        };
        let data = data.row_form();
        RowForm {
            key: key.to_owned(),
            columns: self.columns.clone().unwrap_or(data.columns),
            answer_pattern: own(&self.answer_pattern, data.answer_pattern),
            template: own(&self.template, data.template),
        }
    }
}

impl RowForm {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let columns = &self.columns;
        if columns.options.is_some() && !columns.wrong.is_empty() {
            let message = "options are in one column (options) or in several (wrong), not both";
            return Err(refuse(&format!("{}.columns.wrong", self.key), message));
        }
        if columns.wrong.len() >= MOST_OPTIONS {
            let message =
                format!("{} wrong options, at most {} have a letter", columns.wrong.len(), MOST_OPTIONS - 1);
            return Err(refuse(&format!("{}.columns.wrong", self.key), message));
        }
        let Some(template) = &self.template else { return Ok(()) };
        let message = match (template.contains(PROBLEM), template.contains(OPTIONS), columns.has_options()) {
            (false, _, _) => "{problem} is missing: every prompt would be the same",
            (true, false, true) => "{options} is missing, though the columns name options",
            (true, true, false) => "{options} is there, but the columns name no options",
            (true, _, _) => return Ok(()),
        };
        Err(refuse(&format!("{}.template", self.key), message))
    }
}

#[cfg(test)]
mod tests {
    use super::super::RunConfig;

    fn load(text: &str) -> Result<RunConfig, super::ConfigError> {
        let rest = "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n";
        RunConfig::from_toml(&format!("{rest}{text}"))
    }

    const DATA: &str = "[data]\ntrain = 't'\ntemplate = '{problem} Go.'\nanswer_pattern = '#### (.+)'\n\
                        columns = { problem = 'question' }\n[evaluation]\n";

    #[test]
    fn a_set_says_what_is_different() {
        let text = "data = 'e'\n[[evaluation.more]]\nname = 'a'\ndata = 'a'\nanswer_pattern = ''\n\
                    columns = { options = 'o' }\ntemplate = '{options} {problem}'\nreward = { kind = 'choice' }";
        let config = load(&format!("{DATA}{text}")).unwrap();
        assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
        let evaluation = config.evaluation.unwrap();
        let first = evaluation.first_set().unwrap().row_form(&config.data, "evaluation");
        assert_eq!(
            (first.columns.problem.as_str(), first.template.as_deref()),
            ("question", Some("{problem} Go."))
        );
        let more = evaluation.more[0].row_form(&config.data, "evaluation.more.0");
        // Columns are replaced as a whole.
        assert_eq!((more.columns.problem.as_str(), more.answer_pattern), ("problem", None));
        assert_eq!(more.template.as_deref(), Some("{options} {problem}"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, key) in [
            ("data = 'e'\ntemplate = 'Go.'", "evaluation.template: {problem} is missing"),
            ("data = 'e'\ntemplate = '{problem}{options}'", "evaluation.template: {options} is there"),
            (
                "data = 'e'\n[[evaluation.more]]\nname = 'a'\ndata = 'a'\ncolumns = { wrong = ['w'] }",
                "evaluation.more.0.template: {options} is missing",
            ),
            ("data = 'e'\ncolumns = { options = 'o', wrong = ['w'] }", "evaluation.columns.wrong"),
            ("data = 'e'\n[evaluation.reward]\nkind = 'sum'", "evaluation.reward.kind"),
            ("data = 'e'\n[evaluation.reward]\nkind = 'regex'", "evaluation.reward.regex.pattern"),
            ("fraction = 0.1\nreward = { kind = 'choice' }", "evaluation.fraction"),
        ] {
            let error = load(&format!("{DATA}{text}")).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
