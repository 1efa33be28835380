//! One connection, from its first byte to its end, its move or its upgrade.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Sleep, sleep_until, timeout};

use super::accept::Acceptor;
use super::conversation::Conversation;
use super::io::{Io, Parts};
use super::service::Watched;
use super::{App, BoxError};
use crate::live::{Baggage, Departure, Departures, Movable, Slot};
use crate::running::Until;
use crate::watch::{Seat, Watch};

/// What HTTP/2 begins with where nobody has said before that it is HTTP/2 (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client may take to close its end after the last answer. What it sends meanwhile is not
/// read: closed at once, the connection would be reset, and the answer with it perhaps.
const LINGER: Duration = Duration::from_secs(1);

/// How connections are served, and how they end.
#[derive(Debug)]
pub(super) struct Policy {
    /// For the application.
    pub(super) draining: Until,
    pub(super) drain: Watch<Option<Drain>>,
    /// Cheaper to look at than the same in `drain`.
    pub(super) has_begun: AtomicBool,
    /// Connections do not change hands, or not any more: they end.
    pub(super) ends: AtomicBool,
    pub(super) header_timeout: Duration,
    pub(super) idle_grace: Duration,
    /// How idle connections change hands.
    pub(super) departures: Option<Departures>,
    pub(super) http1: hyper::server::conn::http1::Builder,
    pub(super) http2: hyper::server::conn::http2::Builder<TokioExecutor>,
}

/// This process does not accept any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// When connections that are idle are closed.
    pub(super) idle_until: Instant,
}

impl Policy {
    pub(super) fn begin_drain(&self, drain: Drain) {
        if self.departures.is_none() {
            self.ends.store(true, Ordering::SeqCst);
        }
        self.has_begun.store(true, Ordering::SeqCst);
        self.drain.update(|now| *now = Some(drain));
    }

    /// Whether an answer says that it is the last one. Not if there is another request already.
    pub(super) fn announces_end(&self, conversation: &Conversation) -> bool {
        // The task that tells of the drain may come a moment later than this answer.
        let ends = self.ends.load(Ordering::SeqCst)
            || (self.departures.is_none() && self.draining.has_come());
        ends && !conversation.input_waits()
    }

    /// How long a head may take to come.
    fn head_timeout(&self, is_draining: bool) -> Duration {
        let usual = self.header_timeout;
        if is_draining { usual.min(self.idle_grace) } else { usual }
    }
}

/// The driver of a connection.
pub(super) struct Driver<S: App> {
    service: Watched<S>,
    /// It cannot change hands.
    stays: bool,
    slot: Option<Slot>,
    drain: Option<Drain>,
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
            stays: false,
            slot: None,
            drain: None,
            seat: Seat::default(),
            seated: None,
            timer: None,
            timer_at: None,
        }
    }

    fn conversation(&self) -> &Arc<Conversation> {
        &self.service.conversation
    }

    /// Has the task woken when the drain begins; returns it when it has.
    fn poll_drain(&mut self, cx: &Context<'_>) -> Option<Drain> {
        let policy = &self.service.policy;
        let is_seated = self.seated.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if self.drain.is_none() && (!is_seated || policy.has_begun.load(Ordering::SeqCst)) {
            match policy.drain.poll(&mut self.seat, cx, |drain| *drain) {
                Poll::Ready(drain) => self.drain = Some(drain),
                Poll::Pending => self.seated = Some(cx.waker().clone()),
            }
        }
        self.drain
    }

    /// Whether that moment has come; the task is woken then.
    fn poll_timer(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        if self.timer_at != Some(at) {
            self.timer_at = Some(at);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(at.into()),
                None => self.timer = Some(Box::pin(sleep_until(at.into()))),
            }
        }
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    /// Whether a connection on which nothing is under way goes, and how.
    fn poll_leave(&mut self, drain: Drain, cx: &mut Context<'_>) -> Option<Leave> {
        let departures = self.service.policy.departures.as_ref().filter(|_| !self.stays);
        if let Some(departures) = departures {
            let slot = self.slot.get_or_insert_with(|| departures.slot());
            match Pin::new(slot).poll(cx) {
                Poll::Ready(Ok(departure)) => {
                    self.slot = None;
                    return Some(Leave::Move(departure));
                }
                Poll::Ready(Err(_)) => {
                    self.slot = None;
                    self.stays = true;
                }
                Poll::Pending => {}
            }
        }
        self.poll_timer(drain.idle_until, cx).then_some(Leave::Close)
    }

    /// Serves a connection to its end.
    pub(super) async fn run<C, A>(mut self, mut parts: Parts<A::Stream>, mut is_new: bool)
    where
        A: Acceptor<C>,
        C: Movable + Send,
    {
        loop {
            let io = Io::new(parts, self.conversation());
            let left = match self.wait_for_request(io, is_new).await {
                First::Http1(io) => self.serve_http1(io).await,
                First::Http2(io) => {
                    self.serve_http2(io).await;
                    return;
                }
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
                Some(Leave::Close) if !has_come(&mut here).await => return end(here).await,
                Some(Leave::Close) => here,
                None => return end(here).await,
            };
            is_new = false;
        }
    }

    /// Waits for the first bytes, and finds out what they begin. hyper is not to have a connection
    /// before: it closes one that has said nothing as soon as it is told of a drain.
    async fn wait_for_request<T>(&mut self, io: Io<T>, is_new: bool) -> First<T>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let mut io = Some(io);
        let since = Instant::now();
        poll_fn(|cx| {
            loop {
                let Some(filled) = &mut io else { return Poll::Pending };
                let ahead = filled.ahead();
                let is_known = !(is_new && PREFACE.starts_with(ahead));
                if is_known && !ahead.is_empty() {
                    let is_http2 = is_new && ahead.starts_with(PREFACE);
                    let first = if is_http2 { First::Http2 } else { First::Http1 };
                    return Poll::Ready(io.take().map_or(First::Gone, first));
                }
                if ahead.len() == PREFACE.len() {
                    return Poll::Ready(io.take().map_or(First::Gone, First::Http2));
                }
                match filled.poll_fill(cx) {
                    Poll::Ready(Ok(true)) => continue,
                    Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(First::Gone),
                    Poll::Pending => {}
                }
                let is_silent = filled.ahead().is_empty();
                let drain = self.poll_drain(cx);
                if let Some(drain) = drain
                    && let Some(leave) = self.poll_leave(drain, cx)
                {
                    let leave = |io| First::Leave(io, leave);
                    return Poll::Ready(io.take().map_or(First::Gone, leave));
                }
                if drain.is_none() && !is_silent {
                    let limit = self.service.policy.head_timeout(false);
                    if since.checked_add(limit).is_some_and(|at| self.poll_timer(at, cx)) {
                        return Poll::Ready(First::Gone);
                    }
                }
                return Poll::Pending;
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
        let mut leave = None;
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(outcome) = Pin::new(&mut served).poll(cx) {
                return Poll::Ready(outcome.map_err(BoxError::from));
            }
            let drain = self.poll_drain(cx);
            if let Some(drain) = drain
                && leave.is_none()
            {
                if self.conversation().is_quiet() {
                    leave = self.poll_leave(drain, cx);
                } else {
                    self.slot = None;
                }
                if leave.is_some() {
                    // As far as is known here it is between two requests. If hyper knows better, it
                    // ends after the next answer.
                    Pin::new(&mut served).graceful_shutdown();
                    if let Poll::Ready(outcome) = Pin::new(&mut served).poll(cx) {
                        return Poll::Ready(outcome.map_err(BoxError::from));
                    }
                    leave = Some(Leave::Close);
                }
            }
            let limit = self.service.policy.head_timeout(drain.is_some());
            let head_until = self.conversation().head_since().and_then(|at| at.checked_add(limit));
            if let Some(at) = head_until
                && self.poll_timer(at, cx)
            {
                return Poll::Ready(Err("the client takes too long to send a head".into()));
            }
            Poll::Pending
        })
        .await;
        if let Err(error) = outcome {
            tracing::debug!(%error, "a connection ends");
            return Left::Over;
        }
        match served.into_parts() {
            Some(left) => {
                let mut parts = left.io.into_inner().into_parts();
                parts.ahead.splice(..0, left.read_buf);
                Left::Here(parts, leave)
            }
            None => Left::Over,
        }
    }

    async fn serve_http2<T>(&mut self, io: Io<T>)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.conversation().begin_http2();
        let policy = Arc::clone(&self.service.policy);
        let mut served =
            pin!(policy.http2.serve_connection(TokioIo::new(io), self.service.clone()));
        let mut is_ending = false;
        let outcome = poll_fn(|cx| {
            loop {
                if let Poll::Ready(outcome) = served.as_mut().poll(cx) {
                    return Poll::Ready(outcome);
                }
                if is_ending || self.poll_drain(cx).is_none() {
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
                self.stays = true;
                return Some(Parts { stream, ahead, held });
            }
        };
        let baggage = Baggage { unread: ahead, state: Vec::new() };
        let back = departure.send(connection, baggage).await.err()?;
        tracing::debug!(reason = back.reason, "a connection stays");
        self.stays = true;
        let stream = A::from_plain(back.connection.ok()?)?;
        Some(Parts { stream, ahead: back.baggage.unread, held })
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
async fn end<T: AsyncRead + AsyncWrite + Unpin>(mut parts: Parts<T>) {
    let lingering = async {
        parts.stream.shutdown().await?;
        tokio::io::copy(&mut parts.stream, &mut tokio::io::sink()).await
    };
    // Whoever is slow has had its time.
    let _: Result<io::Result<u64>, _> = timeout(LINGER, lingering).await;
}

pub(super) fn timer() -> TokioTimer {
    TokioTimer::new()
}
