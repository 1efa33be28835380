//! Starting a process with what [`Command`] alone cannot set.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::{Mutex, Once, PoisonError};

use rustix::io::{FdFlags, dup2, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Gid, Resource, Rlimit, Uid, getpid, set_child_subreaper, setrlimit, setsid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

use crate::confine::{Filter, renounce_capabilities};
use crate::process;

/// `SD_LISTEN_FDS_START`: the first fd that systemd passes.
const ACTIVATED_FROM: RawFd = 3;

/// Above the numbers of activated fds, so that none is overwritten before it is in its place.
const ASIDE_FROM: RawFd = 100;

/// What is set in the new process, between fork and exec, in the order of the fields.
#[derive(Debug, Default)]
pub(crate) struct Inside {
    /// Fds that the new process keeps, under their numbers.
    pub(crate) inherited: Vec<OwnedFd>,
    /// Fds that the new process gets as 3, 4, ..., as systemd passes them.
    pub(crate) activated: Vec<OwnedFd>,
    /// Resource limits, hard ones included: set before the user changes, so that root may raise.
    pub(crate) limits: Vec<(Resource, Rlimit)>,
    /// The user and group to run as, with no other groups.
    pub(crate) user: Option<(Uid, Gid)>,
    /// What it may ask of the kernel, without any capability.
    pub(crate) filter: Option<Filter>,
}

/// Starts `command` as the leader of a new session.
pub(crate) fn spawn(mut command: Command, inside: Inside) -> io::Result<Child> {
    adopt_orphans();
    let strays = strays();
    let set_up = move || inside.apply(&strays);
    // SAFETY: between fork and exec in a program with threads only async-signal-safe functions
    // may run. `apply` makes plain system calls through rustix, on memory that was allocated
    // before the fork; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(set_up) };
    // The write ends of the new pipes are open in this process until `spawn` returns. Another
    // process forked meanwhile would hold them, too.
    while_nothing_spawns(|| command.spawn())
}

/// Returns the fds of this process beyond the standard streams.
///
/// Those that it has from whoever started it, such as pipes of a build tool, would go on to every
/// service: seen by tests that count fds, and held open by services that outlive the test.
fn strays() -> Vec<RawFd> {
    process::fds(std::process::id()).into_keys().filter(|&number| number > 2).collect()
}

/// Duplicates an fd to a number that [`Inside::activated`] does not overwrite.
pub(crate) fn aside(fd: impl AsFd) -> OwnedFd {
    fcntl_dupfd_cloexec(fd, ASIDE_FROM).expect("there is room for another fd")
}

/// Runs `action` while no other thread starts a service.
///
/// For what a process must not inherit by being forked at that moment: fork(2) copies every fd, and
/// close-on-exec ends that only at exec. A file open for writing is such a thing: to start it then
/// fails with `ETXTBSY`. It guards against this crate, not against a plain [`Command`].
pub fn while_nothing_spawns<T>(action: impl FnOnce() -> T) -> T {
    static SPAWNING: Mutex<()> = Mutex::new(());
    // It guards no data, so a panic of another holder leaves nothing half done.
    let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    action()
}

/// Makes this process the parent of every orphan among its descendants, instead of PID 1.
///
/// A generation whose predecessor has exited is such an orphan. It stays a zombie after its exit,
/// so that [`exit_status`](crate::process::exit_status) can be asked, until the
/// [`Service`](crate::Service) that it belongs to is dropped and reaps it by its pid. Starting a
/// service calls this; it acts once. See `PR_SET_CHILD_SUBREAPER` in
/// [prctl(2)](https://man7.org/linux/man-pages/man2/PR_SET_CHILD_SUBREAPER.2const.html).
pub fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Any number but zero means yes.
        set_child_subreaper(Some(getpid())).expect("Linux 3.4 has subreapers");
    });
}

impl Inside {
    fn apply(&self, strays: &[RawFd]) -> io::Result<()> {
        // A session of its own is the mark by which all generations are found again.
        setsid()?;
        for &number in strays {
            // SAFETY: it is borrowed for this call alone, and open: fork(2) has copied all fds.
            // Were it closed just before, the call would fail and harm nothing.
            let stray = unsafe { BorrowedFd::borrow_raw(number) };
            // That failure: there is nothing left to keep out.
            let _ = fcntl_setfd(stray, FdFlags::CLOEXEC);
        }
        for fd in &self.inherited {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        for (number, fd) in (ACTIVATED_FROM..).zip(&self.activated) {
            // SAFETY: what the number named before belongs to the parent, not to this new process,
            // which closes it in any case, here or at exec. `ManuallyDrop` leaves the fd open.
            let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
            dup2(fd, &mut target)?;
        }
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit)?;
        }
        if self.filter.is_some() {
            renounce_capabilities();
        }
        if let Some((user, group)) = self.user {
            // These are the calls of one thread, and after fork there is only one.
            set_thread_groups(&[])?;
            set_thread_gid(group)?;
            set_thread_uid(user)?;
        }
        if let Some(filter) = &self.filter {
            filter.install()?;
        }
        Ok(())
    }
}
