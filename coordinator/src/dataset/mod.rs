//! `prompt`: the problems of a run.
//!
//! In: JSONL files. Out: [`Problem`]s, checked before the run. The order in which they are drawn is the
//! state machine's business.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use g2rl_common::config::{BadRow, ColumnNames};
use serde_json::{Map, Value};

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Unique in its file.
    pub id: String,
    /// The text put to the policy.
    pub problem: String,
    /// What the verifier compares with.
    pub answer: String,
    /// A worked solution, for imitation.
    pub solution: Option<String>,
}

/// How a file is read.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Which column holds what.
    pub columns: ColumnNames,
    /// What happens to unusable rows.
    pub on_bad_row: BadRow,
    /// Read only this many rows.
    pub max_problems: Option<u64>,
    /// Rows need a solution.
    pub needs_solution: bool,
}

/// Why a data set is refused.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A row is unusable.
    #[error("{path}:{line}: {problem} (set data.on_bad_row = \"skip\" to leave such rows out)")]
    BadRow {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// No row is usable.
    #[error("{path} holds no usable problem")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The problems of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Usable rows, in the file's order.
    pub problems: Vec<Problem>,
    /// Rows left out.
    pub skipped: usize,
}

impl Dataset {
    /// Reads a JSONL file.
    ///
    /// # Errors
    /// [`DatasetError`], naming file and line.
    pub fn read(path: &Path, options: &ReadOptions) -> Result<Self, DatasetError> {
        let unreadable = |source| DatasetError::Unreadable { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut dataset = Self { problems: Vec::new(), skipped: 0 };
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let most = options.max_problems.unwrap_or(u64::MAX);
        for (index, line) in BufReader::new(file).lines().enumerate() {
            if dataset.problems.len() as u64 >= most {
                break;
            }
            let line = line.map_err(unreadable)?;
            if line.trim().is_empty() {
                continue;
            }
            let problem = parse(&line, index + 1, options).and_then(|problem| {
                match seen.insert(problem.id.clone(), index + 1) {
                    Some(first) => Err(format!("id {} is also that of line {first}", problem.id)),
                    None => Ok(problem),
                }
            });
            match (problem, options.on_bad_row) {
                (Ok(problem), _) => dataset.problems.push(problem),
                (Err(_), BadRow::Skip) => dataset.skipped += 1,
                (Err(problem), BadRow::Error) => {
                    return Err(DatasetError::BadRow { path: path.to_owned(), line: index + 1, problem });
                }
            }
        }
        if dataset.problems.is_empty() {
            return Err(DatasetError::Empty { path: path.to_owned() });
        }
        Ok(dataset)
    }
}

fn parse(line: &str, number: usize, options: &ReadOptions) -> Result<Problem, String> {
    let row: Map<String, Value> =
        serde_json::from_str(line).map_err(|e| format!("not a JSON object: {e}"))?;
    let columns = &options.columns;
    let required = |column: &str| {
        let text = text(&row, column)?.ok_or_else(|| format!("column {column} is missing"))?;
        if text.trim().is_empty() { Err(format!("column {column} is empty")) } else { Ok(text) }
    };
    let solution = text(&row, &columns.solution)?;
    if options.needs_solution && solution.is_none() {
        return Err(format!("column {} is missing, and imitation needs it", columns.solution));
    }
    Ok(Problem {
        id: text(&row, &columns.id)?.unwrap_or_else(|| format!("line-{number}")),
        problem: required(&columns.problem)?,
        answer: required(&columns.answer)?,
        solution,
    })
}

/// A column as text; numbers are taken as they are written.
fn text(row: &Map<String, Value>, column: &str) -> Result<Option<String>, String> {
    match row.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("column {column} holds {other}, not text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, options: &ReadOptions) -> Result<Dataset, DatasetError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, text).unwrap();
        Dataset::read(&path, options)
    }

    fn options(on_bad_row: BadRow) -> ReadOptions {
        ReadOptions { columns: ColumnNames::default(), on_bad_row, max_problems: None, needs_solution: false }
    }

    const GOOD: &str =
        "{\"id\":\"a\",\"problem\":\"1+1\",\"answer\":2}\n\n{\"problem\":\"2+2\",\"answer\":\"4\"}\n";

    #[test]
    fn rows_become_problems() {
        let dataset = read(GOOD, &options(BadRow::Error)).unwrap();
        assert_eq!(dataset.problems[0].answer, "2");
        assert_eq!(dataset.problems[1].id, "line-3");
        let one = ReadOptions { max_problems: Some(1), ..options(BadRow::Error) };
        assert_eq!(read(GOOD, &one).unwrap().problems.len(), 1);
    }

    #[test]
    fn bad_rows_are_named_or_counted() {
        for (row, word) in [
            ("{\"problem\":\"x\"}", "answer is missing"),
            ("{\"problem\":\"\",\"answer\":\"1\"}", "problem is empty"),
            ("nonsense", "not a JSON object"),
            ("{\"id\":\"a\",\"problem\":\"x\",\"answer\":\"1\"}", "also that of line 1"),
            ("{\"problem\":[1],\"answer\":\"1\"}", "not text"),
        ] {
            let text = format!("{GOOD}{row}\n");
            let error = read(&text, &options(BadRow::Error)).unwrap_err().to_string();
            assert!(error.contains("d.jsonl:4") && error.contains(word), "{error}");
            let dataset = read(&text, &options(BadRow::Skip)).unwrap();
            assert_eq!((dataset.problems.len(), dataset.skipped), (2, 1));
        }
        let imitation = ReadOptions { needs_solution: true, ..options(BadRow::Error) };
        assert!(read(GOOD, &imitation).unwrap_err().to_string().contains("solution"));
        assert!(read("", &options(BadRow::Error)).unwrap_err().to_string().contains("no usable problem"));
    }
}
