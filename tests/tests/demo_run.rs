//! Short runs of the demo's configuration with real processes.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use g2rl_tests::journal::{Journal, RolloutRow};
use g2rl_tests::{Finished, coordinator, f32_tensors, finish, until, wait};

const DEADLINE: Duration = Duration::from_secs(240);

/// Arguments of a short demo run in `dir` with data made there.
fn arguments(dir: &Path, steps: u32, workers: u32) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    for (split, count) in [("train", "64"), ("heldout", "12")] {
        let out = path(&format!("{split}.jsonl"));
        let data = ["data", "countdown", "--distinct", "--count", count, "--split", split, "--out", &out];
        assert!(finish(coordinator(&data), DEADLINE).unwrap().success);
    }
    let mut arguments: Vec<String> =
        ["train", "--config", "configs/demo.toml", "--local-workers"].map(str::to_owned).into();
    arguments.push(workers.to_string());
    for value in [
        format!("run.dir={}", path("run")),
        format!("run.steps={steps}"),
        format!("data.train={}", path("train.jsonl")),
        format!("evaluation.data={}", path("heldout.jsonl")),
        format!("cluster.min_workers={workers}"),
        format!("cluster.max_workers={workers}"),
        "checkpoint.every=2".into(),
        "checkpoint.keep=2".into(),
        "rollout.prompts_per_step=6".into(),
        "rollout.group_size=4".into(),
        "update.sequences_per_minibatch=12".into(),
        "objective.kl_coef=0.001".into(),
    ] {
        arguments.extend(["--set".to_owned(), value]);
    }
    arguments
}

fn run(arguments: &[String], more: &[&str]) -> Finished {
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    finish(coordinator(&all), DEADLINE).unwrap()
}

/// A rollout without its advantage, which has the rounding of the policy it was generated with.
fn rollouts(dir: &Path) -> Vec<RolloutRow> {
    let rollouts = Journal::open(&dir.join("run")).unwrap().rollouts().unwrap();
    rollouts.into_iter().map(|row| RolloutRow { rewards: (row.rewards.0, 0.0), ..row }).collect()
}

/// The largest difference of two runs' weights after a step, over the largest weight of its tensor.
fn difference(one: &Path, other: &Path, step: u32) -> f32 {
    let file = format!("run/checkpoints/step-{step:06}/model.safetensors");
    g2rl_tests::cluster::difference(&one.join(&file), &other.join(&file)).unwrap().largest
}

#[test]
fn one_and_two_ranks_give_the_same_rollouts_and_the_same_weights() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (dir, workers) in dirs.iter().zip([1, 2]) {
        let finished = run(&arguments(dir.path(), 3, workers), &[]);
        assert!(finished.success, "{}", finished.text);
    }
    let [one, two] = [rollouts(dirs[0].path()), rollouts(dirs[1].path())];
    assert_eq!(one.len(), 3 * 6 * 4);
    assert_eq!(one, two);
    let largest = difference(dirs[0].path(), dirs[1].path(), 3);
    println!("largest relative difference of weights: {largest:e}");
    assert!(largest < 1e-5, "{largest:e}");
    // The policy moved at all: the test compares something.
    let start = f32_tensors(&g2rl_tests::root().join("configs/demo/model/model.safetensors")).unwrap();
    let end = dirs[0].path().join("run/checkpoints/step-000003/model.safetensors");
    assert_ne!(f32_tensors(&end).unwrap(), start);
}

#[test]
fn a_run_leaves_what_it_promises_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 3, 2);
    let first = run(&arguments, &[]);
    assert!(first.success, "{}", first.text);
    assert!(first.text.contains("pass@1") && first.text.contains("mean gradient cosine"), "{}", first.text);
    let summary = || -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("run/summary.json")).unwrap()).unwrap()
    };
    for key in ["pass@1", "pass@1_interval", "pass@8", "maj@8"] {
        assert!(!summary()["before"][key].is_null() && !summary()["after"][key].is_null(), "{key}");
    }
    for key in ["mean_cosine", "negative_pair_ratio", "orthogonal_pair_ratio", "duplicate_ratio", "seconds"] {
        assert!(summary()[key].is_number(), "{key}");
    }
    assert_eq!((summary()["distinct_problems"].as_u64(), summary()["steps"].as_u64()), (Some(12), Some(3)));
    let checkpoint = dir.path().join("run/checkpoints/step-000003");
    for file in
        ["config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors", "trainer_state.json"]
    {
        assert!(checkpoint.join(file).exists(), "{file}");
    }

    // A second start does not touch the first run.
    let refused = run(&arguments, &[]);
    assert!(!refused.success && refused.text.contains("--resume") && refused.text.contains("--overwrite"));

    let resumed = run(&arguments, &["--resume", "--set", "run.steps=5"]);
    assert!(resumed.success, "{}", resumed.text);
    assert!(resumed.text.contains("step 4/5") && !resumed.text.contains("step 3/5"), "{}", resumed.text);
    let journal = rusqlite::Connection::open(dir.path().join("run/journal.sqlite")).unwrap();
    let steps: i64 = journal.query_row("SELECT COUNT(*) FROM step", [], |row| row.get(0)).unwrap();
    assert_eq!(steps, 5);

    // An uninterrupted run of five steps ends with the same weights, to the last bit.
    let whole = tempfile::tempdir().unwrap();
    assert!(run(&self::arguments(whole.path(), 5, 2), &[]).success);
    assert_eq!(difference(dir.path(), whole.path(), 5), 0.0);
}

/// Two ranks that hold a half of the optimizer state each, or all of it, and then one that reads their
/// checkpoint.
#[test]
fn a_divided_optimizer_gives_the_same_run_and_a_checkpoint_for_any_ranks() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (dir, shard) in dirs.iter().zip(["optimizer.shard=true", "optimizer.shard=false"]) {
        let first = run(&arguments(dir.path(), 2, 2), &["--set", shard]);
        assert!(first.success, "{}", first.text);
        let resumed = run(&arguments(dir.path(), 3, 1), &["--resume"]);
        assert!(resumed.success, "{}", resumed.text);
    }
    let largest = difference(dirs[0].path(), dirs[1].path(), 3);
    assert!(largest < 1e-5, "{largest:e}");
}

/// Sends a signal to a local worker of a run of 40 steps; what the run leaves.
fn with_signal_to_a_rank(signal: &str, min_workers: u32) -> (tempfile::TempDir, serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = arguments(dir.path(), 40, 2);
    for value in ["cluster.heartbeat_timeout_ms=3000".into(), format!("cluster.min_workers={min_workers}")] {
        arguments.extend(["--set".to_owned(), value]);
    }
    let all: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let child = coordinator(&all).spawn().unwrap();
    let checkpoint = dir.path().join("run/checkpoints/step-000002");
    until(DEADLINE, || checkpoint.exists().then_some(())).expect("the run gets to its first checkpoint");
    let pid = first_child(child.id()).expect("a worker runs");
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    let output = wait(child, DEADLINE);
    // A stopped process ends only by this.
    let _ = Command::new("kill").args(["-9", &pid]).status();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let summary = std::fs::read_to_string(dir.path().join("run/summary.json")).unwrap();
    (dir, serde_json::from_str(&summary).unwrap())
}

/// A terminal sends Ctrl-C to all processes of its foreground group.
#[test]
fn ctrl_c_in_a_terminal_ends_with_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 100_000, 2);
    let mut command = coordinator(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let child = command.process_group(0).spawn().unwrap();
    let (group, checkpoints) = (format!("-{}", child.id()), dir.path().join("run/checkpoints"));
    let first = until(DEADLINE, || checkpoints.join("step-000002").exists().then_some(()));
    let told = Command::new("kill").args(["-INT", "--", &group]).status().unwrap();
    let output = wait(child, DEADLINE).unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(first.is_some() && told.success() && output.status.success(), "{text}");
    assert!(text.contains("continue with") && !text.contains("epoch ended"), "{text}");
}

#[test]
fn a_killed_local_rank_is_started_again_and_the_run_completes() {
    let (dir, summary) = with_signal_to_a_rank("-KILL", 2);
    assert!(!summary["recoveries"].as_array().unwrap().is_empty());
    assert_eq!(rollouts(dir.path()).len(), 40 * 6 * 4);
}

#[test]
fn a_hung_rank_loses_its_place_within_its_deadline() {
    let (dir, summary) = with_signal_to_a_rank("-STOP", 1);
    let recoveries = summary["recoveries"].as_array().unwrap();
    assert!(
        recoveries[0]["cause"].as_str().unwrap().contains("no sign of life for 3000 ms"),
        "{recoveries:?}"
    );
    assert_eq!(rollouts(dir.path()).len(), 40 * 6 * 4);
}

/// A child process of the coordinator: one of its workers.
fn first_child(parent: u32) -> Option<String> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().into_string().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ppid = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
        (ppid == parent.to_string()).then_some(pid)
    })
}

#[test]
fn bad_input_is_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = arguments(dir.path(), 2, 1);
    let refuse_of = |arguments: &[String], more: &[&str], words: &[&str]| {
        let finished = run(arguments, more);
        assert!(!finished.success, "{more:?}");
        assert!(words.iter().all(|word| finished.text.contains(word)), "{more:?}: {}", finished.text);
        assert!(finished.duration < Duration::from_secs(30));
    };
    let refuse = |more: &[&str], words: &[&str]| refuse_of(&arguments, more, words);
    refuse(&["--set", "model.path=/nonexistent"], &["model.path", "/nonexistent"]);
    refuse(&["--set", "rollout.groupsize=3"], &["groupsize"]);
    refuse(&["--set", "rollout.temperature=0"], &["rollout.temperature"]);
    let bad = dir.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"problem\":\"1,2>3:\",\"answer\":\"1,2>3\"}\n{\"problem\":\"1,2>3:\"}\n")
        .unwrap();
    refuse(&["--set", &format!("data.train={}", bad.display())], &["bad.jsonl:2", "answer"]);
    // Too few local ranks are seen at once. Ranks of other machines that do not come: the run ends by
    // itself and says for whom it waited.
    let three = ["cluster.min_workers=3", "cluster.max_workers=3", "cluster.join_timeout_ms=3000"];
    let more: Vec<&str> = three.iter().flat_map(|value| ["--set", value]).collect();
    refuse(&more, &["cluster.min_workers is 3", "--local-workers starts 1"]);
    refuse_of(&self::arguments(dir.path(), 2, 0), &more, &["the run failed", "of 3"]);
}
