//! A stream that hands on one WebSocket frame at a time, and only once the whole of it is here.
//!
//! tungstenite reads as much as it can get, and keeps to itself what belongs to later frames. Above this
//! it has nothing to keep: whatever is not handed on comes out with [`Paced::into_parts`], half a
//! frame as well.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest frame that is waited for, with its head. A longer one is handed on as it comes, for
/// whoever reads it to refuse.
pub(crate) const MAX_FRAME: usize = 32 * 1024;

const CHUNK: usize = 4 * 1024;

pub(crate) struct Paced<S> {
    stream: S,
    /// What has come and was not handed on.
    ahead: Vec<u8>,
    /// How much of it may be handed on: the rest of a frame.
    admitted: u64,
    /// Part of a message was handed on, and there is more of it to come.
    is_within_message: bool,
}

impl<S> Paced<S> {
    /// What was read of the stream already comes first.
    pub(crate) fn new(stream: S, unread: Vec<u8>) -> Self {
        Self { stream, ahead: unread, admitted: 0, is_within_message: false }
    }

    /// Whether what was handed on are messages, and no part of one.
    pub(crate) fn is_quiet(&self) -> bool {
        self.admitted == 0 && !self.is_within_message
    }

    /// The stream, and what has come and was not handed on.
    pub(crate) fn into_parts(self) -> (S, Vec<u8>) {
        (self.stream, self.ahead)
    }

    /// Admits the next frame, if it is here or will never fit.
    fn admit(&mut self) -> bool {
        let Some(head) = Head::read(&self.ahead) else { return false };
        let is_here = head.frame_length <= self.ahead.len() as u64;
        if !is_here && head.frame_length <= MAX_FRAME as u64 {
            return false;
        }
        self.admitted = head.frame_length;
        // A control frame may come between two parts of a message (RFC 6455, 5.4).
        if !head.is_control {
            self.is_within_message = !head.is_final;
        }
        true
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Waits for more; returns how much it is, nothing at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut chunk))?;
        self.ahead.extend_from_slice(chunk.filled());
        Poll::Ready(Ok(chunk.filled().len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.admitted == 0 && self.admit() {
                continue;
            }
            if self.admitted > 0 && !self.ahead.is_empty() {
                let here = self.ahead.len().min(buffer.remaining());
                let bytes = usize::try_from(self.admitted).map_or(here, |most| most.min(here));
                buffer.put_slice(&self.ahead[..bytes]);
                self.ahead.drain(..bytes);
                self.admitted -= bytes as u64;
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_more(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What the first bytes of a frame say (RFC 6455, 5.2).
struct Head {
    is_final: bool,
    is_control: bool,
    /// Of the whole frame, the head included.
    frame_length: u64,
}

impl Head {
    /// None if there are too few bytes.
    fn read(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else { return None };
        let (length_bytes, payload) = match second & 0x7f {
            126 => (2, u16::from_be_bytes(*rest.first_chunk()?).into()),
            127 => (8, u64::from_be_bytes(*rest.first_chunk()?)),
            short => (0, short.into()),
        };
        let mask_bytes = if second & 0x80 == 0 { 0 } else { 4 };
        Some(Self {
            is_final: first & 0x80 != 0,
            is_control: first & 0x08 != 0,
            frame_length: payload.saturating_add(2 + length_bytes + mask_bytes),
        })
    }
}
