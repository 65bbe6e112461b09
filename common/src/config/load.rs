//! Reading a configuration: file, then `--set` overrides, then validation.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format, Toml};
use serde::de::DeserializeOwned;

use super::RunConfig;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Syntax, an unknown key, a wrong type or a missing key.
    #[error("configuration {path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Key and cause.
        message: String,
    },
    /// An override is not `key=value`.
    #[error("--set {text}: expected key=value, such as rollout.group_size=8")]
    BadOverride {
        /// As given.
        text: String,
    },
    /// A value out of range, or values that exclude each other.
    #[error("configuration key {key}: {message}")]
    OutOfRange {
        /// The key, with its section.
        key: String,
        /// What is allowed.
        message: String,
    },
}

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The TOML file.
    pub path: PathBuf,
    /// `key=value` overrides, applied in order; a value that is not TOML is taken as a string.
    pub overrides: Vec<String>,
}

impl RunConfig {
    /// Reads and validates a configuration. Paths stay as written: they are relative to the
    /// working directory.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file or the key.
    pub fn load(options: &LoadOptions) -> Result<Self, ConfigError> {
        let path = &options.path;
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.clone(), source })?;
        let mut figment = Figment::from(Toml::string(&text));
        for text in &options.overrides {
            figment = figment.merge(Toml::string(&override_document(text)?));
        }
        let config: Self = extract(&figment, path)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a configuration that [`Self::to_toml`] wrote.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = extract(&Figment::from(Toml::string(text)), Path::new("(received)"))?;
        config.validate()?;
        Ok(config)
    }

    /// The whole configuration, defaults filled in, as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has only TOML values and string keys")
    }
}

fn extract<T: DeserializeOwned>(figment: &Figment, path: &Path) -> Result<T, ConfigError> {
    figment.extract().map_err(|error| {
        let message = error
            .into_iter()
            .map(|e| match e.path.is_empty() {
                true => e.kind.to_string(),
                false => format!("key {}: {}", e.path.join("."), e.kind),
            })
            .collect::<Vec<_>>()
            .join("; ");
        ConfigError::Malformed { path: path.to_owned(), message }
    })
}

/// `a.b=1` as the TOML document `a.b = 1`.
pub(super) fn override_document(text: &str) -> Result<String, ConfigError> {
    let bad = || ConfigError::BadOverride { text: text.to_owned() };
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    let (key, value) = (key.trim(), value.trim());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if key.is_empty() || !key.chars().all(plain) || value.contains('\n') {
        return Err(bad());
    }
    let document = format!("{key} = {value}");
    if toml::from_str::<toml::Table>(&document).is_ok() {
        return Ok(document);
    }
    let document = format!("{key} = {}", toml::Value::String(value.to_owned()));
    toml::from_str::<toml::Table>(&document).map_err(|_| bad())?;
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
[run]
name = "t"
dir = "runs/t"
steps = 3
[model]
path = "m"
[data]
train = "d.jsonl"
"#;

    fn load(text: &str, overrides: &[&str]) -> Result<RunConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).unwrap();
        RunConfig::load(&LoadOptions { path, overrides: overrides.iter().map(|s| (*s).to_owned()).collect() })
    }

    #[test]
    fn defaults_fill_a_minimal_file_and_survive_a_round_trip() {
        let config = load(MINIMAL, &[]).unwrap();
        assert_eq!(config.rollout.group_size, 16);
        assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn overrides_win_and_bare_words_are_strings() {
        let config =
            load(MINIMAL, &["rollout.group_size=4", "run.name=hello world", "model.dtype=bf16"]).unwrap();
        assert_eq!(config.rollout.group_size, 4);
        assert_eq!(config.run.name, "hello world");
        assert_eq!(config.model.dtype, super::super::Dtype::Bf16);
    }

    #[test]
    fn errors_name_the_key() {
        let message = |overrides: &[&str]| load(MINIMAL, overrides).unwrap_err().to_string();
        assert!(message(&["rollout.group_sise=4"]).contains("group_sise"));
        assert!(message(&["rollout.group_size=\"four\""]).contains("rollout.group_size"));
        assert!(message(&["rollout.temperature=-1"]).contains("rollout.temperature"));
        assert!(message(&["nonsense"]).contains("key=value"));
        assert!(load("[run]\nname = 1", &[]).unwrap_err().to_string().contains("c.toml"));
    }
}
