//! Every system call that is not in std, and all the unsafe code of the crate.
//!
//! Nothing here knows the protocol, a listener's name or a generation. Descriptors are owned or
//! borrowed, never bare numbers, and are born with close-on-exec set; in the running process it is
//! never cleared.
//!
//! Each module is the place where a portable call, or another system's, can stand beside Linux's:
//! `channel` needs a way to pass descriptors that keeps messages apart, `spawn` a vfork-like start,
//! `process` a descriptor that tells of a process's end (a kqueue), `memfd` anonymous shared
//! memory (`shm_open`), `poll` a descriptor to wait on for many (a kqueue).

pub(crate) mod channel;
pub(crate) mod environment;
pub(crate) mod executable;
pub(crate) mod file;
pub(crate) mod handshakes;
pub(crate) mod inherited;
pub(crate) mod memfd;
pub(crate) mod notify;
pub(crate) mod peer;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod spawn;
pub(crate) mod time;
mod unix_diag;

#[cfg(not(target_os = "linux"))]
compile_error!(
    "handover runs on Linux so far; what another Unix needs stands in `handover/src/sys/`"
);
