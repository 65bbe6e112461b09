//! What keeps the reference complete and true.

use super::super::{ConfigError, LoadOptions};
use super::*;

/// Everything that can be set beside other keys is set.
const BASE: &str = "
[run]
name = 't'
dir = 'd'
steps = 3
[model]
path = 'm'
[data]
train = 'd.jsonl'
[evaluation]
data = 'e.jsonl'
k = [1]
[reward]
kind = 'http'
[reward.http]
url = 'http://judge'
";

/// Keys whose ranges other keys bound.
const BOUND_BY_OTHERS: [&str; 4] = [
    "reward.http.max_backoff_ms",
    "reward.http.highest",
    "algorithm.overlong.cache_tokens",
    "imitation.solutions_per_step",
];

fn keys() -> Vec<Key> {
    sections().into_iter().flat_map(|section| section.keys).collect()
}

fn load(setting: String) -> Result<RunConfig, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, BASE).unwrap();
    RunConfig::load(&LoadOptions { path, overrides: vec![setting] })
}

#[test]
fn every_key_and_every_choice_says_what_it_means() {
    let keys = keys();
    assert!(keys.len() > 100, "{} keys", keys.len());
    for key in &keys {
        assert!(!key.meaning.is_empty(), "{} has no doc comment", key.path());
        assert!(!key.kind.is_empty(), "{} has no kind", key.path());
        for choice in &key.choices {
            assert!(!choice.meaning.is_empty(), "{}: `{}` has no doc comment", key.path(), choice.value);
        }
    }
    for section in sections() {
        assert!(!section.meaning.is_empty(), "[{}] has no doc comment", section.path);
    }
}

#[test]
fn keys_are_described_as_they_are() {
    let keys = keys();
    let key = |path: &str| keys.iter().find(|key| key.path() == path).unwrap();
    let rate = key("optimizer.learning_rate");
    assert_eq!((rate.default.as_str(), rate.allowed().as_str()), ("1e-6", "number, 0 to 10"));
    let heartbeat = key("cluster.heartbeat_timeout_ms");
    assert_eq!((heartbeat.default.as_str(), heartbeat.unit.as_str()), ("30000", "milliseconds"));
    assert_eq!(heartbeat.allowed(), "integer, at least 1");
    assert_eq!(
        (key("run.name").default.as_str(), key("rollout.top_k").default.as_str()),
        ("required", "unset")
    );
    assert_eq!(key("cluster.listen").default, "\"127.0.0.1:0\"");
    assert_eq!(
        (key("evaluation.k").default.as_str(), key("evaluation.k").kind.as_str()),
        ("[1, 8]", "list of integers")
    );
    let values: Vec<&str> = key("model.dtype").choices.iter().map(|choice| choice.value.as_str()).collect();
    assert_eq!((values, key("model.dtype").default.as_str()), (vec!["f32", "bf16"], "\"f32\""));
    // A value with fields of its own.
    let aggregation = key("objective.aggregation");
    assert_eq!(aggregation.choices[2].value, "{ constant = { tokens = ... } }");
    assert!(keys.iter().any(|key| key.path() == "reward.parts[].http.url"));
}

/// A range is written twice: for the schema and in `validate`. What one allows the other does.
#[test]
fn ranges_are_those_that_are_kept() {
    let numeric =
        |key: &&Key| matches!(key.kind.as_str(), "integer" | "number") && !key.section.contains("[]");
    for key in keys().iter().filter(numeric) {
        let path = key.path();
        let probes: &[f64] = match key.kind.as_str() {
            "integer" => &[0.0, 1.0, 1e9],
            _ => &[-1.0, 0.0, 0.5, 1.0, 20.0, 5e5, 1e7, 1e10],
        };
        let bound = |name: &str| key.schema.get(name).and_then(Value::as_f64);
        for &probe in probes {
            let allowed = bound("minimum").is_none_or(|least| probe >= least)
                && bound("maximum").is_none_or(|most| probe <= most)
                && bound("exclusiveMinimum").is_none_or(|least| probe > least);
            let refused = load(format!("{path}={probe}")).err().map(|error| error.to_string());
            if !allowed {
                assert!(refused.is_some(), "{path} = {probe}: the schema refuses it, validation does not");
            } else if let Some(error) = refused.filter(|_| !BOUND_BY_OTHERS.contains(&path.as_str())) {
                let named =
                    error.contains(&format!("key {path}:")) || error.contains(&format!("{} = ", key.name));
                assert!(
                    !named,
                    "{path} = {probe}: validation refuses it, `#[schemars(range(...))]` does not: {error}"
                );
            }
        }
    }
}

#[test]
fn the_page_is_the_one_that_is_made() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let differs = markdown().lines().zip(committed.lines()).position(|(made, there)| made != there);
    assert!(
        committed == markdown(),
        "docs/configuration.md is not what `cargo xtask docs` makes; first difference at line {:?}",
        differs.map(|at| at + 1)
    );
}

#[test]
fn a_section_or_a_key_can_be_looked_up() {
    let all = text(None);
    assert!(all.contains("[rollout]") && all.contains("[[reward.parts]]"));
    let one = text(Some("rollout.group_size"));
    assert_eq!(
        one,
        "[rollout]  How answers are generated.\n\n  \
         group_size = 16                           integer, at least 1\n      Rollouts of a prompt.\n"
    );
    assert!(text(Some("rollout")).contains("temperature") && !text(Some("rollout")).contains("[model]"));
    assert_eq!(text(Some("roll")), "");
    assert!(all.lines().all(|line| line.chars().count() <= 140));
}

/// The file of every shipped configuration is allowed by the schema's list of keys.
#[test]
fn the_schema_knows_no_other_keys() {
    let schema = Value::from(schema());
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["RolloutConfig"]["additionalProperties"], false);
    assert!(schema["properties"]["rollout"]["description"].is_string());
}
