//! Ranks on the coordinator's own machine, started with it and stopped with it. One that dies is started
//! again; one that the run gave up on is killed first if it does not end by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use g2rl_common::ids::WorkerId;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::shell::Input;

/// Time a worker gets to end by itself after the run's end, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A worker that ends before this age most likely cannot work at all.
const YOUNG: Duration = Duration::from_secs(20);

/// Before another is started: longer than the shell's farewell.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// So many of them in a row end the run.
const MAX_YOUNG: u32 = 3;

/// Time a worker that was given up gets to end by itself: a healthy one does so at once.
const EXPELLED_TIMEOUT: Duration = Duration::from_millis(500);

/// Time a worker whose stream broke gets to connect again or to end, before it is taken for hung.
const LOST_TIMEOUT: Duration = Duration::from_secs(10);

/// Lines of a dead worker's log that are shown.
const LOG_LINES: usize = 12;

/// What the run thinks of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is connected, or has not come yet.
    Fine,
    /// Its stream broke.
    Lost,
    /// The run goes on without it.
    Expelled,
}

/// Where the shell says what it thinks of workers; those that are not local are of no interest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standings {
    local: Arc<Mutex<BTreeMap<WorkerId, watch::Sender<Standing>>>>,
}

impl Standings {
    fn local(&self) -> MutexGuard<'_, BTreeMap<WorkerId, watch::Sender<Standing>>> {
        // Whoever holds it only inserts, removes or looks.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what has become of a worker.
    pub(crate) fn set(&self, worker: &WorkerId, standing: Standing) {
        if let Some(known) = self.local().get(worker) {
            known.send_replace(standing);
        }
    }
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
    /// Starts workers on the CPU that join the run at `url`. Threads are divided among them.
    ///
    /// # Errors
    /// If the program is not there or cannot be started.
    pub(crate) fn start(
        count: u32,
        url: &str,
        dir: &Path,
        inputs: &mpsc::Sender<Input>,
        devices: &[String],
    ) -> anyhow::Result<(Self, Standings)> {
        let standings = Standings::default();
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
                    url: url.to_owned(),
                    index,
                    device: device.to_owned(),
                    threads: threads.clone(),
                    log,
                    standings: standings.clone(),
                };
                let child = rank.spawn()?;
                watchers.push(tokio::spawn(watch(rank, child, inputs.clone(), stop.clone())));
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

/// How one rank is started.
#[derive(Debug)]
struct LocalRank {
    program: PathBuf,
    url: String,
    index: u32,
    device: String,
    threads: String,
    log: PathBuf,
    standings: Standings,
}

/// A started process.
#[derive(Debug)]
struct Running {
    child: Child,
    worker: WorkerId,
    standing: watch::Receiver<Standing>,
    standings: Standings,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.standings.local().remove(&self.worker);
    }
}

impl LocalRank {
    fn spawn(&self) -> anyhow::Result<Running> {
        // A name of its own for every process: one that was started by an earlier coordinator may live on.
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("local-{}-{}", self.index, &unique[..8]);
        let child = self.start(&name)?;
        let worker = WorkerId(format!("{name}-{}", self.device.replace(':', "")));
        let (sender, standing) = watch::channel(Standing::Fine);
        self.standings.local().insert(worker.clone(), sender);
        Ok(Running { child, worker, standing, standings: self.standings.clone() })
    }

    fn start(&self, name: &str) -> anyhow::Result<Child> {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        Command::new(&self.program)
            .args(["run", "--coordinator", &self.url, "--devices", &self.device, "--name", name])
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
async fn watch(rank: LocalRank, mut running: Running, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
    let mut young = 0;
    loop {
        let started = Instant::now();
        let ended = tokio::select! {
            status = running.child.wait() => Some(status),
            () = given_up(&mut running.standing, LOST_TIMEOUT) => Some(end(&mut running).await),
            () = stop.cancelled() => None,
        };
        let status = match ended {
            Some(Ok(status)) if status.success() => return,
            Some(status) => status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            None => {
                if tokio::time::timeout(STOP_TIMEOUT, running.child.wait()).await.is_err() {
                    tracing::warn!(log = %rank.log.display(), "a local worker did not end and is killed");
                    // It may have ended in this moment.
                    let _ = tokio::time::timeout(STOP_TIMEOUT, running.child.kill()).await;
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
                running = another;
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

/// Returns once the run goes on without the worker.
async fn given_up(standing: &mut watch::Receiver<Standing>, lost_timeout: Duration) {
    loop {
        let now = *standing.borrow_and_update();
        let changed = match now {
            Standing::Expelled => return,
            Standing::Fine => standing.changed().await,
            Standing::Lost => match tokio::time::timeout(lost_timeout, standing.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            },
        };
        if changed.is_err() {
            // Only while the process itself is being dropped.
            return std::future::pending().await;
        }
    }
}

/// The end of a worker that the run goes on without.
async fn end(running: &mut Running) -> std::io::Result<std::process::ExitStatus> {
    if let Ok(status) = tokio::time::timeout(EXPELLED_TIMEOUT, running.child.wait()).await {
        return status;
    }
    tracing::warn!(worker = %running.worker, "a local worker that was given up does not end and is killed");
    running.child.start_kill()?;
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "it does not end when killed");
    tokio::time::timeout(STOP_TIMEOUT, running.child.wait()).await.map_err(|_| late())?
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

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_worker_is_given_up_when_expelled_or_lost_for_long() {
        let (standing, mut watched) = watch::channel(Standing::Lost);
        given_up(&mut watched, SHORT).await;

        // It comes back in time, and is expelled later.
        standing.send_replace(Standing::Fine);
        let still = tokio::time::timeout(2 * SHORT, given_up(&mut watched, SHORT)).await;
        assert!(still.is_err(), "it was given up while all was well");
        standing.send_replace(Standing::Expelled);
        let over = tokio::time::timeout(LONG, given_up(&mut watched, LONG)).await;
        assert!(over.is_ok(), "it was expelled");
    }
}
