//! The floor: SIGHUP starts a successor by posix_spawn(3), with one end of a socketpair as its standard input, and
//! sends it the listeners; it says that it is ready, is told that nobody else accepts any more, and accepts. There
//! is no time limit, no other end than the good one, and nothing that would tell anybody of it.

use std::error::Error;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener as StdListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use web::{BACKLOG, Settings, Site};

/// As many descriptors as a message carries (unix(7): `SCM_MAX_FD`).
const BATCH: usize = 253;

/// Tells a successor that it is one.
const SUCCESSOR: &str = "BARE_SUCCESSOR";

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::read()?;
    Runtime::new()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let is_first = std::env::var_os(SUCCESSOR).is_none();
    let listeners = if is_first { bind(settings)? } else { adopt(settings.addresses.len())? };
    let listeners: Arc<Vec<TcpListener>> = Arc::new(listeners);
    let stalls = settings.work(is_first);
    let (mut upgrade, mut stop) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    if !is_first {
        let stdin = std::io::stdin();
        rustix::io::write(stdin.as_fd(), b"r")?;
        rustix::io::read(stdin.as_fd(), &mut [0])?;
    }
    let site = Arc::new(Site::open(stalls));
    let (end, ends) = watch::channel(false);
    let accepting = (0..listeners.len()).map(|number| {
        let (site, mut ends) = (Arc::clone(&site), ends.clone());
        let listeners = Arc::clone(&listeners);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    accepted = listeners[number].accept() => {
                        if let Ok((stream, _)) = accepted {
                            site.serve(stream);
                        }
                    }
                    _ = ends.changed() => return,
                }
            }
        })
    });
    let accepting: Vec<_> = accepting.collect();
    let successor = tokio::select! {
        _ = upgrade.recv() => {
            let listeners = Arc::clone(&listeners);
            Some(tokio::task::spawn_blocking(move || start(&listeners)).await??)
        }
        _ = stop.recv() => None,
    };
    end.send(true)?;
    for task in accepting {
        task.await?;
    }
    if let Some(successor) = successor {
        rustix::io::write(successor, b"g")?;
    }
    drop(listeners);
    if let Some(site) = Arc::into_inner(site) {
        site.close().await;
    }
    Ok(())
}

fn bind(settings: &Settings) -> std::io::Result<Vec<TcpListener>> {
    let listen = |address: &std::net::SocketAddr| {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(*address)?;
        socket.listen(BACKLOG)
    };
    settings.addresses.iter().map(listen).collect()
}

/// Starts a successor, gives it the listeners, and waits until it is ready.
fn start(listeners: &[TcpListener]) -> std::io::Result<OwnedFd> {
    let (own, other) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .env(SUCCESSOR, "1")
        .stdin(Stdio::from(other))
        .spawn()?;
    for batch in listeners.chunks(BATCH) {
        send(own.as_fd(), batch)?;
    }
    rustix::io::read(&own, &mut [0])?;
    Ok(own)
}

fn send(socket: BorrowedFd<'_>, batch: &[TcpListener]) -> std::io::Result<()> {
    let descriptors: Vec<_> = batch.iter().map(|listener| listener.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(b"l")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes as many listeners from the standard input.
fn adopt(count: usize) -> std::io::Result<Vec<TcpListener>> {
    let stdin = std::io::stdin();
    let mut listeners = Vec::with_capacity(count);
    while listeners.len() < count {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        let got = recvmsg(stdin.as_fd(), &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if got.bytes == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    listeners.push(TcpListener::from_std(StdListener::from(descriptor))?);
                }
            }
        }
    }
    Ok(listeners)
}
