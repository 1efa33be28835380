//! Starting a process in constant time, whatever the size of this one.
//!
//! clone(2) with `CLONE_VM | CLONE_VFORK`: the new process borrows our memory until it executes
//! its program, so nothing is copied and no page table is walked. What posix_spawn(3) does, with
//! two differences: the process can become our sibling (`CLONE_PARENT`), and its pidfd comes from
//! the same call.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::executable::Executable;
use super::process::Process;
use super::signals::SignalSet;

/// What to start, and how.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    /// The program.
    pub(crate) executable: &'a Executable,
    /// All arguments, the zeroth included.
    pub(crate) arguments: &'a [CString],
    /// The whole environment, as `NAME=value`.
    pub(crate) environment: &'a [CString],
    /// Variables that hold the number of the process itself, by their names.
    pub(crate) pid_variables: &'a [CString],
    /// The working directory.
    pub(crate) directory: &'a CStr,
    /// The one descriptor that is inherited, under its number.
    pub(crate) inherit: Option<BorrowedFd<'a>>,
    /// What becomes stdin, stdout and stderr of the process; ours where `None`.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    /// Signals that the process starts with blocked.
    pub(crate) blocked: SignalSet,
    /// Whose child it is.
    pub(crate) parent: Parent,
    /// Whose process group it is in.
    pub(crate) group: Group,
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

/// Which process group a started process is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Group {
    /// This process's.
    #[default]
    Ours,
    /// One of its own: it can be ended together with all that it starts.
    Own,
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
    /// The program can be executed by its path only, which leads to another file by now.
    Replaced,
}

/// Where the new process says what went wrong, in the memory that it shares with us.
const NOTHING: c_int = 0;
const DIRECTORY: c_int = 1;
const SET_UP: c_int = 2;
const EXECUTE: c_int = 3;

/// The stack of the new process until it executes; its calls need some hundred bytes.
const STACK_BYTES: usize = 64 * 1024;

/// How long a process's number is at most, with the NUL that ends it.
const PID_BYTES: usize = 11;

/// The highest signal number of Linux, plus one (`_NSIG`).
const SIGNALS: c_int = 65;

/// For what there is no descriptor.
const NONE: RawFd = -1;

struct Plan {
    /// The program, or `NONE` if the path is to be taken.
    file: RawFd,
    path: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    /// The places in the environment where its own number belongs, each of `PID_BYTES`; the last is
    /// null.
    pids: *const *mut u8,
    directory: *const c_char,
    inherit: RawFd,
    streams: [RawFd; 3],
    blocked: *const SignalSet,
    group: Group,
    failed: c_int,
    errno: c_int,
}

impl Command<'_> {
    /// Starts the process; returns when it executes its program or has failed to.
    ///
    /// The file that was opened is executed, whatever its path leads to by now (execveat(2)). Where
    /// that cannot be, the path is taken if it still leads there. A script cannot be executed like
    /// that: its interpreter opens it by a name, which would be that of our descriptor, and that is
    /// closed on exec (so for binfmt_misc); the kernel says `ENOENT`. Kernels without the call say
    /// `ENOSYS`, and filters of system calls that do not know it `ENOSYS` or `EPERM`. If one of these
    /// has another cause, the second try fails of it as well.
    pub(crate) fn spawn(&self) -> Result<Process, Error> {
        const NEEDS_PATH: [c_int; 3] = [libc::ENOENT, libc::ENOSYS, libc::EPERM];
        match self.start(self.executable.as_fd().as_raw_fd()) {
            Err(Error::Execute(why))
                if why.raw_os_error().is_some_and(|why| NEEDS_PATH.contains(&why)) =>
            {
                if self.executable.is_in_place() { self.start(NONE) } else { Err(Error::Replaced) }
            }
            started => started,
        }
    }

    fn start(&self, file: RawFd) -> Result<Process, Error> {
        let arguments = pointers(self.arguments);
        let mut variables: Vec<Vec<u8>> = self.pid_variables.iter().map(|n| unwritten(n)).collect();
        let mut environment = pointers(self.environment);
        let mut pids = vec![ptr::null_mut(); variables.len() + 1];
        for (variable, pid) in variables.iter_mut().zip(&mut pids) {
            let value = variable.len() - PID_BYTES;
            *pid = variable[value..].as_mut_ptr();
            environment.insert(0, variable.as_ptr().cast());
        }
        let mut aside = Vec::new();
        let file = beyond_standard(file, &mut aside).map_err(Error::Clone)?;
        let mut streams = [NONE; 3];
        for (stream, fd) in streams.iter_mut().zip(self.streams) {
            let fd = fd.map_or(NONE, |fd| fd.as_raw_fd());
            *stream = beyond_standard(fd, &mut aside).map_err(Error::Clone)?;
        }
        let mut plan = Plan {
            file,
            path: self.executable.path().as_ptr(),
            arguments: arguments.as_ptr(),
            environment: environment.as_ptr(),
            pids: pids.as_ptr(),
            directory: self.directory.as_ptr(),
            inherit: self.inherit.map_or(NONE, |fd| fd.as_raw_fd()),
            streams,
            blocked: &self.blocked,
            group: self.group,
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
            SET_UP => Error::Clone(why()),
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

/// The number, or that of a duplicate which is not in the way of the standard streams: a process
/// whose own are closed gets such numbers for what it opens.
fn beyond_standard(number: RawFd, aside: &mut Vec<OwnedFd>) -> io::Result<RawFd> {
    if number == NONE || number > libc::STDERR_FILENO {
        return Ok(number);
    }
    // SAFETY: the descriptor is borrowed by the command, and so open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let duplicate = rustix::io::fcntl_dupfd_cloexec(fd, libc::STDERR_FILENO + 1)?;
    let number = duplicate.as_raw_fd();
    aside.push(duplicate);
    Ok(number)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// `NAME=`, and room for the number of a process.
fn unwritten(name: &CStr) -> Vec<u8> {
    [name.to_bytes(), b"=", &[0; PID_BYTES]].concat()
}

/// Writes the number in decimal digits, ended by a NUL.
fn write_number(mut number: u32, at: &mut [u8; PID_BYTES]) {
    let mut digits = [0; PID_BYTES];
    let mut start = digits.len() - 1;
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    for (byte, digit) in at.iter_mut().zip(&digits[start..]) {
        *byte = *digit;
    }
}

/// The new process, from its first instruction to its program. Runs in our memory, with its own
/// descriptors, working directory and signal handlers: only calls that are async-signal-safe.
extern "C" fn enter(plan: *mut c_void) -> c_int {
    // SAFETY: the pointer is the plan of the thread that waits for us.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    default_handlers();
    write_pids(plan);
    // SAFETY: a C string that outlives the call.
    if unsafe { libc::chdir(plan.directory) } != 0 {
        return give_up(plan, DIRECTORY);
    }
    let mut done = true;
    if plan.inherit != NONE {
        // SAFETY: plain numbers; the flag is of this process's copy of the descriptor table.
        done = unsafe { libc::fcntl(plan.inherit, libc::F_SETFD, 0) } == 0;
    }
    for (number, stream) in (0..).zip(plan.streams) {
        if stream != NONE {
            // SAFETY: as above; the copy has no close-on-exec, as the two numbers differ.
            done &= unsafe { libc::dup2(stream, number) } == number;
        }
    }
    if plan.group == Group::Own {
        // SAFETY: plain numbers. A new process leads no session, so it may do that.
        done &= unsafe { libc::setpgid(0, 0) } == 0;
    }
    if !done {
        return give_up(plan, SET_UP);
    }
    // SAFETY: the set outlives the call. All handlers that are not to run here are gone.
    unsafe { (*plan.blocked).block() };
    let Plan { file, path, arguments, environment, .. } = *plan;
    if file == NONE {
        // SAFETY: null-terminated arrays of C strings that outlive the call.
        unsafe { libc::execve(path, arguments, environment) };
    } else {
        let (call, empty, flags) = (libc::SYS_execveat, c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: as above, and an open descriptor.
        unsafe { libc::syscall(call, file, empty, arguments, environment, flags) };
    }
    give_up(plan, EXECUTE)
}

/// Writes this process's number where it belongs. Only the process itself knows it before it
/// executes, and knows it as its own PID namespace has it.
fn write_pids(plan: &Plan) {
    let number = std::process::id();
    let mut next = plan.pids;
    // SAFETY: the array ends with a null, and the thread that waits for us keeps both it and the
    // memory that it points to, which nobody else reads or writes meanwhile.
    while let Some(at) = unsafe { (*next).cast::<[u8; PID_BYTES]>().as_mut() } {
        write_number(number, at);
        // SAFETY: not past the null, which ends the loop.
        next = unsafe { next.add(1) };
    }
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
