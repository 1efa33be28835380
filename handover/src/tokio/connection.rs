//! Accepted connections in Tokio.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::register::register;
use crate::listener::Connection;

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        (**self).is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self).poll_shutdown(cx)
    }
}

/// A Unix seqpacket connection: a stream of messages that stay apart (unix(7)).
#[derive(Debug)]
pub struct SeqpacketStream(AsyncFd<Socket>);

impl SeqpacketStream {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        register(Socket::from(fd), Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Sends one message.
    ///
    /// # Errors
    ///
    /// As send(2).
    pub async fn send(&self, message: &[u8]) -> io::Result<usize> {
        self.0.async_io(Interest::WRITABLE, |socket| socket.send(message)).await
    }

    /// Waits for one message; 0 bytes at the end. What does not fit the buffer is lost.
    ///
    /// # Errors
    ///
    /// As recv(2).
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |mut socket: &Socket| io::Read::read(&mut socket, buffer);
        self.0.async_io(Interest::READABLE, read).await
    }
}
