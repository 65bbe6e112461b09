//! HTTP ports: the coordinator's, and those that a test finds free.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

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

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A whole answer, with status and headers.
    ///
    /// # Errors
    /// If there is none.
    pub fn ask(&self, method: &str, path: &str) -> anyhow::Result<String> {
        let head = "host: test\r\ncontent-length: 0\r\nconnection: close";
        exchange(&self.address, &format!("{method} {path} HTTP/1.1\r\n{head}\r\n\r\n"))
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

fn exchange(address: &str, request: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Status and body of `http://{address}{path}`.
///
/// # Errors
/// If nobody answers there, or not in HTTP.
pub fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    // Version 1.0 has neither chunks nor connections that are kept.
    let answer = exchange(address, &format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("an answer without a status")?, body.to_owned()))
}

/// A value of a query, written so that it may stand in a path.
#[must_use]
pub fn encode(value: &str) -> String {
    let mut encoded = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(byte.into());
        } else {
            write!(encoded, "%{byte:02X}").expect("a string can be written to");
        }
    }
    encoded
}

/// A port of loopback after which so many are free, too, at this moment.
///
/// # Errors
/// If there is none.
pub fn free_ports(count: u16) -> anyhow::Result<u16> {
    let mut tries = (0..64).filter_map(|_| {
        let first = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
        let free = (0..count).all(|more| {
            first.checked_add(more).is_some_and(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        });
        free.then_some(first)
    });
    tries.next().context("no ports are free")
}
