//! Ranges of `[reward]`, and what each kind needs.

use super::super::ConfigError;
use super::super::validate::{at_least_one, refuse, within};
use super::{FormatOptions, HttpRewardConfig, RegexOptions, RewardConfig, RewardKindName, RewardPart};

impl RewardConfig {
    /// Checks ranges, patterns, and that every kind has its options.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] with the first key that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("reward.correct", self.correct), ("reward.wrong", self.wrong)] {
            if !value.is_finite() {
                return Err(refuse(key, "rewards must be finite"));
            }
        }
        at_least_one("reward.timeout_ms", self.timeout_ms)?;
        match (self.kind == RewardKindName::Sum, self.parts.is_empty()) {
            (true, true) => return Err(refuse("reward.parts", "a sum needs at least one part")),
            (false, false) => return Err(refuse("reward.parts", "only kind = \"sum\" has parts")),
            (false, true) => return self.parts()[0].validate("reward"),
            (true, false) => {}
        }
        for (at, part) in self.parts.iter().enumerate() {
            let prefix = format!("reward.parts.{at}");
            if part.kind == RewardKindName::Sum {
                return Err(refuse(&format!("{prefix}.kind"), "a part cannot be a sum"));
            }
            part.validate(&prefix)?;
        }
        Ok(())
    }
}

impl RewardPart {
    pub(in crate::config) fn validate(&self, prefix: &str) -> Result<(), ConfigError> {
        within(&format!("{prefix}.weight"), self.weight, f64::MIN_POSITIVE..=1e6)?;
        let missing = |section: &str, key: &str| {
            let message = format!("missing: kind = \"{section}\" needs it");
            refuse(&format!("{prefix}.{section}.{key}"), message)
        };
        match self.kind {
            RewardKindName::Regex => match &self.regex {
                Some(options) => options.validate(prefix),
                None => Err(missing("regex", "pattern")),
            },
            RewardKindName::Format => match &self.format {
                Some(options) => options.validate(prefix),
                None => Err(missing("format", "tags")),
            },
            RewardKindName::Http => match &self.http {
                Some(options) => options.validate(prefix),
                None => Err(missing("http", "url")),
            },
            _ => Ok(()),
        }
    }
}

/// A pattern that compiles, and how many capture groups it has.
fn check_pattern(key: &str, pattern: &str) -> Result<usize, ConfigError> {
    match regex::Regex::new(pattern) {
        Ok(pattern) => Ok(pattern.captures_len() - 1),
        Err(error) => Err(refuse(key, error.to_string())),
    }
}

impl RegexOptions {
    fn validate(&self, prefix: &str) -> Result<(), ConfigError> {
        let key = format!("{prefix}.regex.pattern");
        match check_pattern(&key, &self.pattern)? {
            0 | 1 => Ok(()),
            groups => {
                let message = format!("has {groups} capture groups, at most one is allowed; write (?:...)");
                Err(refuse(&key, message))
            }
        }
    }
}

impl FormatOptions {
    fn validate(&self, prefix: &str) -> Result<(), ConfigError> {
        if self.tags.is_empty() && !self.boxed && self.patterns.is_empty() {
            return Err(refuse(&format!("{prefix}.format"), "needs tags, boxed or patterns"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if let Some(tag) = self.tags.iter().find(|tag| tag.is_empty() || !tag.chars().all(plain)) {
            return Err(refuse(&format!("{prefix}.format.tags"), format!("{tag:?} is not a tag's name")));
        }
        for (at, pattern) in self.patterns.iter().enumerate() {
            check_pattern(&format!("{prefix}.format.patterns.{at}"), pattern)?;
        }
        Ok(())
    }
}

impl HttpRewardConfig {
    fn validate(&self, prefix: &str) -> Result<(), ConfigError> {
        let key = |name: &str| format!("{prefix}.http.{name}");
        if !["http://", "https://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            return Err(refuse(
                &key("url"),
                format!("{:?} does not begin with http:// or https://", self.url),
            ));
        }
        for (name, value) in [
            ("batch_size", u64::from(self.batch_size)),
            ("concurrency", self.concurrency.into()),
            ("timeout_ms", self.timeout_ms),
            ("backoff_ms", self.backoff_ms),
            ("breaker_failures", self.breaker_failures.into()),
            ("probe_ms", self.probe_ms),
        ] {
            at_least_one(&key(name), value)?;
        }
        if self.max_backoff_ms < self.backoff_ms {
            return Err(refuse(&key("max_backoff_ms"), "must not be below backoff_ms"));
        }
        if !(self.lowest.is_finite() && self.highest.is_finite() && self.lowest < self.highest) {
            return Err(refuse(&key("highest"), "must be finite and above lowest"));
        }
        within(&key("correct_from"), self.correct_from, f64::MIN_POSITIVE..=1.0)
    }
}
