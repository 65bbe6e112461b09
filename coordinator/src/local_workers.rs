//! Ranks on the coordinator's own machine, started with it and stopped with it. One that dies is started
//! again; one that the run gave up on is killed first if it does not end by itself. One whose coordinator was killed is taken over by the next process of the coordinator, with its policy;
//! without one it ends after its connect timeout.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use g2rl_common::config::SecurityConfig;
use g2rl_common::ids::WorkerId;
use g2rl_common::secret::{Secret, TOKEN_VARIABLE};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::leftover::{self, Leftover};
use crate::security::Security;
use crate::shell::Input;
use crate::standing::{Patience, Standing, Standings};

/// Time a worker gets to end by itself after the run's end, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A worker that ends before this age most likely cannot work at all.
const YOUNG: Duration = Duration::from_secs(20);

/// Before another is started: longer than the shell's farewell.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// So many of them in a row end the run.
const MAX_YOUNG: u32 = 3;

/// Time a worker that was given up gets to end by itself: a healthy one does so at once.
const GIVEN_UP_TIMEOUT: Duration = Duration::from_millis(500);

/// What is waited longer for is taken for hung. Both are more than a healthy worker needs: to load its libraries, and
/// to connect again with backoff.
const PATIENCE: Patience = Patience { awaited: Duration::from_secs(120), lost: Duration::from_secs(10) };

/// Threads of a worker, for its own arithmetic and libtorch's.
pub(crate) const THREADS_VARIABLE: &str = "G2RL_THREADS";

/// Lines of a dead worker's log that are shown.
const LOG_LINES: usize = 12;

/// How workers prove that they may join, and how they know the coordinator.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    token: Option<Arc<Secret>>,
    arguments: Vec<OsString>,
}

impl Access {
    /// # Errors
    /// If the configuration lacks what workers need.
    pub(crate) fn new(config: &SecurityConfig, token: Option<Arc<Secret>>) -> anyhow::Result<Self> {
        Ok(Self { token, arguments: Security::worker_arguments(config)? })
    }
}

/// What to start.
#[derive(Debug)]
pub(crate) struct LocalOptions {
    /// Number of workers.
    pub(crate) count: u32,
    /// Their devices, in turn; the CPU if empty.
    pub(crate) devices: Vec<String>,
    /// Where they find the coordinator.
    pub(crate) url: String,
    /// See [`Access`].
    pub(crate) access: Access,
}

/// Running workers.
#[derive(Debug)]
pub(crate) struct LocalWorkers {
    watchers: Vec<tokio::task::JoinHandle<()>>,
    stop: CancellationToken,
}

/// The worker's program: $G2RL_WORKER, or beside this one.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("G2RL_WORKER") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("g2rl-worker");
    anyhow::ensure!(path.exists(), "{} is not there; build g2rl-worker or set G2RL_WORKER", path.display());
    Ok(path)
}

/// The device of the local worker `index`.
fn device_of(index: u32, devices: &[String]) -> &str {
    devices.get(index as usize % devices.len().max(1)).map_or("cpu", String::as_str)
}

/// Threads of each of so many workers: $G2RL_THREADS, or all cores shared out.
fn threads(count: u32) -> OsString {
    std::env::var_os(THREADS_VARIABLE).unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / count as usize).max(1).to_string().into()
    })
}

/// NCCL lets no two ranks share a GPU, and would say so only when they have loaded their models.
fn one_worker_for_each_gpu(count: u32, devices: &[String]) -> anyhow::Result<()> {
    let mut taken = BTreeSet::new();
    for gpu in (0..count).map(|index| device_of(index, devices)).filter(|device| device.starts_with("cuda")) {
        anyhow::ensure!(
            taken.insert(gpu),
            "--local-workers {count} would put two workers on {gpu}: give each a GPU of its own in --local-devices"
        );
    }
    Ok(())
}

/// A worker's process.
#[derive(Debug)]
enum Process {
    Own(Child),
    /// Of an earlier process of the coordinator.
    Taken(Leftover),
}

impl Process {
    /// How it ended; `None` if it said that all went well.
    async fn wait(&mut self) -> Option<String> {
        match self {
            Self::Own(child) => match child.wait().await {
                Ok(status) if status.success() => None,
                Ok(status) => Some(status.to_string()),
                Err(error) => Some(error.to_string()),
            },
            Self::Taken(leftover) => {
                leftover.wait().await;
                Some("it was started by an earlier coordinator".to_owned())
            }
        }
    }

    /// The same for one that has to end; it is killed if it does not by itself.
    async fn end(&mut self, by_itself: Duration, log: &Path) -> Option<String> {
        if let Ok(status) = tokio::time::timeout(by_itself, self.wait()).await {
            return status;
        }
        tracing::warn!(log = %log.display(), "a local worker does not end and is killed");
        match self {
            // It may have ended in this moment.
            Self::Own(child) => drop(child.start_kill()),
            Self::Taken(leftover) => leftover.kill(),
        }
        let killed = tokio::time::timeout(STOP_TIMEOUT, self.wait()).await;
        killed.unwrap_or_else(|_| Some("it does not end when killed".to_owned()))
    }
}

/// Ends the workers that a killed coordinator of this run has left.
pub(crate) fn end_leftovers(dir: &Path) {
    leftover::end_all(&dir.join("logs"), |_, _| false);
}

impl LocalWorkers {
    /// Starts workers that join the run, or takes over those that look for it there. Threads are divided among them.
    ///
    /// # Errors
    /// If the program is not there or cannot be started.
    pub(crate) fn start(
        options: LocalOptions,
        dir: &Path,
        inputs: &mpsc::Sender<Input>,
    ) -> anyhow::Result<(Self, Standings)> {
        let LocalOptions { count, devices, url, access } = options;
        one_worker_for_each_gpu(count, &devices)?;
        let standings = Standings::of((0..count).map(|index| worker_id(index, device_of(index, &devices))));
        let stop = CancellationToken::new();
        let mut watchers = Vec::new();
        let logs = dir.join("logs");
        let files: Vec<PathBuf> = (0..count).map(|index| leftover::file(&logs, index)).collect();
        leftover::end_all(&logs, |file, leftover| {
            files.iter().any(|wanted| wanted == file) && leftover.looks_for(&url)
        });
        if count > 0 {
            let program = program()?;
            std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
            let threads = threads(count);
            for index in 0..count {
                let log = logs.join(format!("worker-{index}.log"));
                let taken = Leftover::read(&leftover::file(&logs, index));
                if taken.is_none() {
                    // A leftover of an earlier run.
                    std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
                }
                let rank = LocalRank {
                    program: program.clone(),
                    url: url.clone(),
                    access: access.clone(),
                    device: device_of(index, &devices).to_owned(),
                    threads: threads.clone(),
                    log,
                    index,
                    file: leftover::file(&logs, index),
                    standings: standings.clone(),
                };
                let process = match taken {
                    Some(leftover) => {
                        tracing::info!(log = %rank.log.display(), "a local worker that was left is taken over");
                        Process::Taken(leftover)
                    }
                    None => Process::Own(rank.spawn()?),
                };
                watchers.push(tokio::spawn(watch(rank, process, inputs.clone(), stop.clone())));
            }
        }
        Ok((Self { watchers, stop }, standings))
    }

    /// Waits until all have ended; what has not by the deadline is killed.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        for watcher in self.watchers {
            // A watcher that panicked has dropped its child, which kills it.
            let _ = watcher.await;
        }
    }
}

/// What a local worker calls itself.
fn name(index: u32) -> String {
    format!("local-{index}")
}

/// What it calls itself on its device.
fn worker_id(index: u32, device: &str) -> WorkerId {
    WorkerId(format!("{}-{}", name(index), device.replace(':', "")))
}

/// How one rank is started.
#[derive(Debug)]
struct LocalRank {
    program: PathBuf,
    url: String,
    access: Access,
    device: String,
    threads: OsString,
    log: PathBuf,
    index: u32,
    /// Names its process.
    file: PathBuf,
    standings: Standings,
}

impl LocalRank {
    fn worker(&self) -> WorkerId {
        worker_id(self.index, &self.device)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        // Arguments can be read by every user of the machine, the environment cannot.
        if let Some(token) = &self.access.token {
            command.env(TOKEN_VARIABLE, token.expose());
        }
        let child = command
            .args(["run", "--coordinator", &self.url, "--devices", &self.device, "--name", &name(self.index)])
            .args(&self.access.arguments)
            .env("OMP_NUM_THREADS", &self.threads)
            .env(THREADS_VARIABLE, &self.threads)
            // Spinning threads of two ranks on the same cores slow both down several times.
            .env("OMP_WAIT_POLICY", "passive")
            .env("GOMP_SPINCOUNT", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // A terminal's Ctrl-C is for the coordinator, which needs its workers for the last checkpoint.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        // One that has already ended needs no file.
        if let Some(process) = child.id().and_then(|pid| Leftover::of(pid, &self.url)) {
            process.write(&self.file).with_context(|| format!("cannot write {}", self.file.display()))?;
        }
        self.standings.set(&self.worker(), Standing::Awaited);
        Ok(child)
    }
}

/// Why a worker's process is not waited for any more.
enum Ended {
    /// How; `None` if it said that all went well.
    ByItself(Option<String>),
    /// The run goes on without it.
    GivenUp,
    /// The run is over.
    Run,
}

/// Starts a worker that dies during the run again, unless it dies young again and again; after the run
/// waits for its end.
async fn watch(rank: LocalRank, mut process: Process, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
    let mut young = 0;
    let worker = rank.worker();
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            status = process.wait() => Ended::ByItself(status),
            () = rank.standings.given_up(&worker, PATIENCE) => Ended::GivenUp,
            () = stop.cancelled() => Ended::Run,
        };
        let status = match ended {
            Ended::ByItself(None) => return,
            Ended::ByItself(Some(status)) => status,
            Ended::GivenUp => {
                let status = process.end(GIVEN_UP_TIMEOUT, &rank.log).await;
                status.unwrap_or_else(|| "it was given up".to_owned())
            }
            Ended::Run => {
                process.end(STOP_TIMEOUT, &rank.log).await;
                return;
            }
        };
        let age = started.elapsed();
        // A worker that was told of the run's end is not started again.
        tokio::select! {
            () = tokio::time::sleep(RESTART_PAUSE) => {}
            () = stop.cancelled() => return,
        }
        young = if age < YOUNG { young + 1 } else { 0 };
        let again = if young < MAX_YOUNG {
            rank.spawn().map_err(|error| format!("{error:#}"))
        } else {
            Err(status.clone())
        };
        match again {
            Ok(another) => {
                tracing::warn!(status, log = %rank.log.display(), "a local worker ended; another is started");
                process = Process::Own(another);
            }
            Err(status) => {
                let (path, tail) = (rank.log.display(), tail(&rank.log));
                let error = format!("a local worker ended ({status}); the end of {path}:\n{tail}");
                // Nobody listens only when the run is already over.
                let _ = inputs.send(Input::Failed(error)).await;
                return;
            }
        }
    }
}

/// The last lines of a file.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_workers_on_a_gpu_are_refused() {
        let devices = |text: &str| -> Vec<String> { text.split(',').map(str::to_owned).collect() };
        for (count, given) in [(2, "cuda:0,cuda:1"), (3, "cpu"), (1, "cuda:0"), (3, "cpu,cuda:0,cpu")] {
            assert!(one_worker_for_each_gpu(count, &devices(given)).is_ok(), "{count} on {given}");
        }
        assert!(one_worker_for_each_gpu(4, &[]).is_ok());
        let refused = one_worker_for_each_gpu(2, &devices("cuda:1")).unwrap_err().to_string();
        assert!(refused.contains("two workers on cuda:1"), "{refused}");
    }
}
