//! A headless Chromium, driven through chromedriver by the WebDriver protocol.
//!
//! A session has a profile of its own and ends with its [`Browser`]. What the page writes to its console, and what it fails
//! to load, is kept by the driver: see [`Browser::console`].

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::http::free_ports;
use crate::process::Process;
use crate::{tool, until};

/// Of each wait for a page.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Of one answer of the driver.
const ANSWER: Duration = Duration::from_secs(60);

/// The left arrow, as WebDriver names keys.
pub const ARROW_LEFT: &str = "\u{E012}";
/// See [`ARROW_LEFT`].
pub const TAB: &str = "\u{E004}";
/// See [`ARROW_LEFT`].
pub const ENTER: &str = "\u{E007}";

/// Flags for a machine without a display, without network, and for the root user of a container.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// See the module's documentation.
#[derive(Debug)]
pub struct Browser {
    address: String,
    session: String,
    _profile: tempfile::TempDir,
    _driver: Process,
}

impl Browser {
    /// Starts one with a window of a size; `None` where Chromium or its driver is not installed.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(width: u32, height: u32) -> anyhow::Result<Option<Self>> {
        let (Some(driver), Some(chromium)) = (tool("chromedriver"), tool("chromium")) else {
            return Ok(None);
        };
        let profile = tempfile::tempdir()?;
        let address = format!("127.0.0.1:{}", free_ports(1)?);
        let mut command = Command::new(driver);
        command.arg(format!("--port={}", address.rsplit(':').next().unwrap_or_default()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = Process::spawn(command)?;
        until(DEADLINE, || call(&address, "GET", "/status", None).ok())
            .context("chromedriver does not answer")?;
        let mut arguments = FLAGS.map(str::to_owned).to_vec();
        arguments.push(format!("--window-size={width},{height}"));
        arguments.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": chromium, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        let session = call(&address, "POST", "/session", Some(&wanted))?;
        let session = session["sessionId"].as_str().context("a session has an id")?.to_owned();
        let browser = Self { address, session, _profile: profile, _driver: driver };
        // Windows have a least width; pages do not.
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.ask(
            "goog/cdp/execute",
            &json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": screen }),
        )?;
        Ok(Some(browser))
    }

    fn ask(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        call(&self.address, "POST", &format!("/session/{}/{path}", self.session), Some(body))
    }

    /// Goes to an address, and waits until its page is loaded.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn open(&self, url: &str) -> anyhow::Result<()> {
        self.ask("url", &json!({ "url": url })).map(|_| ())
    }

    /// What a script returns.
    ///
    /// # Errors
    /// If it throws.
    pub fn run(&self, script: &str) -> anyhow::Result<Value> {
        self.ask("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true on the page.
    ///
    /// # Errors
    /// If it is not by [`DEADLINE`]; the error holds the page's text.
    pub fn wait(&self, expression: &str) -> anyhow::Result<()> {
        let script = format!("return Boolean({expression})");
        if until(DEADLINE, || self.run(&script).ok().filter(|value| *value == true)).is_some() {
            return Ok(());
        }
        let page = self.run("return document.body.innerText");
        bail!("never true: {expression}\n{page:?}\n{:?}", self.console())
    }

    /// Presses keys, one after the other, wherever the focus is.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn press(&self, keys: &[&str]) -> anyhow::Result<()> {
        let actions: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        let body = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        self.ask("actions", &body).map(|_| ())
    }

    /// Errors and warnings that the page has written or caused since the last question.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn console(&self) -> anyhow::Result<Vec<String>> {
        let log = self.ask("se/log", &json!({ "type": "browser" }))?;
        let lines = log.as_array().context("a log is a list")?.iter();
        let bad = lines.filter(|line| line["level"] == "SEVERE" || line["level"] == "WARNING");
        Ok(bad.map(|line| line["message"].to_string()).collect())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium ends with its session; one that does not ends with the test's machine.
        let _ = call(&self.address, "DELETE", &format!("/session/{}", self.session), None);
    }
}

/// The value of the driver's answer.
fn call(address: &str, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut stream = BufReader::new(stream);
    let (mut status, mut length) = (None, 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line)? > 0, "{method} {path}: no answer");
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        match line.strip_prefix("content-length:") {
            Some(value) => length = value.trim().parse()?,
            None => {
                status.get_or_insert(line);
            }
        }
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    let mut answer: Value = serde_json::from_slice(&answer)?;
    let status = status.unwrap_or_default();
    ensure!(status.contains(" 200"), "{method} {path}: {status}: {}", answer["value"]["message"]);
    Ok(answer["value"].take())
}
