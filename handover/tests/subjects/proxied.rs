//! Lets a test sit on the channel between a predecessor and the program that this one becomes.
//!
//! A predecessor starts it as its successor. It makes a second channel, gives the predecessor's one
//! and an end of its own to the test, waits until the test has passed the preamble on, and executes
//! the program with the other end. The process stays the one that the predecessor knows.
//!
//! | variable | meaning |
//! |---|---|
//! | `PROXIED_PROGRAM` | what to become |
//! | `PROXIED_BY` | the path of the Unix socket at which the test waits |

#![allow(unsafe_code)]

use std::env;
use std::error::Error;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    sendmsg, socketpair,
};

const CHANNEL: &str = "HANDOVER_CHANNEL";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os();
    let mut program = Command::new(env::var_os("PROXIED_PROGRAM").ok_or("what to become?")?);
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    program.args(arguments);
    let variable = env::var(CHANNEL)?;
    let (number, token) = variable.split_once(':').ok_or("no channel")?;
    // SAFETY: the predecessor has left this descriptor to this process, in which nothing else knows
    // of it.
    let predecessor = unsafe { OwnedFd::from_raw_fd(number.parse()?) };

    let (outer, inner) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut test = UnixStream::connect(env::var_os("PROXIED_BY").ok_or("by whom?")?)?;
    let descriptors = [predecessor.as_fd(), outer.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let pid = std::process::id().to_ne_bytes();
    sendmsg(&test, &[IoSlice::new(&pid)], &mut ancillary, SendFlags::NOSIGNAL)?;
    drop((predecessor, outer));
    // The program looks for the preamble once, and does not wait for it.
    test.read_exact(&mut [0])?;

    fcntl_setfd(&inner, FdFlags::empty())?;
    program.env(CHANNEL, format!("{}:{token}", inner.as_raw_fd()));
    Err(program.exec().into())
}
