//! Who is at the other end of a Unix socket (unix(7)).
//!
//! The kernel notes it when the other end connects, so it is true whatever that process has become
//! since, or whoever has the connection by now.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

use super::process::Process;

/// The process at the other end, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Its effective user.
    pub(crate) uid: u32,
    /// Its effective group.
    pub(crate) gid: u32,
    /// Its number; it has none here if it is not of this process's PID namespace, or one below.
    pub(crate) pid: Option<u32>,
}

/// Looks who it is (`SO_PEERCRED`).
pub(crate) fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    // By hand, since a process of another PID namespace has the number 0, which rustix's type for
    // numbers of processes cannot hold.
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes, which the structure has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut bytes,
        )
    };
    checked(result)?;
    let pid = u32::try_from(found.pid).ok().filter(|pid| *pid > 0);
    Ok(Credentials { uid: found.uid, gid: found.gid, pid })
}

/// Its supplementary groups (`SO_PEERGROUPS`, Linux 4.13).
pub(crate) fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 32];
    loop {
        let room = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        let mut bytes = room;
        // SAFETY: the kernel writes at most `bytes` bytes, which the vector has.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let length = bytes as usize / size_of::<u32>();
        match checked(result) {
            Ok(()) => {
                groups.truncate(length);
                return Ok(groups);
            }
            // It says how many there are, at most 65536 (`NGROUPS_MAX`).
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && bytes > room => {
                groups.resize(length, 0);
            }
            Err(e) => return Err(e),
        }
    }
}

/// The process itself, by a descriptor that cannot come to name another. The number is 0 for one that
/// has none here.
///
/// Linux before 6.5 has no `SO_PEERPIDFD`: there it is the process that has the number at this moment, and
/// another one if that of the connection has ended meanwhile and the number was given out again.
pub(crate) fn process(socket: BorrowedFd<'_>) -> io::Result<Process> {
    let pid = credentials(socket)?.pid;
    let pidfd = match pidfd(socket) {
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            rustix::process::pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?
        }
        found => found?,
    };
    Ok(Process::new(pid.unwrap_or(0), pidfd))
}

/// The user that this process acts as.
pub(crate) fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

// Of asm-generic/socket.h: the libc crate has them only lately.
const SO_PEERGROUPS: libc::c_int = 59;
const SO_PEERPIDFD: libc::c_int = 77;

/// Close-on-exec is set on it from its birth, as on every pidfd.
fn pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut number: libc::c_int = -1;
    let mut bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes, which the integer has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut number).cast(),
            &raw mut bytes,
        )
    };
    checked(result)?;
    // SAFETY: the kernel has just opened it for this call, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
