//! The workers' side door: the gRPC service, and nothing but carrying messages.
//!
//! In: streams of workers. Out: [`Input`]s for the shell, domain types only. A stream that says
//! something that cannot be understood is ended with a status that names it; the shell hears that
//! the worker is gone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::Stream;
use g2rl_common::ids::WorkerId;
use g2rl_proto::wire::session_server::{Session, SessionServer};
use g2rl_proto::wire::{CoordinatorMessage, WorkerMessage};
use g2rl_proto::{Hello, MAX_MESSAGE_BYTES, PROTOCOL_VERSION, WorkerEvent};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::InterceptorLayer;
use tonic::{Request, Response, Status, Streaming};

use crate::security::{Bearer, GatedListener, Peer, Security};
use crate::shell::Input;

/// Messages waiting for one worker: a step's leases, of which a rank has at most its slots and a
/// quarter more. A worker that does not read so many is taken for hung.
const OUTGOING: usize = 4096;

/// Requests at once on one connection; a worker has one.
const MAX_STREAMS: u32 = 4;

/// Headers of a request, bytes; a worker's have some hundreds.
const MAX_HEADER_BYTES: u32 = 8 << 10;

/// Longest name in a hello, bytes.
const MAX_NAME: usize = 256;

/// Where a worker's messages go.
pub(crate) type Outgoing = mpsc::Sender<Result<CoordinatorMessage, Status>>;

/// One stream, from its hello to its end. A worker that connects twice has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(u64);

struct Service {
    inputs: mpsc::Sender<Input>,
    hello_timeout: Duration,
    next: AtomicU64,
}

/// Serves workers until cancelled.
///
/// # Errors
/// If the server fails; the address is already bound.
pub(crate) async fn serve(
    listener: TcpListener,
    security: Security,
    inputs: mpsc::Sender<Input>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let hello_timeout = security.hello_timeout;
    let service = SessionServer::new(Service { inputs, hello_timeout, next: AtomicU64::new(0) })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let mut server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .max_concurrent_streams(MAX_STREAMS);
    if let Some(tls) = security.tls {
        server = server.tls_config(tls)?;
    }
    let incoming = GatedListener::new(listener, security.gate).into_stream();
    server
        .layer(InterceptorLayer::new(Bearer::new(security.token)))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned())
        .await
}

/// The address in a form that workers on the same machine can use.
#[must_use]
pub(crate) fn local_url(mut address: SocketAddr, tls: bool) -> String {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("{}://{address}", if tls { "https" } else { "http" })
}

#[tonic::async_trait]
impl Session for Service {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let connection = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let (inputs, hello_timeout) = (self.inputs.clone(), self.hello_timeout);
        let peer = request.extensions().get::<Arc<Peer>>().cloned();
        let mut incoming = request.into_inner();
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        // The hello is read by the stream's own task: a client may send it only after our answer to
        // its request has arrived.
        tokio::spawn(async move {
            let hello = match hello(&mut incoming, hello_timeout).await {
                Ok(hello) => hello,
                Err(status) => {
                    let address = peer.map(|peer| peer.address().to_string());
                    tracing::warn!(address, message = status.message(), "refused a stream");
                    let _ = outgoing.send(Err(status)).await;
                    return;
                }
            };
            if let Some(peer) = peer {
                peer.admit();
            }
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

async fn hello(incoming: &mut Streaming<WorkerMessage>, limit: Duration) -> Result<Hello, Status> {
    let first = tokio::time::timeout(limit, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded(format!("no hello within {limit:?}")))??;
    let event =
        first.map(WorkerEvent::try_from).transpose().map_err(|e| Status::invalid_argument(e.to_string()))?;
    match event {
        Some(WorkerEvent::Hello(hello)) if hello.protocol_version == PROTOCOL_VERSION => {
            // They go into logs and to other ranks.
            let plain = |name: &str| name.len() <= MAX_NAME && !name.chars().any(char::is_control);
            let names = [&hello.worker.0, &hello.hostname, &hello.address, &hello.device];
            if names.into_iter().all(|name| plain(name)) {
                return Ok(hello);
            }
            let limit = format!("at most {MAX_NAME} bytes without control characters");
            Err(Status::invalid_argument(format!("a hello's names must have {limit}")))
        }
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
