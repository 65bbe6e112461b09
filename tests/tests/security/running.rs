//! A coordinator of a test, its log, and its HTTP port.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use g2rl_tests::http::Http;
use g2rl_tests::{coordinator, finish, until};

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// A child that does not outlive its test.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A coordinator at work.
pub(crate) struct Running {
    pub(crate) child: Guard,
    /// `host:port` for workers.
    pub(crate) workers: String,
    http: Http,
    pub(crate) log: Arc<Mutex<Vec<String>>>,
    pub(crate) dir: tempfile::TempDir,
}

/// The command line of a short run in a directory, with these settings besides, and its data.
pub(crate) fn arguments(dir: &std::path::Path, settings: &[String]) -> Vec<String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let train = path("train.jsonl");
    let data = ["data", "countdown", "--distinct", "--count", "32", "--split", "train", "--out", &train];
    assert!(finish(coordinator(&data), DEADLINE).unwrap().success);
    let mut all = vec![
        format!("run.dir={}", path("run")),
        "run.steps=1".into(),
        format!("data.train={train}"),
        format!("evaluation.data={train}"),
        "evaluation.max_problems=4".into(),
        "evaluation.at_start=false".into(),
        "rollout.prompts_per_step=4".into(),
        "rollout.group_size=4".into(),
        "update.sequences_per_minibatch=8".into(),
    ];
    all.extend_from_slice(settings);
    let mut arguments =
        ["--log-format", "json", "train", "--config", "configs/demo.toml"].map(String::from).to_vec();
    arguments.extend(all.into_iter().flat_map(|value| ["--set".to_owned(), value]));
    arguments
}

/// A command that says everything that it can say.
pub(crate) fn talkative(mut command: Command) -> Command {
    command.env("RUST_LOG", "trace").env_remove("G2RL_TOKEN");
    command
}

/// The first line of a log with these words, once it is there.
fn wait_for(log: &Mutex<Vec<String>>, words: &str) -> String {
    let find = || log.lock().unwrap().iter().find(|line| line.contains(words)).cloned();
    until(DEADLINE, find).unwrap_or_else(|| panic!("no {words:?} in:\n{}", tail(log)))
}

fn tail(log: &Mutex<Vec<String>>) -> String {
    let log = log.lock().unwrap();
    log[log.len().saturating_sub(40)..].join("\n")
}

impl Running {
    pub(crate) fn start(settings: &[String], more: &[&str], token: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut arguments = arguments(dir.path(), settings);
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = talkative(coordinator(&arguments));
        if let Some(token) = token {
            command.env("G2RL_TOKEN", token);
        }
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let child = Guard(child);
        let line = wait_for(&log, "\"message\":\"listening\"");
        let fields = &serde_json::from_str::<serde_json::Value>(&line).unwrap()["fields"];
        let workers = fields["workers"].as_str().unwrap().to_owned();
        Self { child, workers, http: Http::new(fields).unwrap(), log, dir }
    }

    /// The first line of the log with these words, once it is there.
    pub(crate) fn wait_for(&self, words: &str) -> String {
        wait_for(&self.log, words)
    }

    pub(crate) fn tail(&self) -> String {
        tail(&self.log)
    }

    /// Waits until the run is over and has succeeded.
    pub(crate) fn finish(&mut self) {
        let ended = until(DEADLINE, || self.child.0.try_wait().transpose());
        let status = ended.unwrap_or_else(|| panic!("does not end:\n{}", self.tail())).unwrap();
        assert!(status.success(), "{}", self.tail());
    }

    /// A whole HTTP answer.
    pub(crate) fn http(&self, method: &str, path: &str) -> String {
        self.http.ask(method, path).unwrap()
    }

    /// The value of a metric, with its labels if it has some.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.http.metric(name).unwrap().unwrap_or(0.0)
    }

    /// All files below the run's directory.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                let list = if entry.is_dir() { &mut folders } else { &mut files };
                list.push(entry);
            }
        }
        files
    }
}
