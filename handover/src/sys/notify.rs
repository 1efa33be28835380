//! The socket at which a service manager hears how its services are (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

/// A connection to the service manager. Never blocks.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    fd: OwnedFd,
    address: OsString,
    /// It was connected anew.
    is_new: bool,
}

impl NotifySocket {
    /// Connects to a path, or to an abstract name if the address begins with `@`.
    ///
    /// # Errors
    ///
    /// `Unsupported` for an address of another kind, such as `vsock:`.
    pub(crate) fn connect(address: &OsStr) -> io::Result<Self> {
        let at = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path @ [b'/', ..] => SocketAddrUnix::new(path)?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        // Connected, poll(2) tells when there is room in the queue at the other end.
        rustix::net::connect(&fd, &at)?;
        Ok(Self { fd, address: address.to_owned(), is_new: false })
    }

    /// Sends one datagram with its descriptors, whole or not at all.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the other end's queue is full, `QuotaExceeded` when the kernel is short of memory
    /// or this user has too many descriptors in flight, of which nothing tells when it is over.
    pub(crate) fn send(&mut self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        match self.try_send(text, descriptors) {
            // The manager has made its socket anew.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOTCONN)) => {
                *self = Self { is_new: true, ..Self::connect(&self.address)? };
                self.try_send(text, descriptors)
            }
            sent => sent,
        }
    }

    /// Whether it is another one since this was asked.
    pub(crate) fn is_new(&mut self) -> bool {
        std::mem::take(&mut self.is_new)
    }

    fn try_send(&self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(&self.fd, &[IoSlice::new(text)], &mut ancillary, flags) {
            Ok(_) => Ok(()),
            Err(Errno::TOOMANYREFS | Errno::NOBUFS) => Err(io::ErrorKind::QuotaExceeded.into()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use handover_testkit::Folder;

    use super::*;

    fn hears(manager: &UnixDatagram, address: &OsStr) {
        let mut socket = NotifySocket::connect(address).unwrap();
        socket.send(b"READY=1", &[]).unwrap();
        let mut buffer = [0; 64];
        let bytes = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..bytes], b"READY=1");
    }

    #[test]
    fn paths_and_abstract_names_are_reached() {
        let folder = Folder::create();
        let path = folder.join("notify");
        hears(&UnixDatagram::bind(&path).unwrap(), path.as_os_str());

        let name = format!("handover-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        hears(&manager, OsStr::new(&format!("@{name}")));
    }

    #[test]
    fn other_addresses_are_refused() {
        for address in ["vsock:2:1234", "", "run/notify"] {
            let error = NotifySocket::connect(OsStr::new(address)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{address}");
        }
    }

    #[test]
    fn a_full_queue_is_said_and_a_socket_that_was_made_anew_is_found() {
        let folder = Folder::create();
        let path = folder.join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut socket = NotifySocket::connect(path.as_os_str()).unwrap();
        let full = loop {
            if let Err(error) = socket.send(b"STATUS=", &[]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);

        drop(manager);
        std::fs::remove_file(&path).unwrap();
        let manager = UnixDatagram::bind(&path).unwrap();
        socket.send(b"READY=1", &[]).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(manager.recv(&mut buffer).unwrap(), 7);
    }
}
