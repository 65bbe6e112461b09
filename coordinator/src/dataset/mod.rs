//! `prompt`: the problems of a run.
//!
//! In: files (JSON lines, a JSON array, Parquet, CSV), directories of such files, or data sets of the Hugging
//! Face hub by name. Out: [`Problem`]s, checked before the run. The stages, each a file: `source` finds
//! the files, `rows` reads their rows, `columns` takes a problem out of a row, with `options` where it has a
//! choice of answers, `template` writes the user's turn, `split` holds problems out. The order in which problems
//! are drawn is the state machine's business.

mod columns;
mod options;
mod rows;
mod source;
mod split;
mod template;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use g2rl_common::config::{BOXED, BadRow, ColumnNames, DataConfig, RowForm};
use g2rl_hub::HubError;
use regex::Regex;

pub use self::source::Source;
pub use self::split::hold_out;
pub use self::template::Template;
use crate::reward::math::extract::last_boxed;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Unique in its data set.
    pub id: String,
    /// The text put to the policy.
    pub problem: String,
    /// What the verifier compares with.
    pub answer: String,
    /// A worked solution, for imitation.
    pub solution: Option<String>,
}

/// How rows become problems.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Which column holds what.
    pub columns: ColumnNames,
    /// What happens to unusable rows.
    pub on_bad_row: BadRow,
    /// Take only this many problems.
    pub max_problems: Option<u64>,
    /// Rows need a solution.
    pub needs_solution: bool,
    /// Cuts the answer out of its column.
    pub answer_pattern: Option<AnswerPattern>,
    /// Writes the user's turn.
    pub template: Template,
    /// Problems shorter or longer than this are left out, characters.
    pub problem_chars: (usize, usize),
}

impl ReadOptions {
    /// The options of the training rows.
    ///
    /// # Errors
    /// If the pattern is none.
    pub fn new(config: &DataConfig) -> Result<Self, DatasetError> {
        Self::of_rows(config, config.row_form())
    }

    /// The options of rows of another form; all else is that of the training rows.
    ///
    /// # Errors
    /// If the pattern is none.
    pub fn of_rows(config: &DataConfig, form: RowForm) -> Result<Self, DatasetError> {
        let pattern = form.answer_pattern.as_deref().map(AnswerPattern::new).transpose();
        let unusable =
            |message| DatasetError::Pattern { key: format!("{}.answer_pattern", form.key), message };
        let answer_pattern = pattern.map_err(unusable)?;
        let chars = |limit: Option<u64>, otherwise| limit.map_or(otherwise, |n| n as usize);
        Ok(Self {
            template: Template::new(form.template.as_deref(), &form.columns),
            columns: form.columns,
            on_bad_row: config.on_bad_row,
            max_problems: config.max_problems,
            needs_solution: false,
            answer_pattern,
            problem_chars: (chars(config.min_problem_chars, 0), chars(config.max_problem_chars, usize::MAX)),
        })
    }
}

/// Cuts the answer out of its column.
#[derive(Debug, Clone)]
pub enum AnswerPattern {
    /// The one group of the last match.
    Group(Regex),
    /// What the last box holds.
    Boxed,
}

impl AnswerPattern {
    fn new(text: &str) -> Result<Self, String> {
        if text == BOXED {
            return Ok(Self::Boxed);
        }
        let pattern = Regex::new(text).map_err(|error| error.to_string())?;
        match pattern.captures_len() {
            2 => Ok(Self::Group(pattern)),
            _ => Err("it needs exactly one group in parentheses".to_owned()),
        }
    }

    fn cut<'a>(&self, text: &'a str) -> Option<&'a str> {
        let found = match self {
            Self::Group(pattern) => pattern.captures_iter(text).last()?.get(1)?.as_str(),
            Self::Boxed => last_boxed(text)?,
        };
        Some(found.trim())
    }
}

/// Why a data set is refused.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
    },
    /// A file is not of its format.
    #[error("{path} is not a readable {format} file: {cause}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// JSON or Parquet.
        format: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// A row is unusable.
    #[error("{place}: {problem} (set data.on_bad_row = \"skip\" to leave such rows out)")]
    BadRow {
        /// File and row or line.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// No row is usable.
    #[error("{place} holds no usable problem ({skipped} rows left out)")]
    Empty {
        /// The data set.
        place: String,
        /// Rows that were not usable.
        skipped: usize,
    },
    /// No file fits.
    #[error("{place} has no {wanted}; it has: {available}")]
    NoFile {
        /// The directory or data set.
        place: String,
        /// What was looked for.
        wanted: String,
        /// What is there.
        available: String,
    },
    /// The answer's pattern is unusable.
    #[error("{key}: {message}")]
    Pattern {
        /// Of which data.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// The hub's files cannot be had.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// The problems of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Usable rows, in the files' order.
    pub problems: Vec<Problem>,
    /// Unusable rows left out.
    pub skipped: usize,
    /// Rows left out for their problem's length.
    pub filtered: usize,
}

impl Dataset {
    /// Reads a data set.
    ///
    /// # Errors
    /// [`DatasetError`], naming file and row.
    pub fn read(source: &Source, options: &ReadOptions) -> Result<Self, DatasetError> {
        let files = source.files()?;
        let mut dataset = Self { problems: Vec::new(), skipped: 0, filtered: 0 };
        let mut seen: HashMap<String, String> = HashMap::new();
        let most = options.max_problems.unwrap_or(u64::MAX);
        'files: for (index, path) in files.iter().enumerate() {
            for row in rows::open(path)? {
                if dataset.problems.len() as u64 >= most {
                    break 'files;
                }
                let (number, row) = row?;
                let place = format!("{}:{number}", path.display());
                // Rows without id are named by file and row.
                let file = if files.len() > 1 { format!("file-{}-", index + 1) } else { String::new() };
                let problem = row
                    .and_then(|row| columns::problem(&row, format!("{file}line-{number}"), options))
                    .and_then(|problem| match seen.get(&problem.id) {
                        Some(first) => Err(format!("id {} is also that of {first}", problem.id)),
                        None => Ok(problem),
                    });
                match (problem, options.on_bad_row) {
                    (Ok(problem), _) => {
                        seen.insert(problem.id.clone(), place);
                        let length = problem.problem.chars().count();
                        if (options.problem_chars.0..=options.problem_chars.1).contains(&length) {
                            dataset.problems.push(problem);
                        } else {
                            dataset.filtered += 1;
                        }
                    }
                    (Err(_), BadRow::Skip) => dataset.skipped += 1,
                    (Err(problem), BadRow::Error) => return Err(DatasetError::BadRow { place, problem }),
                }
            }
        }
        if dataset.problems.is_empty() {
            let skipped = dataset.skipped + dataset.filtered;
            return Err(DatasetError::Empty { place: source.to_string(), skipped });
        }
        Ok(dataset)
    }
}

/// Names with their counts, for messages: `a (3), b`.
fn listed(names: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_default() += 1);
    let entry = |(name, count): (String, usize)| if count > 1 { format!("{name} ({count})") } else { name };
    let entries: Vec<String> = counts.into_iter().take(20).map(entry).collect();
    if entries.is_empty() { "nothing".into() } else { entries.join(", ") }
}

#[cfg(test)]
mod tests;
