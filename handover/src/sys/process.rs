//! A process that this one started, by a descriptor that cannot name another (pidfd_open(2)).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::poll::{is_readable, wait_hung_up, wait_readable};

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

    /// What tells it from every other process since the system was booted, if the kernel does.
    pub(crate) fn id(&self) -> Option<u64> {
        pidfd_id(&self.pidfd)
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

    /// How a process has ended that is not our child, once its parent has been told: waits so long for
    /// that. `None` before Linux 6.15, which does not keep it.
    pub(crate) fn status_after_reaping(&self, patience: Duration) -> Option<ExitStatus> {
        // Whoever has it is told by a hang-up that it was reaped.
        let told = || exit_info(self.pidfd.as_fd());
        let known = told().ok()?;
        if known.is_none() {
            wait_hung_up(self.pidfd.as_fd(), Instant::now() + patience).ok()?;
        }
        known.or_else(|| told().ok().flatten())
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
        // Not to be reaped by this look: its status is wanted.
        if !is_readable(self.pidfd.as_fd())
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

/// What tells this process from every other one since the system was booted; `None` before Linux 6.9.
pub(crate) fn own_pidfd_id() -> Option<u64> {
    let flags = rustix::process::PidfdFlags::empty();
    pidfd_id(&rustix::process::pidfd_open(rustix::process::getpid(), flags).ok()?)
}

/// The number of the file that a pidfd is, if that is of one process only: in older kernels all are the
/// same file (pidfd_open(2)).
fn pidfd_id(pidfd: &OwnedFd) -> Option<u64> {
    /// `PID_FS_MAGIC` of linux/magic.h.
    const PID_FS_MAGIC: u64 = 0x5049_4446;
    let magic = rustix::fs::fstatfs(pidfd).ok()?.f_type;
    (u64::try_from(magic).ok()? == PID_FS_MAGIC)
        .then(|| rustix::fs::fstat(pidfd).ok().map(|stat| stat.st_ino))?
}

/// How the process of a pidfd has ended, if it was reaped.
fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    /// The first version of `pidfd_info` (linux/pidfd.h).
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        _group: u64,
        _ids: [u32; 11],
        exit_code: i32,
    }
    const EXIT: u64 = 1 << 3;
    const GET_INFO: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<Info>(0xff, 11);
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the call reads and writes a struct of that size, which its number says, and any bytes are
    // a value of it.
    unsafe {
        let call = rustix::ioctl::Updater::<GET_INFO, Info>::new(&mut info);
        rustix::ioctl::ioctl(pidfd, call)?;
    }
    Ok((info.mask & EXIT != 0).then(|| ExitStatus::from_raw(info.exit_code)))
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// How many bytes of memory this process has in RAM; `None` without /proc.
pub(crate) fn resident_memory() -> Option<u64> {
    resident_pages("/proc/self/statm").map(in_bytes)
}

/// How many bytes of memory a process has in RAM; `None` without /proc, and if there is none of
/// that number or nothing may be known of it.
pub(crate) fn resident_memory_of(pid: u32) -> Option<u64> {
    // What has exited and was not reaped has no memory, and says 0.
    resident_pages(&format!("/proc/{pid}/statm")).filter(|pages| *pages > 0).map(in_bytes)
}

/// Not exact: the kernel counts by processor, and adds up now and then (proc_pid_statm(5)).
fn resident_pages(statm: &str) -> Option<u64> {
    let fields = std::fs::read_to_string(statm).ok()?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn in_bytes(pages: u64) -> u64 {
    pages.saturating_mul(rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn memory_that_is_used_is_resident() {
        const BYTES: u64 = 64 << 20;
        let before = resident_memory().unwrap();
        let used = std::hint::black_box(vec![1u8; BYTES as usize]);
        let after = resident_memory().unwrap();
        // Other tests use memory in this process as well, and give it back.
        assert!(after > before + BYTES / 2, "{before} {after}");
        assert!(resident_memory_of(std::process::id()).unwrap() > BYTES / 2);
        drop(used);
    }

    #[test]
    fn the_status_of_another_process_s_child_is_known_once_it_is_reaped() {
        use std::io::{BufRead as _, BufReader, Write as _};
        use std::process::Stdio;

        let mut parent = Command::new("sh")
            .args(["-c", "exec 3<&0; sh -c 'read line <&3; exit 7' & echo $!; wait $!; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid: u32 = line.trim().parse().unwrap();
        let number = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(number, flags).unwrap();
        let other = Process::new(pid, pidfd);
        let is_told = match exit_info(other.as_fd()) {
            Ok(known) => {
                assert_eq!(known, None, "it runs");
                true
            }
            // The kernel is older.
            Err(_) => false,
        };
        let stdin = parent.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();

        let status = other.status_after_reaping(Duration::from_secs(10));

        assert_eq!(status.and_then(|status| status.code()), is_told.then_some(7));
        assert_eq!(other.condition(), Condition::Ended(None));
        parent.stdin.take();
        parent.wait().unwrap();
    }

    #[test]
    fn a_process_that_has_ended_has_no_memory() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        let info = rustix::process::waitid(
            WaitId::Pid(Pid::from_child(&child)),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        assert!(info.unwrap().is_some());
        assert_eq!(resident_memory_of(pid), None, "not reaped");
        child.wait().unwrap();
        assert_eq!(resident_memory_of(pid), None, "reaped");
    }
}
