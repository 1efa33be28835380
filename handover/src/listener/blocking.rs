//! Listeners and datagram sockets for programs without a runtime.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net as unix;
use std::sync::Arc;

use socket2::{SockAddr, Socket};

use super::address::Address;
use super::bind::Kind;
use super::connection::Connection;
use super::endpoint::{Attempted, Endpoint};
use super::{Claim, sealed};
use crate::drain::Guard;
use crate::gate::Stance;
use crate::sys::poll::wait_readable;
use crate::sys::socket::{Blocking, receive_from};

/// Accepts TCP connections until this generation must stop.
///
/// Made by `Handover::listen`. Dropping it closes it.
#[derive(Debug)]
pub struct TcpListener(Arc<Endpoint>);

/// Accepts Unix stream connections until this generation must stop.
///
/// Made by `Handover::listen`. Dropping it closes it, and removes its path if it still serves.
#[derive(Debug)]
pub struct UnixListener(Arc<Endpoint>);

/// Accepts Unix seqpacket connections until this generation must stop.
///
/// Made by `Handover::listen`. Dropping it closes it, and removes its path if it still serves.
#[derive(Debug)]
pub struct UnixSeqpacketListener(Arc<Endpoint>);

macro_rules! listener {
    ($listener:ident, $stream:ty, $kind:expr) => {
        impl $listener {
            /// Waits for a connection; `None` when this generation must not accept any more.
            ///
            /// The accepted socket blocks. Errors that pass, or that concern one connection only,
            /// are not reported.
            ///
            /// # Errors
            ///
            /// If the listener itself is of no more use: somebody has shut it down.
            pub fn accept(&self) -> io::Result<Option<Connection<$stream>>> {
                let accepted = block_on(&self.0, |e| e.accept(Blocking::Yes))?;
                Ok(accepted.map(|((fd, _), guard)| Connection::new(fd.into(), guard)))
            }

            /// Iterates over connections; ends when this generation must not accept any more.
            pub fn incoming(&self) -> impl Iterator<Item = io::Result<Connection<$stream>>> + '_ {
                std::iter::from_fn(|| self.accept().transpose())
            }

            /// The address that the listener has.
            ///
            /// # Errors
            ///
            /// As getsockname(2).
            pub fn local_addr(&self) -> io::Result<Address> {
                self.0.local_address()
            }
        }

        claim!($listener, $kind);
    };
}

macro_rules! claim {
    ($socket:ident, $kind:expr) => {
        impl sealed::Claim for $socket {
            const KIND: Kind = $kind;

            fn from_endpoint(endpoint: Arc<Endpoint>) -> io::Result<Self> {
                // Made here, and not when it is needed: there may be no descriptor left then.
                endpoint.gate().not_open()?;
                Ok(Self(endpoint))
            }
        }

        impl Claim for $socket {}

        impl AsFd for $socket {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
    };
}

listener!(TcpListener, std::net::TcpStream, Kind::Tcp);
listener!(UnixListener, unix::UnixStream, Kind::UnixStream);
listener!(UnixSeqpacketListener, SeqpacketStream, Kind::UnixSeqpacket);

impl TcpListener {
    /// A std listener on the same socket. It does not block, and knows nothing of the handover:
    /// what it accepts is not counted, and it goes on accepting whatever happens. Stop it when
    /// `Running::wait` returns.
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn try_clone_std(&self) -> io::Result<std::net::TcpListener> {
        Ok(self.0.try_clone()?.into())
    }
}

impl UnixListener {
    /// A std listener on the same socket; see [`TcpListener::try_clone_std`].
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn try_clone_std(&self) -> io::Result<unix::UnixListener> {
        Ok(self.0.try_clone()?.into())
    }
}

/// A Unix seqpacket connection: a stream of messages that stay apart (unix(7)).
#[derive(Debug)]
pub struct SeqpacketStream(Socket);

impl SeqpacketStream {
    /// Sends one message.
    ///
    /// # Errors
    ///
    /// As send(2).
    pub fn send(&self, message: &[u8]) -> io::Result<usize> {
        self.0.send(message)
    }

    /// Waits for one message; 0 bytes at the end. What does not fit the buffer is lost.
    ///
    /// # Errors
    ///
    /// As recv(2).
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &self.0, buffer)
    }
}

impl From<OwnedFd> for SeqpacketStream {
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl AsFd for SeqpacketStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Takes UDP datagrams until this generation must stop.
///
/// All generations share one socket and its queue, so nothing is lost when the reader changes. Made
/// by `Handover::listen`.
#[derive(Debug)]
pub struct UdpSocket(Arc<Endpoint>);

/// Takes Unix datagrams until this generation must stop.
///
/// Made by `Handover::listen`.
#[derive(Debug)]
pub struct UnixDatagram(Arc<Endpoint>);

claim!(UdpSocket, Kind::Udp);
claim!(UnixDatagram, Kind::UnixDatagram);

impl UdpSocket {
    /// Waits for a datagram; `None` when this generation must not take any more. The guard counts
    /// it as in flight.
    ///
    /// # Errors
    ///
    /// As recvfrom(2), but for errors that pass.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr, Guard)>> {
        loop {
            let Some(((bytes, from), guard)) =
                block_on(&self.0, |e| e.receive(|fd| receive_from(fd, buffer)))?
            else {
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
    /// As sendto(2). The socket does not block: a full buffer is `WouldBlock`.
    pub fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        socket2::SockRef::from(&self.0.as_fd()).send_to(datagram, &to.into())
    }

    /// The address that the socket has.
    ///
    /// # Errors
    ///
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<Address> {
        self.0.local_address()
    }
}

impl UnixDatagram {
    /// Waits for a datagram; `None` when this generation must not take any more. The guard counts
    /// it as in flight. The address is unnamed if the sender did not bind one.
    ///
    /// # Errors
    ///
    /// As recvfrom(2), but for errors that pass.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SockAddr, Guard)>> {
        let received = block_on(&self.0, |e| e.receive(|fd| receive_from(fd, buffer)))?;
        Ok(received.map(|((bytes, from), guard)| (bytes, from, guard)))
    }

    /// Sends a datagram; also when this generation takes none any more.
    ///
    /// # Errors
    ///
    /// As sendto(2). The socket does not block: a full buffer is `WouldBlock`.
    pub fn send_to(&self, datagram: &[u8], to: &SockAddr) -> io::Result<usize> {
        socket2::SockRef::from(&self.0.as_fd()).send_to(datagram, to)
    }

    /// The address that the socket has.
    ///
    /// # Errors
    ///
    /// As getsockname(2).
    pub fn local_addr(&self) -> io::Result<Address> {
        self.0.local_address()
    }
}

/// Tries until there is something, waiting for the socket and the gate in between.
fn block_on<T>(
    endpoint: &Endpoint,
    mut attempt: impl FnMut(&Endpoint) -> io::Result<Attempted<T>>,
) -> io::Result<Option<(T, Guard)>> {
    loop {
        let stance = endpoint.gate().stance();
        match attempt(endpoint)? {
            Attempted::Taken(taken, guard) => return Ok(Some((taken, guard))),
            Attempted::Ended => return Ok(None),
            Attempted::Paused => endpoint.gate().wait_turned(Stance::Paused, None),
            Attempted::Empty => {
                let not_open = endpoint.gate().not_open()?;
                wait_readable(&[endpoint.as_fd(), not_open.as_fd()], None)?;
            }
            Attempted::NotBefore(at) => endpoint.gate().wait_turned(stance, Some(at)),
            Attempted::Until(at) => wait_readable(&[endpoint.as_fd()], Some(at))?,
        }
    }
}
