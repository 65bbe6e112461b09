//! What somebody without certificate or token can do: the table in docs/security.md.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use g2rl_proto::wire::session_client::SessionClient;
use g2rl_proto::wire::{WorkerMessage, worker_message::Message};
use g2rl_proto::{MAX_MESSAGE_BYTES, wire};
use tokio_stream::StreamExt;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::certificates::{Certificates, TOKEN};
use super::mutual_tls;
use super::running::{DEADLINE, Running};

/// A coordinator that waits for workers, with a token, and with little patience.
fn waiting(files: &Certificates, more: &[&str]) -> Running {
    let mut settings = mutual_tls(files, "coordinator");
    settings.push(format!("security.token_file={}", files.path("token")));
    settings.push("security.hello_timeout_ms=500".into());
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    Running::start(&settings, &[], None)
}

/// Sends bytes, or none, and reads until the coordinator closes the connection: what it said.
fn raw(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut answer);
    answer
}

async fn channel(running: &Running, files: &Certificates, identity: Option<&str>) -> Result<Channel, String> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(files.read("ca.pem")));
    if let Some(name) = identity {
        let (certificate, key) = (files.read(&format!("{name}.pem")), files.read(&format!("{name}.key")));
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", running.workers)).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await.map_err(|error| format!("{error:?}"))
}

/// A stream that sends `message`, or nothing, and stays open: how the coordinator ends it.
async fn join(channel: Channel, token: Option<&str>, message: Option<WorkerMessage>) -> Status {
    let mut client = SessionClient::new(channel).max_encoding_message_size(usize::MAX);
    let open = tokio_stream::iter(message).chain(tokio_stream::pending());
    let mut request = Request::new(open);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let ended = async {
        let mut incoming = client.join(request).await?.into_inner();
        while incoming.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("an end in time").expect_err("a status")
}

fn message_of(bytes: usize) -> WorkerMessage {
    let failed = wire::WorkerFailed { error: "x".repeat(bytes) };
    WorkerMessage { message: Some(Message::WorkerFailed(failed)) }
}

fn row(tried: &str, outcome: &str) {
    println!("| {tried} | {outcome} |");
}

#[tokio::test]
async fn a_stranger_gets_nothing() {
    let files = Certificates::new();
    let running = waiting(&files, &[]);
    let address = running.workers.as_str();

    // 1. Below gRPC.
    let start = Instant::now();
    assert_eq!(raw(address, b""), b"");
    row(
        "connect and say nothing",
        &format!("closed after {:.1} s, no byte sent", start.elapsed().as_secs_f64()),
    );
    assert!(start.elapsed() < DEADLINE / 2);
    assert!(running.metric("g2rl_connections_refused_total{reason=\"silent\"}") >= 1.0);
    for (what, bytes) in [
        ("HTTP/1.1 request", &b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"[..]),
        ("HTTP/2 without TLS", &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]),
        ("random bytes", &[0x5a; 4096][..]),
    ] {
        let answer = raw(address, bytes);
        // An alert of TLS: type 21, a version, two bytes.
        assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{what}: {answer:?}");
        row(what, &format!("closed, {} bytes sent (a TLS alert)", answer.len()));
    }

    // 2. TLS with a wrong certificate, or none.
    for identity in [None, Some("stranger"), Some("expired")] {
        let ended = match channel(&running, &files, identity).await {
            Ok(channel) => format!("{:?}", join(channel, Some(TOKEN), Some(message_of(1))).await),
            Err(error) => error,
        };
        let mut after =
            ["AlertReceived(", "received fatal alert: "].iter().filter_map(|w| ended.split(w).nth(1));
        let alert = after.next().and_then(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
        // The alert is lost if the stream is closed before it is read.
        let closed = ["broken pipe", "reset by peer", "connection closed"];
        assert!(alert.is_some() || closed.iter().any(|words| ended.contains(words)), "{identity:?}: {ended}");
        let outcome = alert.map_or("closed".to_owned(), |alert| format!("TLS alert {alert}"));
        row(&format!("TLS with certificate {}", identity.unwrap_or("none")), &outcome);
    }
    assert_eq!(running.metric("g2rl_auth_failures_total"), 0.0);

    // 3. TLS with a right certificate, without the token; the message is not read.
    for (what, token, bytes) in [
        ("no token", None, 1),
        ("wrong token", Some("another-token-0123456789abcdef"), 1),
        ("part of the token", Some(&TOKEN[..TOKEN.len() - 1]), 1),
        ("message of 64 MiB, no token", None, 64 << 20),
    ] {
        let channel = channel(&running, &files, Some("worker")).await.unwrap();
        let status = join(channel, token, Some(message_of(bytes))).await;
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, ""), "{what}");
        row(what, "UNAUTHENTICATED without detail");
    }
    assert_eq!(running.metric("g2rl_auth_failures_total"), 4.0);

    // 4. With everything: bounds on messages and on patience.
    let right = || async { channel(&running, &files, Some("worker")).await.unwrap() };
    let status = join(right().await, Some(TOKEN), None).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    row("right token, no hello", "DEADLINE_EXCEEDED");
    let status = join(right().await, Some(TOKEN), Some(message_of(MAX_MESSAGE_BYTES + 1))).await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    row("right token, message of 128 MiB", "OUT_OF_RANGE");

    // 5. The HTTP port only answers questions.
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let answer = running.http(method, "/metrics");
        assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
    }
    row("HTTP POST, PUT, DELETE or PATCH /metrics", "405");
    assert!(running.http("POST", "/g2rl.Session/Join").starts_with("HTTP/1.1 404"));
    assert!(running.http("GET", "/metrics").starts_with("HTTP/1.1 200"));
    assert!(running.http("HEAD", "/metrics").ends_with("\r\n\r\n"));

    // 6. Nobody of these was let in, and the coordinator still waits.
    assert!(!running.log.lock().unwrap().iter().any(|line| line.contains("worker connected")));
    assert!(running.http("GET", "/healthz").ends_with("ok\n"));
}

#[test]
fn a_flood_of_connections_is_cut_off() {
    let files = Certificates::new();
    let running = waiting(&files, &["security.connections_per_minute=20"]);
    let start = Instant::now();
    // Held open, all of them: the coordinator is the one that closes.
    let mut streams: Vec<TcpStream> =
        (0..60).map(|_| TcpStream::connect(&running.workers).unwrap()).collect();
    let last = streams.last_mut().unwrap();
    last.set_read_timeout(Some(DEADLINE)).unwrap();
    assert!(!last.read(&mut [0]).is_ok_and(|bytes| bytes > 0));
    let refused = || running.metric("g2rl_connections_refused_total{reason=\"rate\"}");
    // Twenty, and those for which time has passed.
    let late = start.elapsed().as_secs_f64() / 3.0;
    assert!((40.0 - late..=40.0).contains(&refused()), "{} after {late}", refused());
    row("60 connections of one address at once, 20 a minute allowed", "40 closed at once");
    // One line for all of them.
    running.wait_for("refused a connection");
    let log = running.log.lock().unwrap();
    let lines = log.iter().filter(|line| line.contains("refused a connection")).count() as u64;
    assert!(lines <= 1 + start.elapsed().as_secs() / 10, "{lines}");
}
