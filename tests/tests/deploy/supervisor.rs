//! One process for a machine: `g2rl-worker run --devices cpu,cpu`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use g2rl_tests::http::{free_ports, get};
use g2rl_tests::process::Process;
use g2rl_tests::scenario::{Running, settings};
use g2rl_tests::{until, worker};

const DEADLINE: Duration = Duration::from_secs(120);

/// A supervisor of two ranks, and what it serves.
pub(crate) struct Supervisor {
    process: Process,
    port: u16,
    log: PathBuf,
}

impl Supervisor {
    pub(crate) fn start(url: &str, dir: &Path) -> anyhow::Result<Self> {
        let port = free_ports(3)?;
        let http = format!("127.0.0.1:{port}");
        let base =
            ["run", "--coordinator", url, "--devices", "cpu,cpu", "--name", "machine", "--threads", "1"];
        let mut command = worker(&[&base[..], &["--http", &http]].concat());
        let log = dir.join("supervisor.log");
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log)?);
        Ok(Self { process: Process::spawn(command)?, port, log })
    }

    /// The addresses of the supervisor and, after it, its ranks.
    pub(crate) fn ports(&self, count: u16) -> Vec<String> {
        (0..count).map(|more| format!("127.0.0.1:{}", self.port + more)).collect()
    }

    /// Its words about each rank; empty while it does not answer.
    fn ranks(&self) -> Vec<String> {
        let text = get(&self.ports(1)[0], "/readyz").map(|(_, text)| text).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn process_of(&self, rank: usize) -> Option<String> {
        let (_, rest) = self.ranks().get(rank)?.split_once("running as process ")?;
        Some(rest.split(';').next()?.to_owned())
    }

    /// Kills a rank as the kernel does when memory is short.
    pub(crate) fn kill_a_rank(&self, rank: usize) -> anyhow::Result<()> {
        let pid = self.process_of(rank).context("the rank runs")?;
        let killed = std::process::Command::new("kill").args(["-KILL", &pid]).status()?;
        ensure!(killed.success(), "kill: {killed}");
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn run(dir: &Path, more: &[&str]) -> (Running, Supervisor) {
    let ranks = ["cluster.min_workers=2", "cluster.max_workers=2"];
    let arguments = settings(dir, &[&ranks[..], more].concat()).unwrap();
    let mut running = Running::start(&arguments, None).unwrap();
    let url = running.url().unwrap();
    (running, Supervisor::start(&url, dir).unwrap())
}

#[test]
fn a_killed_rank_is_started_again_and_the_run_completes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, mut supervisor) = run(dir.path(), &["run.steps=12"]);
    running.wait_for("step 2/").unwrap();
    supervisor.kill_a_rank(1).unwrap();
    running.wait_for("epoch ended").unwrap();
    let again = until(DEADLINE, || supervisor.ranks().get(1)?.ends_with("; 1 restarts").then_some(()));
    assert!(again.is_some(), "{:?}\n{}", supervisor.ranks(), supervisor.log());
    assert!(supervisor.ranks()[0].starts_with("cpu-0:") && supervisor.ranks()[0].ends_with("; 0 restarts"));
    let (_, metrics) = get(&supervisor.ports(1)[0], "/metrics").unwrap();
    assert!(metrics.contains("g2rl_supervisor_restarts_total{rank=\"cpu-1\"} 1"), "{metrics}");
    // Each rank serves its own metrics.
    for port in &supervisor.ports(3)[1..] {
        assert!(get(port, "/metrics").unwrap().1.contains("g2rl_worker_epoch"), "{port}");
    }
    let (status, text) = running.end().unwrap();
    assert!(status.success(), "{text}");
    let ended = until(DEADLINE, || supervisor.process.ended().transpose()).unwrap().unwrap();
    assert!(ended.success(), "{}", supervisor.log());
    assert!(supervisor.log().contains("signal: 9"), "{}", supervisor.log());
}

#[test]
fn signals_reach_all_ranks_and_no_rank_outlives_its_supervisor() {
    for signal in ["-TERM", "-KILL"] {
        let dir = tempfile::tempdir().unwrap();
        let (mut running, mut supervisor) = run(dir.path(), &["run.steps=100000"]);
        running.wait_for("step 1/").unwrap();
        let ranks = [0, 1].map(|rank| supervisor.process_of(rank).unwrap());
        supervisor.process.signal(signal).unwrap();
        let ended = until(DEADLINE, || supervisor.process.ended().transpose()).unwrap().unwrap();
        assert!(!ended.success());
        let gone = until(DEADLINE, || ranks.iter().all(|pid| !lives(pid)).then_some(()));
        assert!(gone.is_some(), "{signal}: a rank is left:\n{}", supervisor.log());
        if signal == "-TERM" {
            assert!(supervisor.log().contains("stopped by SIGTERM"), "{}", supervisor.log());
        }
        running.kill().unwrap();
    }
}

#[test]
fn a_refused_rank_is_given_up_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = worker(&["run", "--coordinator", "not an address", "--devices", "cpu,cpu"]);
    let log = dir.path().join("log");
    command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut process = Process::spawn(command).unwrap();
    let ended = until(Duration::from_secs(30), || process.ended().transpose()).unwrap().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(ended.code() == Some(78) && log.contains("2 of 2 ranks failed"), "{ended}: {log}");
    assert!(!log.contains("started again"), "{log}");
}
