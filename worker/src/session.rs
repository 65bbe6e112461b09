//! The worker's side of the session: connect, say hello, carry commands to the engine and events
//! back, show signs of life.
//!
//! Tasks and what ends them:
//!
//! | task | ends | then |
//! |---|---|---|
//! | receive | stream ends or breaks | another stream, until nobody answers for the connect timeout; then the engine's channel closes |
//! | heartbeat | stream ends | nothing |
//! | engine (own thread) | run over, error, channel closed | its result is the session's |

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use g2rl_common::ids::WorkerId;
use g2rl_proto::wire::WorkerMessage;
use g2rl_proto::wire::session_client::SessionClient;
use g2rl_proto::{Command, Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, WorkerEvent};
use tch::Device;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::access::{Access, AccessError, TrustError, chain};
use crate::address;
use crate::engine::{Engine, EngineError, EngineOptions, Interrupt, SharedStatus};
use crate::memory;

/// Events waiting for the network. A rollout of 12k tokens is 100 kB, so this bounds memory at some
/// tens of megabytes while the engine never waits for a single slow send.
const EVENT_QUEUE: usize = 256;

/// Commands waiting for the engine: a whole step's leases, of which a rank gets at most its slots
/// and a quarter more.
const COMMAND_QUEUE: usize = 1024;

/// First pause between attempts to connect; each is twice as long as the one before.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// The longest of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Longest wait for the engine to finish its current command once the session is over.
const ENGINE_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a session ended badly.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// URL, certificates or key cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// One side does not accept the other.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Nobody answers.
    #[error("no coordinator at {url} within {seconds} s: {}", chain(.source))]
    Unreachable {
        /// Where.
        url: String,
        /// How long was tried.
        seconds: u64,
        /// The last attempt's error.
        source: tonic::transport::Error,
    },
    /// Somebody answers, but never as a coordinator does.
    #[error(
        "{url} answers, but has let this worker into no run for {seconds} s: {source}; if the coordinator uses TLS, \
         its address begins with https://"
    )]
    NotWelcome {
        /// Where.
        url: String,
        /// How long was tried.
        seconds: u64,
        /// How the last stream ended.
        source: Box<SessionError>,
    },
    /// The coordinator refused or broke the stream.
    #[error("the coordinator ended the session: {}", .0.message())]
    Refused(#[source] Box<Status>),
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
    /// The coordinator, `http://host:port` or `https://host:port`.
    pub coordinator: String,
    /// Certificates and token.
    pub access: Access,
    /// This process's name.
    pub worker: WorkerId,
    /// The device of this rank.
    pub device: Device,
    /// Address under which other ranks reach this one; found out by connecting if `None`.
    pub address: Option<String>,
    /// How long to look for the coordinator, at the start and after a stream broke.
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

/// Joins a run and works until it is over. A stream that breaks is replaced; the engine keeps its policy.
///
/// # Errors
/// [`SessionError`]; the process should end with a failure.
pub async fn run(options: SessionOptions, status: Arc<SharedStatus>) -> Result<(), SessionError> {
    let endpoint = options.access.endpoint(&options.coordinator)?;
    let mut channel = connect(&options, &endpoint, Refusal::Ends).await?;
    let address = options.address.clone().unwrap_or_else(|| address::towards(&options.coordinator));
    let (events_in, events_out) = mpsc::channel::<WorkerEvent>(EVENT_QUEUE);
    let events_out = Arc::new(Mutex::new(events_out));
    let (commands_in, commands_out) = mpsc::channel(COMMAND_QUEUE);
    let (done_in, mut done) = oneshot::channel();
    let engine_options = EngineOptions { device: options.device, address: address.clone() };
    let engine = Engine::new(engine_options, events_in.clone(), status.clone());
    let session = Session {
        options: &options,
        address,
        interrupt: engine.interrupt(),
        events: events_in,
        commands: commands_in,
        status,
        welcomed: AtomicBool::new(false),
    };
    spawn_engine(engine, &options, (commands_out, done_in));

    let mut welcome_at = Instant::now();
    let ended = loop {
        let (outgoing, _cut) = Outgoing::new(session.hello(), events_out.clone());
        let broken = tokio::select! {
            result = &mut done => return engine_result(result),
            broken = session.carry(channel, outgoing) => broken,
        };
        match broken {
            // The engine still ends by itself.
            End::Final(error) => break error,
            End::Broken(error) => {
                if session.welcomed.swap(false, Ordering::Relaxed) {
                    welcome_at = Instant::now();
                } else if welcome_at.elapsed() > options.connect_timeout {
                    let (url, seconds) = (options.coordinator.clone(), options.connect_timeout.as_secs());
                    break SessionError::NotWelcome { url, seconds, source: Box::new(error) };
                }
                tracing::warn!(%error, "the stream broke; connecting again");
            }
        }
        tokio::select! {
            result = &mut done => return engine_result(result),
            () = tokio::time::sleep(RECONNECT_PAUSE) => {}
        }
        channel = tokio::select! {
            result = &mut done => return engine_result(result),
            connected = connect(&options, &endpoint, Refusal::MayPass) => match connected {
                Ok(channel) => channel,
                Err(error) => break error,
            },
        };
    };
    // The session is over: the engine stops after its current command, and its own error, if it has
    // one, explains more than the end of the session does.
    session.interrupt.raise();
    drop(session);
    events_out.lock().unwrap_or_else(PoisonError::into_inner).close();
    match timeout(ENGINE_STOP_TIMEOUT, done).await {
        Ok(result) => engine_result(result).and(Err(ended)),
        Err(_) => Err(SessionError::EngineLost(format!("did not stop within {ENGINE_STOP_TIMEOUT:?}"))),
    }
}

/// How a stream ended.
enum End {
    /// The network's or the coordinator's end: another may follow.
    Broken(SessionError),
    /// Nothing can follow.
    Final(SessionError),
}

/// What outlives a stream.
struct Session<'a> {
    options: &'a SessionOptions,
    address: String,
    interrupt: Arc<Interrupt>,
    events: mpsc::Sender<WorkerEvent>,
    commands: mpsc::Sender<Command>,
    status: Arc<SharedStatus>,
    /// The present stream has been let into a run.
    welcomed: AtomicBool,
}

impl Session<'_> {
    fn hello(&self) -> WorkerEvent {
        WorkerEvent::Hello(Hello {
            protocol_version: PROTOCOL_VERSION,
            worker: self.options.worker.clone(),
            hostname: hostname(),
            address: self.address.clone(),
            device: device_name(self.options.device),
            held: self.status.held(),
        })
    }

    /// Carries messages until the stream ends.
    async fn carry(&self, channel: Channel, outgoing: Outgoing) -> End {
        let mut client = SessionClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut request = Request::new(outgoing);
        if let Some(value) = self.options.access.authorization() {
            request.metadata_mut().insert("authorization", value);
        }
        let limit = self.options.connect_timeout;
        let mut incoming = match in_time(limit, client.join(request)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return self.end_by(status),
        };
        let mut heartbeat = None;
        loop {
            let message = match heartbeat {
                // Between commands a run may do without this rank for as long as it likes; a coordinator that is
                // gone breaks the stream.
                Some(_) => incoming.message().await,
                None => in_time(limit, incoming.message()).await,
            };
            let command = match message {
                Ok(Some(message)) => match Command::try_from(message) {
                    Ok(command) => command,
                    Err(error) => return End::Final(error.into()),
                },
                Ok(None) => return End::Broken(SessionError::Lost),
                Err(status) => return self.end_by(status),
            };
            match &command {
                Command::Welcome(welcome) => {
                    if welcome.protocol_version != PROTOCOL_VERSION {
                        return End::Final(SessionError::Version { theirs: welcome.protocol_version });
                    }
                    self.welcomed.store(true, Ordering::Relaxed);
                    tracing::info!(run = %welcome.run, model = welcome.model_path, "joined the run");
                    let interval = Duration::from_millis(welcome.heartbeat_interval_ms.max(1));
                    let (status, events) = (self.status.clone(), self.events.clone());
                    let beat = beat(interval, self.options.device, status, events);
                    heartbeat = Some(AbortOnDrop(tokio::spawn(beat)));
                    self.interrupt.raise();
                }
                // The engine may be waiting for a rank that is gone.
                Command::PrepareEpoch { .. } | Command::Shutdown { .. } => self.interrupt.raise(),
                _ => {}
            }
            let over = matches!(command, Command::Shutdown { .. });
            if self.commands.send(command).await.is_err() {
                return End::Final(SessionError::EngineLost("stopped taking commands".into()));
            }
            if over {
                // The engine's end is the session's.
                tokio::time::sleep(ENGINE_STOP_TIMEOUT).await;
                let lost = format!("was told of the run's end and goes on after {ENGINE_STOP_TIMEOUT:?}");
                return End::Final(SessionError::EngineLost(lost));
            }
        }
    }

    /// A status that the coordinator chose is its last word; others come from the network.
    fn end_by(&self, status: Status) -> End {
        if let Some(refusal) = self.options.access.explain(&status) {
            return End::Final(refusal.into());
        }
        let chosen = [Code::InvalidArgument, Code::FailedPrecondition, Code::Unimplemented, Code::OutOfRange];
        let chosen = chosen.contains(&status.code());
        let error = SessionError::Refused(Box::new(status));
        if chosen { End::Final(error) } else { End::Broken(error) }
    }
}

/// An answer, if it comes before the limit.
async fn in_time<T>(limit: Duration, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Err(Status::deadline_exceeded(format!("no welcome within {limit:?}")));
    timeout(limit, answer).await.unwrap_or_else(late)
}

/// The engine's events on their way into one stream, after its hello. What a stream has taken and not
/// delivered is lost with it; the coordinator takes a broken stream for a lost rank.
struct Outgoing {
    hello: Option<WorkerEvent>,
    events: Arc<Mutex<mpsc::Receiver<WorkerEvent>>>,
    /// The session has given the stream up: a later one has the events.
    cut: Arc<AtomicBool>,
}

/// Cuts a stream's events off when dropped.
struct Cut(Arc<AtomicBool>);

impl Drop for Cut {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Outgoing {
    fn new(hello: WorkerEvent, events: Arc<Mutex<mpsc::Receiver<WorkerEvent>>>) -> (Self, Cut) {
        let cut = Arc::new(AtomicBool::new(false));
        (Self { hello: Some(hello), events, cut: cut.clone() }, Cut(cut))
    }
}

impl Stream for Outgoing {
    type Item = WorkerMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WorkerMessage>> {
        if let Some(hello) = self.hello.take() {
            return Poll::Ready(Some(hello.into()));
        }
        if self.cut.load(Ordering::Acquire) {
            return Poll::Ready(None);
        }
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.poll_recv(context).map(|event| event.map(WorkerMessage::from))
    }
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

/// What a certificate that is not accepted means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// Something is set up wrongly.
    Ends,
    /// It was accepted before: something else may answer while the coordinator is away.
    MayPass,
}

/// Tries, less and less often, until the coordinator answers or the time is up.
async fn connect(
    options: &SessionOptions,
    endpoint: &Endpoint,
    refusal: Refusal,
) -> Result<Channel, SessionError> {
    let deadline = Instant::now() + options.connect_timeout;
    let mut pause = RECONNECT_PAUSE;
    loop {
        let source = match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(source) => source,
        };
        let late = Instant::now() >= deadline;
        if let Some(error) = options.access.explain(&source).filter(|_| late || refusal == Refusal::Ends) {
            return Err(error.into());
        }
        if late {
            let (url, seconds) = (options.coordinator.clone(), options.connect_timeout.as_secs());
            return Err(SessionError::Unreachable { url, seconds, source });
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())
}
