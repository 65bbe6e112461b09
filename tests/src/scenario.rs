//! Real runs that are disturbed, and what they leave.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::{coordinator, f32_tensors, finish, until, worker};

/// Longest wait for anything in a scenario.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A child that does not outlive its test.
#[derive(Debug)]
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A rollout as the journal has it: group, index, text, tokens, reward.
pub type JournaledRollout = (i64, i64, String, i64, f64);

/// Every rollout in a run's journal, in order.
///
/// # Errors
/// If the journal cannot be read.
pub fn rollouts(run: &Path) -> anyhow::Result<Vec<JournaledRollout>> {
    let journal = rusqlite::Connection::open(run.join("journal.sqlite"))?;
    let mut query =
        journal.prepare("SELECT grp, idx, text, tokens, reward FROM rollout ORDER BY grp, idx")?;
    let rows = query
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?
        .collect::<Result<_, _>>()?;
    Ok(rows)
}

/// How far the weights of two checkpoints are from each other: the norm of the difference over the norm, and the
/// largest difference over the largest weight of its tensor.
///
/// # Errors
/// If a checkpoint cannot be read.
pub fn difference(one: &Path, other: &Path) -> anyhow::Result<(f64, f32)> {
    let weights = |checkpoint: &Path| f32_tensors(&checkpoint.join("model.safetensors"));
    let (a, b) = (weights(one)?, weights(other)?);
    let (mut apart, mut whole, mut largest) = (0.0, 0.0, 0f32);
    for (name, values) in &a {
        let others = b.get(name).with_context(|| format!("no {name}"))?;
        let scale = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        for (x, y) in values.iter().zip(others) {
            apart += f64::from(x - y).powi(2);
            whole += f64::from(*x).powi(2);
            largest = largest.max((x - y).abs() / scale);
        }
    }
    Ok((f64::sqrt(apart / whole), largest))
}

/// Writes training problems for the demo's model and returns the settings of a short run in a directory.
///
/// # Errors
/// If the problems cannot be made.
pub fn settings(dir: &Path, more: &[&str]) -> anyhow::Result<Vec<String>> {
    let path = |name: &str| dir.join(name).display().to_string();
    let train = path("train.jsonl");
    let data = ["data", "countdown", "--distinct", "--count", "64", "--split", "train", "--out", &train];
    ensure!(finish(coordinator(&data), DEADLINE)?.success, "the problems cannot be made");
    let of_dir = [
        format!("run.dir={}", path("run")),
        format!("data.train={train}"),
        format!("evaluation.data={train}"),
    ];
    let short = [
        "run.steps=3",
        "evaluation.max_problems=4",
        "evaluation.at_start=false",
        "checkpoint.every=2",
        "checkpoint.keep=2",
        "rollout.prompts_per_step=6",
        "rollout.group_size=4",
        "update.sequences_per_minibatch=12",
        "cluster.grace_ms=300",
        "cluster.collective_timeout_ms=20000",
        "cluster.join_timeout_ms=60000",
    ];
    let all = of_dir.into_iter().chain(short.into_iter().chain(more.iter().copied()).map(str::to_owned));
    Ok(all.flat_map(|value| ["--set".to_owned(), value]).collect())
}

/// A coordinator that runs, and what it says.
#[derive(Debug)]
pub struct Running {
    child: Guard,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    /// Starts `g2rl-coordinator train` on the demo's configuration.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(arguments: &[String], failpoint: Option<&str>) -> anyhow::Result<Self> {
        let mut all = vec!["--log-format", "json", "train", "--config", "configs/demo.toml"];
        all.extend(arguments.iter().map(String::as_str));
        let mut command = coordinator(&all);
        if let Some(failpoint) = failpoint {
            command.env("G2RL_COORDINATOR_FAILPOINT", failpoint);
        }
        let mut child = Guard(command.stdout(Stdio::null()).spawn().context("cannot start the coordinator")?);
        let stderr = BufReader::new(child.0.stderr.take().context("its log is piped")?);
        let (lines_in, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if lines_in.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, seen: Vec::new() })
    }

    /// The next line with a word.
    ///
    /// # Errors
    /// If there is none in time; the error holds what it said instead.
    pub fn wait_for(&mut self, word: &str) -> anyhow::Result<String> {
        let found = until(DEADLINE, || {
            while let Ok(line) = self.lines.try_recv() {
                self.seen.push(line.clone());
                if line.contains(word) {
                    return Some(line);
                }
            }
            None
        });
        found.with_context(|| format!("no {word:?} in:\n{}", self.seen.join("\n")))
    }

    /// The address for workers.
    ///
    /// # Errors
    /// If it does not say so in time.
    pub fn url(&mut self) -> anyhow::Result<String> {
        let line: serde_json::Value = serde_json::from_str(&self.wait_for("listening")?)?;
        let address = line["fields"]["workers"].as_str().context("no address")?;
        Ok(format!("http://{address}"))
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.0.kill().context("cannot kill the coordinator")?;
        self.child.0.wait().map(drop).context("cannot wait for it")
    }

    /// Waits for its end; returns how it ended and everything it said.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn end(mut self) -> anyhow::Result<(ExitStatus, String)> {
        let child = &mut self.child.0;
        let Some(status) = until(DEADLINE, || child.try_wait().transpose()) else {
            bail!("the coordinator does not end:\n{}", self.seen.join("\n"));
        };
        self.seen.extend(self.lines.iter());
        Ok((status?, self.seen.join("\n")))
    }
}

/// A worker with a name, by which ranks are ordered, and one thread; its log is a file with that name.
///
/// # Errors
/// If it cannot be started.
pub fn start_worker(url: &str, name: &str, failpoint: Option<&str>, logs: &Path) -> anyhow::Result<Guard> {
    let mut command = worker(&["run", "--coordinator", url, "--devices", "cpu", "--name", name]);
    command.env("G2RL_THREADS", "1").env("OMP_NUM_THREADS", "1");
    command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", "0");
    if let Some(failpoint) = failpoint {
        command.env("G2RL_FAILPOINT", failpoint);
    }
    let log = std::fs::File::create(logs.join(name))?;
    Ok(Guard(command.stdout(Stdio::null()).stderr(log).spawn().context("cannot start a worker")?))
}

/// A run's checkpoint after so many steps.
#[must_use]
pub fn checkpoint(run: &Path, steps: u32) -> PathBuf {
    run.join(format!("checkpoints/step-{steps:06}"))
}
