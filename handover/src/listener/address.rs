//! Addresses as they are asked for, and how a socket is to be bound.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket};

/// The backlog of a listener that does not ask for another; the kernel caps it at
/// `net.core.somaxconn`, by default 4096 as well (listen(2)).
pub const DEFAULT_BACKLOG: u32 = 4096;

/// The most bytes of a Unix socket's path or abstract name (`sun_path` less its NUL, unix(7)).
pub const MAX_UNIX_PATH_BYTES: usize = 107;

/// The address of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IPv4 or IPv6 address and a port; port 0 lets the kernel choose.
    Inet(SocketAddr),
    /// A Unix socket in the file system.
    Path(PathBuf),
    /// A Unix socket in the abstract namespace of Linux, without the leading NUL.
    Abstract(Vec<u8>),
}

impl Address {
    /// Reads `127.0.0.1:80`, `[::1]:80`, `/run/app.sock`, `./app.sock` or `@name`.
    ///
    /// # Errors
    ///
    /// [`AddressError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if let Some(name) = text.strip_prefix('@') {
            return Self::Abstract(name.as_bytes().to_vec()).checked();
        }
        if text.contains('/') {
            return Self::Path(text.into()).checked();
        }
        match text.parse() {
            Ok(address) => Ok(Self::Inet(address)),
            Err(_) => Err(AddressError::Unparsable { text: text.to_owned() }),
        }
    }

    /// The IP address and port, if it has them.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Path(_) | Self::Abstract(_) => None,
        }
    }

    fn checked(self) -> Result<Self, AddressError> {
        let bytes = match &self {
            Self::Inet(_) => return Ok(self),
            Self::Path(path) => path.as_os_str().len(),
            Self::Abstract(name) => name.len(),
        };
        match bytes {
            0 => Err(AddressError::Unparsable { text: self.to_string() }),
            1..=MAX_UNIX_PATH_BYTES => Ok(self),
            _ => Err(AddressError::UnixPathTooLong { bytes }),
        }
    }

    pub(crate) fn domain(&self) -> Domain {
        match self {
            Self::Inet(SocketAddr::V4(_)) => Domain::IPV4,
            Self::Inet(SocketAddr::V6(_)) => Domain::IPV6,
            Self::Path(_) | Self::Abstract(_) => Domain::UNIX,
        }
    }

    pub(crate) fn to_sockaddr(&self) -> io::Result<SockAddr> {
        match self {
            Self::Inet(address) => Ok((*address).into()),
            Self::Path(path) => SockAddr::unix(path),
            Self::Abstract(name) => {
                // socket2 takes a leading NUL for the abstract namespace.
                let mut bytes = vec![0];
                bytes.extend_from_slice(name);
                SockAddr::unix(OsStr::from_bytes(&bytes))
            }
        }
    }

    /// The address that a socket has; `None` for a family that is not ours.
    pub(crate) fn of_socket(address: &SockAddr) -> Option<Self> {
        if let Some(inet) = address.as_socket() {
            Some(Self::Inet(inet))
        } else if let Some(path) = address.as_pathname() {
            Some(Self::Path(path.to_owned()))
        } else {
            address.as_abstract_namespace().map(|name| Self::Abstract(name.to_vec()))
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// As [`parse`](Self::parse).
    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// It is neither an IP address with a port, nor a path, nor an abstract name.
    Unparsable {
        /// The text.
        text: String,
    },
    /// There is none, as the socket was to come from systemd: name it, and do not bind it.
    NoneGiven,
    /// The socket has no address that a successor could know it by.
    NotBound,
    /// The path or abstract name has more than [`MAX_UNIX_PATH_BYTES`].
    UnixPathTooLong {
        /// How many it has.
        bytes: usize,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unparsable { text } => write!(
                f,
                "\"{text}\" is no address: write 127.0.0.1:80, [::1]:80, /run/app.sock or @name"
            ),
            Self::NoneGiven => {
                write!(f, "a socket that is to come from systemd has to be claimed by its name")
            }
            Self::NotBound => write!(f, "the socket has no address: bind it first"),
            Self::UnixPathTooLong { bytes } => write!(
                f,
                "a Unix socket's path may have {MAX_UNIX_PATH_BYTES} bytes, this one has {bytes}: \
                 choose a shorter one"
            ),
        }
    }
}

impl std::error::Error for AddressError {}

type BeforeBind = Box<dyn FnOnce(&Socket) -> io::Result<()>>;

/// Where and how a socket is bound, if it is not inherited.
///
/// Made from an address: text, a [`SocketAddr`], a path. Also made from a socket of std that is bound
/// already: it is used if none is inherited under the name, and made non-blocking. (A socket of
/// Tokio becomes one of std with `into_std`.) As others may have such a socket open, a service manager
/// that activates the service by it for one, it is never taken out of service: on a stop, what it has
/// queued stays there.
///
/// ```
/// use handover::Bind;
///
/// let plain: Bind = "127.0.0.1:8080".into();
/// let tuned = Bind::to("[::]:8080").backlog(512).before_bind(|socket| socket.set_only_v6(true));
/// ```
pub struct Bind {
    pub(crate) address: Result<Address, AddressError>,
    pub(crate) backlog: u32,
    pub(crate) reuse_port: bool,
    pub(crate) before_bind: Option<BeforeBind>,
    /// A socket that is bound already.
    pub(crate) existing: Option<OwnedFd>,
    /// Whether it may come from systemd.
    pub(crate) from: FromSystemd,
}

/// Whether a socket may come from systemd's socket activation (systemd.socket(5)).
///
/// What a predecessor hands over counts as what it was there: a socket that systemd has passed to the
/// first generation is one from systemd in the tenth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FromSystemd {
    /// It is taken from there if systemd has passed one of that name (`FileDescriptorName=`), or with
    /// that very address, and bound otherwise.
    #[default]
    IfThere,
    /// It is taken from there, and is an error otherwise.
    Only,
    /// It is bound, or comes from a predecessor that has bound it, whatever systemd has passed.
    Never,
}

impl Bind {
    /// Binds to this address, with `SO_REUSEADDR` and a backlog of [`DEFAULT_BACKLOG`].
    pub fn to(address: impl Into<Self>) -> Self {
        address.into()
    }

    /// How many connections the kernel queues; [`DEFAULT_BACKLOG`] unless set, and never more than
    /// `net.core.somaxconn`.
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Lets several listeners of different names share the address, each with a queue of its own
    /// (`SO_REUSEPORT`, socket(7)). All of them have to ask for it. Off unless called.
    ///
    /// A TCP listener that a successor adds to such a group begins to listen when the successor serves.
    /// A UDP socket gets its share of the datagrams from its bind on, and loses them if the successor
    /// never serves.
    pub fn reuse_port(mut self) -> Self {
        self.reuse_port = true;
        self
    }

    /// Calls this with the new socket before it is bound, to set any option that is wanted.
    ///
    /// It is called only where the socket is made: successors inherit it with its options. It must
    /// not call this library, which waits for it.
    pub fn before_bind(mut self, set: impl FnOnce(&Socket) -> io::Result<()> + 'static) -> Self {
        self.before_bind = Some(Box::new(set));
        self
    }

    /// A socket that systemd has passed by the name that it is claimed by, whatever its address is: the
    /// unit alone says that.
    ///
    /// ```no_run
    /// # use handover::{Bind, Handover, TcpListener};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let handover = Handover::builder().start()?;
    /// // FileDescriptorName=http
    /// let http: TcpListener = handover.listen("http", Bind::passed_by_systemd())?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "systemd-sockets")]
    pub fn passed_by_systemd() -> Self {
        Self { from: FromSystemd::Only, ..Self::new(Err(AddressError::NoneGiven)) }
    }

    /// Whether the socket may come from systemd. [`FromSystemd::IfThere`] unless set.
    ///
    /// One that does is used as it is, with the backlog and the options that the unit gives it; its type
    /// and address have to be those that are asked for. It is never taken out of service: on a stop,
    /// what it has queued stays there for the next start.
    #[cfg(feature = "systemd-sockets")]
    pub fn from_systemd(mut self, whether: FromSystemd) -> Self {
        self.from = whether;
        self
    }

    fn existing(fd: OwnedFd) -> Self {
        let address = socket2::SockRef::from(&fd)
            .local_addr()
            .ok()
            .and_then(|address| Address::of_socket(&address))
            .ok_or(AddressError::NotBound);
        Self { existing: Some(fd), ..Self::new(address) }
    }

    fn new(address: Result<Address, AddressError>) -> Self {
        Self {
            address,
            backlog: DEFAULT_BACKLOG,
            reuse_port: false,
            before_bind: None,
            existing: None,
            from: FromSystemd::default(),
        }
    }
}

impl fmt::Debug for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bind").field("address", &self.address).finish_non_exhaustive()
    }
}

impl From<&str> for Bind {
    fn from(text: &str) -> Self {
        Self::new(Address::parse(text))
    }
}

impl From<&String> for Bind {
    fn from(text: &String) -> Self {
        Self::new(Address::parse(text))
    }
}

impl From<String> for Bind {
    fn from(text: String) -> Self {
        Self::new(Address::parse(&text))
    }
}

impl From<SocketAddr> for Bind {
    fn from(address: SocketAddr) -> Self {
        Self::new(Ok(Address::Inet(address)))
    }
}

macro_rules! from_socket {
    ($($socket:ty),*) => {$(
        impl From<$socket> for Bind {
            fn from(socket: $socket) -> Self {
                Self::existing(socket.into())
            }
        }
    )*};
}

from_socket!(std::net::TcpListener, std::net::UdpSocket);
from_socket!(std::os::unix::net::UnixListener, std::os::unix::net::UnixDatagram);

impl From<(IpAddr, u16)> for Bind {
    fn from(address: (IpAddr, u16)) -> Self {
        SocketAddr::from(address).into()
    }
}

impl From<&Path> for Bind {
    fn from(path: &Path) -> Self {
        Self::new(Address::Path(path.to_owned()).checked())
    }
}

impl From<PathBuf> for Bind {
    fn from(path: PathBuf) -> Self {
        Self::new(Address::Path(path).checked())
    }
}

impl From<Address> for Bind {
    fn from(address: Address) -> Self {
        Self::new(address.checked())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart_by_their_form() {
        assert!(matches!(Address::parse("127.0.0.1:0"), Ok(Address::Inet(SocketAddr::V4(_)))));
        assert!(matches!(Address::parse("[::1]:80"), Ok(Address::Inet(SocketAddr::V6(_)))));
        assert_eq!(Address::parse("./a.sock"), Ok(Address::Path("./a.sock".into())));
        assert_eq!(Address::parse("@app"), Ok(Address::Abstract(b"app".to_vec())));
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_text() {
        for text in ["", "80", "localhost:80", "127.0.0.1", "127.0.0.1:65536", "@"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_unix_path_of_107_bytes_is_taken_and_one_of_108_refused() {
        let longest = format!("/{}", "x".repeat(MAX_UNIX_PATH_BYTES - 1));
        assert!(Address::parse(&longest).is_ok());
        let error = Address::parse(&format!("{longest}x")).unwrap_err();
        assert_eq!(error, AddressError::UnixPathTooLong { bytes: 108 });
    }
}
