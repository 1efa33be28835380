//! One connection, from its first byte to its end, its move or its upgrade.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Sleep, sleep, sleep_until, timeout};

use super::accept::Acceptor;
use super::conversation::Conversation;
use super::io::{Io, Parts};
use super::service::Watched;
use super::{App, BoxError, MARGIN};
use crate::live::{Baggage, Departure, Departures, Movable, Slot};
use crate::running::{Handle, Until};
use crate::watch::{Seat, Watch};

/// What HTTP/2 begins with where nobody has said before that it is HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take to close its end after the last answer. What it sends meanwhile is not
/// read: closed at once, the connection would be reset, and the answer with it perhaps.
const LINGER: Duration = Duration::from_secs(1);

/// How long it may take to the end of a drain at most, and so does not count as cut; less than [`MARGIN`].
const LAST_LINGER: Duration = Duration::from_millis(200);

/// How connections are served, and how they end.
#[derive(Debug)]
pub(super) struct Policy {
    /// For the application.
    pub(super) draining: Until,
    drain: Watch<Drain>,
    /// Cheaper to look at than the same in `drain`.
    version: AtomicU64,
    /// Connections do not change hands, or not any more: they end.
    ends: AtomicBool,
    pub(super) header_timeout: Duration,
    pub(super) idle_grace: Duration,
    /// How idle connections change hands.
    pub(super) departures: Option<Departures>,
    pub(super) http1: hyper::server::conn::http1::Builder,
    pub(super) http2: hyper::server::conn::http2::Builder<TokioExecutor>,
}

/// How this process ends, as far as that has begun.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// How often this has changed.
    version: u64,
    /// When it began.
    since: Option<Instant>,
    /// When it ends at the latest.
    until: Option<Instant>,
    /// Connections do not change hands, or not any more.
    ends: bool,
}

impl Drain {
    /// When whoever still has a connection is to be done with it, so that it is not cut.
    fn last_moment(&self) -> Option<Instant> {
        self.until.map(|until| until.checked_sub(MARGIN).unwrap_or(until))
    }
}

impl Policy {
    pub(super) fn new(
        handle: &Handle,
        departures: Option<Departures>,
        (header_timeout, idle_grace): (Duration, Duration),
        http1: hyper::server::conn::http1::Builder,
        http2: hyper::server::conn::http2::Builder<TokioExecutor>,
    ) -> Self {
        Self {
            draining: handle.draining(),
            drain: Watch::new(Drain::default()),
            version: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            header_timeout,
            idle_grace,
            departures,
            http1,
            http2,
        }
    }

    /// The drain has begun, or is to end at another time.
    pub(super) fn drains(&self, until: Option<Instant>) {
        let ends = self.departures.is_none();
        self.update(|drain| {
            drain.since.get_or_insert_with(Instant::now);
            drain.until = until;
            drain.ends |= ends;
        });
    }

    /// Connections do not change hands, or not any more.
    pub(super) fn ends(&self) {
        if !self.ends.load(Ordering::SeqCst) {
            self.update(|drain| drain.ends = true);
        }
    }

    fn update(&self, change: impl FnOnce(&mut Drain)) {
        self.drain.update(|drain| {
            change(drain);
            drain.version += 1;
            self.ends.store(drain.ends, Ordering::SeqCst);
            self.version.store(drain.version, Ordering::SeqCst);
        });
    }

    /// Whether an answer says that it is the last one. Not if there is another request already.
    pub(super) fn announces_end(&self, conversation: &Conversation) -> bool {
        // The task that tells of the drain may come a moment later than this answer.
        let is_over = || self.departures.as_ref().is_none_or(Departures::is_over);
        let stays = || conversation.stays() || is_over();
        let ends = self.ends.load(Ordering::SeqCst) || (stays() && self.draining.has_come());
        ends && !conversation.input_waits()
    }

    /// Until when a head that began then has to be complete.
    fn head_until(&self, began: Instant, drain: Drain) -> Option<Instant> {
        let usual = began.checked_add(self.header_timeout);
        let graceful = drain.since.and_then(|since| began.max(since).checked_add(self.idle_grace));
        earlier(usual, graceful)
    }

    /// Comes when a handshake has had its time.
    pub(super) async fn handshake_timeout(&self) {
        let begin = Instant::now();
        if timeout(self.header_timeout, self.draining.clone()).await.is_ok() {
            let left = self.header_timeout.saturating_sub(begin.elapsed());
            sleep(left.min(self.idle_grace)).await;
        }
    }
}

/// The earlier one, where none is never.
fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// The driver of a connection.
pub(super) struct Driver<S: App> {
    service: Watched<S>,
    slot: Option<Slot>,
    drain: Drain,
    seat: Seat,
    /// Who waits at the seat.
    seated: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
    timer_at: Option<Instant>,
}

/// What is to become of a connection that is between two requests.
enum Leave {
    Close,
    Move(Departure),
}

/// Where a connection went.
enum Left<T> {
    /// It is over, or somebody else's.
    Over,
    /// hyper has let go of it.
    Here(Parts<T>, Option<Leave>),
}

impl<S: App> Driver<S> {
    pub(super) fn new(service: Watched<S>) -> Self {
        Self {
            service,
            slot: None,
            drain: Drain::default(),
            seat: Seat::default(),
            seated: None,
            timer: None,
            timer_at: None,
        }
    }

    fn conversation(&self) -> &Arc<Conversation> {
        &self.service.conversation
    }

    /// How the drain stands; the task is woken when that changes.
    fn poll_drain(&mut self, cx: &Context<'_>) -> Drain {
        let policy = &self.service.policy;
        let mut is_seated = self.seated.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        while !is_seated || policy.version.load(Ordering::SeqCst) != self.drain.version {
            let known = self.drain.version;
            let news = |drain: &Drain| (drain.version != known).then_some(*drain);
            match policy.drain.poll(&mut self.seat, cx, news) {
                // Whoever was woken has to sit down again.
                Poll::Ready(drain) => (self.drain, is_seated) = (drain, false),
                Poll::Pending => is_seated = true,
            }
            self.seated = is_seated.then(|| cx.waker().clone());
        }
        self.drain
    }

    /// Whether that moment has come; the task is woken then.
    fn poll_timer(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> bool {
        let Some(at) = at else { return false };
        if self.timer_at != Some(at) {
            self.timer_at = Some(at);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(at.into()),
                None => self.timer = Some(Box::pin(sleep_until(at.into()))),
            }
        }
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    /// When a connection on which nothing is under way is closed.
    fn idle_until(&self, drain: Drain) -> Option<Instant> {
        let since = drain.since?;
        if !drain.ends && !self.conversation().stays() {
            return drain.last_moment();
        }
        let since = since.max(self.conversation().quiet_since());
        earlier(since.checked_add(self.service.policy.idle_grace), drain.last_moment())
    }

    /// Whether a connection on which nothing is under way may change hands.
    fn poll_move(&mut self, drain: Drain, cx: &mut Context<'_>) -> Option<Leave> {
        drain.since?;
        let policy = &self.service.policy;
        let departures = policy.departures.as_ref().filter(|_| !self.conversation().stays())?;
        let slot = self.slot.get_or_insert_with(|| departures.slot());
        let Poll::Ready(granted) = Pin::new(slot).poll(cx) else { return None };
        self.slot = None;
        match granted {
            Ok(departure) => Some(Leave::Move(departure)),
            Err(reason) => {
                // Nor does any other one.
                tracing::debug!(%reason, "connections stay");
                policy.ends();
                None
            }
        }
    }

    /// Whether a connection on which nothing is under way goes, and how.
    fn poll_leave(&mut self, drain: Drain, cx: &mut Context<'_>) -> Option<Leave> {
        if let Some(leave) = self.poll_move(drain, cx) {
            return Some(leave);
        }
        // It may have changed just now.
        let drain = self.poll_drain(cx);
        let at = self.idle_until(drain);
        self.poll_timer(at, cx).then_some(Leave::Close)
    }

    /// Serves a connection to its end.
    pub(super) async fn run<C, A>(mut self, mut parts: Parts<A::Stream>)
    where
        A: Acceptor<C>,
        C: Movable + Send,
    {
        if !A::is_plain(&parts.stream) {
            self.conversation().stay();
        }
        loop {
            let io = Io::new(parts, self.conversation());
            let left = match self.wait_for_request(io).await {
                First::Http1(io) => self.serve_http1(io).await,
                First::Http2(io) => return self.serve_http2(io).await,
                First::Leave(io, leave) => Left::Here(io.into_parts(), Some(leave)),
                First::Gone => return,
            };
            let Left::Here(mut here, leave) = left else { return };
            parts = match leave {
                Some(Leave::Move(departure)) => match self.give::<C, A>(here, departure).await {
                    Some(parts) => parts,
                    None => return,
                },
                // Something may have come at the last moment.
                Some(Leave::Close) if !has_come(&mut here).await => {
                    return end(here, self.linger()).await;
                }
                Some(Leave::Close) => here,
                None => return end(here, self.linger()).await,
            };
        }
    }

    /// Waits for the first bytes, and finds out what they begin. hyper is not to have a connection
    /// before: it closes one that has said nothing as soon as it is told of a drain.
    async fn wait_for_request<T>(&mut self, io: Io<T>) -> First<T>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let mut io = Some(io);
        let mut since = None;
        poll_fn(|cx| {
            loop {
                let Some(filled) = &mut io else { return Poll::Pending };
                filled.skip_empty_lines();
                let ahead = filled.ahead();
                let first: Option<fn(Io<T>) -> First<T>> = if ahead.starts_with(PREFACE) {
                    Some(First::Http2)
                } else if PREFACE.starts_with(ahead) {
                    None
                } else {
                    Some(First::Http1)
                };
                if let Some(first) = first {
                    return Poll::Ready(io.take().map_or(First::Gone, first));
                }
                match filled.poll_fill(cx) {
                    Poll::Ready(Ok(true)) => continue,
                    Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(First::Gone),
                    Poll::Pending => {}
                }
                let drain = self.poll_drain(cx);
                let leave = if filled.ahead().is_empty() {
                    self.poll_leave(drain, cx)
                } else {
                    let began = *since.get_or_insert_with(Instant::now);
                    let at = self.service.policy.head_until(began, drain);
                    if self.poll_timer(at, cx) {
                        return Poll::Ready(First::Gone);
                    }
                    self.poll_move(drain, cx)
                };
                return match leave {
                    Some(leave) => {
                        let leave = |io| First::Leave(io, leave);
                        Poll::Ready(io.take().map_or(First::Gone, leave))
                    }
                    None => Poll::Pending,
                };
            }
        })
        .await
    }

    async fn serve_http1<T>(&mut self, io: Io<T>) -> Left<T>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.conversation().begin_http1();
        let policy = Arc::clone(&self.service.policy);
        let served = policy.http1.serve_connection(TokioIo::new(io), self.service.clone());
        let mut served = served.with_upgrades();
        let (mut leave, mut is_told) = (None, false);
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(outcome) = Pin::new(&mut served).poll(cx) {
                return Poll::Ready(outcome.map_err(BoxError::from));
            }
            let drain = self.poll_drain(cx);
            if !self.conversation().is_quiet() {
                self.slot = None;
            } else if !is_told {
                leave = self.poll_leave(drain, cx);
                if leave.is_some() {
                    Pin::new(&mut served).graceful_shutdown();
                    if let Poll::Ready(outcome) = Pin::new(&mut served).poll(cx) {
                        return Poll::Ready(outcome.map_err(BoxError::from));
                    }
                    // As far as is known here it is between two requests. If hyper knows better, it ends
                    // after the next answer.
                    (leave, is_told) = (None, true);
                }
            } else if self.poll_timer(self.idle_until(drain), cx) {
                return Poll::Ready(Err("nothing is asked any more".into()));
            }
            if let Some(began) = self.conversation().head_since()
                && self.poll_timer(policy.head_until(began, drain), cx)
            {
                return Poll::Ready(Err("the client takes too long to send a head".into()));
            }
            Poll::Pending
        })
        .await;
        if let Err(error) = outcome {
            tracing::debug!(%error, "a connection ends");
            leave = None;
        }
        match served.into_parts() {
            Some(left) => {
                let mut parts = left.io.into_inner().into_parts();
                if !left.read_buf.is_empty() {
                    parts.ahead = BytesMut::from_iter(left.read_buf.iter().chain(&parts.ahead));
                }
                Left::Here(parts, leave)
            }
            None => Left::Over,
        }
    }

    async fn serve_http2<T>(&mut self, io: Io<T>)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.slot = None;
        self.conversation().begin_http2();
        self.conversation().stay();
        let policy = Arc::clone(&self.service.policy);
        let mut served =
            pin!(policy.http2.serve_connection(TokioIo::new(io), self.service.clone()));
        let mut is_ending = false;
        let outcome = poll_fn(|cx| {
            loop {
                if let Poll::Ready(outcome) = served.as_mut().poll(cx) {
                    return Poll::Ready(outcome.map_err(BoxError::from));
                }
                let drain = self.poll_drain(cx);
                if drain.since.is_none() {
                    return Poll::Pending;
                }
                if is_ending {
                    let is_quiet = self.conversation().answering() == 0;
                    if is_quiet && self.poll_timer(self.idle_until(drain), cx) {
                        return Poll::Ready(Err("the client does not heed the GOAWAY".into()));
                    }
                    return Poll::Pending;
                }
                // GOAWAY, once with the highest number and once more with the real one.
                is_ending = true;
                served.as_mut().graceful_shutdown();
            }
        })
        .await;
        if let Err(error) = outcome {
            tracing::debug!(%error, "a connection ends");
        }
    }

    /// Gives a connection to the successor; returns it if that does not take it.
    async fn give<C: Movable, A: Acceptor<C>>(
        &mut self,
        parts: Parts<A::Stream>,
        departure: Departure,
    ) -> Option<Parts<A::Stream>> {
        let Parts { stream, ahead, held } = parts;
        let connection = match A::into_plain(stream) {
            Ok(connection) => connection,
            Err(stream) => {
                self.conversation().stay();
                return Some(Parts { stream, ahead, held });
            }
        };
        let baggage = Baggage { unread: ahead.into(), state: Vec::new() };
        let back = departure.send(connection, baggage).await.err()?;
        tracing::debug!(reason = back.reason, "a connection stays");
        self.conversation().stay();
        let stream = A::from_plain(back.connection.ok()?)?;
        Some(Parts { stream, ahead: back.baggage.unread.as_slice().into(), held })
    }

    /// How long a client may take to close its end.
    fn linger(&self) -> Duration {
        let left = self.drain.last_moment().map(|at| at.saturating_duration_since(Instant::now()));
        left.map_or(LINGER, |left| LINGER.min(left.max(LAST_LINGER)))
    }
}

impl<S: App> Drop for Driver<S> {
    fn drop(&mut self) {
        self.service.policy.drain.leave(&mut self.seat);
    }
}

/// What a connection begins with.
enum First<T> {
    Http1(Io<T>),
    Http2(Io<T>),
    /// With nothing, and its time is up.
    Leave(Io<T>, Leave),
    Gone,
}

/// Whether the beginning of a request is here.
async fn has_come<T: AsyncRead + Unpin>(parts: &mut Parts<T>) -> bool {
    if !parts.ahead.is_empty() {
        return true;
    }
    let mut chunk = [0; 1024];
    let mut buffer = tokio::io::ReadBuf::new(&mut chunk);
    let read = poll_fn(|cx| Poll::Ready(Pin::new(&mut parts.stream).poll_read(cx, &mut buffer)));
    if matches!(read.await, Poll::Ready(Ok(()))) {
        parts.ahead.extend_from_slice(buffer.filled());
    }
    !parts.ahead.is_empty()
}

/// Ends a connection so that the client gets what was written.
async fn end<T: AsyncRead + AsyncWrite + Unpin>(mut parts: Parts<T>, linger: Duration) {
    let lingering = async {
        parts.stream.shutdown().await?;
        tokio::io::copy(&mut parts.stream, &mut tokio::io::sink()).await
    };
    // Whoever is slow has had its time.
    let _: Result<io::Result<u64>, _> = timeout(linger, lingering).await;
}

pub(super) fn timer() -> TokioTimer {
    TokioTimer::new()
}
