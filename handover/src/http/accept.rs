//! What connections are served on: listeners, and what is between them and HTTP.

use std::future::{Future, ready};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use super::Peer;
use crate::listener::Connection;
use crate::live::Movable;
use crate::tokio::{TcpListener, UnixListener};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::TcpListener {}
    impl Sealed for super::UnixListener {}
}

/// A listener of this library that HTTP can be served on.
pub trait Listener: sealed::Sealed + Send + Sync + 'static {
    /// The streams that it accepts.
    type Stream: Movable + AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Accepts, as the listener's own method does.
    #[doc(hidden)]
    fn accept(
        &self,
    ) -> impl Future<Output = io::Result<Option<(Connection<Self::Stream>, Peer)>>> + Send;

    /// Comes when it accepts nothing more.
    #[doc(hidden)]
    fn ended(&self) -> impl Future<Output = ()> + Send + 'static;

    /// The listener's name.
    #[doc(hidden)]
    fn name(&self) -> io::Result<String>;

    /// Who is at the other end.
    #[doc(hidden)]
    fn peer(stream: &Self::Stream) -> Peer;

    /// Has small answers sent at once.
    #[doc(hidden)]
    fn set_nodelay(stream: &Self::Stream) -> io::Result<()>;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Option<(Connection<Self::Stream>, Peer)>> {
        let accepted = Self::accept(self).await?;
        Ok(accepted.map(|(connection, from)| (connection, Peer::Inet(from))))
    }

    fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        Self::ended(self)
    }

    fn name(&self) -> io::Result<String> {
        self.0.name()
    }

    fn peer(stream: &Self::Stream) -> Peer {
        stream.peer_addr().map_or(Peer::Unknown, Peer::Inet)
    }

    fn set_nodelay(stream: &Self::Stream) -> io::Result<()> {
        stream.set_nodelay(true)
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Option<(Connection<Self::Stream>, Peer)>> {
        let accepted = Self::accept(self).await?;
        Ok(accepted.map(|connection| {
            let peer = <Self as Listener>::peer(&connection);
            (connection, peer)
        }))
    }

    fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        Self::ended(self)
    }

    fn name(&self) -> io::Result<String> {
        self.0.name()
    }

    fn peer(stream: &Self::Stream) -> Peer {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        Peer::Unix { pid: pid.and_then(|pid| u32::try_from(pid).ok()) }
    }

    fn set_nodelay(_: &Self::Stream) -> io::Result<()> {
        Ok(())
    }
}

/// What makes of an accepted connection the stream that HTTP is spoken on: TLS, say. Every
/// `Fn(Connection<S>) -> impl Future<Output = io::Result<Stream>>` is one.
pub trait Acceptor<S>: Clone + Send + Sync + 'static {
    /// The stream.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Shakes hands.
    fn accept(
        &self,
        connection: Connection<S>,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Whether this is the connection as it was, of which nothing is in the memory of this process; only such
    /// a one can change hands. False by default.
    fn is_plain(_: &Self::Stream) -> bool {
        false
    }

    /// The connection as it was, if it [is](Self::is_plain).
    ///
    /// # Errors
    ///
    /// The stream, if there is.
    fn into_plain(stream: Self::Stream) -> Result<Connection<S>, Self::Stream> {
        Err(stream)
    }

    /// The stream of a plain connection, where there are any.
    fn from_plain(_: Connection<S>) -> Option<Self::Stream> {
        None
    }
}

/// Connections as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Acceptor<S> for Plain {
    type Stream = Connection<S>;

    fn accept(
        &self,
        connection: Connection<S>,
    ) -> impl Future<Output = io::Result<Connection<S>>> + Send {
        ready(Ok(connection))
    }

    fn is_plain(_: &Connection<S>) -> bool {
        true
    }

    fn into_plain(stream: Connection<S>) -> Result<Connection<S>, Connection<S>> {
        Ok(stream)
    }

    fn from_plain(connection: Connection<S>) -> Option<Connection<S>> {
        Some(connection)
    }
}

impl<S, F, R, T> Acceptor<S> for F
where
    F: Fn(Connection<S>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = io::Result<T>> + Send,
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Stream = T;

    fn accept(&self, connection: Connection<S>) -> impl Future<Output = io::Result<T>> + Send {
        self(connection)
    }
}
