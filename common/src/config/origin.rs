//! Where each value of a configuration comes from: a line of the file, a `--set`, or its default.
//!
//! In: the same options as [`RunConfig::load`]. Out: the configuration as TOML with the origin of each value beside it
//! as a comment; [`RunConfig::from_toml`] reads it again.

use std::fmt;
use std::fmt::Write as _;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::load::{ConfigError, LoadOptions, override_document};
use super::{RunConfig, reference};

/// Values begin their comments here at the earliest.
const COMMENT_COLUMN: usize = 44;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// This line of the file, from 1.
    File {
        /// The line.
        line: usize,
    },
    /// `--set`.
    Override,
    /// Nothing sets it.
    Default,
}

impl Origin {
    fn comment(&self, file: &dyn fmt::Display) -> String {
        match self {
            Self::File { line } => format!("{file}:{line}"),
            Self::Override => "--set".to_owned(),
            Self::Default => "default".to_owned(),
        }
    }
}

/// What sets keys: the file, and the overrides in their order.
struct Sources<'a> {
    text: &'a str,
    file: DeTable<'a>,
    overrides: Vec<toml::Table>,
}

impl<'a> Sources<'a> {
    fn read(text: &'a str, options: &LoadOptions) -> Result<Self, ConfigError> {
        let malformed = |error: toml::de::Error| ConfigError::Malformed {
            path: options.path.clone(),
            message: error.message().to_owned(),
        };
        let file = DeTable::parse(text).map_err(malformed)?.into_inner();
        let overrides = options.overrides.iter().map(|text| {
            let document = override_document(text)?;
            toml::from_str(&document).map_err(malformed)
        });
        Ok(Self { text, file, overrides: overrides.collect::<Result<_, _>>()? })
    }

    fn origin(&self, path: &[&str]) -> Origin {
        if self.overrides.iter().any(|table| is_in(table, path)) {
            return Origin::Override;
        }
        match position(&self.file, path) {
            Some(at) => Origin::File { line: 1 + self.text[..at].matches('\n').count() },
            None => Origin::Default,
        }
    }
}

/// Whether a table has a value at this path.
fn is_in(table: &toml::Table, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    match table.get(*first) {
        Some(toml::Value::Table(inner)) => is_in(inner, rest),
        Some(_) => rest.is_empty(),
        None => false,
    }
}

/// Where the key at this path begins.
fn position(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let (key, value): (&Spanned<_>, &Spanned<DeValue<'_>>) =
        table.iter().find(|(key, _)| key.get_ref().as_ref() == *first)?;
    match (rest.is_empty(), value.get_ref()) {
        (true, _) => Some(key.span().start),
        (false, DeValue::Table(inner)) => position(inner, rest),
        (false, _) => None,
    }
}

impl RunConfig {
    /// The whole configuration as TOML, with a comment that says where each value comes from. Keys without a value are
    /// comments.
    ///
    /// # Errors
    /// [`ConfigError`], as [`Self::load`].
    pub fn explain(options: &LoadOptions) -> Result<String, ConfigError> {
        let config = Self::load(options)?;
        let text = std::fs::read_to_string(&options.path)
            .map_err(|cause| ConfigError::Unreadable { path: options.path.clone(), cause })?;
        let sources = Sources::read(&text, options)?;
        let value = serde_json::to_value(&config).expect("a configuration has only string keys");
        let mut out = String::new();
        if let Value::Object(sections) = &value {
            let mut path = Vec::new();
            table(&mut out, &mut path, sections, &|path| {
                sources.origin(path).comment(&options.path.display())
            });
        }
        Ok(out)
    }
}

/// Writes a table: its plain values, then the tables in it.
fn table<'v>(
    out: &mut String,
    path: &mut Vec<&'v str>,
    values: &'v Map<String, Value>,
    origin: &impl Fn(&[&str]) -> String,
) {
    // An enum's value with fields of its own is no section.
    let is_section = |value: &Value| value.as_object().is_some_and(|fields| fields.len() != 1);
    for (name, value) in values.iter().filter(|(_, value)| !is_section(value)) {
        path.push(name);
        let assignment = match value {
            Value::Null => format!("# {name} is unset"),
            value => format!("{name} = {}", reference::written(value)),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{assignment:<COMMENT_COLUMN$}  # {}", origin(path));
        path.pop();
    }
    for (name, value) in values {
        if let Value::Object(fields) = value
            && is_section(value)
        {
            path.push(name);
            let space = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{space}[{}]", path.join("."));
            table(out, path, fields, origin);
            path.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
[run]
name = 't'
dir = 'd'
steps = 3

[model]
path = 'm'
[data]
train = 'd.jsonl'
[objective]
aggregation = { constant = { tokens = 9 } }
[reward]
kind = 'sum'
exact.case_insensitive = true
[[reward.parts]]
kind = 'math'
";

    fn explain(text: &str, overrides: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        let overrides = overrides.iter().map(|&text| text.to_owned()).collect();
        let options = LoadOptions { path: path.clone(), overrides };
        let explained = RunConfig::explain(&options).unwrap();
        assert_eq!(RunConfig::from_toml(&explained).unwrap(), RunConfig::load(&options).unwrap());
        explained.replace(&path.display().to_string(), "c.toml")
    }

    /// The comment beside a key.
    fn beside<'a>(text: &'a str, start: &str) -> &'a str {
        let line =
            text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}:\n{text}"));
        line.rsplit_once("# ").unwrap().1
    }

    #[test]
    fn every_value_says_where_it_comes_from() {
        let text = explain(TEXT, &["rollout.group_size=4", "run.steps=5", "run.steps=6"]);
        assert_eq!(beside(&text, "name = \"t\""), "c.toml:2");
        assert_eq!(beside(&text, "steps = 6"), "--set");
        assert_eq!(beside(&text, "group_size = 4"), "--set");
        assert_eq!(beside(&text, "prompts_per_step = 16"), "default");
        assert_eq!(beside(&text, "# top_k is unset"), "default");
        assert_eq!(beside(&text, "aggregation = { constant = { tokens = 9 } }"), "c.toml:11");
        assert_eq!(beside(&text, "case_insensitive = true"), "c.toml:14");
        assert_eq!(beside(&text, "parts = [{ kind = \"math\""), "c.toml:15");
    }

    #[test]
    fn a_set_of_a_whole_table_counts_for_what_is_in_it() {
        let text = explain(TEXT, &["reward.exact={ case_insensitive = false }"]);
        assert_eq!(beside(&text, "case_insensitive = false"), "--set");
        assert_eq!(beside(&text, "after_thinking = true"), "default");
    }
}
