//! Streams that do not keep to the protocol, against a real coordinator.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::time::Duration;

use g2rl_proto::wire::session_client::SessionClient;
use g2rl_proto::wire::{CoordinatorMessage, Hello, WorkerMessage, worker_message::Message};
use g2rl_proto::{Command, PROTOCOL_VERSION};
use g2rl_tests::{coordinator, finish};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const DEADLINE: Duration = Duration::from_secs(30);

/// A coordinator that waits for two workers; killed when dropped.
struct Waiting {
    child: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> Waiting {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("train.jsonl").display().to_string();
    let made = ["data", "countdown", "--distinct", "--count", "32", "--split", "train", "--out", &data];
    assert!(finish(coordinator(&made), DEADLINE).unwrap().success);
    let settings = [
        format!("run.dir={}", dir.path().join("run").display()),
        format!("data.train={data}"),
        format!("evaluation.data={data}"),
    ];
    let mut arguments = vec!["--log-format", "json", "train", "--config", "configs/demo.toml"];
    arguments.extend(settings.iter().flat_map(|value| ["--set", value.as_str()]));
    let mut child = coordinator(&arguments).spawn().unwrap();
    // The first log line says where it listens.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("listening")).unwrap();
    std::thread::spawn(move || lines.count());
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let url = format!("http://{}", line["fields"]["workers"].as_str().unwrap());
    Waiting { child, url, _dir: dir }
}

fn hello(version: u32) -> WorkerMessage {
    let hello = Hello {
        protocol_version: version,
        worker_id: "test".into(),
        hostname: "test".into(),
        address: "127.0.0.1".into(),
        device: "cpu".into(),
        ..Hello::default()
    };
    WorkerMessage { message: Some(Message::Hello(hello)) }
}

/// A stream to the coordinator: send on one end, receive on the other.
async fn join(url: &str) -> (mpsc::Sender<WorkerMessage>, tonic::Streaming<CoordinatorMessage>) {
    let mut client = SessionClient::connect(url.to_owned()).await.unwrap();
    let (sender, receiver) = mpsc::channel(8);
    let incoming = client.join(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    (sender, incoming)
}

/// The next message, or how the stream ended.
async fn next(incoming: &mut tonic::Streaming<CoordinatorMessage>) -> Result<Command, tonic::Status> {
    let message = tokio::time::timeout(DEADLINE, incoming.message()).await.expect("an answer in time")?;
    Ok(Command::try_from(message.expect("the stream ends with a status")).unwrap())
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let coordinator = start();
    let (sender, mut incoming) = join(&coordinator.url).await;
    sender.send(hello(PROTOCOL_VERSION + 1)).await.unwrap();
    let status = next(&mut incoming).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains(&format!("version {}", PROTOCOL_VERSION + 1)), "{status}");
}

#[tokio::test]
async fn a_stream_must_begin_with_a_hello() {
    let coordinator = start();
    let (sender, mut incoming) = join(&coordinator.url).await;
    sender.send(WorkerMessage { message: None }).await.unwrap();
    assert_eq!(next(&mut incoming).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_bad_message_ends_its_stream_with_its_name() {
    let coordinator = start();
    let (sender, mut incoming) = join(&coordinator.url).await;
    sender.send(hello(PROTOCOL_VERSION)).await.unwrap();
    assert!(matches!(next(&mut incoming).await.unwrap(), Command::Welcome(_)));
    // A heartbeat whose phase is not given.
    let heartbeat = WorkerMessage { message: Some(Message::Heartbeat(Default::default())) };
    sender.send(heartbeat).await.unwrap();
    let status = next(&mut incoming).await.unwrap_err();
    let text = status.message();
    assert!(text.contains("worker test") && text.contains("Heartbeat.phase"), "{status}");
}
