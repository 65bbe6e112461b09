//! A run whose coordinator and workers are started, killed and replaced one by one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::hosts::Host;
use crate::http::Http;
use crate::journal::Journal;
use crate::process::Process;
use crate::{Finished, coordinator, f32_tensors, finish, until, worker};

/// Of each wait.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Of a small run with short deadlines.
const SETTINGS: [&str; 10] = [
    "evaluation.max_problems=4",
    "evaluation.at_start=false",
    "rollout.prompts_per_step=6",
    "rollout.group_size=4",
    // No group is left out, so that every step has both of its mini-batches.
    "algorithm.degenerate_groups=shape",
    "update.sequences_per_minibatch=12",
    "cluster.grace_ms=300",
    "cluster.heartbeat_timeout_ms=2000",
    "cluster.collective_timeout_ms=20000",
    "cluster.join_timeout_ms=60000",
];

/// Writes problems for the demo's model and returns the arguments of a small run in a directory: 24 rollouts and two
/// mini-batches a step. `more` are settings of its own, as `key=value`.
///
/// # Errors
/// If the problems cannot be made.
pub fn settings(dir: &Path, more: &[&str]) -> anyhow::Result<Vec<String>> {
    let train = dir.join("train.jsonl").display().to_string();
    let data = ["data", "countdown", "--distinct", "--count", "64", "--split", "train", "--out", &train];
    let made = finish(coordinator(&data), DEADLINE)?;
    ensure!(made.success, "no data: {}", made.text);
    Ok(set(dir, more))
}

fn set(dir: &Path, more: &[&str]) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let mut all = SETTINGS.map(str::to_owned).to_vec();
    all.push(format!("run.dir={}", path("run")));
    all.extend(["data.train", "evaluation.data"].map(|key| format!("{key}={}", path("train.jsonl"))));
    all.extend(more.iter().map(|&setting| setting.to_owned()));
    all.into_iter().flat_map(|value| ["--set".to_owned(), value]).collect()
}

/// A worker to be started.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerOptions<'a> {
    /// Where it dies: `G2RL_FAILPOINT`.
    pub failpoint: Option<&'a str>,
    /// The host it runs on, if not the test's own.
    pub host: Option<&'a Host>,
    /// More arguments.
    pub arguments: &'a [&'a str],
}

/// A coordinator to be started.
#[derive(Debug, Clone, Copy, Default)]
pub struct CoordinatorOptions<'a> {
    /// Settings of its own, as `key=value`.
    pub settings: &'a [&'a str],
    /// The host it runs on, if not the test's own.
    pub host: Option<&'a Host>,
    /// Where it is killed: `G2RL_COORDINATOR_FAILPOINT`.
    pub failpoint: Option<&'a str>,
    /// More arguments.
    pub arguments: &'a [&'a str],
}

/// A run under way.
#[derive(Debug)]
pub struct Cluster {
    dir: tempfile::TempDir,
    /// Of its `train`, without `--resume`.
    arguments: Vec<String>,
    coordinator: Coordinator,
    /// What earlier coordinators said.
    before: Vec<String>,
    workers: BTreeMap<String, Process>,
}

impl Cluster {
    /// Starts the coordinator of a small run of the demo's model: 24 rollouts and two mini-batches a step.
    /// `settings` are added, as `key=value`.
    ///
    /// # Errors
    /// If it does not come to listen.
    pub fn start(settings: &[&str], host: Option<&Host>) -> anyhow::Result<Self> {
        Self::start_with(&CoordinatorOptions { settings, host, ..CoordinatorOptions::default() })
    }

    /// The same, with more said of its coordinator.
    ///
    /// # Errors
    /// If it does not come to listen.
    pub fn start_with(options: &CoordinatorOptions<'_>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        settings(dir.path(), &[])?;
        Self::launch(dir, options, &[])
    }

    /// Starts the coordinator of a run that has ended, to go on from its last checkpoint.
    ///
    /// # Errors
    /// If it does not come to listen.
    pub fn resume(run: Run, settings: &[&str]) -> anyhow::Result<Self> {
        let options = CoordinatorOptions { settings, ..CoordinatorOptions::default() };
        Self::launch(run.dir, &options, &["--resume"])
    }

    fn launch(
        dir: tempfile::TempDir,
        options: &CoordinatorOptions<'_>,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let mut own = Vec::new();
        if let Some(host) = options.host {
            own.push(format!("cluster.listen={}:0", host.address));
            // The hosts are namespaces of this machine.
            own.push("security.allow_plaintext_network=true".to_owned());
        }
        let all: Vec<&str> = own.iter().map(String::as_str).chain(options.settings.iter().copied()).collect();
        let mut arguments: Vec<String> =
            ["--log-format", "json", "train", "--config", "configs/demo.toml"].map(str::to_owned).to_vec();
        arguments.extend(options.arguments.iter().map(|&argument| argument.to_owned()));
        arguments.extend(set(dir.path(), &all));
        let started =
            [&arguments[..], &more.iter().map(|&word| word.to_owned()).collect::<Vec<_>>()].concat();
        let coordinator = Coordinator::start(&started, options.host, options.failpoint)?;
        Ok(Self { dir, arguments, coordinator, before: Vec::new(), workers: BTreeMap::new() })
    }

    /// Kills the coordinator as `kill -9` does; workers stay. One at a failpoint kills itself.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill_coordinator(&mut self) -> anyhow::Result<()> {
        self.coordinator.process.signal("-KILL")?;
        self.coordinator_is_killed()
    }

    /// Waits until the coordinator was killed.
    ///
    /// # Errors
    /// If it ends otherwise, or not at all; the error holds what it wrote.
    pub fn coordinator_is_killed(&mut self) -> anyhow::Result<()> {
        let status = self.coordinator.end()?;
        ensure!(status.code().is_none(), "it ended with {status}:\n{}", self.coordinator.text());
        Ok(())
    }

    /// Starts the coordinator again where the one before was killed; workers find it where it was.
    ///
    /// # Errors
    /// If it does not come to listen there.
    pub fn restart(&mut self, failpoint: Option<&str>) -> anyhow::Result<()> {
        let arguments = [&self.arguments[..], &["--resume".to_owned()]].concat();
        let coordinator = Coordinator::start(&arguments, None, failpoint)?;
        let before = std::mem::replace(&mut self.coordinator, coordinator);
        ensure!(self.coordinator.url == before.url, "{}, not {}", self.coordinator.url, before.url);
        self.before.extend(before.seen);
        Ok(())
    }

    /// Starts another coordinator in the same run directory, and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn rival(&self, argument: &str) -> anyhow::Result<Finished> {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).chain([argument]).collect();
        finish(coordinator(&arguments), DEADLINE)
    }

    /// Kills all processes but local workers.
    #[must_use]
    pub fn abandon(self) -> Run {
        let log = self.log();
        drop((self.coordinator, self.workers));
        Run { dir: self.dir, log }
    }

    /// The run directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Where workers find the coordinator.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.coordinator.url
    }

    /// The directory that everything of this run lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The coordinator's HTTP port.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.coordinator.http
    }

    /// Starts a worker; ranks go by name.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn add(&mut self, name: &str, options: &WorkerOptions<'_>) -> anyhow::Result<()> {
        let mut arguments =
            vec!["run", "--coordinator", &self.coordinator.url, "--devices", "cpu", "--name", name];
        arguments.extend(options.arguments);
        let mut command = worker(&arguments);
        command.env("G2RL_THREADS", "1").env("OMP_NUM_THREADS", "1");
        command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", "0");
        if let Some(failpoint) = options.failpoint {
            command.env("G2RL_FAILPOINT", failpoint);
        }
        let mut command = on(options.host, command);
        let log = std::fs::File::create(self.dir.path().join(name))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.workers.insert(name.to_owned(), Process::spawn(command)?);
        Ok(())
    }

    /// Sends a worker a signal such as `-KILL` or `-STOP`.
    ///
    /// # Errors
    /// If there is no such worker or the system refuses.
    pub fn signal(&self, name: &str, signal: &str) -> anyhow::Result<()> {
        self.workers.get(name).with_context(|| format!("no worker {name}"))?.signal(signal)
    }

    /// Ends a worker's process for good, whatever state it is in.
    pub fn remove(&mut self, name: &str) {
        self.workers.remove(name);
    }

    /// The coordinator's next message that contains the words: its fields.
    ///
    /// # Errors
    /// If it does not come by [`DEADLINE`]; the error holds what came.
    pub fn wait_for(&mut self, words: &str) -> anyhow::Result<Value> {
        self.coordinator.wait_for(words)
    }

    /// The steps that the run has done, as its coordinators have said until now.
    ///
    /// # Errors
    /// If a step's line cannot be read.
    pub fn steps_done(&mut self) -> anyhow::Result<u64> {
        let coordinator = &mut self.coordinator;
        coordinator.seen.extend(coordinator.lines.try_iter());
        let steps = self.before.iter().chain(&self.coordinator.seen).rev();
        let Some(fields) = steps.filter_map(|line| fields_of(line, "step ")).next() else { return Ok(0) };
        let message = fields["message"].as_str().context("a message")?;
        let done = message.trim_start_matches("step ").split('/').next().unwrap_or_default();
        done.parse().with_context(|| format!("the number of steps in {message:?}"))
    }

    /// Waits until a worker's process has ended by itself; returns its exit code and its log.
    ///
    /// # Errors
    /// If there is no such worker, or it does not end.
    pub fn ended(&mut self, name: &str) -> anyhow::Result<(Option<i32>, String)> {
        let worker = self.workers.get_mut(name).with_context(|| format!("no worker {name}"))?;
        let ended = until(DEADLINE, || worker.ended().transpose()).transpose()?;
        let log = std::fs::read_to_string(self.dir.path().join(name))?;
        let status = ended.with_context(|| format!("worker {name} does not end:\n{log}"))?;
        Ok((status.code(), log))
    }

    /// Asks the run to end at the next safe point, as Ctrl-C does.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn interrupt(&self) -> anyhow::Result<()> {
        self.coordinator.process.signal("-INT")
    }

    /// Waits until the run is over.
    ///
    /// # Errors
    /// If it does not end well; the error holds what the coordinator wrote.
    pub fn finish(self) -> anyhow::Result<Run> {
        let (run, status) = self.end()?;
        ensure!(status.success(), "the run ended with {status}:\n{}", run.log);
        Ok(run)
    }

    /// Waits until the run has failed. Returns what the coordinator wrote, too.
    ///
    /// # Errors
    /// If it ends well, or does not end.
    pub fn fail(self) -> anyhow::Result<(Run, String)> {
        let (run, status) = self.end()?;
        ensure!(!status.success(), "the run ended well:\n{}", run.log);
        let log = run.log.clone();
        Ok((run, log))
    }

    fn end(mut self) -> anyhow::Result<(Run, ExitStatus)> {
        let status = self.coordinator.end()?;
        let log = self.log();
        Ok((Run { dir: self.dir, log }, status))
    }

    fn log(&self) -> String {
        [&self.before[..], &self.coordinator.seen].concat().join("\n")
    }
}

/// A coordinator's process, and what it says.
#[derive(Debug)]
struct Coordinator {
    process: Process,
    lines: Receiver<String>,
    seen: Vec<String>,
    url: String,
    http: Http,
}

impl Coordinator {
    /// Starts it and waits until it listens.
    fn start(arguments: &[String], host: Option<&Host>, failpoint: Option<&str>) -> anyhow::Result<Self> {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = coordinator(&arguments);
        if let Some(failpoint) = failpoint {
            command.env("G2RL_COORDINATOR_FAILPOINT", failpoint);
        }
        let mut command = on(host, command);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(command)?;
        let stderr = process.take_stderr().context("its standard error is piped")?;
        let (lines_in, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if lines_in.send(line).is_err() {
                    return;
                }
            }
        });
        let mut seen = Vec::new();
        let listening = next(&lines, &mut seen, "listening")?;
        let address = listening["workers"].as_str().context("the address it listens on")?;
        let (url, http) = (format!("http://{address}"), Http::new(&listening)?);
        Ok(Self { process, lines, seen, url, http })
    }

    fn wait_for(&mut self, words: &str) -> anyhow::Result<Value> {
        next(&self.lines, &mut self.seen, words)
    }

    /// Waits for its end.
    fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let ended = until(DEADLINE, || self.process.ended().transpose()).transpose()?;
        // Of one that does not end there may be lines for ever.
        match ended {
            Some(_) => self.seen.extend(self.lines.iter()),
            None => self.seen.extend(self.lines.try_iter()),
        }
        ended.with_context(|| format!("the run does not end:\n{}", self.text()))
    }

    fn text(&self) -> String {
        self.seen.join("\n")
    }
}

fn on(host: Option<&Host>, command: Command) -> Command {
    match host {
        Some(host) => host.command(&command),
        None => command,
    }
}

/// The coordinator's next message that contains the words: its fields.
fn next(log: &Receiver<String>, seen: &mut Vec<String>, words: &str) -> anyhow::Result<Value> {
    let found = until(DEADLINE, || {
        loop {
            match log.try_recv() {
                Ok(line) => {
                    seen.push(line);
                    let fields = seen.last().and_then(|line| fields_of(line, words));
                    if fields.is_some() {
                        return Some(fields);
                    }
                }
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(None),
            }
        }
    });
    match found.flatten() {
        Some(fields) => Ok(fields),
        None => bail!("the coordinator did not say {words:?}, but:\n{}", seen.join("\n")),
    }
}

/// The fields of a line of the coordinator's log whose message contains the words.
fn fields_of(line: &str, words: &str) -> Option<Value> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    let said = line["fields"]["message"].as_str()?.contains(words);
    said.then(|| line["fields"].take())
}

/// What a run left.
#[derive(Debug)]
pub struct Run {
    dir: tempfile::TempDir,
    log: String,
}

/// How far the weights of two runs are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Norm of the difference over the norm.
    pub norm: f64,
    /// Largest difference over the largest weight of its tensor.
    pub largest: f32,
}

impl Run {
    /// The run directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// What its coordinators wrote.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.log
    }

    /// A file of its checkpoint after so many steps.
    #[must_use]
    pub fn checkpoint(&self, step: u64, file: &str) -> PathBuf {
        self.path().join(format!("checkpoints/step-{step:06}/{file}"))
    }

    /// Its journal.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn journal(&self) -> anyhow::Result<Journal> {
        Journal::open(&self.path())
    }

    /// The epochs that ended too early.
    ///
    /// # Errors
    /// If the summary cannot be read.
    pub fn recoveries(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.path().join("summary.json"))?;
        let mut summary: Value = serde_json::from_str(&text)?;
        serde_json::from_value(summary["recoveries"].take()).context("recoveries")
    }

    /// How far its last policy is from another run's.
    ///
    /// # Errors
    /// If a checkpoint cannot be read.
    pub fn difference(&self, other: &Self, step: u64) -> anyhow::Result<Difference> {
        let file = "model.safetensors";
        difference(&self.checkpoint(step, file), &other.checkpoint(step, file))
    }
}

/// How far the weights of two files are apart.
///
/// # Errors
/// If one cannot be read, or lacks a tensor of the other.
pub fn difference(one: &Path, other: &Path) -> anyhow::Result<Difference> {
    let (a, b) = (f32_tensors(one)?, f32_tensors(other)?);
    let (mut apart, mut whole, mut largest) = (0.0, 0.0, 0f32);
    for (name, values) in &a {
        let others = b.get(name).with_context(|| format!("{} lacks {name}", other.display()))?;
        let scale = values.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (x, y) in values.iter().zip(others) {
            apart += f64::from(x - y).powi(2);
            whole += f64::from(*x).powi(2);
            largest = largest.max((x - y).abs() / scale);
        }
    }
    Ok(Difference { norm: (apart / whole).sqrt(), largest })
}
