//! Where clients connect to, and their end of a connection.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind,
    connect, recv, send, shutdown, socket_with,
};

use crate::deadline::{left, wait_readable};
use crate::request::Fault;

/// The address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Target {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&Path> for Target {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A stream to a service, each operation with a deadline.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
}

impl Connection {
    pub(crate) fn open(target: &Target, deadline: Instant) -> Result<Self, Fault> {
        let fd = match target {
            Target::Tcp(address) => open_tcp(*address, deadline)?,
            Target::Unix(path) => {
                let fd = stream_socket(AddressFamily::UNIX, deadline)?;
                connect(&fd, &SocketAddrUnix::new(path)?)?;
                fd
            }
        };
        Ok(Self { fd })
    }

    pub(crate) fn send_all(&self, mut bytes: &[u8]) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let sent = retry_on_intr(|| send(&self.fd, bytes, SendFlags::NOSIGNAL))?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    /// Receives what has come, at least one byte, to the end of `bytes`; false at end of file.
    pub(crate) fn receive(&self, bytes: &mut Vec<u8>, deadline: Instant) -> Result<bool, Fault> {
        let mut buffer = [0; 4096];
        if !wait_readable(&[&self.fd], deadline) {
            return Err(Fault::TimedOut);
        }
        let (received, _) = retry_on_intr(|| recv(&self.fd, &mut buffer, RecvFlags::empty()))?;
        bytes.extend_from_slice(&buffer[..received]);
        Ok(received > 0)
    }

    /// Sends the end of file.
    pub(crate) fn finish_sending(&self) {
        // The peer may have closed already, which is all that is wanted.
        let _ = shutdown(&self.fd, Shutdown::Write);
    }

    /// Closes after the peer has, or at `deadline`: of the two ends of a TCP connection the one
    /// that closes first keeps the port in TIME_WAIT for a minute.
    pub(crate) fn close_last(self, deadline: Instant) {
        while let Ok(true) = self.receive(&mut Vec::new(), deadline) {}
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open_tcp(address: SocketAddr, deadline: Instant) -> Result<OwnedFd, Fault> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let fd = stream_socket(family, deadline)?;
    if let IpAddr::V4(address) = address.ip()
        && address.is_loopback()
    {
        bind(&fd, &SocketAddr::from((next_source(), 0)))?;
    }
    connect(&fd, &address)?;
    Ok(fd)
}

fn stream_socket(family: AddressFamily, deadline: Instant) -> Result<OwnedFd, Fault> {
    let fd = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Bounds connect(2), too. Zero would mean for ever.
    let timeout = left(deadline);
    if timeout.is_zero() {
        return Err(Fault::TimedOut);
    }
    set_socket_timeout(&fd, Timeout::Send, Some(timeout))?;
    Ok(fd)
}

/// Returns one address of 127.0.0.0/8 after the other, all of which are this machine.
///
/// There are 28 000 ephemeral ports for each. One address alone is used up within a minute of 500
/// connections a second if they stay in TIME_WAIT.
fn next_source() -> Ipv4Addr {
    const ADDRESSES_PER_NET: u32 = 250;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let net = number / ADDRESSES_PER_NET % ADDRESSES_PER_NET;
    let host = number % ADDRESSES_PER_NET + 1;
    Ipv4Addr::from(Ipv4Addr::new(127, 77, 0, 0).to_bits() | net << 8 | host)
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        match errno {
            // A Unix socket without a path refuses nobody, but nobody gets in.
            Errno::CONNREFUSED | Errno::NOENT => Self::Refused,
            Errno::CONNRESET | Errno::CONNABORTED | Errno::PIPE => Self::Reset,
            // INPROGRESS and AGAIN are how SO_SNDTIMEO ends connect(2); see socket(7).
            Errno::INPROGRESS | Errno::AGAIN | Errno::TIMEDOUT => Self::TimedOut,
            other => Self::Client(other),
        }
    }
}
