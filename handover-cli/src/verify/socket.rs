//! The socket of a client, on which is seen how a connection ends.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The socket, and what was seen on it since the request began.
pub(super) struct Wire {
    pub(super) stream: TcpStream,
    has_written: AtomicBool,
    has_read: AtomicBool,
    /// The first end counts: writing into what is closed fails in ways of its own.
    end: OnceLock<End>,
}

/// How the connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Eof,
    EofThenReset,
    Reset,
    /// Not by the peer.
    Failed,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            has_written: AtomicBool::new(false),
            has_read: AtomicBool::new(false),
            end: OnceLock::new(),
        }
    }

    pub(super) fn begin(&self) {
        self.has_written.store(false, Ordering::Relaxed);
        self.has_read.store(false, Ordering::Relaxed);
    }

    pub(super) fn was_written(&self) -> bool {
        self.has_written.load(Ordering::Relaxed)
    }

    pub(super) fn has_answer(&self) -> bool {
        self.has_read.load(Ordering::Relaxed)
    }

    pub(super) fn end(&self) -> Option<End> {
        self.end.get().copied()
    }

    fn note_end(&self, end: End) {
        // An error means that an end was noted before.
        let _ = self.end.set(end);
    }

    fn note_error(&self, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        self.note_end(match error.kind() {
            // Linux, tcp_reset(): a reset after an end of file is EPIPE, any other ECONNRESET.
            BrokenPipe => End::EofThenReset,
            ConnectionReset | ConnectionAborted | NotConnected => End::Reset,
            _ => End::Failed,
        });
    }

    /// Says whether the kernel of the service rejects what we sent after its end of file.
    pub(super) async fn reset_follows(&self) -> bool {
        // On the loopback the reset is there before our write returns; elsewhere it takes one round
        // trip from the write, of which the request has used up a part.
        const PATIENCE: Duration = Duration::from_millis(50);
        if self.end() == Some(End::EofThenReset) {
            return true;
        }
        let _ = timeout(PATIENCE, self.stream.ready(Interest::ERROR)).await;
        matches!(self.stream.take_error(), Ok(Some(_)))
    }

    /// Reads, and throws away, until the peer has closed.
    pub(super) async fn ended(&self) {
        let mut scratch = [0; 64];
        while self.end().is_none() {
            if self.stream.readable().await.is_err() {
                return;
            }
            match self.stream.try_read(&mut scratch) {
                Ok(0) => self.note_end(End::Eof),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => self.note_error(&error),
            }
        }
    }
}

/// The socket as hyper uses it. Its shutdown does nothing, so that the service can close first.
pub(super) struct WireIo(pub(super) Arc<Wire>);

impl AsyncRead for WireIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &self.0;
        loop {
            ready!(wire.stream.poll_read_ready(cx))?;
            match wire.stream.try_read(buf.initialize_unfilled()) {
                Ok(0) => wire.note_end(End::Eof),
                Ok(count) => {
                    wire.has_read.store(true, Ordering::Relaxed);
                    buf.advance(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => {
                    wire.note_error(&error);
                    return Poll::Ready(Err(error));
                }
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for WireIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = &self.0;
        loop {
            ready!(wire.stream.poll_write_ready(cx))?;
            match wire.stream.try_write(buf) {
                Ok(count) => {
                    wire.has_written.store(true, Ordering::Relaxed);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    wire.note_error(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
