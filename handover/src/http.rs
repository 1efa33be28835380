//! HTTP served through a handover: nothing that was accepted is dropped, nothing idle is surprised.
//!
//! [`serve`] takes a listener of this library, a service and the running process, and serves HTTP/1 and
//! HTTP/2 with hyper: axum's `Router`, tonic's `Routes`, and whatever else is a
//! `tower_service::Service` of requests.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use handover::tokio::{TcpListener, ready};
//! use handover::{Handover, http};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let handover = Handover::builder().start()?;
//! let listener: TcpListener = handover.listen("http", "127.0.0.1:8080")?;
//! let app: Router = Router::new().route("/", get(async || "hello\n"));
//! let running = ready(handover).await?;
//! tokio::spawn(http::serve(listener, app, &running.handle()).into_future());
//! running.drain().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What becomes of connections
//!
//! When this process does not accept any more, because a successor does or it is stopped:
//!
//! - What was accepted gets its answer, also if nothing of it was read yet. So does what is half sent.
//! - HTTP/1: the next answer says `Connection: close`, unless another request is here already: then the answer
//!   to the last one does. A connection on which nothing is asked is closed after a
//!   [grace](Serve::idle_grace), and not if something has come.
//! - HTTP/2: a GOAWAY that refuses nothing, and once the client has seen it another one that tells what the last stream
//!   is (RFC 9113, 6.8). Streams finish.
//! - Bodies of requests and responses go on to their end. So do upgraded connections (WebSocket, CONNECT),
//!   server-sent events and long polls; the application is told by [`Session::draining`], and can end them in
//!   its own way.
//! - What is left when the [drain timeout](crate::Builder::drain_timeout) is over is cut: counted in
//!   [`Drained::cut`](crate::Drained::cut), and logged with the peer, its age and what it was doing.
//!
//! With [`Serve::live`] HTTP/1 connections do not end at all: between two requests they change hands, and the successor
//! goes on with them.
//!
//! A connection that cannot change hands although it is to (TLS, or refused) drains without being told of it. One
//! that moved before its first request cannot begin HTTP/2.
//!
//! What hyper buffers of requests that were pipelined after one with a chunked body is not seen: the answer to that one
//! may say `Connection: close` although there are more.
//!
//! # Without this module
//!
//! `axum::serve` works on the listeners as well (feature `axum`), with
//! `with_graceful_shutdown(listener.ended())` too. It lacks: answers to connections of which nothing was read when
//! the drain began (hyper closes them), a grace for idle ones (they are closed at once, unannounced), the log of what was
//! cut, limits, and live connections.

mod accept;
mod connection;
mod conversation;
mod io;
mod service;

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::io::Result;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use http_body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tower_service::Service;

pub use accept::{Acceptor, Listener, Plain};

use crate::drain::Describe;
use crate::running::{Handle, Until};
use crate::watch::Watch;
use crate::{Connection, Ending};
use connection::{Drain, Driver, Policy};
use conversation::Conversation;
use io::{Held, Parts};
use service::Watched;

/// How long a connection may be idle in a drain before it is closed, unless [`Serve::idle_grace`] says
/// otherwise.
pub const DEFAULT_IDLE_GRACE: Duration = Duration::from_secs(10);

/// How long the head of a request may take to come, unless [`Serve::header_timeout`] says otherwise.
pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long before the end of the drain idle connections are closed at the latest.
const MARGIN: Duration = Duration::from_millis(500);

/// How long a successor has to say that it takes connections. Answers given meanwhile announce nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which connections change hands, as far as their state goes: there is none yet.
const STATE_VERSION: u32 = 1;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves HTTP on a listener until this process accepts nothing more, and then what was accepted to its end.
///
/// A builder, to be awaited or spawned as `serve(..).into_future()`. It ends without an error when all
/// connections have; upgraded ones are left to the application.
pub fn serve<L: Listener, S>(listener: L, service: S, handle: &Handle) -> Serve<L, S> {
    Serve {
        listener,
        service,
        handle: handle.clone(),
        acceptor: Plain,
        idle_grace: DEFAULT_IDLE_GRACE,
        header_timeout: DEFAULT_HEADER_TIMEOUT,
        max_connections: None,
        nodelay: true,
        live: false,
        http1: hyper::server::conn::http1::Builder::new(),
        http2: hyper::server::conn::http2::Builder::new(TokioExecutor::new()),
    }
}

/// How HTTP is served; made by [`serve`].
#[must_use = "nothing is served unless it is awaited"]
pub struct Serve<L, S, A = Plain> {
    listener: L,
    service: S,
    handle: Handle,
    acceptor: A,
    idle_grace: Duration,
    header_timeout: Duration,
    max_connections: Option<usize>,
    nodelay: bool,
    live: bool,
    http1: hyper::server::conn::http1::Builder,
    http2: hyper::server::conn::http2::Builder<TokioExecutor>,
}

impl<L, S, A> fmt::Debug for Serve<L, S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").finish_non_exhaustive()
    }
}

impl<L, S, A> Serve<L, S, A> {
    /// Sets how long a connection may be idle in a drain before it is closed; 10 seconds by default, and
    /// half a second less than the drain may take at most. Clients that do not look whether an idle connection
    /// was closed before they use it need as much as they wait between two requests.
    pub fn idle_grace(mut self, grace: Duration) -> Self {
        self.idle_grace = grace;
        self
    }

    /// Sets how long the head of a request, or the handshake of an [`acceptor`](Self::acceptor), may take;
    /// 30 seconds by default. In a drain the head has the [grace](Self::idle_grace) at most; a handshake does not.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Sets how many connections there may be at a time; any number by default. More wait in the queue of the
    /// listener. Connections that arrive from an older generation do not count.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// Sets whether small writes are sent at once (`TCP_NODELAY`, tcp(7)); they are by default.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Has idle HTTP/1 connections change hands at an upgrade instead of ending; see [`live`](crate::live). Both
    /// generations have to be live, on a listener of the same name. Connections that are encrypted, are
    /// upgraded, or speak HTTP/2 drain.
    pub fn live(mut self, live: bool) -> Self {
        self.live = live;
        self
    }

    /// Changes how HTTP/1 is spoken: limits of headers and buffers, say. Its timeout of headers is
    /// [`header_timeout`](Self::header_timeout)'s to set.
    pub fn http1(mut self, set: impl FnOnce(&mut hyper::server::conn::http1::Builder)) -> Self {
        set(&mut self.http1);
        self
    }

    /// Changes how HTTP/2 is spoken: windows, streams at a time, pings, say.
    pub fn http2(
        mut self,
        set: impl FnOnce(&mut hyper::server::conn::http2::Builder<TokioExecutor>),
    ) -> Self {
        set(&mut self.http2);
        self
    }

    /// Sets what makes of an accepted connection the stream that HTTP is spoken on: a TLS handshake. It has
    /// the [`header_timeout`](Self::header_timeout).
    pub fn acceptor<B>(self, acceptor: B) -> Serve<L, S, B>
    where
        L: Listener,
        B: Acceptor<L::Stream>,
    {
        let Self { listener, service, handle, acceptor: _, .. } = self;
        Serve {
            listener,
            service,
            handle,
            acceptor,
            idle_grace: self.idle_grace,
            header_timeout: self.header_timeout,
            max_connections: self.max_connections,
            nodelay: self.nodelay,
            live: self.live,
            http1: self.http1,
            http2: self.http2,
        }
    }
}

impl<L: Listener, S: App, A: Acceptor<L::Stream>> IntoFuture for Serve<L, S, A> {
    type Output = Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// An application: every `tower_service::Service` of requests is one that can be cloned and sent.
pub trait App:
    Service<
        Request<Incoming>,
        Response = Response<Self::Body>,
        Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    /// The body of its responses.
    type Body: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + 'static;
}

impl<S, B> App for S
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Body = B;
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP client.
    Inet(SocketAddr),
    /// A client of a Unix socket, and its process when it connected, if that is known (`SO_PEERCRED`,
    /// unix(7)).
    Unix {
        /// The process.
        pid: Option<u32>,
    },
    /// The connection had ended before it could be asked.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix { pid: Some(pid) } => write!(f, "process {pid}"),
            Self::Unix { pid: None } => f.write_str("a process"),
            Self::Unknown => f.write_str("somebody"),
        }
    }
}

/// The connection of a request; an extension of each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Session {
    /// Who is at the other end.
    pub peer: Peer,
    draining: Until,
}

impl Session {
    /// Comes when this process does not accept any more. For what would go on for long: events are to end, a
    /// WebSocket is to be closed with a code that has the client come back.
    pub fn draining(&self) -> Until {
        self.draining.clone()
    }
}

/// What all connections of a listener share.
struct Server<A> {
    acceptor: A,
    policy: Arc<Policy>,
    handle: Handle,
    nodelay: bool,
    /// Dropped with the last connection.
    alive: mpsc::Sender<()>,
}

impl<L: Listener, S: App, A: Acceptor<L::Stream>> Serve<L, S, A> {
    async fn run(mut self) -> Result<()> {
        // hyper's own counts idleness, too.
        self.http1.timer(connection::timer()).header_read_timeout(None);
        self.http2.timer(connection::timer());
        let handle = self.handle;
        let live = self.live.then(|| self.listener.name()).transpose()?;
        let live = live.map(|name| format!("http:{name}"));
        let departures = match &live {
            Some(name) => handle.departures(name, STATE_VERSION).ok(),
            None => None,
        };
        let policy = Arc::new(Policy {
            draining: handle.draining(),
            drain: Watch::new(None),
            has_begun: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            header_timeout: self.header_timeout,
            idle_grace: self.idle_grace,
            departures,
            http1: self.http1,
            http2: self.http2,
        });
        let (alive, mut all_gone) = mpsc::channel(1);
        let service = TowerToHyperService::new(self.service);
        let server = Arc::new(Server {
            acceptor: self.acceptor,
            policy: Arc::clone(&policy),
            handle: handle.clone(),
            nodelay: self.nodelay,
            alive,
        });
        tokio::spawn(tell_of_drain(handle.clone(), policy));
        if let Some(name) = live {
            let arrivals = handle.arrivals(&name, STATE_VERSION..=STATE_VERSION);
            let mut arrivals = arrivals.map_err(std::io::Error::other)?;
            let (server, service) = (Arc::clone(&server), service.clone());
            tokio::spawn(async move {
                while let Some(arrival) = arrivals.next().await {
                    match arrival.into_connection::<L::Stream>() {
                        Ok((connection, baggage)) => {
                            let peer = L::peer(&connection);
                            server.resume::<L, S>(
                                connection,
                                baggage.unread,
                                peer,
                                service.clone(),
                            );
                        }
                        Err(error) => tracing::warn!(%error, "a connection is lost"),
                    }
                }
            });
        }
        let limit = self.max_connections.map(|connections| Arc::new(Semaphore::new(connections)));
        let outcome = server.accept_all::<L, S>(&self.listener, service, limit).await;
        drop((self.listener, server));
        // Nothing is ever sent.
        let _: Option<()> = all_gone.recv().await;
        outcome
    }
}

impl<A> Server<A> {
    async fn accept_all<L, S>(
        self: &Arc<Self>,
        listener: &L,
        service: TowerToHyperService<S>,
        limit: Option<Arc<Semaphore>>,
    ) -> Result<()>
    where
        L: Listener,
        A: Acceptor<L::Stream>,
        S: App,
    {
        loop {
            let permit = match &limit {
                None => None,
                Some(limit) => match permit(limit, listener.ended()).await {
                    Some(permit) => Some(permit),
                    // None is left, and no more are to come.
                    None => return Ok(()),
                },
            };
            let Some((connection, peer)) = listener.accept().await? else { return Ok(()) };
            if self.nodelay
                && let Err(error) = L::set_nodelay(&connection)
            {
                // It has ended already.
                tracing::debug!(%error, "a connection ends");
            }
            let (server, service) = (Arc::clone(self), service.clone());
            tokio::spawn(async move {
                let shaking = server.acceptor.accept(connection);
                match timeout(server.policy.header_timeout, shaking).await {
                    Ok(Ok(stream)) => {
                        let parts = (stream, Vec::new());
                        server.drive::<L, S>(parts, peer, permit, service, true).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no handshake"),
                    Err(_) => tracing::debug!(%peer, "the client takes too long to shake hands"),
                }
            });
        }
    }

    /// Goes on with a connection that has come from an older generation.
    fn resume<L, S>(
        self: &Arc<Self>,
        connection: Connection<L::Stream>,
        unread: Vec<u8>,
        peer: Peer,
        service: TowerToHyperService<S>,
    ) where
        L: Listener,
        A: Acceptor<L::Stream>,
        S: App,
    {
        let Some(stream) = A::from_plain(connection) else { return };
        let server = Arc::clone(self);
        tokio::spawn(async move {
            server.drive::<L, S>((stream, unread), peer, None, service, false).await;
        });
    }

    async fn drive<L, S>(
        &self,
        (stream, ahead): (A::Stream, Vec<u8>),
        peer: Peer,
        permit: Option<OwnedSemaphorePermit>,
        service: TowerToHyperService<S>,
        is_new: bool,
    ) where
        L: Listener,
        A: Acceptor<L::Stream>,
        S: App,
    {
        let conversation = Conversation::new(peer.to_string(), Instant::now());
        let described = Arc::clone(&conversation) as Arc<dyn Describe>;
        let held = Held { listed: self.handle.shared().in_flight.list(described), permit };
        let service = Watched { service, conversation, policy: Arc::clone(&self.policy), peer };
        let alive = self.alive.clone();
        let parts = Parts { stream, ahead, held };
        Driver::new(service).run::<L::Stream, A>(parts, is_new).await;
        drop(alive);
    }
}

/// A place for a connection, unless no more are to come.
async fn permit(
    limit: &Arc<Semaphore>,
    ended: impl Future<Output = ()>,
) -> Option<OwnedSemaphorePermit> {
    let mut acquiring = pin!(Arc::clone(limit).acquire_owned());
    let mut ended = pin!(ended);
    poll_fn(|cx| match acquiring.as_mut().poll(cx) {
        Poll::Ready(permit) => Poll::Ready(permit.ok()),
        Poll::Pending => ended.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Tells all connections when this process accepts nothing more, and whether they can go to the successor.
async fn tell_of_drain(handle: Handle, policy: Arc<Policy>) {
    handle.draining().await;
    let now = Instant::now();
    let idle = policy.idle_grace;
    let left = handle.drain_left().map_or(idle, |left| left.saturating_sub(MARGIN).min(idle));
    policy.begin_drain(Drain { idle_until: now.checked_add(left).unwrap_or(now) });
    let Some(departures) = &policy.departures else { return };
    let is_replaced = handle.ending() == Some(Ending::HandedOver);
    // The slot is not used: it only shows that there are some.
    if !is_replaced || !matches!(timeout(PATIENCE, departures.slot()).await, Ok(Ok(_))) {
        policy.ends.store(true, Ordering::SeqCst);
    }
}
