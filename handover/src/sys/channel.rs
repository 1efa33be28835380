//! The channel between two generations: a pair of Unix sockets that keep messages apart.
//!
//! `SOCK_SEQPACKET` (unix(7)): a frame arrives whole with its descriptors or not at all, and the
//! end of the other process is an end of file.

#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, sockopt,
};

/// How many frames are taken in one step at most: whoever sends faster than they are taken must not keep
/// this process from anything else.
///
/// More than wait in a socket at a time (about 278, by the default of `net.core.wmem_default`), so that
/// what had come before the step is taken in it.
pub(crate) const FRAMES_PER_STEP: usize = 512;

/// One end of a channel. Never blocks.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    /// A frame of that many bytes, now at the front of the buffer.
    Frame {
        bytes: usize,
        descriptors: Vec<OwnedFd>,
        /// The kernel could not give us all the descriptors.
        descriptors_truncated: bool,
    },
    /// Nothing yet.
    Empty,
    /// The other end is closed.
    Closed,
}

impl Channel {
    /// Makes both ends.
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        // A process that has closed its standard streams gets their numbers, and would leave to the
        // other one what looks like a standard stream.
        let theirs = match theirs.as_raw_fd() {
            ..=2 => rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?,
            _ => theirs,
        };
        Ok((Self(ours), Self(theirs)))
    }

    /// Takes over an end that this process was started with, if that is what the number names.
    ///
    /// It has to be a Unix socket of the right type, made by our own user or root, and `expected`
    /// has to accept the first message in it. Anything else is left as it is: the number may be a
    /// lie, or may by now be somebody else's file.
    pub(crate) fn adopt<T>(
        number: RawFd,
        expected: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Option<(Self, T)> {
        if number <= 2 {
            return None;
        }
        // SAFETY: only used for calls that tolerate any number; if it is not open they fail with
        // EBADF. Nothing else in this process is closed or taken over through it.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        // A descriptor of ours that is open in the running process has close-on-exec set; one that
        // was inherited through exec cannot have it. This tells the two apart.
        let flags = rustix::io::fcntl_getfd(fd).ok()?;
        if flags.contains(rustix::io::FdFlags::CLOEXEC) {
            return None;
        }
        if sockopt::socket_type(fd).ok()? != SocketType::SEQPACKET
            || sockopt::socket_domain(fd).ok()? != AddressFamily::UNIX
        {
            return None;
        }
        let maker = super::peer::credentials(fd).ok()?.uid;
        if maker != rustix::process::geteuid().as_raw() && maker != 0 {
            return None;
        }
        let mut buffer = [0; 512];
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (bytes, _) = rustix::net::recv(fd, &mut buffer[..], peek).ok()?;
        let found = expected(&buffer[..bytes])?;
        // SAFETY: the token in the first message shows that this is the end that was left to this
        // process, and that nobody has taken it over before: doing so takes the message out.
        let channel = Self(unsafe { OwnedFd::from_raw_fd(number) });
        rustix::io::fcntl_setfd(&channel.0, rustix::io::FdFlags::CLOEXEC).ok()?;
        rustix::net::recv(&channel.0, &mut buffer[..], RecvFlags::DONTWAIT).ok()?;
        Some((channel, found))
    }

    /// Sends a frame with its descriptors, whole or not at all.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the buffer is full, `QuotaExceeded` when this user has too many descriptors
    /// in flight, of which nothing tells when it is over, `BrokenPipe` when the other end is closed.
    pub(crate) fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); ancillary_space(descriptors.len())];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.0, &[IoSlice::new(frame)], &mut ancillary, flags) {
            Ok(_) => Ok(()),
            // Other processes of this user have descriptors in flight; it clears as they receive.
            Err(Errno::TOOMANYREFS) => Err(io::ErrorKind::QuotaExceeded.into()),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes the next frame, with at most `MAX` descriptors.
    pub(crate) fn receive<const MAX: usize>(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut space = vec![MaybeUninit::uninit(); ancillary_space(MAX)];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut receive =
            || recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags);
        // An end that is closed with something unread in it resets this one. That is said once, and
        // before what is still here to be read.
        let received = match receive() {
            Err(Errno::CONNRESET) => receive(),
            received => received,
        };
        let message = match received {
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Empty),
            Err(Errno::CONNRESET) => return Ok(Received::Closed),
            Err(e) => return Err(e.into()),
        };
        let descriptors = descriptors(&mut ancillary);
        if message.bytes == 0 && descriptors.is_empty() {
            return Ok(Received::Closed);
        }
        // A frame longer than the buffer is cut to exactly its length; the decoder refuses it.
        Ok(Received::Frame {
            bytes: message.bytes,
            descriptors,
            descriptors_truncated: message.flags.contains(ReturnFlags::CTRUNC),
        })
    }

    /// An end that came through another socket.
    pub(crate) fn received(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// This end, to be sent through another socket.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Leaves this end open to whatever is started from here, as a successor finds it; returns its
    /// number.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn leave_to_another_process(self) -> io::Result<RawFd> {
        use std::os::fd::IntoRawFd as _;
        rustix::io::fcntl_setfd(&self.0, rustix::io::FdFlags::empty())?;
        Ok(self.0.into_raw_fd())
    }

    /// The process that made the pair, if it is not hidden from this one (`SO_PEERCRED`, unix(7)).
    pub(crate) fn maker(&self) -> Option<u32> {
        super::peer::credentials(self.0.as_fd()).ok()?.pid
    }

    /// The number by which the other process will know this end.
    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Parses the descriptor's number out of an environment variable; refuses signs and spaces.
pub(crate) fn number(text: &OsStr) -> Option<RawFd> {
    let text = text.to_str()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Receives from a stream of bytes, and a descriptor that comes along.
pub(crate) fn receive_with_descriptor(
    stream: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = vec![MaybeUninit::uninit(); ancillary_space(1)];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    Ok((message.bytes, descriptors(&mut ancillary).into_iter().next()))
}

fn descriptors(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect()
}

fn ancillary_space(descriptors: usize) -> usize {
    // Room for one more than what is expected, so that a surplus is counted and not only noted.
    rustix::cmsg_space!(ScmRights(1)) + (descriptors + 1) * size_of::<RawFd>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_last_is_received_although_the_sender_has_not_read_everything() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send(b"unread", &[]).unwrap();
        theirs.send(b"one", &[]).unwrap();
        theirs.send(b"two", &[]).unwrap();
        drop(theirs);
        let mut buffer = [0; 16];
        for expected in [b"one", b"two"] {
            let received = ours.receive::<0>(&mut buffer).unwrap();
            assert!(matches!(received, Received::Frame { bytes: 3, .. }), "{received:?}");
            assert_eq!(&buffer[..3], expected);
        }
        assert!(matches!(ours.receive::<0>(&mut buffer).unwrap(), Received::Closed));
    }
}
