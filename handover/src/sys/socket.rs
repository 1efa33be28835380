//! What std and socket2 do not offer of sockets.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags};
use socket2::{Domain, SockRef, Type};

/// Whether an accepted socket blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocking {
    Yes,
    /// For whoever waits for many.
    No,
}

/// A connection, and the other end's address if it is an IP address.
pub(crate) type Accepted = (OwnedFd, Option<SocketAddr>);

/// Takes a connection out of the queue, close-on-exec and as asked, in one call (accept4(2)).
pub(crate) fn accept(listener: BorrowedFd<'_>, blocking: Blocking) -> io::Result<Accepted> {
    let flags = match blocking {
        Blocking::Yes => SocketFlags::CLOEXEC,
        Blocking::No => SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    };
    let (fd, from) = rustix::net::acceptfrom_with(listener, flags)?;
    Ok((fd, from.and_then(|from| from.try_into().ok())))
}

/// What an error of accept(2) or recvfrom(2) means for the socket that is waited on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is nothing to take.
    Nothing,
    /// The one connection is gone; the next may be there.
    ThisOne,
    /// This process or the system is short of something.
    Exhausted,
    /// The socket is of no more use.
    Socket,
}

impl Trouble {
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::Nothing,
            // Linux passes what is pending on the new connection on as an error of accept(2).
            Some(
                libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
                | libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EPERM,
            ) => Self::ThisOne,
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Self::Exhausted,
            _ => Self::Socket,
        }
    }
}

/// What an error of connect(2) to a Unix socket's path means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is nothing at the path, or something that nobody listens on.
    NobodyListens,
    /// Somebody does: its type is another, or its queue is full (unix(7)).
    SomebodyListens,
    Other,
}

impl Refusal {
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ENOENT) => Self::NobodyListens,
            Some(libc::EPROTOTYPE | libc::EAGAIN) => Self::SomebodyListens,
            _ => Self::Other,
        }
    }
}

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) domain: Domain,
    pub(crate) kind: Type,
    pub(crate) listening: bool,
}

/// Looks what a socket is; fails for what is none.
pub(crate) fn facts(fd: BorrowedFd<'_>) -> io::Result<Facts> {
    let socket = SockRef::from(&fd);
    let kind = socket.r#type()?;
    let listening = socket.is_listener()?;
    Ok(Facts { domain: socket.domain()?, kind, listening })
}

/// Has calls return that would wait (`O_NONBLOCK`, of the open file description).
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_nonblocking(true)
}

/// What waits in a listener's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    /// How many connections wait to be accepted.
    pub(crate) queued: u64,
    /// How many may wait.
    pub(crate) backlog: Option<u64>,
}

/// The queue of a listener, whoever else has it open; `None` for what does not listen, and if the
/// kernel does not tell. Of datagrams it tells the bytes, not the number.
pub(crate) fn queue(socket: BorrowedFd<'_>) -> Option<Queue> {
    let facts = facts(socket).ok()?;
    match facts.domain {
        _ if !facts.listening => None,
        Domain::UNIX => super::unix_diag::queue(socket),
        _ => tcp_queue(socket),
    }
}

/// `TCP_INFO` says of a listener how many have not been accepted where it says of a connection how
/// many segments have not been acknowledged, and the backlog likewise (`tcp_get_info` of Linux).
fn tcp_queue(listener: BorrowedFd<'_>) -> Option<Queue> {
    const LISTEN: u8 = 10;
    /// The beginning of `tcp_info` (linux/tcp.h); the kernel writes as much as there is room for.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        state: u8,
        _flags: [u8; 7],
        _times_and_sizes: [u32; 4],
        unacked: u32,
        sacked: u32,
    }
    let mut info = Info::default();
    let mut length = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which the struct has, and integers may have
    // any value.
    let result = unsafe {
        libc::getsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    let is_told = result == 0 && length as usize == size_of::<Info>() && info.state == LISTEN;
    is_told.then(|| Queue { queued: info.unacked.into(), backlog: Some(info.sacked.into()) })
}

/// Sends what a stream takes without waiting, and with its first byte the descriptor, if there is
/// one (unix(7)).
///
/// # Errors
///
/// `WouldBlock` when the buffer is full, `QuotaExceeded` when this user has too many descriptors in
/// flight, of which nothing tells when it is over.
pub(crate) fn send(
    stream: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptor = descriptor.as_slice();
    if !descriptor.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptor)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
        Ok(sent) => Ok(sent),
        Err(Errno::TOOMANYREFS) => Err(io::ErrorKind::QuotaExceeded.into()),
        Err(e) => Err(e.into()),
    }
}

/// Makes a listening Unix socket refuse new connections; those in its queue stay (unix(7)).
pub(crate) fn refuse_new(listener: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&listener).shutdown(std::net::Shutdown::Read)
}

/// Takes a TCP listener out of service wherever it is open, without closing it: connects are refused
/// from here on. (For a Unix listener [`refuse_new`] has done so; other sockets do not mind.)
pub(crate) fn close_for_all(listener: BorrowedFd<'_>) {
    // It fails for a socket that neither listens nor is connected, which is as well.
    let _ = SockRef::from(&listener).shutdown(std::net::Shutdown::Read);
}

/// What keeps new connections away from a listener, for as long as that is open.
#[derive(Debug)]
pub(crate) enum Barrier {
    /// A packet filter that drops SYNs.
    Filter,
    /// A demand for more hops left than a packet has.
    Hops(Vec<HopsDemand>),
}

/// A demand for hops left, and what was demanded before.
#[derive(Debug)]
pub(crate) struct HopsDemand {
    level: libc::c_int,
    option: libc::c_int,
    before: libc::c_int,
}

/// Drops the SYNs that arrive for a TCP listener from here on. Connections that are established or
/// half-open are not touched; a client that is dropped tries again in a second, and meets whoever
/// listens then.
pub(crate) fn drop_new(listener: BorrowedFd<'_>) -> io::Result<Barrier> {
    match attach_filter(listener, &DROP_SYNS) {
        Ok(()) => Ok(Barrier::Filter),
        // The kernel takes filters for TCP from CAP_NET_ADMIN alone.
        Err(_) => demand_hops(listener).map(Barrier::Hops),
    }
}

impl Barrier {
    /// Lets a connection through whose handshake was half done when the barrier came up.
    pub(crate) fn admit(&self, connection: BorrowedFd<'_>) {
        let Self::Hops(demands) = self else { return };
        for demand in demands {
            // The connection has the demand from its listener. Until here what it was sent is
            // dropped, and sent again.
            if let Err(error) = set_option(connection, demand.level, demand.option, demand.before) {
                tracing::warn!(%error, "a connection is lost to the end of its listener");
            }
        }
    }
}

/// Demands of packets to this listener that they have come over no router, by senders that give
/// them the most hops there are (`IP_MINTTL`, ip(7); RFC 5082). Hardly anybody does, on Linux it is
/// 64. The demand is made of what is for the listener itself; the ACK that completes a handshake is
/// for the half-open connection.
fn demand_hops(listener: BorrowedFd<'_>) -> io::Result<Vec<HopsDemand>> {
    const MOST: libc::c_int = 255;
    /// Of linux/in6.h.
    const IPV6_MINHOPCOUNT: libc::c_int = 73;
    let v4 = (libc::IPPROTO_IP, libc::IP_MINTTL);
    let v6 = (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT);
    let socket = SockRef::from(&listener);
    let options = match socket.domain()? {
        Domain::IPV4 => vec![v4],
        _ if socket.only_v6()? => vec![v6],
        _ => vec![v6, v4],
    };
    let mut demands = Vec::new();
    for (level, option) in options {
        let before = int_option(listener, level, option)?;
        set_option(listener, level, option, MOST)?;
        demands.push(HopsDemand { level, option, before });
    }
    Ok(demands)
}

/// For `SO_ATTACH_FILTER` on a TCP socket, where offset 0 is the TCP header: drops what has SYN and
/// not ACK among its flags (byte 13, RFC 9293).
const DROP_SYNS: [libc::sock_filter; 5] = [
    statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 13),
    statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0x12),
    jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0x02, 0, 1),
    statement(libc::BPF_RET | libc::BPF_K, 0),
    statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
];

const fn statement(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn attach_filter(socket: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        // The kernel copies the program and does not write to it.
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the option takes a sock_fprog, which points to a filter that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the kernel reads one integer, which is there.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn int_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which the integer has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Receives a datagram without blocking (recvfrom(2)).
pub(crate) fn receive_from(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, socket2::SockAddr)> {
    let (uninit, length) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the same memory under a type that allows less: the kernel only writes to it.
    let buffer = unsafe { std::slice::from_raw_parts_mut(uninit, length) };
    let (bytes, from) = SockRef::from(&fd).recv_from_with_flags(buffer, libc::MSG_DONTWAIT)?;
    // The kernel writes no address at all, not even its family, for a Unix socket that has none.
    let from = if from.len() == 0 { socket2::SockAddr::unix("")? } else { from };
    Ok((bytes, from))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use socket2::{SockAddr, Socket};

    use super::*;

    const BACKLOG: u64 = 5;

    /// Waits, a handshake being done by the kernel, for as many to be in the queue.
    fn is_queued(listener: &Socket, queued: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        let wanted = Some(Queue { queued, backlog: Some(BACKLOG) });
        while queue(listener.as_fd()) != wanted {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    fn listener_tells_its_queue(domain: Domain, kind: Type, address: &SockAddr) {
        let listener = Socket::new(domain, kind, None).unwrap();
        listener.bind(address).unwrap();
        assert_eq!(queue(listener.as_fd()), None, "it does not listen");
        listener.listen(BACKLOG as i32).unwrap();
        assert!(is_queued(&listener, 0));

        let mut clients = Vec::new();
        for queued in 1..=3 {
            let client = Socket::new(domain, kind, None).unwrap();
            client.connect(&listener.local_addr().unwrap()).unwrap();
            assert_eq!(queue(client.as_fd()), None, "a connection is no listener");
            clients.push(client);
            assert!(is_queued(&listener, queued));
        }
        let copy = listener.try_clone().unwrap();
        drop(copy.accept().unwrap());
        assert!(is_queued(&listener, 2));
    }

    #[test]
    fn a_tcp_listener_tells_its_queue() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            listener_tells_its_queue(Domain::for_address(address), Type::STREAM, &address.into());
        }
    }

    #[test]
    fn a_unix_listener_tells_its_queue() {
        for kind in [Type::STREAM, Type::SEQPACKET] {
            let name = format!("\0handover-queue-{}-{kind:?}", std::process::id());
            listener_tells_its_queue(Domain::UNIX, kind, &SockAddr::unix(name).unwrap());
        }
    }

    #[test]
    fn a_datagram_socket_tells_no_queue() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        assert_eq!(queue(socket.as_fd()), None);
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        theirs.send(b"x").unwrap();
        assert_eq!(queue(ours.as_fd()), None);
    }

    #[test]
    fn what_is_no_socket_tells_no_queue() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(queue(file.as_fd()), None);
    }
}
