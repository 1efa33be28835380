//! Making a socket that was not inherited.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::address::{Address, Bind};
use crate::error::ClaimErrorKind;
use crate::gate::Stance;
use crate::sys::file::Identity;
use crate::sys::socket::{Facts, Refusal};

/// What a socket is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Accepts TCP connections.
    Tcp,
    /// Takes UDP datagrams.
    Udp,
    /// Accepts Unix stream connections.
    UnixStream,
    /// Takes Unix datagrams.
    UnixDatagram,
    /// Accepts Unix seqpacket connections.
    UnixSeqpacket,
}

impl Kind {
    pub(crate) fn listens(self) -> bool {
        match self {
            Self::Tcp | Self::UnixStream | Self::UnixSeqpacket => true,
            Self::Udp | Self::UnixDatagram => false,
        }
    }

    fn socket_type(self) -> Type {
        match self {
            Self::Tcp | Self::UnixStream => Type::STREAM,
            Self::Udp | Self::UnixDatagram => Type::DGRAM,
            Self::UnixSeqpacket => Type::SEQPACKET,
        }
    }

    fn is_unix(self) -> bool {
        match self {
            Self::Tcp | Self::Udp => false,
            Self::UnixStream | Self::UnixDatagram | Self::UnixSeqpacket => true,
        }
    }

    /// Whether a socket is of this kind.
    pub(crate) fn fits(self, facts: Facts) -> bool {
        facts.kind == self.socket_type()
            && facts.listening == self.listens()
            && (facts.domain == Domain::UNIX) == self.is_unix()
    }

    /// What a socket is, whether it listens yet or not; `None` if it is of no kind of ours.
    pub(crate) fn of(facts: Facts) -> Option<Self> {
        let all = [Self::Tcp, Self::Udp, Self::UnixStream, Self::UnixDatagram, Self::UnixSeqpacket];
        all.into_iter().find(|kind| kind.fits(Facts { listening: kind.listens(), ..facts }))
    }

    /// What operators are told.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UnixStream => "unix",
            Self::UnixDatagram => "unix-datagram",
            Self::UnixSeqpacket => "unix-seqpacket",
        }
    }

    /// The name of a socket of this kind that was given none.
    pub(crate) fn default_name(self, address: &Address) -> String {
        match self {
            // A UDP socket may well have the address of a TCP listener, and so on.
            Self::Udp => format!("udp:{address}"),
            Self::UnixDatagram => format!("datagram:{address}"),
            Self::UnixSeqpacket => format!("seqpacket:{address}"),
            Self::Tcp | Self::UnixStream => address.to_string(),
        }
    }

    pub(crate) fn check(self, address: &Address) -> Result<(), ClaimErrorKind> {
        let wanted = if self.is_unix() { "/run/app.sock or @name" } else { "127.0.0.1:80" };
        if (address.domain() == Domain::UNIX) == self.is_unix() {
            Ok(())
        } else {
            Err(ClaimErrorKind::WrongFamily { address: address.to_string(), wanted })
        }
    }
}

/// A socket with an address.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) fd: OwnedFd,
    /// The backlog with which it is to listen, if it does not yet.
    pub(crate) unheard: Option<i32>,
    /// Whether somebody outside the service may have it as well.
    pub(crate) shared: bool,
    /// Whether a service manager has passed it.
    pub(crate) activated: bool,
    /// Whether the predecessor has it as well.
    pub(crate) inherited: bool,
}

impl Bound {
    /// One that nobody else has, and that listens, if it ever does.
    pub(crate) fn own(fd: OwnedFd) -> Self {
        Self { fd, unheard: None, shared: false, activated: false, inherited: false }
    }
}

/// Binds a new socket. `inherited` are the sockets of the predecessor that are not taken over:
/// they may stand in the way, and will be retired.
pub(crate) fn bind(
    kind: Kind,
    address: &Address,
    bind: Bind,
    inherited: &[BorrowedFd<'_>],
    stance: Stance,
) -> Result<Bound, ClaimErrorKind> {
    let io = |doing| move |source| ClaimErrorKind::Io { doing, source };
    if let Some(existing) = bind.existing {
        let facts = crate::sys::socket::facts(existing.as_fd()).map_err(io("to look at it"))?;
        if !kind.fits(facts) {
            return Err(ClaimErrorKind::WrongSocket);
        }
        let socket = Socket::from(existing);
        socket.set_nonblocking(true).map_err(io("O_NONBLOCK"))?;
        return Ok(Bound { shared: true, ..Bound::own(socket.into()) });
    }
    let at = address.to_sockaddr().map_err(io("the address"))?;
    let socket = Socket::new(address.domain(), kind.socket_type(), None).map_err(io("a socket"))?;
    // Both generations share the flag: it is set at birth and never toggled.
    socket.set_nonblocking(true).map_err(io("O_NONBLOCK"))?;
    if kind == Kind::Tcp {
        socket.set_reuse_address(true).map_err(io("SO_REUSEADDR"))?;
    }
    if bind.reuse_port {
        socket.set_reuse_port(true).map_err(io("SO_REUSEPORT"))?;
    }
    if let Some(before_bind) = bind.before_bind {
        before_bind(&socket).map_err(io("what the application set before bind"))?;
    }
    match socket.bind(&at) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => match address {
            Address::Inet(_) => bind_beside(&socket, &at, address, inherited)?,
            Address::Path(path) => bind_over(&socket, &at, address, path, kind)?,
            Address::Abstract(_) => return Err(in_use(address)),
        },
        Err(source) => return Err(cannot_bind(address, source)),
    }
    if kind.listens() {
        let backlog = i32::try_from(bind.backlog).unwrap_or(i32::MAX);
        // Where others serve the address, a listener gets a share of their connections at once.
        // Before this process serves they would wait, and be reset should it never do.
        let shared = bind.reuse_port || inherited.iter().any(|other| same_port(*other, &at));
        if kind == Kind::Tcp && shared && stance == Stance::Paused {
            return Ok(Bound { unheard: Some(backlog), ..Bound::own(socket.into()) });
        }
        socket.listen(backlog).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => in_use(address),
            _ => ClaimErrorKind::Io { doing: "to listen", source: e },
        })?;
    }
    Ok(Bound::own(socket.into()))
}

fn in_use(address: &Address) -> ClaimErrorKind {
    ClaimErrorKind::AddressInUse { address: address.to_string() }
}

fn cannot_bind(address: &Address, source: io::Error) -> ClaimErrorKind {
    ClaimErrorKind::Bind { address: address.to_string(), source }
}

/// A name has moved to an address that overlaps with the one it had (`0.0.0.0:80` and
/// `127.0.0.1:80`): the old socket makes room.
fn bind_beside(
    socket: &Socket,
    at: &SockAddr,
    address: &Address,
    inherited: &[BorrowedFd<'_>],
) -> Result<(), ClaimErrorKind> {
    let mut made_room = false;
    for other in inherited {
        made_room |= same_port(*other, at) && SockRef::from(other).set_reuse_port(true).is_ok();
    }
    let bound = made_room && socket.set_reuse_port(true).is_ok() && socket.bind(at).is_ok();
    if bound { Ok(()) } else { Err(in_use(address)) }
}

fn same_port(socket: BorrowedFd<'_>, at: &SockAddr) -> bool {
    let theirs = SockRef::from(&socket).local_addr().ok().and_then(|theirs| theirs.as_socket());
    theirs.zip(at.as_socket()).is_some_and(|(theirs, ours)| theirs.port() == ours.port())
}

/// There is something at the path: a socket that nobody listens on any more is replaced.
fn bind_over(
    socket: &Socket,
    at: &SockAddr,
    address: &Address,
    path: &Path,
    kind: Kind,
) -> Result<(), ClaimErrorKind> {
    let io = |doing| move |source| ClaimErrorKind::Io { doing, source };
    let before = Identity::of_link(path);
    let probe = Socket::new(Domain::UNIX, kind.socket_type(), None).map_err(io("a socket"))?;
    probe.set_nonblocking(true).map_err(io("O_NONBLOCK"))?;
    let alive = || ClaimErrorKind::PathAlive { path: path.to_owned() };
    match probe.connect(at) {
        Ok(()) => return Err(alive()),
        Err(e) => match Refusal::of(&e) {
            // So does what is no socket.
            Refusal::NobodyListens => {}
            Refusal::SomebodyListens => return Err(alive()),
            Refusal::Other => return Err(cannot_bind(address, e)),
        },
    }
    use std::os::unix::fs::FileTypeExt;
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ClaimErrorKind::PathOccupied { path: path.to_owned() });
        }
        // Somebody was faster: the bind tells.
        Ok(_) if Identity::of_link(path) != before => {}
        Ok(_) => {
            tracing::info!(path = %path.display(), "replacing a stale socket");
            std::fs::remove_file(path).map_err(io("to remove a stale socket"))?;
        }
        Err(_) => {}
    }
    socket.bind(at).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => alive(),
        _ => cannot_bind(address, e),
    })
}

/// Whether an inherited socket has the address that is asked for now.
pub(crate) fn has_address(fd: BorrowedFd<'_>, address: &Address) -> bool {
    if matches!(address, Address::Inet(inet) if inet.port() == 0) {
        return false;
    }
    address_of(fd).is_some_and(|theirs| theirs == *address)
}

/// The address of a socket; `None` for what is none, or has none.
pub(crate) fn address_of(fd: BorrowedFd<'_>) -> Option<Address> {
    SockRef::from(&fd).local_addr().ok().and_then(|theirs| Address::of_socket(&theirs))
}

/// Whether a socket that somebody else has bound is what is asked for by this address: port 0 is any
/// port, and `[::]` takes what comes for `0.0.0.0` unless it is told not to (`IPV6_V6ONLY`, ipv6(7)).
pub(crate) fn serves_address(fd: BorrowedFd<'_>, asked: &Address) -> bool {
    let (Some(Address::Inet(theirs)), Address::Inet(asked)) = (address_of(fd), asked) else {
        return false;
    };
    let takes_both = || SockRef::from(&fd).only_v6().is_ok_and(|only| !only);
    let both_any = theirs.ip().is_unspecified() && asked.ip().is_unspecified();
    let same_ip = theirs.ip() == asked.ip()
        || (both_any && theirs.is_ipv6() && asked.is_ipv4() && takes_both());
    same_ip && (asked.port() == 0 || asked.port() == theirs.port())
}
