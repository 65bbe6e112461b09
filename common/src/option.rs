//! The error of an option out of its range, shared by the sections whose options live beside
//! their arithmetic.

use std::fmt::Display;

/// An option outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: must be {allowed}")]
pub struct OptionError {
    /// The option, without its section.
    pub key: &'static str,
    /// As given.
    pub value: String,
    /// What is allowed.
    pub allowed: &'static str,
}

/// `Ok` if `holds`, else the error that names the key, its value and what is allowed.
pub(crate) fn require(
    holds: bool,
    key: &'static str,
    value: impl Display,
    allowed: &'static str,
) -> Result<(), OptionError> {
    if holds { Ok(()) } else { Err(OptionError { key, value: value.to_string(), allowed }) }
}
