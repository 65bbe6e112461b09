//! Checkpoints of real runs: a full disk, damage between two runs, and damage before an evaluation.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use g2rl_tests::http::Http;
use g2rl_tests::{Finished, coordinator, finish, wait};

const DEADLINE: Duration = Duration::from_secs(120);

/// Arguments of a run of the demo's configuration with a checkpoint after each step.
fn arguments(dir: &Path, steps: u32) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let train = path("train.jsonl");
    let data = ["data", "countdown", "--distinct", "--count", "64", "--split", "train", "--out", &train];
    assert!(finish(coordinator(&data), DEADLINE).unwrap().success);
    let mut arguments: Vec<String> =
        ["--log-format", "json", "train", "--config", "configs/demo.toml", "--local-workers", "1"]
            .map(str::to_owned)
            .into();
    for value in [
        format!("run.dir={}", path("run")),
        format!("run.steps={steps}"),
        format!("data.train={train}"),
        format!("evaluation.data={train}"),
        "evaluation.max_problems=4".into(),
        "evaluation.at_start=false".into(),
        "checkpoint.every=1".into(),
        "checkpoint.keep=3".into(),
        "rollout.prompts_per_step=6".into(),
        "rollout.group_size=4".into(),
        "cluster.min_workers=1".into(),
    ] {
        arguments.extend(["--set".to_owned(), value]);
    }
    arguments
}

fn run(arguments: &[String], more: &[&str]) -> Finished {
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    finish(coordinator(&all), DEADLINE).unwrap()
}

fn checkpoints(dir: &Path) -> Vec<String> {
    let folder = std::fs::read_dir(dir.join("run/checkpoints")).unwrap();
    let mut names: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn flip_a_byte(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_full_disk_costs_one_checkpoint_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 4);
    let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = coordinator(&all);
    // The second of four.
    command.env("G2RL_FAILPOINT", "checkpoint_write:2:full").stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut text = String::new();
    let mut next_with = |word: &str| {
        let line =
            lines.by_ref().inspect(|line| text += &format!("{line}\n")).find(|line| line.contains(word));
        line.unwrap_or_else(|| panic!("no {word:?} in\n{text}"))
    };
    let line: serde_json::Value = serde_json::from_str(&next_with("\"listening\"")).unwrap();
    let http = Http::new(&line["fields"]).unwrap();
    let warning = next_with("checkpoint failed");
    // The run goes on: it has two more steps to do.
    assert_eq!(http.metric("g2rl_checkpoint_failures_total").unwrap(), Some(1.0));
    for part in ["rank 0", "checkpoint after 2 steps", "step-000002", "no storage space", "step-000001"] {
        assert!(warning.contains(part), "{part:?} is not in {warning}");
    }
    lines.for_each(drop);
    assert!(wait(child, DEADLINE).unwrap().status.success());
    assert_eq!(checkpoints(dir.path()), ["step-000001", "step-000003", "step-000004"]);
}

#[test]
fn a_resume_refuses_what_is_damaged_and_an_evaluation_too() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 3);
    assert!(run(&arguments, &[]).success);
    let checkpoint = |step: u32| dir.path().join(format!("run/checkpoints/step-00000{step}"));
    flip_a_byte(&checkpoint(3).join("optimizer.safetensors"));
    // A model without what training needs is as good as before.
    let train = dir.path().join("train.jsonl").display().to_string();
    let out = dir.path().join("eval").display().to_string();
    let evaluate = |step: u32| {
        let model = checkpoint(step).display().to_string();
        let arguments = ["eval", "--config", "configs/demo.toml", "--model", &model, "--data", &train];
        let more = ["--samples", "1", "--k", "1", "--out", &out, "--local-workers", "1", "--set"];
        let all = [&arguments[..], &more[..], &["cluster.min_workers=1"]].concat();
        finish(coordinator(&all), DEADLINE).unwrap()
    };
    let good = evaluate(3);
    assert!(good.success, "{}", good.text);

    let resumed = run(&arguments, &["--resume", "--set", "run.steps=4"]);
    assert!(resumed.success, "{}", resumed.text);
    for part in ["step-000003 is refused", "optimizer.safetensors is damaged", "goes on from", "step-000002"]
    {
        assert!(resumed.text.contains(part), "{part:?} is not in {}", resumed.text);
    }
    let left = ["step-000002", "step-000003", "step-000003.refused", "step-000004"];
    assert_eq!(checkpoints(dir.path()), left);

    // Without a good one the run does not begin anew, and all are named.
    for step in [2, 3, 4] {
        flip_a_byte(&checkpoint(step).join("model.safetensors"));
    }
    let refused = run(&arguments, &["--resume", "--set", "run.steps=5"]);
    assert!(!refused.success);
    for part in
        ["step-000002/model.safetensors", "step-000003/model.safetensors", "step-000004/model.safetensors"]
    {
        assert!(refused.text.contains(part), "{part:?} is not in {}", refused.text);
    }
    assert_eq!(checkpoints(dir.path()), left);
    let damaged = evaluate(4);
    assert!(
        !damaged.success && damaged.text.contains("step-000004/model.safetensors is damaged"),
        "{}",
        damaged.text
    );
}
