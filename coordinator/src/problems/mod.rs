//! Problem generators: small tasks with verifiable answers, for demos, tests and first runs.

pub mod arithmetic;
pub mod countdown;
pub mod family;
pub mod ladder;

use serde::Serialize;

/// A row of a generated file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProblemRow {
    /// Unique in the file.
    pub id: String,
    /// The prompt.
    pub problem: String,
    /// What the verifier compares with.
    pub answer: String,
    /// A worked solution.
    pub solution: String,
}
