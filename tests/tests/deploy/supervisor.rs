//! One process for a machine: `g2rl-worker run --devices cpu,cpu`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use g2rl_tests::cluster::{Cluster, DEADLINE};
use g2rl_tests::http::{free_ports, get};
use g2rl_tests::process::{Process, lives, send_signal};
use g2rl_tests::{until, worker};

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
        let port = &self.ports(1)[0];
        let text = get(port, "/readyz").map(|(_, text)| text).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn process_of(&self, rank: usize) -> Option<u32> {
        let ranks = self.ranks();
        let (_, rest) = ranks.get(rank)?.split_once("running as process ")?;
        rest.split(';').next()?.parse().ok()
    }

    /// Kills a rank as the kernel does when memory is short.
    pub(crate) fn kill_a_rank(&self, rank: usize) -> anyhow::Result<()> {
        send_signal(self.process_of(rank).context("the rank runs")?, "-KILL")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn run(more: &[&str]) -> (Cluster, Supervisor) {
    let settings = [&["cluster.min_workers=2", "cluster.max_workers=2"], more].concat();
    let cluster = Cluster::start(&settings, None).unwrap();
    let supervisor = Supervisor::start(cluster.url(), cluster.dir()).unwrap();
    (cluster, supervisor)
}

#[test]
fn a_killed_rank_is_started_again_and_the_run_completes() {
    let (mut cluster, mut supervisor) = run(&["run.steps=12"]);
    cluster.wait_for("step 2/").unwrap();
    supervisor.kill_a_rank(1).unwrap();
    cluster.wait_for("epoch ended").unwrap();
    let again = until(DEADLINE, || supervisor.ranks().get(1)?.ends_with("; 1 restarts").then_some(()));
    assert!(again.is_some(), "{:?}\n{}", supervisor.ranks(), supervisor.log());
    assert!(supervisor.ranks()[0].starts_with("cpu-0:") && supervisor.ranks()[0].ends_with("; 0 restarts"));
    let (_, metrics) = get(&supervisor.ports(1)[0], "/metrics").unwrap();
    assert!(metrics.contains("g2rl_supervisor_restarts_total{rank=\"cpu-1\"} 1"), "{metrics}");
    // Each rank serves its own metrics.
    for port in &supervisor.ports(3)[1..] {
        // The one that was started again may not have got so far.
        let served = until(DEADLINE, || get(port, "/metrics").ok()).unwrap_or_else(|| panic!("{port}"));
        assert!(served.1.contains("g2rl_worker_epoch"), "{port}: {}", served.1);
    }
    // Its log lies in the run's directory.
    let _run = cluster.finish().unwrap();
    let ended = until(DEADLINE, || supervisor.process.ended().transpose()).unwrap().unwrap();
    assert!(ended.success(), "{}", supervisor.log());
    assert!(supervisor.log().contains("signal: 9"), "{}", supervisor.log());
}

#[test]
fn signals_reach_all_ranks_and_no_rank_outlives_its_supervisor() {
    for signal in ["-TERM", "-KILL"] {
        let (mut cluster, mut supervisor) = run(&["run.steps=100000"]);
        cluster.wait_for("step 1/").unwrap();
        let ranks = [0, 1].map(|rank| supervisor.process_of(rank).unwrap());
        supervisor.process.signal(signal).unwrap();
        let ended = until(DEADLINE, || supervisor.process.ended().transpose()).unwrap().unwrap();
        assert!(!ended.success());
        let gone = until(DEADLINE, || ranks.iter().all(|&process| !lives(process)).then_some(()));
        assert!(gone.is_some(), "{signal}: a rank is left:\n{}", supervisor.log());
        if signal == "-TERM" {
            assert!(supervisor.log().contains("stopped by SIGTERM"), "{}", supervisor.log());
        }
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
