//! The least that starts a process from a large one.

#![allow(unsafe_code)]

use std::ffi::{CString, OsStr, c_char, c_int, c_void};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;

use rustix::process::Pid;

/// The new process's until it executes its program; it makes one call.
const STACK_BYTES: usize = 64 * 1024;

/// Has all that is needed laid out.
pub(crate) struct Program {
    strings: Vec<CString>,
    stack: Vec<u128>,
}

/// What the new process passes on: the path, and arrays that end with null.
struct Call {
    path: *const c_char,
    arguments: [*const c_char; 3],
    environment: Vec<*const c_char>,
}

impl Program {
    /// With one argument besides its path, and the environment of this process.
    pub(crate) fn new(path: &OsStr, argument: &str) -> io::Result<Self> {
        let mut strings = vec![CString::new(path.as_bytes())?, CString::new(argument)?];
        for (name, value) in std::env::vars_os() {
            strings.push(CString::new([name.as_bytes(), value.as_bytes()].join(&b"="[..]))?);
        }
        let stack = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
        Ok(Self { strings, stack })
    }

    /// Starts it; returns how long that took as `time` has it, and whom to wait for.
    pub(crate) fn start<T>(&mut self, time: impl Fn() -> T) -> io::Result<(T, T, Pid)> {
        let [path, argument, variables @ ..] = &self.strings[..] else { unreachable!("of new") };
        let variables = variables.iter().map(|variable| variable.as_ptr());
        let call = Call {
            path: path.as_ptr(),
            arguments: [path.as_ptr(), argument.as_ptr(), ptr::null()],
            environment: variables.chain([ptr::null()]).collect(),
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: one past the end of the allocation, to which stacks grow down from there.
        let top = unsafe { self.stack.as_mut_ptr().add(self.stack.capacity()) };
        let before = time();
        // SAFETY: `enter` makes one system call and never returns to our frames. With CLONE_VFORK this thread stands
        // still until the process has executed its program or exited: stack and call outlive its use of them.
        let pid =
            unsafe { libc::clone(enter, top.cast(), flags, (&raw const call).cast_mut().cast()) };
        let after = time();
        match Pid::from_raw(pid) {
            Some(pid) if pid.as_raw_nonzero().is_positive() => Ok((before, after, pid)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The new process, in the memory of the one that waits for it.
extern "C" fn enter(call: *mut c_void) -> c_int {
    // SAFETY: the pointer is to the call of the thread that waits for us, and nobody writes to it.
    let Call { path, arguments, environment } = unsafe { &*call.cast::<Call>() };
    // SAFETY: a C string, and arrays of such that end with null.
    unsafe { libc::execve(*path, arguments.as_ptr(), environment.as_ptr()) };
    // SAFETY: ends this process without running anything of the one whose memory it is in.
    unsafe { libc::_exit(127) }
}
