//! This program again, or the worker's, for one run of many: each has a process of its own, so that one that fails takes nothing
//! with it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Alone(ExitStatus),
    /// After the user wanted it to end.
    Interrupted,
}

impl Default for Ended {
    /// Well.
    fn default() -> Self {
        Self::Alone(ExitStatus::default())
    }
}

/// A process to start.
#[derive(Debug)]
pub(super) struct Child {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Added to this process's environment.
    environment: Vec<(&'static str, OsString)>,
    log: Option<PathBuf>,
}

impl Child {
    /// `g2rl-coordinator` with these arguments.
    ///
    /// # Errors
    /// If this program does not find itself.
    pub(super) fn coordinator(arguments: Vec<OsString>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program does not find itself")?;
        Ok(Self::new(&program, arguments))
    }

    pub(super) fn new(program: &Path, arguments: Vec<OsString>) -> Self {
        Self { program: program.to_owned(), arguments, environment: Vec::new(), log: None }
    }

    /// With a variable that is not this process's.
    pub(super) fn with_env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// What it prints goes to the end of a file.
    pub(super) fn with_log(mut self, file: PathBuf) -> Self {
        self.log = Some(file);
        self
    }

    /// Runs it to its end. SIGINT and SIGTERM are passed on: a run then ends at its next safe point.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) async fn run(&self) -> anyhow::Result<Ended> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(path) = &self.log {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
            let file = file.with_context(|| format!("cannot write {}", path.display()))?;
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        }
        // In a group of its own it hears of the terminal's Ctrl-C from here alone, once.
        command.process_group(0).kill_on_drop(true);
        wait(&mut command).await.with_context(|| format!("cannot run {}", self.program.display()))
    }
}

async fn wait(command: &mut Command) -> anyhow::Result<Ended> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut child = command.spawn()?;
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
    let mut interrupted = false;
    loop {
        let wanted = tokio::select! {
            status = child.wait() => {
                let status = status?;
                return Ok(if interrupted { Ended::Interrupted } else { Ended::Alone(status) });
            }
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
        };
        interrupted = true;
        if let Some(pid) = pid {
            // It may just have ended.
            let _ = kill_process(pid, wanted);
        }
    }
}
