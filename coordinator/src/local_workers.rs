//! Ranks on the coordinator's own machine, started with it and stopped with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::shell::Input;

/// Time a worker gets to end by itself after the run's end, before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Lines of a dead worker's log that are shown.
const LOG_LINES: usize = 12;

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
    ) -> anyhow::Result<Self> {
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
                let file =
                    std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
                let device = devices.get(index as usize % devices.len().max(1)).map_or("cpu", String::as_str);
                let child = Command::new(&program)
                    .args(["run", "--coordinator", url, "--devices", device])
                    .env("OMP_NUM_THREADS", &threads)
                    .env("G2RL_THREADS", &threads)
                    // Spinning threads of two ranks on the same cores slow both down several times.
                    .env("OMP_WAIT_POLICY", "passive")
                    .env("GOMP_SPINCOUNT", "0")
                    .stdin(Stdio::null())
                    .stdout(file.try_clone()?)
                    .stderr(file)
                    .kill_on_drop(true)
                    .spawn()
                    .with_context(|| format!("cannot start {}", program.display()))?;
                watchers.push(tokio::spawn(watch(child, log, inputs.clone(), stop.clone())));
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

/// Reports a worker that dies during the run; after it, waits for its end.
async fn watch(mut child: Child, log: PathBuf, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = stop.cancelled() => None,
    };
    match ended {
        Some(Ok(status)) if status.success() => {}
        Some(status) => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            let error =
                format!("a local worker ended ({status}); the end of {}:\n{}", log.display(), tail(&log));
            // Nobody listens only when the run is already over.
            let _ = inputs.send(Input::Failed(error)).await;
        }
        None => {
            if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
                tracing::warn!(log = %log.display(), "a local worker did not end and is killed");
                // It may have ended in this moment.
                let _ = child.kill().await;
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
