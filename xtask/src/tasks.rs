//! The commands that build and run the project.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::run::{cargo, root, run};
use crate::setup::{Environment, setup};

const DEMO_CONFIG: &str = "configs/demo.toml";
const DEMO_DATA: &str = "runs/demo-data";
const WARMSTART_CONFIG: &str = "configs/demo-warmstart.toml";
const WARMSTART_INIT: &str = "runs/demo-warmstart-init";
const WARMSTART_RESULT: &str = "runs/demo-warmstart/checkpoints/step-001400";
const DEMO_MODEL: &str = "configs/demo/model";
const MODEL_FILES: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Ranks of the demo.
const RANKS: &str = "2";

/// `cargo xtask env`
pub(crate) fn print_environment() -> anyhow::Result<()> {
    for (key, value) in setup(false)? {
        println!("export {key}='{value}'");
    }
    Ok(())
}

fn build(environment: &Environment) -> anyhow::Result<()> {
    run(cargo(environment).args(["build", "--package", "g2rl-coordinator", "--package", "g2rl-worker"]))
}

/// Builds both programs.
pub(crate) fn build_programs() -> anyhow::Result<()> {
    build(&setup(false)?)
}

fn coordinator() -> Command {
    Command::new(root().join("target/debug/g2rl-coordinator"))
}

fn countdown(arguments: &[&str]) -> anyhow::Result<()> {
    run(coordinator().args(["data", "countdown"]).args(arguments))
}

/// `cargo xtask demo`
pub(crate) fn demo(arguments: &[String]) -> anyhow::Result<()> {
    build(&setup(false)?)?;
    for split in ["train", "heldout"] {
        let out = format!("{DEMO_DATA}/{split}.jsonl");
        countdown(&["--distinct", "--count", "all", "--seed", "1", "--split", split, "--out", &out])?;
    }
    let train = ["train", "--config", DEMO_CONFIG, "--local-workers", RANKS, "--overwrite"];
    run(coordinator().args(train).args(arguments))
}

/// `cargo xtask test`
pub(crate) fn test(arguments: &[String]) -> anyhow::Result<()> {
    let environment = setup(false)?;
    // Scenarios run the programs themselves.
    build(&environment)?;
    let nextest =
        cargo(&environment).args(["nextest", "--version"]).output().is_ok_and(|o| o.status.success());
    if nextest {
        return run(cargo(&environment).args(["nextest", "run", "--workspace"]).args(arguments));
    }
    run(cargo(&environment).args(["test", "--workspace", "--lib", "--bins", "--tests"]).args(arguments))
}

/// `cargo xtask model`
pub(crate) fn model() -> anyhow::Result<()> {
    build(&setup(false)?)?;
    let init = root().join(WARMSTART_INIT);
    if init.exists() {
        fs::remove_dir_all(&init).with_context(|| format!("cannot remove {}", init.display()))?;
    }
    let architecture = ["init", "--architecture", "configs/demo/architecture.json"];
    run(Command::new(root().join("target/debug/g2rl-worker")).args(architecture).args([
        "--tokenizer",
        "configs/demo/tokenizer",
        "--out",
        WARMSTART_INIT,
        "--seed",
        "7",
    ]))?;
    let out = format!("{DEMO_DATA}/warmstart.jsonl");
    countdown(&["--count", "180000", "--seed", "7", "--split", "train", "--unsure", "0.25", "--out", &out])?;
    run(coordinator().args([
        "train",
        "--config",
        WARMSTART_CONFIG,
        "--local-workers",
        RANKS,
        "--overwrite",
    ]))?;
    for name in MODEL_FILES {
        let (from, to) = (root().join(WARMSTART_RESULT).join(name), root().join(DEMO_MODEL).join(name));
        copy(&from, &to)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// `cargo xtask golden`
pub(crate) fn golden() -> anyhow::Result<()> {
    let environment = setup(true)?;
    let python = environment.iter().find(|(key, _)| *key == "G2RL_PYTHON").map(|(_, python)| python);
    let python = python.context("LIBTORCH is set; set G2RL_PYTHON too, to a Python with transformers")?;
    for script in ["make_golden.py", "make_tokenizer_golden.py"] {
        run(Command::new(python).arg(Path::new("scripts/reference").join(script)))?;
    }
    Ok(())
}
