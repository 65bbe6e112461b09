//! A row's problem.
//!
//! Columns may lie in others: `reward_model.ground_truth` is the key `ground_truth` in the column
//! `reward_model`. A problem may be a conversation, a list of `{"role","content"}`: its last user turn.

use serde_json::{Map, Value};

use super::options::{Options, in_order, shuffled};
use super::{AnswerPattern, Problem, ReadOptions};

/// The problem of a row; `id` names rows that have no id.
pub(super) fn problem(
    row: &Map<String, Value>,
    id: String,
    options: &ReadOptions,
) -> Result<Problem, String> {
    let columns = &options.columns;
    let required = |column: &str| {
        let text = text(row, column)?.ok_or_else(|| missing(row, column))?;
        if text.trim().is_empty() { Err(format!("column {column} is empty")) } else { Ok(text) }
    };
    let solution = text(row, &columns.solution)?;
    if options.needs_solution && solution.is_none() {
        return Err(format!("{}, and imitation needs it", missing(row, &columns.solution)));
    }
    let answer = required(&columns.answer)?;
    let answer = match &options.answer_pattern {
        None => answer,
        Some(pattern) => {
            let found = pattern.cut(&answer).filter(|found| !found.is_empty());
            let unlike = || match pattern {
                AnswerPattern::Boxed => {
                    format!("column {} has no \\boxed{{}} with an answer", columns.answer)
                }
                AnswerPattern::Group(pattern) => {
                    format!("column {} does not match answer_pattern {pattern}", columns.answer)
                }
            };
            found.ok_or_else(unlike)?.to_owned()
        }
    };
    let id = text(row, &columns.id)?.unwrap_or(id);
    let (answer, choice) = match &columns.options {
        Some(column) => {
            let list = find(row, column).ok_or_else(|| missing(row, column))?;
            let is_index = find(row, &columns.answer).is_some_and(Value::is_number);
            let options = in_order(list, column, &answer, is_index)?;
            (options.right.to_string(), Some(options))
        }
        None if columns.wrong.is_empty() => (answer, None),
        None => {
            let wrong = columns.wrong.iter().map(|column| required(column)).collect::<Result<Vec<_>, _>>()?;
            let options = shuffled(&id, &answer, &wrong);
            (options.right.to_string(), Some(options))
        }
    };
    let listed = choice.as_ref().map(Options::text);
    let problem = options.template.fill(&required(&columns.problem)?, listed.as_deref());
    Ok(Problem { id, problem, answer, solution })
}

fn missing(row: &Map<String, Value>, column: &str) -> String {
    let columns: Vec<&str> = row.keys().map(String::as_str).collect();
    format!("column {column} is missing (the row has: {})", columns.join(", "))
}

/// A column as text; numbers are taken as they are written.
fn text(row: &Map<String, Value>, column: &str) -> Result<Option<String>, String> {
    match find(row, column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Array(turns)) => match conversation(turns) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(format!("column {column} holds a list that is no conversation")),
        },
        Some(other) => Err(format!("column {column} holds {other}, not text")),
    }
}

/// A column by its name or by its path.
fn find<'a>(row: &'a Map<String, Value>, column: &str) -> Option<&'a Value> {
    if let Some(value) = row.get(column) {
        return Some(value);
    }
    let (outer, rest) = column.split_once('.')?;
    match row.get(outer)? {
        Value::Object(inner) => find(inner, rest),
        _ => None,
    }
}

/// The text of the last turn of a user.
fn conversation(turns: &[Value]) -> Option<&str> {
    let of_user = |turn: &&Value| turn.get("role").and_then(Value::as_str) == Some("user");
    turns.iter().rev().find(of_user)?.get("content")?.as_str()
}
