//! Reading from HTTP ports as a probe, a browser or Prometheus does.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context;

/// Of a connection, and of each wait for more of an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Status and body of `http://{address}{path}`.
///
/// # Errors
/// If nobody answers there, or not in HTTP.
pub fn get(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Version 1.0 has neither chunks nor connections that are kept.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the answer has no status")?, body.to_owned()))
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
