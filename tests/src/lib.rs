//! Harness of real processes: the coordinator and its workers as a user starts them, each wait with a
//! deadline.
//!
//! The programs are those that `cargo build` made beside the tests; `cargo xtask test` builds them
//! first.
#![forbid(unsafe_code)]

pub mod big_journal;
pub mod browser;
pub mod cluster;
pub mod fuzz;
pub mod hosts;
pub mod http;
pub mod journal;
pub mod process;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The workspace's root.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A program of the workspace.
///
/// # Panics
/// If it is not built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let folder = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run the tests with `cargo xtask test`", path.display());
    path
}

/// A program of the system that a test needs. Without it the test is skipped, and says so; not on the machine of
/// continuous integration.
///
/// # Panics
/// If the variable `CI` is set and the program is not there.
#[must_use]
pub fn tool(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{name} is not installed");
    if found.is_none() {
        eprintln!("skipped: {name} is not installed");
    }
    found
}

/// A coordinator's command line, run in the workspace's root with few threads.
#[must_use]
pub fn coordinator(arguments: &[&str]) -> Command {
    command("g2rl-coordinator", arguments)
}

/// A worker's command line.
#[must_use]
pub fn worker(arguments: &[&str]) -> Command {
    command("g2rl-worker", arguments)
}

fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(arguments).current_dir(root()).env("G2RL_WORKER", program("g2rl-worker"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a finished program left.
#[derive(Debug)]
pub struct Finished {
    /// Whether it ended with exit code 0.
    pub success: bool,
    /// Standard output and standard error, in this order.
    pub text: String,
    /// How long it ran.
    pub duration: Duration,
}

/// Runs a program to its end.
///
/// # Errors
/// If it does not end by the deadline; it is killed then, and the error holds what it wrote.
pub fn finish(mut command: Command, deadline: Duration) -> anyhow::Result<Finished> {
    let start = Instant::now();
    let child = command.spawn().context("cannot start the program")?;
    let output = wait(child, deadline)?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok(Finished { success: output.status.success(), text, duration: start.elapsed() })
}

/// Waits for a program whose output is piped, reading it on the way.
///
/// # Errors
/// If it does not end by the deadline; it is killed then.
pub fn wait(mut child: Child, deadline: Duration) -> anyhow::Result<Output> {
    let reader = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                // A broken pipe means that the program is gone; what came before is kept.
                let _ = pipe.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let stdout = reader(child.stdout.take().map(|p| Box::new(p) as Box<dyn Read + Send>));
    let stderr = reader(child.stderr.take().map(|p| Box::new(p) as Box<dyn Read + Send>));
    let ended = until(deadline, || child.try_wait().transpose());
    if ended.is_none() {
        child.kill().context("cannot kill the program")?;
    }
    let status = match ended {
        Some(status) => status?,
        None => child.wait()?,
    };
    let join = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    let (stdout, stderr) = (join(stdout), join(stderr));
    if ended_too_late(&status) {
        bail!("not finished within {deadline:?}:\n{}", String::from_utf8_lossy(&stderr));
    }
    Ok(Output { status, stdout, stderr })
}

/// Killed by us.
fn ended_too_late(status: &std::process::ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(9)
}

/// Asks again until there is an answer or the deadline passed.
pub fn until<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if start.elapsed() > deadline {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// The f32 values of a safetensors file, by tensor name.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub fn f32_tensors(path: &Path) -> anyhow::Result<std::collections::BTreeMap<String, Vec<f32>>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&bytes[8..8 + length])?;
    let data = &bytes[8 + length..];
    let mut tensors = std::collections::BTreeMap::new();
    for (name, info) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        anyhow::ensure!(info["dtype"] == "F32", "{name} is {}", info["dtype"]);
        let offset = |at: usize| info["data_offsets"][at].as_u64().unwrap_or(0) as usize;
        let values =
            data[offset(0)..offset(1)].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        tensors.insert(name.clone(), values.collect());
    }
    Ok(tensors)
}
