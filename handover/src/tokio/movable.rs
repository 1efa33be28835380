//! Streams of Tokio that change hands.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net as unix;

use tokio::net::{TcpStream, UnixStream};

use crate::live::Movable;

impl Movable for TcpStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        // Out of the runtime's epoll, which would go on telling of it.
        self.into_std().map(Into::into)
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(true)?;
        Self::from_std(stream)
    }
}

impl Movable for UnixStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        self.into_std().map(Into::into)
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stream = unix::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Self::from_std(stream)
    }
}
