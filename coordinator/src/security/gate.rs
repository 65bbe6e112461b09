//! How many connections, how fast, and how long without a hello.
//!
//! Before TLS and before any request: a stranger costs a socket for a few seconds, and never more than a
//! quarter of what a port has. A connection that is admitted, which its hello does, is left alone.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use metrics::counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::limits::{AddressLimits, Throttle};

/// Refused requests after which a connection is closed.
const MAX_FAILURES: u32 = 8;

/// Wait after the system could not accept: most likely there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a port bears.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GateOptions {
    /// Connections at once.
    pub(crate) connections: u32,
    /// New connections of one address in a minute.
    pub(crate) per_minute: u32,
    /// A connection that is not admitted by then is closed.
    pub(crate) deadline: Duration,
    /// Connections without a hello are worth a line in the log.
    pub(crate) expects_hello: bool,
}

/// Guards a port.
#[derive(Debug)]
pub(crate) struct Gate {
    options: GateOptions,
    connections: Arc<Semaphore>,
    addresses: Mutex<AddressLimits>,
    log: Throttle,
}

impl Gate {
    pub(crate) fn new(options: GateOptions) -> Arc<Self> {
        Arc::new(Self {
            connections: Arc::new(Semaphore::new(options.connections as usize)),
            addresses: Mutex::new(AddressLimits::new(options.per_minute, options.connections / 4)),
            log: Throttle::default(),
            options,
        })
    }

    /// A place for a connection that the system has accepted.
    fn enter(self: &Arc<Self>, address: SocketAddr) -> Option<(Arc<Peer>, OwnedSemaphorePermit)> {
        let Ok(permit) = self.connections.clone().try_acquire_owned() else {
            self.refuse(address, "full");
            return None;
        };
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if !addresses.admit(address.ip(), Instant::now()) {
            drop(addresses);
            self.refuse(address, "rate");
            return None;
        }
        let (admitted, failures) = (AtomicBool::new(false), AtomicU32::new(0));
        Some((Arc::new(Peer { address, gate: self.clone(), admitted, failures }), permit))
    }

    fn settle(&self, address: SocketAddr) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).settle(address.ip());
    }

    fn refuse(&self, address: SocketAddr, reason: &'static str) {
        if self.options.expects_hello {
            counter!("g2rl_connections_refused_total", "reason" => reason).increment(1);
        }
        if let Some(times) = self.log.pass(Instant::now()) {
            tracing::warn!(%address, reason, times, "refused a connection");
        }
    }
}

/// The other end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    address: SocketAddr,
    gate: Arc<Gate>,
    admitted: AtomicBool,
    failures: AtomicU32,
}

impl Peer {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// It has shown who it is.
    pub(crate) fn admit(&self) {
        if !self.admitted.swap(true, Ordering::AcqRel) {
            self.gate.settle(self.address);
        }
    }

    /// A request was refused.
    pub(crate) fn fail(&self) {
        self.failures.fetch_add(1, Ordering::AcqRel);
    }

    fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if !self.is_admitted() {
            self.gate.settle(self.address);
        }
    }
}

/// A connection that is closed if it is not admitted in time.
#[derive(Debug)]
pub(crate) struct Gated {
    io: TcpStream,
    peer: Arc<Peer>,
    deadline: Option<Pin<Box<Sleep>>>,
    overdue: bool,
    _place: OwnedSemaphorePermit,
}

impl Gated {
    /// An error once the connection has used up its time or its failures.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(deadline) = &mut self.deadline else { return Ok(()) };
        if self.peer.is_admitted() {
            self.deadline = None;
            return Ok(());
        }
        if self.overdue || deadline.as_mut().poll(context).is_ready() {
            self.overdue = true;
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.peer.failures.load(Ordering::Acquire) >= MAX_FAILURES {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let failed = self.peer.failures.load(Ordering::Acquire) > 0;
        // Refused requests have been counted, and a scrape needs no hello.
        if self.peer.gate.options.expects_hello && !self.peer.is_admitted() && !failed {
            let reason = if self.overdue { "silent" } else { "unfinished" };
            self.peer.gate.refuse(self.peer.address, reason);
        }
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl Connected for Gated {
    type ConnectInfo = Arc<Peer>;

    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

/// A port behind a gate.
#[derive(Debug)]
pub(crate) struct GatedListener {
    listener: TcpListener,
    gate: Arc<Gate>,
}

impl GatedListener {
    pub(crate) fn new(listener: TcpListener, options: GateOptions) -> Self {
        Self { listener, gate: Gate::new(options) }
    }

    async fn next(&self) -> Gated {
        loop {
            let (io, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some((peer, place)) = self.gate.enter(address) else { continue };
            // A socket that refuses is only slower: small messages wait for the answer to earlier ones.
            let _ = io.set_nodelay(true);
            let deadline = Box::pin(tokio::time::sleep(self.gate.options.deadline));
            return Gated { io, peer, deadline: Some(deadline), overdue: false, _place: place };
        }
    }

    /// Connections as the gRPC server takes them.
    pub(crate) fn into_stream(self) -> impl Stream<Item = io::Result<Gated>> {
        futures::stream::unfold(self, async |listener| Some((Ok(listener.next().await), listener)))
    }
}

impl axum::serve::Listener for GatedListener {
    type Io = Gated;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Gated, SocketAddr) {
        let connection = self.next().await;
        let address = connection.peer.address;
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const OPTIONS: GateOptions = GateOptions {
        connections: 8,
        per_minute: 1000,
        deadline: Duration::from_millis(100),
        expects_hello: true,
    };

    async fn listener_with(options: GateOptions) -> (GatedListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (GatedListener::new(listener, options), address)
    }

    #[tokio::test]
    async fn who_says_nothing_is_closed_and_who_was_admitted_is_not() {
        let (listener, address) = listener_with(OPTIONS).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.next().await;
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (listener, address) = listener_with(GateOptions { deadline: Duration::ZERO, ..OPTIONS }).await;
        let mut worker = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.next().await;
        connection.peer.admit();
        worker.write_u8(7).await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn wrong_tokens_close_a_connection() {
        let (listener, address) =
            listener_with(GateOptions { deadline: Duration::from_secs(60), ..OPTIONS }).await;
        let _guesser = TcpStream::connect(address).await.unwrap();
        let mut connection = listener.next().await;
        (0..MAX_FAILURES).for_each(|_| connection.peer.fail());
        assert_eq!(connection.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    /// Two of eight places are for those of one address without a hello.
    #[tokio::test]
    async fn an_address_cannot_take_all_places() {
        let (listener, address) =
            listener_with(GateOptions { deadline: Duration::from_secs(60), ..OPTIONS }).await;
        let connect = || TcpStream::connect(address);
        let _clients = (connect().await.unwrap(), connect().await.unwrap());
        let held = (listener.next().await, listener.next().await);
        let mut third = connect().await.unwrap();
        let mut fourth = connect().await.unwrap();
        // The third is closed while the listener waits for one that it may take.
        let next = tokio::spawn(async move { (listener.next().await, listener) });
        assert_eq!(third.read(&mut [0]).await.unwrap_or(0), 0);
        assert_eq!(fourth.read(&mut [0]).await.unwrap_or(0), 0);
        held.0.peer.admit();
        let mut fifth = connect().await.unwrap();
        let (mut connection, _listener) = next.await.unwrap();
        fifth.write_u8(5).await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), 5);
    }
}
