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
//! A connection that cannot change hands although it is to (TLS, or refused) drains as above. Where no successor
//! takes them, because it is not live itself or is gone, all do: after a second at most.
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
mod limit;
mod service;

use std::fmt;
use std::future::{Future, IntoFuture, poll_fn};
use std::io::Result;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http_body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioExecutor;
use hyper_util::service::TowerToHyperService;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tower_service::Service;

pub use accept::{Acceptor, Listener, Plain};

use crate::drain::{Describe, InFlight};
use crate::engine::Status;
use crate::running::{Handle, Until};
use crate::watch::Seat;
use crate::{Connection, Ending};
use connection::{Driver, Policy};
use conversation::Conversation;
use io::{Held, Parts};
use limit::Limit;
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
    /// 30 seconds by default. In a drain it has the [grace](Self::idle_grace) at most.
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Sets how many connections there may be at a time; any number by default. More wait in the queue of the
    /// listener. Connections that arrive from an older generation count, and are never refused.
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
    in_flight: Arc<InFlight>,
    limit: Option<Limit>,
    nodelay: bool,
    /// Dropped with the last connection.
    _alive: mpsc::Sender<()>,
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
        let times = (self.header_timeout, self.idle_grace);
        let policy = Policy::new(&handle, departures, times, self.http1, self.http2);
        let policy = Arc::new(policy);
        let (alive, mut all_gone) = mpsc::channel(1);
        let service = TowerToHyperService::new(self.service);
        let server = Arc::new(Server {
            acceptor: self.acceptor,
            policy: Arc::clone(&policy),
            in_flight: Arc::clone(&handle.shared().in_flight),
            limit: self.max_connections.map(Limit::new),
            nodelay: self.nodelay,
            _alive: alive,
        });
        tokio::spawn(tell_of_drain(handle.clone(), Arc::downgrade(&policy)));
        drop(policy);
        if let Some(name) = live {
            let arrivals = handle.arrivals(&name, STATE_VERSION..=STATE_VERSION);
            let mut arrivals = arrivals.map_err(std::io::Error::other)?;
            let (server, service) = (Arc::clone(&server), service.clone());
            tokio::spawn(async move {
                while let Some(arrival) = arrivals.next().await {
                    match arrival.into_connection::<L::Stream>() {
                        Ok((connection, baggage)) => {
                            server.resume::<L, S>(connection, &baggage.unread, service.clone());
                        }
                        Err(error) => tracing::warn!(%error, "a connection is lost"),
                    }
                }
            });
        }
        let outcome = server.accept_all::<L, S>(&self.listener, service).await;
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
    ) -> Result<()>
    where
        L: Listener,
        A: Acceptor<L::Stream>,
        S: App,
    {
        loop {
            let Some((connection, peer)) = self.accept_one(listener).await? else { return Ok(()) };
            if self.nodelay
                && let Err(error) = L::set_nodelay(&connection)
            {
                // It has ended already.
                tracing::debug!(%error, "a connection ends");
            }
            let (conversation, held) = self.enlist(&peer);
            let (server, service) = (Arc::clone(self), service.clone());
            tokio::spawn(async move {
                let shaking = server.acceptor.accept(connection);
                match unless(server.policy.handshake_timeout(), shaking).await {
                    Some(Ok(stream)) => {
                        let parts = Parts { stream, ahead: BytesMut::new(), held };
                        server.drive::<L, S>(parts, peer, conversation, service).await;
                    }
                    Some(Err(error)) => tracing::debug!(%peer, %error, "no handshake"),
                    None => tracing::debug!(%peer, "the client takes too long to shake hands"),
                }
            });
        }
    }

    /// Goes on with a connection that has come from an older generation.
    fn resume<L, S>(
        self: &Arc<Self>,
        connection: Connection<L::Stream>,
        unread: &[u8],
        service: TowerToHyperService<S>,
    ) where
        L: Listener,
        A: Acceptor<L::Stream>,
        S: App,
    {
        let peer = L::peer(&connection);
        let Some(stream) = A::from_plain(connection) else { return };
        let (conversation, held) = self.enlist(&peer);
        let parts = Parts { stream, ahead: unread.into(), held };
        let server = Arc::clone(self);
        tokio::spawn(async move {
            server.drive::<L, S>(parts, peer, conversation, service).await;
        });
    }

    /// Accepts as many as there may be; `None` when there are no more to come.
    async fn accept_one<L: Listener>(
        &self,
        listener: &L,
    ) -> Result<Option<(Connection<L::Stream>, Peer)>> {
        let Some(limit) = &self.limit else { return listener.accept().await };
        let (mut accepting, mut ended) = (pin!(listener.accept()), pin!(listener.ended()));
        let mut seat = Seat::default();
        let accepted = poll_fn(|cx| match limit.poll(&mut seat, cx) {
            Poll::Ready(()) => accepting.as_mut().poll(cx),
            Poll::Pending => ended.as_mut().poll(cx).map(|()| Ok(None)),
        });
        let accepted = accepted.await;
        limit.leave(&mut seat);
        accepted
    }

    /// Counts a connection, and has it told of if it is cut.
    fn enlist(&self, peer: &Peer) -> (Arc<Conversation>, Held) {
        let conversation = Conversation::new(peer.to_string(), Instant::now());
        let described = Arc::clone(&conversation) as Arc<dyn Describe>;
        let place = self.limit.as_ref().map(Limit::enter);
        let held = Held { listed: self.in_flight.list(described), place };
        (conversation, held)
    }

    async fn drive<L, S>(
        &self,
        parts: Parts<A::Stream>,
        peer: Peer,
        conversation: Arc<Conversation>,
        service: TowerToHyperService<S>,
    ) where
        L: Listener,
        A: Acceptor<L::Stream>,
        S: App,
    {
        let service = Watched { service, conversation, policy: Arc::clone(&self.policy), peer };
        Driver::new(service).run::<L::Stream, A>(parts).await;
    }
}

/// What is wanted, unless the other comes before.
async fn unless<T>(end: impl Future<Output = ()>, wanted: impl Future<Output = T>) -> Option<T> {
    let (mut wanted, mut end) = (pin!(wanted), pin!(end));
    poll_fn(|cx| match wanted.as_mut().poll(cx) {
        Poll::Ready(wanted) => Poll::Ready(Some(wanted)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Tells all connections when this process accepts nothing more, until when they may go on, and whether they
/// can go to the successor.
async fn tell_of_drain(handle: Handle, policy: Weak<Policy>) {
    handle.draining().await;
    let mut patience = pin!(successor_takes(&handle, &policy));
    let (mut seat, mut is_patient, mut known) = (Seat::default(), true, None);
    poll_fn(|cx| {
        loop {
            let news = |status: &Status| {
                let until = status.drain_deadline;
                (known != Some(until)).then_some(until)
            };
            let Poll::Ready(until) = handle.shared().status.poll(&mut seat, cx, news) else {
                break;
            };
            known = Some(until);
            let Some(policy) = policy.upgrade() else { return Poll::Ready(()) };
            policy.drains(until);
        }
        if is_patient && let Poll::Ready(takes) = patience.as_mut().poll(cx) {
            is_patient = false;
            if !takes && let Some(policy) = policy.upgrade() {
                policy.ends();
            }
        }
        Poll::Pending
    })
    .await;
    handle.shared().status.leave(&mut seat);
}

/// Whether there is a successor that takes connections.
async fn successor_takes(handle: &Handle, policy: &Weak<Policy>) -> bool {
    let departures = policy.upgrade().and_then(|policy| policy.departures.clone());
    match departures {
        Some(departures) if handle.ending() == Some(Ending::HandedOver) => {
            // It is not used: it only shows that there are some.
            matches!(timeout(PATIENCE, departures.slot()).await, Ok(Ok(_)))
        }
        _ => false,
    }
}
