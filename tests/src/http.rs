//! The coordinator's HTTP port.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::cluster::DEADLINE;

/// Where a coordinator answers.
#[derive(Debug, Clone)]
pub struct Http {
    address: String,
}

impl Http {
    /// From the fields of the coordinator's message `listening`.
    ///
    /// # Errors
    /// If they do not say.
    pub fn new(listening: &Value) -> anyhow::Result<Self> {
        let url = listening["metrics"].as_str().context("the address of /metrics")?;
        let address = url.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics"));
        Ok(Self { address: address.with_context(|| format!("{url} is no address of metrics"))?.to_owned() })
    }

    /// A whole answer, with status and headers.
    ///
    /// # Errors
    /// If there is none.
    pub fn ask(&self, method: &str, path: &str) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// What a page says.
    ///
    /// # Errors
    /// If it is not there.
    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        let answer = self.ask("GET", path)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        Ok(body.to_owned())
    }

    /// A metric, with its labels if it has some; `None` if it is not exported.
    ///
    /// # Errors
    /// If there are no metrics.
    pub fn metric(&self, name: &str) -> anyhow::Result<Option<f64>> {
        let text = self.get("/metrics")?;
        Ok(text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()))
    }

    /// The coordinator's stall report; `None` before the run begins.
    ///
    /// # Errors
    /// If it is not served.
    pub fn stall_report(&self) -> anyhow::Result<Option<Value>> {
        let mut served: Value = serde_json::from_str(&self.get("/debug/stalls")?)?;
        Ok(Some(served["report"].take()).filter(|report| !report.is_null()))
    }
}
