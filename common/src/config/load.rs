//! Reading a configuration: what its algorithm brings, under the file, under `--set` overrides; then validation.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format, Toml};
use serde::de::DeserializeOwned;

use super::{RolloutConfig, RunConfig};
use crate::algorithm::{Algorithm, AlgorithmKind, Exploration};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: std::io::Error,
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
            .map_err(|cause| ConfigError::Unreadable { path: path.clone(), cause })?;
        let mut figment = Figment::from(Toml::string(&text));
        for text in &options.overrides {
            figment = figment.merge(Toml::string(&override_document(text)?));
        }
        let config: Self = extract(&with_preset(figment), path)?;
        config.validate()?;
        Ok(config)
    }

    /// Reads a configuration that [`Self::to_toml`] wrote.
    ///
    /// # Errors
    /// [`ConfigError`], naming the key.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let figment = with_preset(Figment::from(Toml::string(text)));
        let config: Self = extract(&figment, Path::new("(received)"))?;
        config.validate()?;
        Ok(config)
    }

    /// The whole configuration, defaults filled in, as TOML.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has only TOML values and string keys")
    }
}

/// The settings that the algorithm brings, under those that are given; those of what it borrows its shaping from lie lowest.
fn with_preset(given: Figment) -> Figment {
    // What has a wrong type is named when the whole is read.
    let kind: AlgorithmKind = given.extract_inner("algorithm.kind").unwrap_or_default();
    let explore: Exploration = given.extract_inner("algorithm.explore").unwrap_or_default();
    let max_new_tokens =
        given.extract_inner("rollout.max_new_tokens").unwrap_or(RolloutConfig::default().max_new_tokens);
    let preset = |algorithm: &dyn Algorithm| Figment::from(Toml::string(&algorithm.preset(max_new_tokens)));
    let borrowed = explore.algorithm().map(preset).unwrap_or_default();
    borrowed.merge(preset(kind.algorithm())).merge(given)
}

fn extract<T: DeserializeOwned>(figment: &Figment, path: &Path) -> Result<T, ConfigError> {
    figment.extract().map_err(|error| {
        let message = error
            .into_iter()
            .map(|e| match e.path.is_empty() {
                true => describe(&e.kind),
                false => format!("key {}: {}", e.path.join("."), describe(&e.kind)),
            })
            .collect::<Vec<_>>()
            .join("; ");
        ConfigError::Malformed { path: path.to_owned(), message }
    })
}

/// What is wrong with a key. For one that is unknown the one that was probably meant, or all that there are.
fn describe(kind: &Kind) -> String {
    // Of the names that people mistype, letters are swapped, missing or doubled.
    const SIMILAR: f64 = 0.75;
    let Kind::UnknownField(found, known) = kind else { return kind.to_string() };
    let similarity = |name: &str| strsim::normalized_damerau_levenshtein(found, name);
    let nearest = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    match nearest.filter(|name| similarity(name) >= SIMILAR) {
        Some(meant) => format!("unknown field `{found}`; did you mean `{meant}`?"),
        None => format!("unknown field `{found}`; there are {}", known.join(", ")),
    }
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
    use crate::advantage::AdvantageKind;
    use crate::objective::{Aggregation, ObjectiveOptions, RatioKind};
    use crate::shaping::DegenerateGroups;

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
    fn a_mistyped_key_is_named_with_the_one_that_was_meant() {
        let error = |setting| load(MINIMAL, &[setting]).unwrap_err().to_string();
        let meant = error("rollout.group_siz=3");
        assert!(
            meant.ends_with("key rollout.group_siz: unknown field `group_siz`; did you mean `group_size`?"),
            "{meant}"
        );
        let unlike = error("rollout.weather=3");
        assert!(unlike.contains("there are prompts_per_step, group_size,"), "{unlike}");
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
    fn an_algorithm_brings_settings_that_the_file_may_overrule() {
        let of = |kind: &str, more: &[&str]| {
            let kind = format!("algorithm.kind={kind}");
            let config = load(MINIMAL, &[&[kind.as_str()], more].concat()).unwrap();
            assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
            config
        };
        let dapo = of("dapo", &["rollout.max_new_tokens=1000", "objective.clip_low=0.1"]);
        assert_eq!((dapo.objective.clip_low, dapo.objective.clip_high), (0.1, 0.28));
        assert_eq!((dapo.objective.aggregation, dapo.objective.kl_coef), (Aggregation::TokenMean, 0.0));
        assert_eq!(dapo.algorithm.degenerate_groups, DegenerateGroups::Refill);
        let overlong = dapo.algorithm.overlong;
        assert_eq!((overlong.max_tokens, overlong.cache_tokens), (1000, 200));
        let kept = of("dapo", &["algorithm.degenerate_groups=shape", "algorithm.overlong.cache_tokens=0"]);
        assert_eq!(kept.algorithm.degenerate_groups, DegenerateGroups::Shape);
        assert_eq!(kept.algorithm.overlong.cache_tokens, 0);
        let dr_grpo = of("dr_grpo", &["rollout.max_new_tokens=300"]);
        assert_eq!(dr_grpo.objective.aggregation, Aggregation::Constant { tokens: 300 });
        assert_eq!(dr_grpo.algorithm.advantage, AdvantageKind::MeanOnly);
        let gspo = of("gspo", &[]).objective;
        assert_eq!((gspo.ratio, gspo.clip_low, gspo.clip_high), (RatioKind::Sequence, 3e-4, 4e-4));
        assert_eq!(of("entropy", &[]).objective.entropy_coef, 0.001);
        assert_eq!(of("grpo", &[]).objective, ObjectiveOptions::default());
        let groups = |kind, more| of(kind, more).algorithm.degenerate_groups;
        let explore = &["algorithm.explore=g2rl"];
        assert_eq!(groups("g2rl", &[]), DegenerateGroups::SkipWrong);
        assert_eq!(groups("g2rl", &["algorithm.degenerate_groups=shape"]), DegenerateGroups::Shape);
        assert_eq!(groups("grpo", explore), DegenerateGroups::SkipWrong);
        assert_eq!(groups("dapo", explore), DegenerateGroups::Refill);
        assert_eq!(groups("grpo", &[]), DegenerateGroups::Shape);
    }

    #[test]
    fn what_an_algorithm_cannot_do_without_is_named() {
        let message = |overrides: &[&str]| load(MINIMAL, overrides).unwrap_err().to_string();
        assert!(message(&["algorithm.kind=evol"]).contains("embeddings.url"));
        assert!(message(&["embeddings.url=localhost:80"]).contains("embeddings.url"));
        assert!(message(&["imitation.solutions_per_step=17"]).contains("imitation.solutions_per_step"));
        let both = ["imitation.solutions_per_step=1", "algorithm.kind=sft"];
        assert!(message(&both).contains("sft imitates all"));
        assert!(message(&["algorithm.kind=grpoo"]).contains("algorithm.kind"));
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
