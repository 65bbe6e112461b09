//! Ranks on the coordinator's own machine, started with it and stopped with it. One that dies is started
//! again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use g2rl_common::config::SecurityConfig;
use g2rl_common::secret::{Secret, TOKEN_VARIABLE};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::security::Security;
use crate::shell::Input;

/// Time a worker gets to end by itself after the run's end, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A worker that ends before this age most likely cannot work at all.
const YOUNG: Duration = Duration::from_secs(20);

/// Before another is started: longer than the shell's farewell.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// So many of them in a row end the run.
const MAX_YOUNG: u32 = 3;

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
fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("G2RL_WORKER") {
        return Ok(path.into());
    }
    let path = std::env::current_exe()?.with_file_name("g2rl-worker");
    anyhow::ensure!(path.exists(), "{} is not there; build g2rl-worker or set G2RL_WORKER", path.display());
    Ok(path)
}

impl LocalWorkers {
    /// Starts workers that join the run. Threads are divided among them.
    ///
    /// # Errors
    /// If the program is not there or cannot be started.
    pub(crate) fn start(
        options: LocalOptions,
        dir: &Path,
        inputs: &mpsc::Sender<Input>,
    ) -> anyhow::Result<Self> {
        let LocalOptions { count, devices, url, access } = options;
        let stop = CancellationToken::new();
        let mut watchers = Vec::new();
        if count > 0 {
            let program = program()?;
            let logs = dir.join("logs");
            std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = (cores / count as usize).max(1).to_string();
            for index in 0..count {
                let log = logs.join(format!("worker-{index}.log"));
                // A leftover of an earlier run.
                std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
                let device = devices.get(index as usize % devices.len().max(1)).map_or("cpu", String::as_str);
                let rank = LocalRank {
                    program: program.clone(),
                    url: url.clone(),
                    access: access.clone(),
                    device: device.to_owned(),
                    threads: threads.clone(),
                    log,
                };
                let child = rank.spawn()?;
                watchers.push(tokio::spawn(watch(rank, child, inputs.clone(), stop.clone())));
            }
        }
        Ok(Self { watchers, stop })
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

/// How one rank is started.
#[derive(Debug)]
struct LocalRank {
    program: PathBuf,
    url: String,
    access: Access,
    device: String,
    threads: String,
    log: PathBuf,
}

impl LocalRank {
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
        command
            .args(["run", "--coordinator", &self.url, "--devices", &self.device])
            .args(&self.access.arguments)
            .env("OMP_NUM_THREADS", &self.threads)
            .env("G2RL_THREADS", &self.threads)
            // Spinning threads of two ranks on the same cores slow both down several times.
            .env("OMP_WAIT_POLICY", "passive")
            .env("GOMP_SPINCOUNT", "0")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }
}

/// Starts a worker that dies during the run again, unless it dies young again and again; after the run
/// waits for its end.
async fn watch(rank: LocalRank, mut child: Child, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
    let mut young = 0;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            () = stop.cancelled() => None,
        };
        let status = match ended {
            Some(Ok(status)) if status.success() => return,
            Some(status) => status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            None => {
                if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                    tracing::warn!(log = %rank.log.display(), "a local worker did not end and is killed");
                    // It may have ended in this moment.
                    let _ = child.kill().await;
                }
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
                child = another;
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
