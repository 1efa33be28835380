//! Waiting: one descriptor that stands for many, wake-ups, and a wait with a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;

/// A set of descriptors that is itself a descriptor to wait on (epoll(7)). Which of them is ready is not
/// asked: there are few, and the step looks at all.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    ReadWrite,
    Write,
    /// For nothing but the other end to be gone, which is told in any case.
    HangUp,
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    /// A read returns at once.
    pub(crate) readable: bool,
    /// A write returns at once.
    pub(crate) writable: bool,
    /// The other end is gone: of a connected socket, closed and not only half of it.
    pub(crate) hung_up: bool,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor. A regular file, which is always ready, is refused with `EPERM`.
    pub(crate) fn add(&self, fd: impl AsFd, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(0), interest.flags())?)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, epoll::EventData::new_u64(0), interest.flags())?)
    }

    /// Takes a descriptor out. Necessary before it is closed: the registration belongs to the open
    /// file description, and lives on while another process has that open.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // It fails only for what is not registered, which is what is wanted.
        let _ = epoll::delete(&self.0, fd);
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            Self::Write => epoll::EventFlags::OUT,
            Self::HangUp => epoll::EventFlags::empty(),
        }
    }
}

/// A wake-up that can be set from any thread and from a signal handler, and stays set until it is
/// cleared (eventfd(2)).
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    pub(crate) fn set(&self) {
        // It fails only when the counter is full: then it is set.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(crate) fn clear(&self) {
        // It fails only when nothing is set.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors is readable or the deadline has passed (poll(2)); a signal
/// ends the wait early.
pub(crate) fn wait_readable(
    descriptors: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> =
        descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    match rustix::event::poll(&mut fds, left.map(timespec).as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Looks what each of them is ready for, in one call that does not wait (poll(2)).
pub(crate) fn look(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<Readiness>> {
    let wanted = PollFlags::IN | PollFlags::OUT;
    let mut fds: Vec<PollFd<'_>> =
        descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, wanted)).collect();
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let readiness = |fd: &PollFd<'_>| {
        let found = fd.revents();
        Readiness {
            readable: found.contains(PollFlags::IN),
            writable: found.contains(PollFlags::OUT),
            hung_up: found.intersects(PollFlags::HUP | PollFlags::ERR),
        }
    };
    Ok(fds.iter().map(readiness).collect())
}

/// Whether a write would be taken at once. A descriptor in error is writable in the sense that a
/// write returns.
pub(crate) fn is_writable(fd: BorrowedFd<'_>) -> bool {
    is_ready(fd, PollFlags::OUT)
}

/// Whether a read would return at once.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    is_ready(fd, PollFlags::IN)
}

fn is_ready(fd: BorrowedFd<'_>, wanted: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Waits until the descriptor hangs up, or the deadline has passed.
pub(crate) fn wait_hung_up(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let left = timespec(deadline.saturating_duration_since(Instant::now()));
    match rustix::event::poll(&mut fds, Some(&left)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Waits until the other end of one of them is gone; tells whether it is the first.
pub(crate) fn wait_hang_up(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        let mut fds = [first, second].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::empty()));
        match rustix::event::poll(&mut fds, None) {
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
