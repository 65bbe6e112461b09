//! The user's turn: a text with the problem and its options in their places.

use g2rl_common::config::{ColumnNames, OPTIONS, PROBLEM};

/// A template that was checked with its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// As given, or else the problem with its options below.
    #[must_use]
    pub fn new(text: Option<&str>, columns: &ColumnNames) -> Self {
        let otherwise = || match columns.has_options() {
            true => format!("{PROBLEM}\n\n{OPTIONS}"),
            false => PROBLEM.to_owned(),
        };
        Self(text.map_or_else(otherwise, str::to_owned))
    }

    /// In one pass: what stands in a problem is never taken for a place.
    pub(super) fn fill(&self, problem: &str, options: Option<&str>) -> String {
        let mut text = String::new();
        let mut rest = self.0.as_str();
        loop {
            let next = [(PROBLEM, problem), (OPTIONS, options.unwrap_or_default())];
            let places = next.iter().filter_map(|(name, value)| Some((rest.find(name)?, name, value)));
            let Some((at, name, value)) = places.min() else { return text + rest };
            text += &rest[..at];
            text += value;
            rest = &rest[at + name.len()..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_once() {
        let columns = ColumnNames { options: Some("o".into()), ..ColumnNames::default() };
        let filled = |text, columns| Template::new(text, columns).fill("a {options} b", Some("{problem}"));
        assert_eq!(filled(None, &columns), "a {options} b\n\n{problem}");
        assert_eq!(
            filled(Some("{options}|{problem}|\\boxed{}"), &columns),
            "{problem}|a {options} b|\\boxed{}"
        );
        assert_eq!(filled(None, &ColumnNames::default()), "a {options} b");
    }
}
