//! The batch script, with stand-ins for `srun` and `scontrol` that set what Slurm sets.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use g2rl_tests::cluster::settings;
use g2rl_tests::http::free_ports;
use g2rl_tests::journal::{Journal, StepShape};
use g2rl_tests::process::Process;
use g2rl_tests::{program, root, until};

use super::deploy;

const DEADLINE: Duration = Duration::from_secs(180);

const SHAPE: StepShape = StepShape { groups: 6, group_size: 4, minibatches: 2 };

/// A job of two nodes, one CPU rank each.
struct Job {
    process: Process,
    log: PathBuf,
    requeued: PathBuf,
}

impl Job {
    fn submit(dir: &Path, steps: u32) -> Self {
        let steps = format!("run.steps={steps}");
        let more = [steps.as_str(), "cluster.min_workers=2", "cluster.max_workers=2", "export.jsonl=true"];
        let arguments = settings(dir, &more).unwrap();
        let stubs = root().join("tests/tests/deploy/slurm").canonicalize().unwrap();
        let programs = program("g2rl-worker").parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [stubs, programs].into_iter().chain(std::env::split_paths(&path));
        let (log, requeued) = (dir.join("slurm.log"), dir.join("requeued"));
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new("bash");
        command
            .arg(deploy("slurm/g2rl.sbatch").canonicalize().unwrap())
            .arg("configs/demo.toml")
            .args(arguments);
        command.current_dir(root()).env("PATH", std::env::join_paths(path).unwrap());
        command.env("SLURM_JOB_ID", "42").env("SLURM_JOB_NODELIST", "127.0.0.1,127.0.0.2");
        command.env("SLURM_STUB_REQUEUED", &requeued);
        command.env("G2RL_PORT", free_ports(2).unwrap().to_string()).env("G2RL_DEVICES", "cpu");
        command.env("G2RL_THREADS", "1").env("OMP_NUM_THREADS", "1");
        command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", "0");
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { process: Process::spawn(command).unwrap(), log, requeued }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_for(&self, words: &str) {
        let said = until(DEADLINE, || self.log().contains(words).then_some(()));
        assert!(said.is_some(), "no {words:?} in:\n{}", self.log());
    }

    fn end(mut self) -> (ExitStatus, String, String) {
        let ended = until(DEADLINE, || self.process.ended().transpose());
        let status = ended.unwrap_or_else(|| panic!("the job does not end:\n{}", self.log())).unwrap();
        (status, self.log(), std::fs::read_to_string(&self.requeued).unwrap_or_default())
    }
}

#[test]
fn a_job_at_its_time_limit_is_queued_again_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::submit(dir.path(), 30);
    job.wait_for("step 2/");
    // What `--signal=B:USR1@900` sends.
    job.process.signal("-USR1").unwrap();
    let (status, log, requeued) = job.end();
    assert_eq!((status.code(), requeued.as_str()), (Some(75), "42\n"), "{log}");
    assert!(dir.path().join("run/checkpoints").read_dir().unwrap().next().is_some(), "{log}");

    let (status, log, requeued) = Job::submit(dir.path(), 30).end();
    assert!(status.success(), "{log}");
    assert_eq!(requeued, "42\n", "a complete run is not queued again");
    Journal::open(&dir.path().join("run")).unwrap().check(30, SHAPE).unwrap();
    // Both processes have written their part of the curves.
    let curves = std::fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    let lines = curves.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let steps = lines.filter(|line| line["kind"] == "train").map(|line| line["step"].as_u64().unwrap());
    assert_eq!(steps.collect::<BTreeSet<_>>(), (1..=30).collect());
    for node in ["127.0.0.1-cpu", "127.0.0.2-cpu"] {
        assert!(log.contains(node), "ranks go by the names of their nodes: {log}");
    }
}

#[test]
fn a_cancelled_job_is_not_queued_again_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::submit(dir.path(), 100_000);
    job.wait_for("step 1/");
    job.process.signal("-TERM").unwrap();
    let (status, log, requeued) = job.end();
    assert_eq!((status.code(), requeued.as_str()), (Some(75), ""), "{log}");
    // Workers have this run's directory nowhere in their arguments, but its coordinator's port.
    let left =
        until(Duration::from_secs(10), || (!anybody_names(&dir.path().display().to_string())).then_some(()));
    assert!(left.is_some(), "a process is left:\n{log}");
}

#[test]
fn a_killed_coordinator_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let job = Job::submit(dir.path(), 12);
    job.wait_for("step 2/");
    let coordinator = processes_that_name(&dir.path().join("run").display().to_string())
        .into_iter()
        .find(|(_, words)| words.starts_with("g2rl-coordinator"))
        .unwrap();
    assert!(Command::new("kill").args(["-KILL", &coordinator.0]).status().unwrap().success());
    let (status, log, requeued) = job.end();
    assert!(status.success() && requeued.is_empty(), "{log}");
    assert!(log.contains("the coordinator ended with 137"), "{log}");
    Journal::open(&dir.path().join("run")).unwrap().check(12, SHAPE).unwrap();
}

/// Processes with a word in their command line.
fn processes_that_name(word: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let words = entries.filter_map(|entry| {
        let bytes = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((entry.file_name().into_string().ok()?, String::from_utf8_lossy(&bytes).replace('\0', " ")))
    });
    words.filter(|(_, words)| words.contains(word)).collect()
}

fn anybody_names(word: &str) -> bool {
    !processes_that_name(word).is_empty()
}
