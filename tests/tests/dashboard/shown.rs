//! A run directory with a made-up journal, shown by `g2rl-coordinator dashboard`.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use g2rl_tests::big_journal::{self, Size};
use g2rl_tests::cluster::DEADLINE;
use g2rl_tests::http::get;
use g2rl_tests::process::Process;
use g2rl_tests::{coordinator, until};
use serde_json::Value;

/// See the module's documentation.
pub(crate) struct Shown {
    pub(crate) address: String,
    _dir: tempfile::TempDir,
    _process: Process,
}

impl Shown {
    /// Makes the journal, starts the program and waits until it has read everything.
    pub(crate) fn start(size: Size, token: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        big_journal::write(&run, size).unwrap();
        let path = run.display().to_string();
        let mut command =
            coordinator(&["--log-format", "json", "dashboard", "--run", &path, "--listen", "127.0.0.1:0"]);
        if let Some(token) = token {
            command.env("G2RL_TOKEN", token);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = Process::spawn(command).unwrap();
        let mut lines = BufReader::new(process.take_stderr().unwrap()).lines();
        let listening = lines.find_map(|line| {
            let line: Value = serde_json::from_str(&line.ok()?).ok()?;
            line["fields"]["dashboard"].as_str().map(str::to_owned)
        });
        let url = listening.expect("it says where it listens");
        // What else it says is read, so that it can say it.
        std::thread::spawn(move || lines.for_each(drop));
        let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let complete = until(DEADLINE, || {
            let (_, state) = get(&address, "/api/run").ok()?;
            let state: Value = serde_json::from_str(&state).ok()?;
            (state["journal"]["complete"] == true).then_some(state)
        });
        let state = complete.expect("the journal is read");
        assert_eq!(state["journal"]["steps"], size.steps, "{state}");
        assert_eq!(state["journal"]["groups"], size.steps * size.groups, "{state}");
        Self { address, _dir: dir, _process: process }
    }

    /// An answer of the API.
    pub(crate) fn api(&self, path: &str) -> Value {
        let (status, body) = get(&self.address, &format!("/api/{path}")).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}
