//! A process that this one started, by a descriptor that cannot name another (pidfd_open(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::poll::{is_readable, wait_readable};

/// A started process. Its descriptor becomes readable when the process has ended.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// How a process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Running,
    /// Ended; the status is known if the process was our child and nobody else has reaped it.
    Ended(Option<ExitStatus>),
}

const EXITED: WaitIdOptions = WaitIdOptions::EXITED;

impl Process {
    pub(super) fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Looks whether it has ended, and reaps it if it is our child.
    pub(crate) fn condition(&self) -> Condition {
        let options = EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) => Condition::Running,
            Ok(Some(status)) => {
                let raw = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => (code & 0xff) << 8,
                    (None, Some(signal)) => signal,
                    (None, None) => return Condition::Ended(None),
                };
                Condition::Ended(Some(ExitStatus::from_raw(raw)))
            }
            // Not our child, or already reaped, or the call is forbidden: the pidfd tells of the
            // end all the same.
            Err(_) if is_readable(self.pidfd.as_fd()) => Condition::Ended(None),
            Err(_) => Condition::Running,
        }
    }

    /// Waits for the end of a process that is about to exit, and reaps it if it is our child.
    pub(crate) fn reap(&self) {
        // With CLONE_VFORK the parent goes on as soon as the memory is its own again, which is
        // before there is anything to reap. If the call fails it is not ours to reap.
        let pidfd = WaitId::PidFd(self.pidfd.as_fd());
        let _ = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(pidfd.clone(), WaitIdOptions::EXITED)
        });
    }

    /// Ends it, whatever it does (SIGKILL). Harmless when it has ended.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Ends it and every other process of the group that it leads, if it has not ended.
    pub(crate) fn kill_group(&self) -> io::Result<()> {
        // The group has the number of its leader, which belongs to nobody else while that runs.
        if self.condition() == Condition::Running
            && let Some(group) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It fails if the leader has not made the group: then there is only the one.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        self.kill()
    }

    /// Ends it and waits for its end, which SIGKILL makes short.
    pub(crate) fn end(&self) -> io::Result<()> {
        self.kill()?;
        while self.condition() == Condition::Running {
            wait_readable(&[self.as_fd()], None)?;
        }
        Ok(())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
