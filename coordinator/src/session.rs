//! The workers' side door: the gRPC service, and nothing but carrying messages.
//!
//! In: streams of workers. Out: [`Input`]s for the shell, domain types only. A stream that says
//! something that cannot be understood is ended with a status that names it; the shell hears that
//! the worker is gone.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use g2rl_common::ids::WorkerId;
use g2rl_proto::wire::session_server::{Session, SessionServer};
use g2rl_proto::wire::{CoordinatorMessage, WorkerMessage};
use g2rl_proto::{Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, WorkerEvent};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::shell::Input;

/// Messages waiting for one worker: a step's leases, of which a rank has at most its slots and a
/// quarter more. A worker that does not read so many is taken for hung.
const OUTGOING: usize = 4096;

/// A stream that has not said hello by then is ended.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a worker's messages go.
pub(crate) type Outgoing = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// One stream, from its hello to its end. A worker that connects twice has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(u64);

struct Service {
    inputs: mpsc::Sender<Input>,
    next: AtomicU64,
}

/// Serves workers until cancelled.
///
/// # Errors
/// If the server fails; the address is already bound.
pub(crate) async fn serve(
    listener: TcpListener,
    inputs: mpsc::Sender<Input>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = SessionServer::new(Service { inputs, next: AtomicU64::new(0) })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .tcp_nodelay(true)
        .add_service(service)
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.cancelled_owned())
        .await
}

/// The address in a form that workers on the same machine can use.
#[must_use]
pub(crate) fn local_url(address: SocketAddr) -> String {
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    format!("http://{host}:{}", address.port())
}

#[tonic::async_trait]
impl Session for Service {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let connection = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let inputs = self.inputs.clone();
        let mut incoming = request.into_inner();
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        // The hello is read by the stream's own task: a client may send it only after our answer to
        // its request has arrived.
        tokio::spawn(async move {
            let hello = match hello(&mut incoming).await {
                Ok(hello) => hello,
                Err(status) => {
                    tracing::warn!(message = status.message(), "refused a stream");
                    let _ = outgoing.send(Err(status)).await;
                    return;
                }
            };
            let worker = hello.worker.clone();
            let sender = outgoing.clone();
            if inputs.send(Input::Connected { connection, hello, outgoing: sender }).await.is_err() {
                return;
            }
            let reason = receive(&mut incoming, &worker, connection, &inputs).await;
            if let Err(status) = &reason {
                let _ = outgoing.try_send(Err(status.clone()));
            }
            let reason =
                reason.map_or_else(|status| status.message().to_owned(), |()| "the stream ended".to_owned());
            // Nobody listens only when the run is already over.
            let _ = inputs.send(Input::Disconnected { connection, worker, reason }).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

async fn hello(incoming: &mut Streaming<WorkerMessage>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no hello within {HELLO_TIMEOUT:?}")))??;
    let event =
        first.map(WorkerEvent::try_from).transpose().map_err(|e| Status::invalid_argument(e.to_string()))?;
    match event {
        Some(WorkerEvent::Hello(hello)) if hello.protocol_version == PROTOCOL_VERSION => Ok(hello),
        Some(WorkerEvent::Hello(hello)) => Err(Status::failed_precondition(format!(
            "worker {} speaks protocol version {}, this coordinator {PROTOCOL_VERSION}; update the older one",
            hello.worker, hello.protocol_version
        ))),
        _ => Err(Status::invalid_argument("the first message must be a hello")),
    }
}

/// Carries a worker's events until its stream ends.
async fn receive(
    incoming: &mut Streaming<WorkerMessage>,
    worker: &WorkerId,
    connection: ConnectionId,
    inputs: &mpsc::Sender<Input>,
) -> Result<(), Status> {
    while let Some(message) = incoming.message().await? {
        let event = WorkerEvent::try_from(message)
            .map_err(|e| Status::invalid_argument(format!("message from worker {worker}: {e}")))?;
        if inputs.send(Input::Worker { connection, worker: worker.clone(), event }).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
