//! Processes: a test's own child, which does not outlive it, and a run's local workers.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use anyhow::{Context, ensure};
use serde_json::Value;

/// Sends a process a signal such as `-KILL`, `-STOP` or `-CONT`.
///
/// # Errors
/// If `kill` refuses.
pub fn send_signal(process: u32, signal: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").args([signal, &process.to_string()]).status()?;
    ensure!(status.success(), "kill {signal} {process}: {status}");
    Ok(())
}

/// Whether a process is there and has not ended.
#[must_use]
pub fn lives(process: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The processes of a run's local workers.
///
/// # Errors
/// If the run directory does not name so many.
pub fn local_workers(run: &Path, count: u32) -> anyhow::Result<Vec<u32>> {
    let process = |index: u32| {
        let text = std::fs::read_to_string(run.join(format!("logs/worker-{index}.pid")))?;
        let process: Value = serde_json::from_str(&text)?;
        let number = process["pid"].as_u64().with_context(|| format!("no number of a process: {text}"))?;
        Ok(u32::try_from(number)?)
    };
    (0..count).map(process).collect()
}

/// A child process, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child })
    }

    /// Sends a signal such as `-KILL`, `-STOP` or `-CONT`.
    ///
    /// # Errors
    /// If `kill` refuses.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        send_signal(self.child.id(), signal)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// If the system cannot say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its standard output, once.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, once.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
