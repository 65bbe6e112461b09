//! A rank that hangs is named while it hangs, killed, and replaced: the run finishes.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use g2rl_tests::{coordinator, finish, program, until};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(120);

/// A run with two local ranks; killed when dropped.
struct Run {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    http: String,
    dir: tempfile::TempDir,
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Run {
    /// Starts a run; a script stands between it and its ranks, so that only the first process has the failpoint.
    fn start(failpoint: Option<&str>, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let train = path("train.jsonl");
        let data = ["data", "countdown", "--distinct", "--count", "64", "--split", "train", "--out", &train];
        assert!(finish(coordinator(&data), DEADLINE).unwrap().success);
        let run_dir = format!("run.dir={}", path("run"));
        let (train, held_out) = (format!("data.train={train}"), format!("evaluation.data={train}"));
        let mut settings = vec![
            run_dir.as_str(),
            &train,
            &held_out,
            "run.steps=3",
            "evaluation.max_problems=4",
            "evaluation.at_start=false",
            "rollout.prompts_per_step=6",
            "rollout.group_size=4",
            "update.sequences_per_minibatch=12",
            "cluster.min_workers=2",
            "cluster.max_workers=3",
            "cluster.heartbeat_timeout_ms=6000",
            "cluster.stall_after_ms=2500",
        ];
        settings.extend(more);
        let mut arguments =
            vec!["--log-format", "json", "train", "--config", "configs/demo.toml", "--local-workers", "2"];
        arguments.extend(settings.iter().flat_map(|value| ["--set", *value]));
        let mut command = coordinator(&arguments);
        if let Some(failpoint) = failpoint {
            command.env("G2RL_WORKER", failing_once(dir.path().join("worker.sh"), failpoint));
        }
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (heard, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if heard.send(line).is_err() {
                    return;
                }
            }
        });
        let mut run = Self { child, lines, seen: Vec::new(), http: String::new(), dir };
        let listening: Value = serde_json::from_str(&run.wait_for("listening")).unwrap();
        let metrics = listening["fields"]["metrics"].as_str().unwrap();
        run.http = metrics.trim_start_matches("http://").trim_end_matches("/metrics").to_owned();
        run
    }

    /// The next line of the log that holds `word`.
    fn wait_for(&mut self, word: &str) -> String {
        let (lines, seen) = (&self.lines, &mut self.seen);
        let found = until(DEADLINE, || {
            lines.try_iter().find(|line| {
                seen.push(line.clone());
                line.contains(word)
            })
        });
        found.unwrap_or_else(|| panic!("no {word:?} in:\n{}", self.seen.join("\n")))
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// The first report that `wanted` accepts.
    fn report(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = String::new();
        let found = until(DEADLINE, || {
            last = self.get("/debug/stalls");
            let served: Value = serde_json::from_str(&last).unwrap();
            wanted(&served["report"]).then(|| served["report"].clone())
        });
        found.unwrap_or_else(|| panic!("no such report; the last: {last}\n{}", self.seen.join("\n")))
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }

    fn finish(&mut self) {
        let child = &mut self.child;
        let ended = until(DEADLINE, || child.try_wait().transpose());
        self.seen.extend(self.lines.try_iter());
        let status = ended.unwrap_or_else(|| panic!("no end:\n{}", self.seen.join("\n"))).unwrap();
        assert!(status.success(), "{}", self.seen.join("\n"));
        let journal = rusqlite::Connection::open(self.dir.path().join("run/journal.sqlite")).unwrap();
        let count = |table: &str| -> i64 {
            journal.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!((count("step"), count("rollout")), (3, 3 * 6 * 4));
    }

    /// The logs of both ranks.
    fn logs(&self) -> String {
        let log = |index| self.dir.path().join(format!("run/logs/worker-{index}.log"));
        [0, 1].map(|index| std::fs::read_to_string(log(index)).unwrap()).concat()
    }
}

/// A script that is the worker's program, with the failpoint for the first process that asks for it.
fn failing_once(path: PathBuf, failpoint: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let (worker, once) = (program("g2rl-worker"), path.with_extension("once"));
    let text = format!(
        "#!/bin/sh\nif mkdir {} 2>/dev/null; then G2RL_FAILPOINT={failpoint}; export G2RL_FAILPOINT; fi\nexec {} \"$@\"\n",
        once.display(),
        worker.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What the process with this id is, as the system names it; `None` once it is gone.
fn state_of(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Ids of the run's own children.
fn children(of: u32) -> Vec<String> {
    let output = Command::new("ps").args(["-o", "pid=", "--ppid", &of.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_stopped_rank_is_named_then_killed_and_replaced() {
    // It stops itself in the middle of its rollouts, as by SIGSTOP.
    let mut run = Run::start(Some("rollout:5:stop"), &[]);
    let stalled = |report: &Value| report["stalls"].as_array().is_some_and(|stalls| !stalls.is_empty());
    let named = run.report(|report| report["phase"] == "rollout" && stalled(report));
    let stall = &named["stalls"][0];
    assert!(stall["who"].as_str().unwrap().contains("local-"), "{stall}");
    assert!(stall["what"].as_str().unwrap().contains("rollouts of group"), "{stall}");
    let (first, lease) = (&named["ranks"][0], &named["leases"]["oldest"][0]);
    assert!(first["owes"].is_string() && first["silent_ms"].as_u64().unwrap() >= 1_500, "{first}");
    assert_eq!(lease["rank"], first["rank"], "{lease}");
    let stopped: Vec<String> =
        children(run.child.id()).into_iter().filter(|pid| state_of(pid) == Some('T')).collect();
    let [pid] = stopped.as_slice() else { panic!("one process is stopped, not {stopped:?}") };
    run.wait_for("nothing moves");
    assert!(run.metric("g2rl_stalls_total") >= 1.0);

    run.wait_for("epoch ended");
    run.wait_for("is killed");
    run.wait_for("another is started");
    assert_eq!(state_of(pid), None, "the stopped process is gone");
    run.finish();
}

#[test]
fn a_hung_engine_is_named_by_its_phase_and_ended_by_the_watchdog() {
    let limits = ["watchdog.rollout_ms=3000", "cluster.lease_timeout_ms=600000"];
    let mut run = Run::start(Some("rollout:5:hang"), &limits);
    // It still shows signs of life, and says that it does not move.
    let hung = |rank: &Value| rank["phase"] == "rollout" && rank["still_ms"].as_u64() >= Some(1_000);
    let named =
        run.report(|report| report["ranks"].as_array().is_some_and(|ranks| ranks.first().is_some_and(hung)));
    let first = &named["ranks"][0];
    assert!(first["silent_ms"].as_u64().unwrap() < 3_000 && first["owes"].is_string(), "{first}");
    assert!(named["leases"]["oldest"][0]["tokens"].is_u64(), "{named}");

    run.wait_for("epoch ended");
    run.wait_for("another is started");
    let log = run.logs();
    let line = log.lines().find(|line| line.contains("the engine hangs")).unwrap_or_else(|| panic!("{log}"));
    for part in
        ["watchdog.rollout_ms", "rollout", "policy_version", "leases=", "rollouts,", "still_seconds=3"]
    {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    run.finish();
}
