//! Connections given from one process to another by a loop that does nothing else.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use handover_bench::now;

use crate::nanoseconds;

/// As many connections as the library puts in a frame.
pub(crate) const BATCH: usize = 64;

/// How many connections may be on their way, as in the library.
pub(crate) const WINDOW: usize = 256;

/// As many bytes for each as come along in the service.
const BYTES: usize = 80;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Way {
    Batches,
    Watched,
    Single,
    Tokio,
}

impl Way {
    fn batch(self) -> usize {
        if matches!(self, Self::Single) { 1 } else { BATCH }
    }

    fn epoll(self) -> std::io::Result<Option<OwnedFd>> {
        match self {
            Self::Watched => Ok(Some(epoll::create(epoll::CreateFlags::CLOEXEC)?)),
            Self::Batches | Self::Single | Self::Tokio => Ok(None),
        }
    }
}

/// Has as many connections change hands, and returns how long it took.
pub(crate) fn run(connections: usize, way: Way) -> Result<Duration, Box<dyn Error>> {
    let (giver, taker) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut taker = start("take", connections, way, taker)?;
    let mut giver = start("give", connections, way, giver)?;
    let mut given = BufReader::new(giver.stdout.take().ok_or("no output")?);
    let mut line = String::new();
    given.read_line(&mut line)?;
    let address: SocketAddr = line.trim().parse()?;
    // In a process of their own: this one has as many already, and there is a limit.
    let mut clients = command("connect", connections);
    let mut clients = clients.arg(address.to_string()).stdin(Stdio::piped()).spawn()?;
    let (mut begun, mut ended) = (String::new(), String::new());
    given.read_to_string(&mut begun)?;
    taker.stdout.take().ok_or("no output")?.read_to_string(&mut ended)?;
    let is_well = giver.wait()?.success() & taker.wait()?.success();
    drop(clients.stdin.take());
    let is_well = is_well & clients.wait()?.success();
    if is_well { Ok(nanoseconds(&ended) - nanoseconds(&begun)) } else { Err("it failed".into()) }
}

fn start(role: &str, connections: usize, way: Way, end: OwnedFd) -> std::io::Result<Child> {
    let way = way.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    command(role, connections).arg(way).stdin(end).stdout(Stdio::piped()).spawn()
}

fn command(role: &str, connections: usize) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--connections", &connections.to_string(), role]);
    command
}

/// Has connections for as long as the other end of the standard input is open.
pub(crate) fn connect(connections: usize, address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let connect = |_| {
        let mut stream = TcpStream::connect(address)?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    };
    let clients = (0..connections).map(connect);
    let clients = clients.collect::<std::io::Result<Vec<_>>>()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(clients);
    Ok(())
}

pub(crate) fn give(connections: usize, way: Way) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let epoll = way.epoll()?;
    let streams = accept_all(&listener, connections)?;
    let mut streams: VecDeque<OwnedFd> = streams.into_iter().map(OwnedFd::from).collect();
    streams.iter().try_for_each(|stream| watch(epoll.as_ref(), stream))?;
    let stdin = std::io::stdin();
    println!("{}", now().as_nanos());
    let next = || {
        let batch: Vec<OwnedFd> = streams.drain(..way.batch().min(streams.len())).collect();
        for stream in &batch {
            if let Some(epoll) = &epoll {
                epoll::delete(epoll, stream)?;
            }
        }
        Ok(batch)
    };
    send_and_wait(stdin.as_fd(), connections, next)
}

pub(crate) fn accept_all(
    listener: &TcpListener,
    connections: usize,
) -> std::io::Result<Vec<TcpStream>> {
    let accept = |_| {
        let mut stream = listener.accept()?.0;
        // The queue of a listener is short, and who comes too soon has to come again after a second.
        stream.write_all(&[0])?;
        Ok(stream)
    };
    (0..connections).map(accept).collect()
}

/// Gives all of them, as many at a time as there may be on their way.
pub(crate) fn send_and_wait(
    way_out: BorrowedFd<'_>,
    connections: usize,
    mut next: impl FnMut() -> std::io::Result<Vec<OwnedFd>>,
) -> Result<(), Box<dyn Error>> {
    let bytes = [7; BYTES * BATCH];
    let mut away: VecDeque<Vec<OwnedFd>> = VecDeque::new();
    let (mut sent, mut gone) = (0, 0);
    while gone < connections {
        while sent < connections && sent - gone < WINDOW {
            let batch = next()?;
            send(way_out, &bytes[..BYTES * batch.len()], &batch)?;
            sent += batch.len();
            away.push_back(batch);
        }
        rustix::io::read(way_out, &mut [0])?;
        gone += away.pop_front().map_or(0, |batch| batch.len());
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], batch: &[OwnedFd]) -> std::io::Result<()> {
    let descriptors: Vec<_> = batch.iter().map(|stream| stream.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(crate) fn take(connections: usize, way: Way) -> Result<(), Box<dyn Error>> {
    let epoll = way.epoll()?;
    let stdin = std::io::stdin();
    let mut taken = Vec::with_capacity(connections);
    while taken.len() < connections {
        for (stream, bytes) in receive(stdin.as_fd())? {
            watch(epoll.as_ref(), &stream)?;
            taken.push((stream, bytes));
        }
        reply(stdin.as_fd())?;
    }
    println!("{}", now().as_nanos());
    Ok(())
}

/// Receives a message: connections, each with what came along.
pub(crate) fn receive(way_in: BorrowedFd<'_>) -> std::io::Result<Vec<(OwnedFd, Vec<u8>)>> {
    let mut bytes = [0; BYTES * BATCH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let (mut into, flags) = ([IoSliceMut::new(&mut bytes)], RecvFlags::CMSG_CLOEXEC);
    recvmsg(way_in, &mut into, &mut ancillary, flags)?;
    let received = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(received.flatten().zip(bytes.chunks(BYTES).map(<[u8]>::to_vec)).collect())
}

/// Says that a message has arrived.
pub(crate) fn reply(way_in: BorrowedFd<'_>) -> std::io::Result<()> {
    rustix::io::write(way_in, &[1])?;
    Ok(())
}

fn watch(epoll: Option<&OwnedFd>, stream: &OwnedFd) -> std::io::Result<()> {
    if let Some(epoll) = epoll {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(epoll, stream, epoll::EventData::new_u64(0), flags)?;
    }
    Ok(())
}
