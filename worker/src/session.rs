//! The worker's side of the session: connect, say hello, carry commands to the engine and events
//! back, show signs of life.
//!
//! Tasks and what ends them:
//!
//! | task | ends | then |
//! |---|---|---|
//! | receive | stream ends or breaks, engine gone | the engine's channel closes, it stops after its current command |
//! | heartbeat | session ends | nothing |
//! | engine (own thread) | run over, error, channel closed | its result is the session's |

use std::sync::Arc;
use std::time::{Duration, Instant};

use g2rl_common::ids::WorkerId;
use g2rl_proto::wire::session_client::SessionClient;
use g2rl_proto::wire::{CoordinatorMessage, WorkerMessage};
use g2rl_proto::{Command, Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, WorkerEvent};
use tch::Device;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::engine::{Engine, EngineError, EngineOptions, SharedStatus};
use crate::memory;

/// Events waiting for the network. A rollout of 12k tokens is 100 kB, so this bounds memory at some
/// tens of megabytes while the engine never waits for a single slow send.
const EVENT_QUEUE: usize = 256;

/// Commands waiting for the engine: a whole step's leases, of which a rank gets at most its slots
/// and a quarter more.
const COMMAND_QUEUE: usize = 1024;

/// Pause between attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// Longest wait for the engine to finish its current command once the session is over.
const ENGINE_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a session ended badly.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The URL cannot be used.
    #[error("{url} is not a coordinator's address such as http://127.0.0.1:7700: {source}")]
    BadUrl {
        /// As given.
        url: String,
        /// The cause.
        source: tonic::transport::Error,
    },
    /// Nobody answers.
    #[error("no coordinator at {url} within {seconds} s: {source}")]
    Unreachable {
        /// Where.
        url: String,
        /// How long was tried.
        seconds: u64,
        /// The last attempt's error.
        source: tonic::transport::Error,
    },
    /// The coordinator refused or broke the stream.
    #[error("the coordinator ended the session: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
    /// The stream ended without a word.
    #[error("the coordinator's stream ended before the run was over")]
    Lost,
    /// A message that cannot be understood.
    #[error("message from the coordinator: {0}")]
    BadMessage(#[from] g2rl_proto::convert::ConvertError),
    /// The coordinator speaks another version.
    #[error(
        "the coordinator speaks protocol version {theirs}, this worker {PROTOCOL_VERSION}; update the older one"
    )]
    Version {
        /// The coordinator's.
        theirs: u32,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine's thread panicked, or did not stop.
    #[error("the engine {0}")]
    EngineLost(String),
}

/// How to join a run.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The coordinator, `http://host:port`.
    pub coordinator: String,
    /// This process's name.
    pub worker: WorkerId,
    /// The device of this rank.
    pub device: Device,
    /// Address under which other ranks reach this one; found out by connecting if `None`.
    pub address: Option<String>,
    /// How long to look for the coordinator.
    pub connect_timeout: Duration,
    /// CPU threads for libtorch.
    pub threads: Option<i32>,
}

/// The name of a device in messages and logs.
#[must_use]
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// Joins a run and works until it is over.
///
/// # Errors
/// [`SessionError`]; the process should end with a failure.
pub async fn run(options: SessionOptions, status: Arc<SharedStatus>) -> Result<(), SessionError> {
    let channel = connect(&options).await?;
    let mut client = SessionClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let address = options.address.clone().unwrap_or_else(|| own_address(&options.coordinator));
    let (events_in, events_out) = mpsc::channel::<WorkerEvent>(EVENT_QUEUE);
    let hello = WorkerEvent::Hello(Hello {
        protocol_version: PROTOCOL_VERSION,
        worker: options.worker.clone(),
        hostname: hostname(),
        address: address.clone(),
        device: device_name(options.device),
        held: None,
    });
    // A fresh channel has room for its first event.
    let _ = events_in.try_send(hello);
    let outgoing = ReceiverStream::new(events_out).map(WorkerMessage::from);
    let mut incoming =
        client.join(outgoing).await.map_err(|status| SessionError::Refused(Box::new(status)))?.into_inner();

    let (commands_in, commands_out) = mpsc::channel(COMMAND_QUEUE);
    let (done_in, mut done) = oneshot::channel();
    let engine_options = EngineOptions { device: options.device, address };
    spawn_engine(
        Engine::new(engine_options, events_in.clone(), status.clone()),
        &options,
        (commands_out, done_in),
    );

    let mut heartbeat = None;
    let received = loop {
        let message = tokio::select! {
            result = &mut done => return engine_result(result),
            message = incoming.message() => message,
        };
        let command = match message {
            Ok(Some(message)) => command(message)?,
            Ok(None) => break SessionError::Lost,
            Err(status) => break SessionError::Refused(Box::new(status)),
        };
        if let Command::Welcome(welcome) = &command {
            if welcome.protocol_version != PROTOCOL_VERSION {
                return Err(SessionError::Version { theirs: welcome.protocol_version });
            }
            tracing::info!(run = %welcome.run, model = welcome.model_path, "joined the run");
            let interval = Duration::from_millis(welcome.heartbeat_interval_ms.max(1));
            let beat = beat(interval, options.device, status.clone(), events_in.clone());
            heartbeat = Some(AbortOnDrop(tokio::spawn(beat)));
        }
        if commands_in.send(command).await.is_err() {
            break SessionError::EngineLost("stopped taking commands".into());
        }
    };
    // The stream is gone: the engine stops after its current command, and its own error, if it has
    // one, explains more than the broken stream does.
    drop((commands_in, heartbeat));
    match tokio::time::timeout(ENGINE_STOP_TIMEOUT, done).await {
        Ok(result) => engine_result(result).and(Err(received)),
        Err(_) => Err(SessionError::EngineLost(format!("did not stop within {ENGINE_STOP_TIMEOUT:?}"))),
    }
}

fn command(message: CoordinatorMessage) -> Result<Command, SessionError> {
    Ok(Command::try_from(message)?)
}

type EngineOutcome = Result<(), EngineError>;

fn engine_result(
    result: Result<std::thread::Result<EngineOutcome>, oneshot::error::RecvError>,
) -> Result<(), SessionError> {
    match result {
        Ok(Ok(outcome)) => Ok(outcome?),
        Ok(Err(panic)) => Err(SessionError::EngineLost(format!("panicked: {}", panic_text(&*panic)))),
        Err(_) => Err(SessionError::EngineLost("ended without a result".into())),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// Runs the engine on its own thread; libtorch's thread settings belong to the calling thread.
fn spawn_engine(
    engine: Engine,
    options: &SessionOptions,
    (commands, done): (mpsc::Receiver<Command>, oneshot::Sender<std::thread::Result<EngineOutcome>>),
) {
    let threads = options.threads;
    let body = move || {
        if let Some(threads) = threads {
            tch::set_num_threads(threads);
        }
        let run = std::panic::AssertUnwindSafe(|| engine.run(commands));
        // Nobody listens any more only if the session has already ended.
        let _ = done.send(std::panic::catch_unwind(run));
    };
    std::thread::Builder::new().name("engine".into()).spawn(body).expect("the system can start a thread");
}

async fn beat(
    interval: Duration,
    device: Device,
    status: Arc<SharedStatus>,
    events: mpsc::Sender<WorkerEvent>,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut snapshot = status.snapshot();
        snapshot.resident_bytes = memory::resident_bytes();
        snapshot.device_bytes = memory::device_bytes(device);
        let event = WorkerEvent::Heartbeat { epoch: status.epoch(), status: snapshot };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tries until the coordinator answers or the time is up.
async fn connect(options: &SessionOptions) -> Result<Channel, SessionError> {
    let url = &options.coordinator;
    let endpoint = Endpoint::from_shared(url.clone())
        .map_err(|source| SessionError::BadUrl { url: url.clone(), source })?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    let deadline = Instant::now() + options.connect_timeout;
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(source) if Instant::now() >= deadline => {
                let seconds = options.connect_timeout.as_secs();
                return Err(SessionError::Unreachable { url: url.clone(), seconds, source });
            }
            Err(_) => tokio::time::sleep(RECONNECT_PAUSE).await,
        }
    }
}

/// The address this machine uses towards the coordinator: connecting a datagram socket sends
/// nothing, but makes the system choose one.
fn own_address(coordinator: &str) -> String {
    let target = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest).trim_end_matches('/');
    std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect(target)?;
            Ok(socket.local_addr()?.ip().to_string())
        })
        .unwrap_or_else(|_| "127.0.0.1".to_owned())
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())
}
