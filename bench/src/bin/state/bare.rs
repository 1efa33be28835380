//! State that goes from one process to another without the library.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use handover_bench::now;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::memory::{Access, Mapping, Source, touch};

/// What makes memory unchangeable, as it is for states of the library.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    Memfd,
    MemfdInPlace,
    Pipe,
    Socket,
}

/// Has a state go from one process to another, and returns how long it took.
pub(crate) fn run(
    way: Way,
    source: &Source,
    bytes: u64,
    sum: u64,
) -> Result<Duration, Box<dyn Error>> {
    let (to, from) = ends(way)?;
    let bytes = bytes.to_string();
    let mut receiver = Running::start(&["receive", &name(way), &bytes], from)?;
    // Whoever sends begins at once: somebody has to be there.
    receiver.line()?;
    let mut sender = Running::start(&["send", &name(way), &source.path(), &bytes], to)?;
    let begun: u64 = sender.line()?.parse()?;
    let received = receiver.line()?;
    let (ended, read) = received.split_once(' ').ok_or("no sum")?;
    if read.parse() != Ok(sum) {
        return Err(format!("what came by {} is not what was sent", name(way)).into());
    }
    let ended: u64 = ended.parse()?;
    sender.end()?;
    receiver.end()?;
    Ok(Duration::from_nanos(ended - begun))
}

/// Where state goes in, and where it comes out.
fn ends(way: Way) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let pair = |kind| Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?);
    match way {
        Way::Memfd | Way::MemfdInPlace => pair(SocketType::SEQPACKET),
        Way::Socket => pair(SocketType::STREAM),
        Way::Pipe => std::io::pipe().map(|(reader, writer)| (writer.into(), reader.into())),
    }
}

fn name(way: Way) -> String {
    way.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// A process that ends with this value at the latest.
struct Running {
    child: Child,
    printed: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str], end: OwnedFd) -> Result<Self, Box<dyn Error>> {
        let mut command = Command::new("/proc/self/exe");
        let command = command.args(arguments).stdin(end).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let printed = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { child, printed })
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.printed.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for it to end well.
    fn end(mut self) -> Result<(), Box<dyn Error>> {
        if self.child.wait()?.success() { Ok(()) } else { Err("a process failed".into()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn send(way: Way, source: &str, bytes: u64) -> Result<(), Box<dyn Error>> {
    let source = Source::open(source, bytes)?;
    let out = std::io::stdin().as_fd().try_clone_to_owned()?;
    let begun = now();
    match way {
        Way::Memfd => {
            let mut memory = File::from(make()?);
            memory.write_all(&source)?;
            hand_over(out.as_fd(), memory)?;
        }
        Way::MemfdInPlace => {
            let memory = File::from(make()?);
            memory.set_len(bytes)?;
            let mut mapping = Mapping::new(memory.as_fd(), bytes, Access::Write)?;
            mapping.copy_from_slice(&source);
            // The kernel does not seal what is mapped for writing.
            drop(mapping);
            hand_over(out.as_fd(), memory)?;
        }
        Way::Pipe | Way::Socket => File::from(out).write_all(&source)?,
    }
    println!("{}", begun.as_nanos());
    Ok(())
}

fn make() -> rustix::io::Result<OwnedFd> {
    memfd_create("state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
}

fn hand_over(socket: BorrowedFd<'_>, memory: File) -> rustix::io::Result<()> {
    fcntl_add_seals(&memory, SEALS)?;
    let descriptors = [memory.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(&[1])], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(crate) fn receive(way: Way, bytes: u64) -> Result<(), Box<dyn Error>> {
    let from = std::io::stdin().as_fd().try_clone_to_owned()?;
    println!("ready");
    let (sum, ended) = match way {
        Way::Memfd | Way::MemfdInPlace => {
            let memory = take_over(from.as_fd())?.ok_or("no memory came")?;
            if !fcntl_get_seals(&memory)?.contains(SEALS) {
                return Err("the memory is not sealed".into());
            }
            let state = Mapping::new(memory.as_fd(), bytes, Access::Read)?;
            (touch(&state), now())
        }
        Way::Pipe | Way::Socket => {
            let mut state = vec![0; usize::try_from(bytes)?];
            File::from(from).read_exact(&mut state)?;
            (touch(&state), now())
        }
    };
    println!("{} {sum}", ended.as_nanos());
    Ok(())
}

fn take_over(socket: BorrowedFd<'_>) -> rustix::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let (mut into, flags) = ([IoSliceMut::new(&mut byte)], RecvFlags::CMSG_CLOEXEC);
    recvmsg(socket, &mut into, &mut ancillary, flags)?;
    let mut messages = ancillary.drain();
    Ok(messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}
