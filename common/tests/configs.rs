//! Every shipped configuration loads, and the paper's settings are in those that claim them.

use std::path::{Path, PathBuf};

use g2rl_common::config::{Dtype, HttpRewardConfig, LoadOptions, RunConfig};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn load(path: PathBuf) -> RunConfig {
    RunConfig::load(&LoadOptions { path, overrides: Vec::new() }).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_shipped_configuration_loads() {
    // Those of experiments are of another kind.
    let folders = [folder(), folder().join("reproduce")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    assert!(files.len() >= 9, "{files:?}");
    for path in files {
        let config = load(path);
        assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
    }
}

#[test]
fn every_configuration_of_the_reproduction_is_there() {
    let text = std::fs::read_to_string(folder().join("../docs/reproduce.md")).unwrap();
    let pieces = text.split(|c: char| !(c.is_ascii_alphanumeric() || "/-._".contains(c)));
    let names = pieces.filter(|word| word.starts_with("configs/") && word.ends_with(".toml"));
    let names: std::collections::BTreeSet<&str> = names.collect();
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        let path = folder().join("..").join(name);
        // The coordinator's tests load those of experiments.
        match name.starts_with("configs/experiments/") {
            true => assert!(path.exists(), "{name}"),
            false => drop(load(path)),
        }
    }
}

#[test]
fn every_documented_reward_loads() {
    let text = std::fs::read_to_string(folder().join("../docs/rewards.md")).unwrap();
    let examples: Vec<&str> =
        text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 9, "one for each kind");
    let rest = "[run]\nname = 't'\ndir = 'd'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 't'\n";
    for example in examples {
        let config = RunConfig::from_toml(&format!("{rest}{example}"));
        let config = config.unwrap_or_else(|error| panic!("{error} in {example}"));
        // What is written there as a default is one.
        let Some(mut http) = config.reward.http else { continue };
        (http.url, http.authorization_env) = Default::default();
        assert_eq!(http, HttpRewardConfig::default());
    }
}

#[test]
fn the_papers_settings() {
    for (name, tokens) in [
        ("qwen3-1.7b-math.toml", 8192),
        ("qwen3-4b-math.toml", 12_288),
        ("reproduce/qwen3-1.7b.toml", 8192),
        ("reproduce/qwen3-4b.toml", 12_288),
    ] {
        let config = load(folder().join(name));
        assert_eq!((config.rollout.prompts_per_step, config.rollout.group_size), (16, 16));
        assert_eq!(config.update.sequences_per_minibatch, 32);
        assert_eq!(config.rollout.max_new_tokens, tokens);
        assert_eq!(config.rollout.temperature, 1.0);
        assert_eq!(config.optimizer.learning_rate, 5e-7);
        assert_eq!(config.objective.kl_coef, 0.001);
        assert_eq!(config.model.dtype, Dtype::Bf16);
        assert!(config.prompt.system.as_deref().is_some_and(|s| s.contains("\\boxed{}")));
    }
}
