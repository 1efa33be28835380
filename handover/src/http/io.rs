//! The stream that hyper has.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conversation::{Conversation, HeadEnd, Reading};
use super::limit::Place;
use crate::drain::Listed;

/// How much is read ahead at most.
const CHUNK: usize = 8 * 1024;

/// A stream of which one request is read at a time.
#[derive(Debug)]
pub(super) struct Io<T> {
    pub(super) stream: T,
    /// What has come and was not read.
    ahead: BytesMut,
    conversation: Arc<Conversation>,
    /// Ends with the connection, also when that is upgraded.
    held: Held,
}

/// What is held for as long as a connection is open.
#[derive(Debug)]
#[expect(dead_code, reason = "dropped with the connection")]
pub(super) struct Held {
    pub(super) listed: Listed,
    pub(super) place: Option<Place>,
}

/// A stream and what was not read from it.
pub(super) struct Parts<T> {
    pub(super) stream: T,
    pub(super) ahead: BytesMut,
    pub(super) held: Held,
}

impl<T> Io<T> {
    pub(super) fn new(parts: Parts<T>, conversation: &Arc<Conversation>) -> Self {
        let Parts { stream, ahead, held } = parts;
        conversation.set_input_waits(!ahead.is_empty());
        Self { stream, ahead, conversation: Arc::clone(conversation), held }
    }

    pub(super) fn into_parts(self) -> Parts<T> {
        Parts { stream: self.stream, ahead: self.ahead, held: self.held }
    }
}

impl<T: AsyncRead + Unpin> Io<T> {
    /// Waits for something to come, and keeps it. Returns false at the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut chunk = [std::mem::MaybeUninit::uninit(); CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
        self.ahead.extend_from_slice(chunk.filled());
        self.tell_of_ahead();
        Poll::Ready(Ok(!chunk.filled().is_empty()))
    }

    /// What has come and was not read.
    pub(super) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Passes over the empty lines that there may be before a request (RFC 9112, 2.2). Whoever has read
    /// them believes that a request has begun.
    pub(super) fn skip_empty_lines(&mut self) {
        let empty = self.ahead.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.ahead.advance(empty);
        self.tell_of_ahead();
    }

    fn tell_of_ahead(&self) {
        self.conversation.set_input_waits(!self.ahead.is_empty());
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Io<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let holds_back = this.conversation.holds_back(cx);
        if holds_back || this.conversation.reading() == Reading::Head(HeadEnd::Before) {
            loop {
                this.skip_empty_lines();
                if !this.ahead.is_empty() {
                    break;
                }
                // The end of the client is told; what belongs to the next request waits.
                if !ready!(this.poll_fill(cx))? {
                    return Poll::Ready(Ok(()));
                }
            }
            if holds_back {
                return Poll::Pending;
            }
        }
        if this.ahead.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
            let admitted = before + this.conversation.admit(&buffer.filled()[before..]);
            if admitted < buffer.filled().len() {
                this.ahead.extend_from_slice(&buffer.filled()[admitted..]);
                buffer.set_filled(admitted);
            }
        } else {
            let bytes = this.ahead.len().min(buffer.remaining());
            let admitted = this.conversation.admit(&this.ahead[..bytes]);
            buffer.put_slice(&this.ahead[..admitted]);
            this.ahead.advance(admitted);
        }
        if this.conversation.is_between() {
            this.skip_empty_lines();
        } else {
            this.tell_of_ahead();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Io<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.conversation.set_unflushed(true);
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.conversation.set_unflushed(true);
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper flushes when it has written everything that it has.
        self.conversation.set_unflushed(false);
        Poll::Ready(Ok(()))
    }

    /// Not of HTTP/1, of which the driver decides whether this is the end.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conversation.is_given_up() {
            return Pin::new(&mut self.stream).poll_shutdown(cx);
        }
        Poll::Ready(Ok(()))
    }
}
