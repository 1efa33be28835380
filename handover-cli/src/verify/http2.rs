//! HTTP/2 from the client's side, and what became of a request on it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::loss::{Kind, Loss};
use super::socket::{End, Wire, WireIo};
use super::tally::Close;
use super::target::Identity;
use super::wire::{KEPT_BYTES, judge};

/// A connection to the service, on which any number of requests are under way at once.
///
/// `open` it, let its [`Driver`] run, and `exchange` for as long as it is not over. HTTP/2 is h2's,
/// without hyper around it: only h2 tells a stream that GOAWAY disowns from one that broke.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    socket: Arc<Socket>,
}

/// Moves the bytes of a connection until it ends.
pub(crate) struct Driver {
    connection: h2::client::Connection<Io>,
    sender: SendRequest<Bytes>,
    socket: Arc<Socket>,
}

/// Why there is no complete answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection was over before anything of the request was written.
    Unsent,
    /// The service has said that it did nothing about the request: by GOAWAY or REFUSED_STREAM, after
    /// which any client may send it again (RFC 9113, 8.7).
    Unprocessed,
    Lost(Loss),
}

struct Socket {
    wire: Arc<Wire>,
    written_bytes: AtomicU64,
    is_over: AtomicBool,
}

impl Connection {
    /// Speaks HTTP/2 on a connected socket, as one who knows that the service does.
    pub(crate) async fn open(stream: TcpStream) -> Result<(Self, Driver), Loss> {
        // What RFC 9113, 6.5.2 wants a service to allow at least; it holds until the service has said
        // what it does allow.
        const FIRST_STREAMS: usize = 100;

        let socket = Arc::new(Socket {
            wire: Arc::new(Wire::new(stream)),
            written_bytes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let io = Io {
            wire: WireIo(Arc::clone(&socket.wire)),
            socket: Arc::clone(&socket),
            end_was_due: false,
        };
        let (sender, connection) = Builder::new()
            .initial_max_send_streams(FIRST_STREAMS)
            .enable_push(false)
            .handshake(io)
            .await
            .map_err(|error| Loss::new(Kind::Other, format!("cannot speak HTTP/2: {error}")))?;
        let driver = Driver { connection, sender: sender.clone(), socket: Arc::clone(&socket) };
        Ok((Self { sender, socket }, driver))
    }

    /// Says whether the service takes no more requests here.
    pub(crate) fn is_over(&self) -> bool {
        self.socket.is_over.load(Ordering::Relaxed)
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn exchange(
        &self,
        request: Request<()>,
        identity: &Identity,
    ) -> Result<Result<String, Loss>, Failure> {
        let sender = self.sender.clone().ready().await;
        let mut sender = sender.map_err(|error| self.unsent(&error))?;
        let written_before = self.socket.written_bytes();
        let (response, _body) =
            sender.send_request(request, true).map_err(|error| self.unsent(&error))?;
        let mut response = match response.await {
            Ok(response) => response,
            Err(error) if is_unprocessed(&error) => return Err(Failure::Unprocessed),
            Err(_) if self.is_unwritten_since(written_before) => return Err(Failure::Unsent),
            Err(error) => return Err(Failure::Lost(self.loss(&error, "before the answer"))),
        };
        match read_body(&mut response).await {
            Ok(start) => Ok(judge(&response, &start, identity)),
            Err(error) => Err(Failure::Lost(self.loss(&error, MIDDLE))),
        }
    }

    /// What it means that a request could not even be handed over.
    fn unsent(&self, error: &h2::Error) -> Failure {
        self.socket.is_over.store(true, Ordering::Relaxed);
        if error.is_library() {
            return Failure::Lost(not_http2(error));
        }
        Failure::Unsent
    }

    fn is_unwritten_since(&self, written_before: u64) -> bool {
        self.socket.wire.end().is_some() && self.socket.written_bytes() == written_before
    }

    /// Says what the end of a stream or of its connection means.
    fn loss(&self, error: &h2::Error, place: &'static str) -> Loss {
        let is_answered = place == MIDDLE;
        if error.is_remote() && error.is_reset() {
            let kind = if is_answered { Kind::Cut } else { Kind::Reset };
            let reason = error.reason().unwrap_or(Reason::NO_ERROR);
            return Loss::new(kind, format!("the stream was reset {place}: {reason:?}"));
        }
        match self.socket.wire.end() {
            None => not_http2(error),
            Some(End::Failed) => {
                Loss::new(Kind::Other, format!("cannot use the connection: {error}"))
            }
            Some(_) if is_answered => {
                Loss::new(Kind::Cut, "the connection ended in the middle of the answer")
            }
            Some(End::Reset) => {
                Loss::new(Kind::Reset, "the connection was reset before the answer")
            }
            Some(End::Eof | End::EofThenReset) => {
                Loss::new(Kind::Cut, "the connection was closed without an answer")
            }
        }
    }
}

const MIDDLE: &str = "in the middle of the answer";

fn not_http2(error: &h2::Error) -> Loss {
    Loss::new(Kind::Wrong, format!("not HTTP/2: {error}"))
}

/// Says whether the service did nothing about the request.
///
/// h2 ends a stream with the error of a GOAWAY that came from the peer only if the GOAWAY names a lower
/// last stream.
fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}

/// Reads a body and its trailers, and returns its beginning.
async fn read_body(response: &mut Response<RecvStream>) -> Result<Vec<u8>, h2::Error> {
    let body = response.body_mut();
    let mut start = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let wanted = KEPT_BYTES.saturating_sub(start.len()).min(data.len());
        start.extend_from_slice(&data[..wanted]);
        body.flow_control().release_capacity(data.len())?;
    }
    body.trailers().await?;
    Ok(start)
}

impl Driver {
    /// Moves the bytes to the end of the connection, and tells once how the service ended it.
    pub(crate) async fn run(mut self, closed: impl FnOnce(Close)) {
        let (close, is_done) = poll_fn(|cx| self.poll_close(cx)).await;
        self.socket.is_over.store(true, Ordering::Relaxed);
        if let Some(close) = close {
            closed(close);
        }
        if !is_done {
            // Streams finish. How they end is told to whoever waits for an answer.
            let _ = self.connection.await;
        }
    }

    /// Waits for a GOAWAY, or for an end without; that is no close by the service if it still has
    /// the connection. Returns as well whether the connection is done.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<(Option<Close>, bool)> {
        let is_done = Pin::new(&mut self.connection).poll(cx).is_ready();
        let refusal = match self.sender.poll_ready(cx) {
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        if refusal.is_some_and(|error| error.is_go_away() && error.is_remote()) {
            return Poll::Ready((Some(Close::Announced), is_done));
        }
        if is_done {
            let was_closed = self.socket.wire.end().is_some();
            return Poll::Ready((was_closed.then_some(Close::Unannounced), true));
        }
        Poll::Pending
    }
}

impl Socket {
    fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

/// The socket as h2 uses it, so that h2 sees everything that the service said before it closed.
struct Io {
    wire: WireIo,
    socket: Arc<Socket>,
    end_was_due: bool,
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let read = ready!(Pin::new(&mut self.wire).poll_read(cx, buf));
        let is_end = read.is_err() || buf.filled().len() == filled;
        if is_end && !self.end_was_due {
            // h2 forgets a GOAWAY for an error that it finds in the same turn; with the end in a turn
            // of its own, the driver can look in between.
            self.end_was_due = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.end_was_due {
            // Nobody would answer, and what is not written has surely not been processed.
            return Poll::Ready(Ok(buf.len()));
        }
        match ready!(Pin::new(&mut self.wire).poll_write(cx, buf)) {
            Ok(count) => {
                self.socket.written_bytes.fetch_add(count as u64, Ordering::Relaxed);
                Poll::Ready(Ok(count))
            }
            // h2 would read no more, though answers and a GOAWAY may have come before the end.
            Err(_) => Poll::Ready(Ok(buf.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const PREFACE_BYTES: usize = 24;
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// The last stream is 0.
    const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    /// `:status: 200` and the body 1, on stream 1.
    const ANSWER: &[u8] = &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88, 0, 0, 1, 0, 1, 0, 0, 0, 1, b'1'];

    #[tokio::test]
    async fn a_goaway_is_seen_though_writing_fails_first() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_connection, driver) = Connection::open(stream).await.unwrap();
        let mut service = listener.accept().unwrap().0;
        // With a byte unread, closing resets the connection.
        service.read_exact(&mut [0; PREFACE_BYTES - 1]).unwrap();
        service.write_all(&[SETTINGS, GOAWAY].concat()).unwrap();
        drop(service);

        let mut closed = None;
        let ended = timeout(Duration::from_secs(10), driver.run(|close| closed = Some(close)));
        ended.await.expect("the end is noticed");
        assert_eq!(closed, Some(Close::Announced));
    }

    #[tokio::test]
    async fn a_request_on_a_connection_that_was_closed_meanwhile_is_unsent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (connection, driver) = Connection::open(stream).await.unwrap();
        let mut closed = None;
        let mut driver = Box::pin(driver.run(|close| closed = Some(close)));
        let mut service = listener.accept().unwrap().0;
        service.write_all(&[SETTINGS, ANSWER].concat()).unwrap();
        let request = || Request::get("http://localhost/").body(()).unwrap();
        let exchange = || connection.exchange(request(), &Identity::LeadingNumber);
        let answer = tokio::select! {
            // The request comes before the answer is read.
            biased;
            answer = exchange() => answer.unwrap(),
            () = &mut driver => panic!("it is closed later"),
        };
        assert_eq!(answer.unwrap(), "1");

        // The end of file is there, but nobody has looked.
        service.shutdown(Shutdown::Write).unwrap();
        let stream = &connection.socket.wire.stream;
        assert_eq!(stream.peek(&mut [0]).await.unwrap(), 0);
        let both = async { tokio::join!(exchange(), driver) };
        let (failure, ()) = timeout(Duration::from_secs(10), both).await.expect("it is noticed");
        assert!(matches!(failure, Err(Failure::Unsent)), "{failure:?}");
        assert_eq!(closed, Some(Close::Unannounced));
    }
}
