//! This program again, or the worker's, for one run of many: each has a process of its own, so that one that fails takes nothing
//! with it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitStatus;

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

/// Runs `g2rl-coordinator` with these arguments to its end. SIGINT and SIGTERM are passed on: the run then ends at its
/// next safe point.
///
/// # Errors
/// If it cannot be started.
pub(super) async fn run(arguments: Vec<OsString>) -> anyhow::Result<Ended> {
    run_program(&std::env::current_exe().context("this program does not find itself")?, arguments).await
}

/// The same for another program.
///
/// # Errors
/// If it cannot be started.
pub(super) async fn run_program(program: &Path, arguments: Vec<OsString>) -> anyhow::Result<Ended> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // In a group of its own it hears of the terminal's Ctrl-C from here alone, once.
    let mut child = Command::new(program)
        .args(&arguments)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
    let mut interrupted = false;
    loop {
        let wanted = tokio::select! {
            status = child.wait() => {
                let status = status.context("cannot wait for a run")?;
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
