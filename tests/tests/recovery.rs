//! Ranks of a real run are killed or stopped at named points and replaced: the run ends as if nothing had
//! happened.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use g2rl_tests::{coordinator, f32_tensors, finish, until, worker};

const DEADLINE: Duration = Duration::from_secs(120);

/// A child that does not outlive its test.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a run left.
struct Left {
    _dir: tempfile::TempDir,
    run: PathBuf,
}

impl Left {
    fn rollouts(&self) -> Vec<(i64, i64, String, i64, f64)> {
        let journal = rusqlite::Connection::open(self.run.join("journal.sqlite")).unwrap();
        let columns = "SELECT grp, idx, text, tokens, reward FROM rollout ORDER BY grp, idx";
        let mut query = journal.prepare(columns).unwrap();
        let rows = query
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Of the weights: the norm of the difference over the norm, and the largest difference over the largest
    /// weight of its tensor.
    fn difference(&self, other: &Self) -> (f64, f32) {
        let weights =
            |left: &Self| f32_tensors(&left.run.join("checkpoints/step-000003/model.safetensors")).unwrap();
        let (a, b) = (weights(self), weights(other));
        let relative = |(name, values): (&String, &Vec<f32>)| {
            let scale = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            values.iter().zip(&b[name]).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / scale
        };
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let both = || a.iter().flat_map(|(name, values)| values.iter().zip(&b[name]));
        let whole = norm(&mut both().map(|(x, y)| x - y)) / norm(&mut both().map(|(x, _)| *x));
        (whole, a.iter().map(relative).fold(0.0, f32::max))
    }

    fn recoveries(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.run.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
        summary["recoveries"].as_array().unwrap().clone()
    }
}

/// Ranks go by name.
fn start_worker(url: &str, name: &str, failpoint: Option<&str>, dir: &Path) -> Guard {
    let mut command = worker(&["run", "--coordinator", url, "--devices", "cpu", "--name", name]);
    command.env("G2RL_THREADS", "1").env("OMP_NUM_THREADS", "1");
    command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", "0");
    if let Some(failpoint) = failpoint {
        command.env("G2RL_FAILPOINT", failpoint);
    }
    let log = std::fs::File::create(dir.join(name)).unwrap();
    Guard(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

/// Three steps with two ranks; one of them has a failpoint and is replaced once it is lost.
fn run(failpoint: Option<&str>) -> Left {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let train = path("train.jsonl");
    let data = ["data", "countdown", "--distinct", "--count", "64", "--split", "train", "--out", &train];
    assert!(finish(coordinator(&data), DEADLINE).unwrap().success);
    let settings = [
        format!("run.dir={}", path("run")),
        "run.steps=3".into(),
        format!("data.train={train}"),
        format!("evaluation.data={train}"),
        "evaluation.max_problems=4".into(),
        "evaluation.at_start=false".into(),
        "checkpoint.every=2".into(),
        "checkpoint.keep=2".into(),
        "rollout.prompts_per_step=6".into(),
        "rollout.group_size=4".into(),
        "update.sequences_per_minibatch=12".into(),
        "cluster.min_workers=2".into(),
        "cluster.max_workers=3".into(),
        "cluster.grace_ms=300".into(),
        "cluster.heartbeat_timeout_ms=2000".into(),
        "cluster.collective_timeout_ms=20000".into(),
        "cluster.join_timeout_ms=60000".into(),
    ];
    let mut arguments = vec!["--log-format", "json", "train", "--config", "configs/demo.toml"];
    arguments.extend(settings.iter().flat_map(|value| ["--set", value.as_str()]));
    let mut child = Guard(coordinator(&arguments).stdout(Stdio::null()).spawn().unwrap());
    let (lines_in, lines) = mpsc::channel();
    let stderr = BufReader::new(child.0.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            if lines_in.send(line).is_err() {
                return;
            }
        }
    });
    let mut seen = Vec::new();
    let mut wait_for = |word: &str| {
        let found = until(DEADLINE, || {
            loop {
                match lines.try_recv() {
                    Ok(line) => {
                        seen.push(line.clone());
                        if line.contains(word) {
                            return Some(line);
                        }
                    }
                    Err(_) => return None,
                }
            }
        });
        found.unwrap_or_else(|| panic!("{failpoint:?}: no {word:?} in:\n{}", seen.join("\n")))
    };
    let line: serde_json::Value = serde_json::from_str(&wait_for("listening")).unwrap();
    let url = format!("http://{}", line["fields"]["workers"].as_str().unwrap());
    // The failing one is rank 0, which writes checkpoints and hosts the store.
    let start = |name: &str, failpoint| start_worker(&url, name, failpoint, dir.path());
    let mut workers = vec![start("a-failing", failpoint), start("b-steady", None)];
    if failpoint.is_some() {
        wait_for("epoch ended");
        workers.push(start("c-replacement", None));
    }
    let ended = until(DEADLINE, || child.0.try_wait().transpose());
    let status = ended.unwrap_or_else(|| panic!("{failpoint:?} does not end")).unwrap();
    let rest: Vec<String> = lines.iter().collect();
    assert!(status.success(), "{failpoint:?}:\n{}", rest.join("\n"));
    let run = dir.path().join("run");
    Left { _dir: dir, run }
}

#[test]
fn a_rank_killed_anywhere_changes_neither_rollouts_nor_weights() {
    let undisturbed = run(None);
    let expected = undisturbed.rollouts();
    assert_eq!(expected.len(), 3 * 6 * 4);
    assert!(undisturbed.recoveries().is_empty());
    println!(
        "| point | phase | recovery s | rollouts redone | weight difference | largest |\n|---|---|---|---|---|---|"
    );
    let again = run(None);
    assert_eq!(again.rollouts(), expected);
    let (difference, largest) = again.difference(&undisturbed);
    println!("| none | | | | {difference:.1e} | {largest:.1e} |");
    for failpoint in [
        "rollout:5",
        "gradients:2",
        "ready:2",
        "after_ready:1",
        "apply:2",
        "after_apply:3",
        "checkpoint:1",
        "checkpoint_write:1",
        "checkpoint_report:1",
        "rollout:30:stop",
    ] {
        let left = run(Some(failpoint));
        assert_eq!(left.rollouts(), expected, "{failpoint}");
        let (difference, largest) = left.difference(&undisturbed);
        for recovery in left.recoveries() {
            println!(
                "| {failpoint} | {} | {} | {} | {difference:.1e} | {largest:.1e} |",
                recovery["phase"].as_str().unwrap(),
                recovery["seconds"],
                recovery["rollouts_redone"]
            );
        }
        // Other ranks decode other batches, so that log-probabilities differ by rounding; a few weights with
        // next to no gradient feel that, because AdamW divides by its size.
        assert!(difference < 1e-6 && largest < 1e-4, "{failpoint}: {difference:e} {largest:e}");
    }
}
