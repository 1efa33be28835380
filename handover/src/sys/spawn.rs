//! Starting a process in constant time, whatever the size of this one.
//!
//! clone(2) with `CLONE_VM | CLONE_VFORK`: the new process borrows our memory until it executes
//! its program, so nothing is copied and no page table is walked. What posix_spawn(3) does, with
//! two differences: the process can become our sibling (`CLONE_PARENT`), and its pidfd comes from
//! the same call.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::process::Process;
use super::signals::SignalSet;

/// What to start, and how.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    /// The path of the program; not searched for.
    pub(crate) executable: &'a CStr,
    /// All arguments, the zeroth included.
    pub(crate) arguments: &'a [CString],
    /// The whole environment, as `NAME=value`.
    pub(crate) environment: &'a [CString],
    /// The working directory.
    pub(crate) directory: &'a CStr,
    /// The one descriptor that is inherited, under its number.
    pub(crate) inherit: BorrowedFd<'a>,
    /// What becomes the stderr of the process; ours if `None`.
    pub(crate) stderr: Option<BorrowedFd<'a>>,
    /// Signals that the process starts with blocked.
    pub(crate) blocked: SignalSet,
    /// Whose child it is.
    pub(crate) parent: Parent,
}

/// Whose child a started process becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Parent {
    /// This process's: its exit status can be read.
    #[default]
    Us,
    /// This process's parent's: a service manager sees it as a child of its own.
    Ours,
}

/// What could not be done.
#[derive(Debug)]
pub(crate) enum Error {
    /// There is no process: the kernel refused one.
    Clone(io::Error),
    /// The working directory could not be entered.
    Directory(io::Error),
    /// The program could not be executed.
    Execute(io::Error),
}

/// Where the new process says what went wrong, in the memory that it shares with us.
const NOTHING: c_int = 0;
const DIRECTORY: c_int = 1;
const DESCRIPTORS: c_int = 2;
const EXECUTE: c_int = 3;

/// The stack of the new process until it executes; its calls need some hundred bytes.
const STACK_BYTES: usize = 64 * 1024;

/// The highest signal number of Linux, plus one (`_NSIG`).
const SIGNALS: c_int = 65;

struct Plan {
    executable: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    directory: *const c_char,
    inherit: RawFd,
    stderr: RawFd,
    blocked: *const SignalSet,
    failed: c_int,
    errno: c_int,
}

impl Command<'_> {
    /// Starts the process; returns when it executes its program or has failed to.
    pub(crate) fn spawn(&self) -> Result<Process, Error> {
        let arguments = pointers(self.arguments);
        let environment = pointers(self.environment);
        let mut plan = Plan {
            executable: self.executable.as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            directory: self.directory.as_ptr(),
            inherit: self.inherit.as_raw_fd(),
            stderr: self.stderr.map_or(-1, |fd| fd.as_raw_fd()),
            blocked: &self.blocked,
            failed: NOTHING,
            errno: 0,
        };
        let mut stack: Vec<u128> = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
        // SAFETY: one past the end of the allocation, and aligned to 16 bytes as ABIs want it; the
        // stack grows down from here, into memory that nobody else uses.
        let top = unsafe { stack.as_mut_ptr().add(stack.capacity()) };
        let mut flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        if self.parent == Parent::Ours {
            flags |= libc::CLONE_PARENT;
        }
        let mut pidfd: c_int = -1;

        // A handler of ours must not run in the new process, in memory that is ours: it starts
        // with everything blocked.
        let before = SignalSet::all().block();
        // SAFETY: `enter` keeps to async-signal-safe calls and never returns to our frames. The
        // plan and the stack outlive it: with CLONE_VFORK this thread stands still until the
        // process has executed its program or exited.
        let pid = unsafe {
            libc::clone(enter, top.cast(), flags, (&raw mut plan).cast(), &raw mut pidfd)
        };
        let refused = io::Error::last_os_error();
        before.block();

        if pid < 0 {
            return Err(Error::Clone(refused));
        }
        if pidfd < 0 {
            return Err(Error::Clone(without_pidfd(pid)));
        }
        // SAFETY: the kernel has just put a new descriptor here, close-on-exec, for us alone.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let process = Process::new(pid.unsigned_abs(), pidfd);
        let why = || io::Error::from_raw_os_error(plan.errno);
        let error = match plan.failed {
            NOTHING => return Ok(process),
            DIRECTORY => Error::Directory(why()),
            DESCRIPTORS => Error::Clone(why()),
            _ => Error::Execute(why()),
        };
        process.reap();
        Err(error)
    }
}

/// Linux before 5.2 knows no `CLONE_PIDFD`, ignores it, and has started a process that cannot be
/// watched.
fn without_pidfd(pid: c_int) -> io::Error {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // The process is our child and not reaped, so the number is its own. If these fail there
        // is nothing left to end.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
    io::ErrorKind::Unsupported.into()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// The new process, from its first instruction to its program. Runs in our memory, with its own
/// descriptors, working directory and signal handlers: only calls that are async-signal-safe.
extern "C" fn enter(plan: *mut c_void) -> c_int {
    // SAFETY: the pointer is the plan of the thread that waits for us.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    default_handlers();
    // SAFETY: a C string that outlives the call.
    if unsafe { libc::chdir(plan.directory) } != 0 {
        return give_up(plan, DIRECTORY);
    }
    // SAFETY: plain numbers; the flag is of this process's copy of the descriptor table.
    let inherited = unsafe { libc::fcntl(plan.inherit, libc::F_SETFD, 0) };
    // SAFETY: as above; dup2 does not copy close-on-exec, but does nothing between equals.
    let redirected = match plan.stderr {
        ..0 => true,
        2 => unsafe { libc::fcntl(2, libc::F_SETFD, 0) == 0 },
        stderr => unsafe { libc::dup2(stderr, 2) == 2 },
    };
    if inherited != 0 || !redirected {
        return give_up(plan, DESCRIPTORS);
    }
    // SAFETY: the set outlives the call. All handlers that are not to run here are gone.
    unsafe { (*plan.blocked).block() };
    // SAFETY: null-terminated arrays of C strings that outlive the call.
    unsafe { libc::execve(plan.executable, plan.arguments, plan.environment) };
    give_up(plan, EXECUTE)
}

/// Does away with the handlers of the program that is left, as execve(2) will, before signals are
/// let through; what is ignored stays so. SIGPIPE, which Rust ignores, gets its default again, as
/// programs expect it and std's Command does it.
fn default_handlers() {
    for signal in 1..SIGNALS {
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: only reads; numbers that are no signals or reserved are refused.
        if unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } != 0 {
            continue;
        }
        let kept = action.sa_sigaction == libc::SIG_DFL
            || (action.sa_sigaction == libc::SIG_IGN && signal != libc::SIGPIPE);
        if !kept {
            // SAFETY: handlers are this process's own, as CLONE_SIGHAND is not set.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

fn give_up(plan: &mut Plan, what: c_int) -> c_int {
    plan.failed = what;
    plan.errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    // SAFETY: ends this process without running anything of the one whose memory it is in.
    unsafe { libc::_exit(127) }
}

#[cfg(test)]
mod tests;
