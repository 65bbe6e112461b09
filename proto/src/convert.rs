//! The only conversions between wire and domain types.
//!
//! To the wire is infallible. From the wire everything is checked that the domain types promise:
//! a message that gets through needs no further checks.

mod command;
mod event;
mod parts;

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The message holds none of the known kinds.
    #[error("an empty message, or one of a kind this version does not know")]
    Empty,
    /// A field is missing or out of range.
    #[error("{message}.{field}: {problem}")]
    Field {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl ConvertError {
    fn field(message: &'static str, field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { message, field, problem: problem.into() }
    }
}
