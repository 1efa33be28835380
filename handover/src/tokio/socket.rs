//! Listeners and datagram sockets in Tokio.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net as unix;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use socket2::{SockAddr, SockRef};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::time::sleep_until;

use super::connection::SeqpacketStream;
use super::register::register;
use crate::drain::Guard;
use crate::gate::{Stance, Turned};
use crate::listener::{Address, Attempted, Claim, Connection, Endpoint, Kind, sealed};
use crate::sys::socket::{Accepted, Blocking, receive_from};

/// Accepts TCP connections until this generation must stop.
///
/// Made by `Handover::listen`. Dropping it closes it.
#[derive(Debug)]
pub struct TcpListener(pub(crate) Socket);

/// Accepts Unix stream connections until this generation must stop.
///
/// Made by `Handover::listen`. Dropping it closes it, and removes its path if it still serves.
#[derive(Debug)]
pub struct UnixListener(pub(crate) Socket);

/// Accepts Unix seqpacket connections until this generation must stop.
///
/// Made by `Handover::listen`. Dropping it closes it, and removes its path if it still serves.
#[derive(Debug)]
pub struct UnixSeqpacketListener(Socket);

/// Takes UDP datagrams until this generation must stop.
///
/// All generations share one socket and its queue, so nothing is lost when the reader changes. Made
/// by `Handover::listen`.
#[derive(Debug)]
pub struct UdpSocket(Socket);

/// Takes Unix datagrams until this generation must stop.
///
/// Made by `Handover::listen`.
#[derive(Debug)]
pub struct UnixDatagram(Socket);

macro_rules! claim {
    ($socket:ident, $kind:expr) => {
        impl sealed::Claim for $socket {
            const KIND: Kind = $kind;

            fn from_endpoint(endpoint: Arc<Endpoint>) -> io::Result<Self> {
                Socket::new(endpoint).map(Self)
            }
        }

        impl Claim for $socket {}

        impl $socket {
            /// The address that the socket has.
            ///
            /// # Errors
            ///
            /// As getsockname(2).
            pub fn local_addr(&self) -> io::Result<Address> {
                self.0.open()?.endpoint.local_address()
            }

            /// The socket itself, to look at its options and to set them.
            ///
            /// # Errors
            ///
            /// If it is closed: `axum::serve` was told that this generation accepts nothing more.
            pub fn socket(&self) -> io::Result<SockRef<'_>> {
                Ok(SockRef::from(&*self.0.open()?.endpoint))
            }

            /// Comes when this generation takes nothing more from this socket: at the commit of a
            /// handover, or, on a stop and for a socket that the successor did not claim, when
            /// what was queued has been taken.
            ///
            /// For `axum::serve(..).with_graceful_shutdown(..)`, if idle connections are to end at
            /// once. hyper then closes them unannounced, and without an answer those whose first
            /// request it has not read.
            pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
                // Not the endpoint itself, which would stay open with the future.
                let gate = self.0.open().map(|open| Arc::clone(open.endpoint.gate())).ok();
                async move {
                    if let Some(gate) = gate {
                        Turned::new(gate, |stance| stance == Stance::Ended).await;
                    }
                }
            }
        }
    };
}

macro_rules! listener {
    ($listener:ident, $item:ty, $open:expr) => {
        impl $listener {
            /// Waits for a connection; `None` when this generation must not accept any more.
            ///
            /// Errors that pass, or that concern one connection only, are not reported. Dropping
            /// the future loses no connection.
            ///
            /// # Errors
            ///
            /// If the listener itself is of no more use: somebody has shut it down.
            pub async fn accept(&self) -> io::Result<Option<$item>> {
                let open: fn(Accepted, Guard) -> io::Result<$item> = $open;
                while let Some((accepted, guard)) =
                    self.0.take(|endpoint| endpoint.accept(Blocking::No)).await?
                {
                    match open(accepted, guard) {
                        Ok(item) => return Ok(Some(item)),
                        // The runtime could not take it: the kernel is out of memory.
                        Err(error) => tracing::warn!(%error, "a connection is lost"),
                    }
                }
                Ok(None)
            }

            /// A stream of connections; ends when this generation must not accept any more.
            pub fn incoming(self) -> Incoming<$item> {
                let listener = Arc::new(self);
                Incoming::new(move || {
                    let listener = Arc::clone(&listener);
                    Box::pin(async move { listener.accept().await.transpose() })
                })
            }
        }
    };
}

claim!(TcpListener, Kind::Tcp);
claim!(UnixListener, Kind::UnixStream);
claim!(UnixSeqpacketListener, Kind::UnixSeqpacket);
claim!(UdpSocket, Kind::Udp);
claim!(UnixDatagram, Kind::UnixDatagram);

listener!(TcpListener, (Connection<tokio::net::TcpStream>, SocketAddr), |(fd, from), guard| {
    let stream = std::net::TcpStream::from(fd);
    let from = from.map_or_else(|| stream.peer_addr(), Ok)?;
    Ok((Connection::new(tokio::net::TcpStream::from_std(stream)?, guard), from))
});
listener!(UnixListener, Connection<tokio::net::UnixStream>, |(fd, _), guard| {
    let stream = tokio::net::UnixStream::from_std(unix::UnixStream::from(fd))?;
    Ok(Connection::new(stream, guard))
});
listener!(UnixSeqpacketListener, Connection<SeqpacketStream>, |(fd, _), guard| {
    Ok(Connection::new(SeqpacketStream::new(fd)?, guard))
});

impl TcpListener {
    /// A Tokio listener on the same socket. It knows nothing of the handover: what it accepts is
    /// not counted, and it goes on accepting whatever happens.
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn try_clone_tokio(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.0.open()?.endpoint.try_clone()?.into())
    }
}

impl UnixListener {
    /// A Tokio listener on the same socket; see [`TcpListener::try_clone_tokio`].
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn try_clone_tokio(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.0.open()?.endpoint.try_clone()?.into())
    }
}

impl UdpSocket {
    /// Waits for a datagram; `None` when this generation must not take any more. The guard counts
    /// it as in flight.
    ///
    /// # Errors
    ///
    /// As recvfrom(2), but for errors that pass.
    pub async fn recv_from(
        &self,
        buffer: &mut [u8],
    ) -> io::Result<Option<(usize, SocketAddr, Guard)>> {
        loop {
            let Some(((bytes, from), guard)) = self.0.receive(buffer).await? else {
                return Ok(None);
            };
            if let Some(from) = from.as_socket() {
                return Ok(Some((bytes, from, guard)));
            }
        }
    }

    /// Sends a datagram; also when this generation takes none any more.
    ///
    /// # Errors
    ///
    /// As sendto(2).
    pub async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0.send(datagram, &to.into()).await
    }
}

impl UnixDatagram {
    /// Waits for a datagram; `None` when this generation must not take any more. The guard counts
    /// it as in flight. The address is unnamed if the sender did not bind one.
    ///
    /// # Errors
    ///
    /// As recvfrom(2), but for errors that pass.
    pub async fn recv_from(
        &self,
        buffer: &mut [u8],
    ) -> io::Result<Option<(usize, SockAddr, Guard)>> {
        let received = self.0.receive(buffer).await?;
        Ok(received.map(|((bytes, from), guard)| (bytes, from, guard)))
    }

    /// Sends a datagram; also when this generation takes none any more.
    ///
    /// # Errors
    ///
    /// As sendto(2).
    pub async fn send_to(&self, datagram: &[u8], to: &SockAddr) -> io::Result<usize> {
        self.0.send(datagram, to).await
    }
}

/// A stream of connections; made by `incoming` of a listener.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Incoming<T> {
    next: Box<dyn FnMut() -> NextConnection<T> + Send>,
    pending: Option<NextConnection<T>>,
}

type NextConnection<T> = Pin<Box<dyn Future<Output = Option<io::Result<T>>> + Send>>;

impl<T> Incoming<T> {
    fn new(next: impl FnMut() -> NextConnection<T> + Send + 'static) -> Self {
        Self { next: Box::new(next), pending: None }
    }
}

impl<T> std::fmt::Debug for Incoming<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl<T> Stream for Incoming<T> {
    type Item = io::Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let pending = this.pending.get_or_insert_with(|| (this.next)());
        let item = std::task::ready!(pending.as_mut().poll(cx));
        this.pending = None;
        Poll::Ready(item)
    }
}

/// A socket of the service, registered with the runtime. Dropping it takes it out of the runtime's
/// epoll before it is closed, which matters as other processes have it open.
#[derive(Debug)]
pub(crate) struct Socket(Option<Open>);

#[derive(Debug)]
struct Open {
    registered: OnceLock<AsyncFd<Arc<Endpoint>>>,
    registering: Mutex<()>,
    endpoint: Arc<Endpoint>,
}

impl Open {
    fn registered(&self) -> io::Result<&AsyncFd<Arc<Endpoint>>> {
        if self.registered.get().is_none() {
            let _alone = self.registering.lock().unwrap_or_else(PoisonError::into_inner);
            if self.registered.get().is_none() {
                let interest = Interest::READABLE | Interest::WRITABLE;
                // It is not set: nobody else is here.
                let _ = self.registered.set(register(Arc::clone(&self.endpoint), interest)?);
            }
        }
        self.registered.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Socket {
    fn new(endpoint: Arc<Endpoint>) -> io::Result<Self> {
        let (registered, registering) = (OnceLock::new(), Mutex::new(()));
        let open = Open { registered, registering, endpoint };
        // Epoll tells of a socket that does not listen yet that it is hung up, and the runtime
        // takes that for its end.
        if open.endpoint.is_heard() {
            open.registered()?;
        }
        Ok(Self(Some(open)))
    }

    /// Its name.
    #[cfg(feature = "http")]
    pub(crate) fn name(&self) -> io::Result<String> {
        Ok(self.open()?.endpoint.name.to_string())
    }

    /// Closes it ahead of being dropped, for an owner that cannot drop it.
    #[cfg(feature = "axum")]
    pub(super) fn close(&mut self) {
        self.0 = None;
    }

    fn open(&self) -> io::Result<&Open> {
        self.0.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "closed"))
    }

    /// Takes something out of the socket when it is there and the gate allows it. Nothing is lost
    /// when the future is dropped: taking and returning happen in one poll.
    async fn take<T>(
        &self,
        mut attempt: impl FnMut(&Endpoint) -> io::Result<Attempted<T>>,
    ) -> io::Result<Option<(T, Guard)>> {
        let Some(open) = &self.0 else { return Ok(None) };
        let endpoint = &*open.endpoint;
        endpoint.use_it();
        let gate = endpoint.gate();
        loop {
            // Waiting for readiness is free as long as there is more, and a flood would keep the
            // waiter, which may share this thread, from its turn.
            tokio::task::consume_budget().await;
            let mut ready = None;
            if gate.stance() == Stance::Open {
                match ready_or_not_open(open.registered()?).await? {
                    Some(guard) => ready = Some(guard),
                    None => continue,
                }
            }
            match attempt(endpoint)? {
                Attempted::Taken(taken, guard) => return Ok(Some((taken, guard))),
                Attempted::Ended => return Ok(None),
                Attempted::Empty => ready.iter_mut().for_each(AsyncFdReadyGuard::clear_ready),
                Attempted::Paused => Turned::new(&**gate, |now| now != Stance::Paused).await,
                Attempted::NotBefore(at) | Attempted::Until(at) => {
                    let stance = gate.stance();
                    let mut sleep = pin!(sleep_until(at.into()));
                    let mut turned = Turned::new(&**gate, move |now| now != stance);
                    poll_fn(|cx| match sleep.as_mut().poll(cx) {
                        Poll::Ready(()) => Poll::Ready(()),
                        Poll::Pending => Pin::new(&mut turned).poll(cx),
                    })
                    .await;
                }
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<((usize, SockAddr), Guard)>> {
        self.take(|endpoint| endpoint.receive(|fd| receive_from(fd, buffer))).await
    }

    async fn send(&self, datagram: &[u8], to: &SockAddr) -> io::Result<usize> {
        let send =
            |endpoint: &Arc<Endpoint>| SockRef::from(&endpoint.as_fd()).send_to(datagram, to);
        self.open()?.registered()?.async_io(Interest::WRITABLE, send).await
    }
}

/// Waits for the socket to be readable, or for the gate not to be open.
async fn ready_or_not_open(
    fd: &AsyncFd<Arc<Endpoint>>,
) -> io::Result<Option<AsyncFdReadyGuard<'_, Arc<Endpoint>>>> {
    let mut readable = pin!(fd.readable());
    let mut turned = Turned::new(&**fd.get_ref().gate(), |now| now != Stance::Open);
    poll_fn(|cx| match readable.as_mut().poll(cx) {
        Poll::Ready(ready) => Poll::Ready(ready.map(Some)),
        Poll::Pending => Pin::new(&mut turned).poll(cx).map(|()| Ok(None)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use handover_proto::Name;

    use super::*;
    use crate::drain::InFlight;
    use crate::listener::Bound;
    use crate::listener::sealed::Claim as _;
    use crate::sys::poll::Wake;

    #[test]
    fn a_flood_of_datagrams_does_not_keep_other_tasks_from_their_turn() {
        const DATAGRAMS: u64 = 150;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bound = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            bound.set_nonblocking(true).unwrap();
            let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..DATAGRAMS {
                client.send_to(b"x", bound.local_addr().unwrap()).unwrap();
            }
            let in_flight = Arc::new(InFlight::new(Arc::new(Wake::new().unwrap())));
            let name = Name::new("flood").unwrap();
            let endpoint = Endpoint::new(
                name,
                String::new(),
                Bound::own(bound.into()),
                Stance::Open,
                in_flight,
            );
            let socket = UdpSocket::from_endpoint(Arc::new(endpoint)).unwrap();
            let taken = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&taken);
            let flood = tokio::spawn(async move {
                let mut buffer = [0; 16];
                for _ in 0..DATAGRAMS {
                    drop(socket.recv_from(&mut buffer).await.unwrap());
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            });
            let mut at_our_turn = 0;
            while at_our_turn == 0 {
                tokio::task::yield_now().await;
                at_our_turn = taken.load(Ordering::SeqCst);
            }
            flood.await.unwrap();
            assert!(at_our_turn < DATAGRAMS, "{at_our_turn} were taken in one go");
        });
    }
}
