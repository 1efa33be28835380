//! Errors, each of which knows who serves.

use std::fmt;
use std::io;
use std::path::PathBuf;

use handover_proto::{InvalidName, Versions, Violation};

use crate::control::TakeOverError;
use crate::listener::AddressError;

/// Who serves, after something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhoServes {
    /// This process.
    ThisProcess,
    /// The process that this one was started to replace: exit, and nothing is lost.
    Predecessor,
    /// The process that was started to replace this one.
    Successor,
    /// Nobody: there was no predecessor, or it is gone.
    Nobody,
    /// Whoever served before: nothing has changed.
    Unchanged,
}

impl fmt::Display for WhoServes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThisProcess => "this process serves on",
            Self::Predecessor => "the predecessor serves on",
            Self::Successor => "the successor serves",
            Self::Nobody => "nobody serves",
            Self::Unchanged => "who served before serves on",
        })
    }
}

/// Why this process does not serve, or cannot do what was asked.
///
/// `Debug` shows it for people as well, with its causes, as that is what a `main` prints that returns
/// it.
pub struct Error {
    kind: ErrorKind,
    who_serves: WhoServes,
}

/// What went wrong.
#[derive(Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The predecessor called the handover off.
    Aborted {
        /// Why.
        reason: String,
    },
    /// This process refused to serve, by `Handover::refuse`.
    Refused {
        /// Why.
        reason: String,
    },
    /// There is no version of the protocol that both processes speak.
    PeerIncompatible {
        /// What this process speaks.
        ours: Versions,
        /// What the predecessor speaks.
        theirs: Versions,
    },
    /// The predecessor broke the protocol.
    PeerMisbehaved(Violation),
    /// The predecessor is there but has not spoken for too long.
    PredecessorSilent,
    /// A stop signal came before this process served.
    Stopped,
    /// The library was started before in this process, and is still in use.
    AlreadyStarted,
    /// The PID file cannot be written.
    PidFile {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The control socket cannot be had.
    Control {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: Box<ClaimErrorKind>,
    },
    /// The service that was to be taken over does not hand over.
    TakeOver(TakeOverError),
    /// systemd keeps fewer descriptors than there are to be kept (`Builder::fd_store`).
    FdStoreTooSmall {
        /// How many there are: one for each socket, three for each state.
        needed: u64,
        /// How many it keeps.
        max: u64,
    },
    /// A name is too long, with its address, for systemd to keep the socket or state by it.
    FdStoreName {
        /// The name.
        name: String,
    },
    /// A signal that was asked for cannot be caught.
    Signal {
        /// What the kernel said.
        source: io::Error,
    },
    /// An argument or variable of the successor has a NUL byte in it, which no process can be given.
    NulByte {
        /// Which one.
        what: String,
    },
    /// No variable of the successor's environment can be called so.
    VariableName {
        /// The name.
        name: String,
    },
    /// The kernel refused something.
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, who_serves: WhoServes) -> Self {
        Self { kind, who_serves }
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Who serves now.
    pub fn who_serves(&self) -> WhoServes {
        self.who_serves
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.who_serves)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_causes(self, f)
    }
}

fn write_with_causes(error: &dyn std::error::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted { reason } => write!(f, "the predecessor called it off: {reason}"),
            Self::Refused { reason } => write!(f, "this process refused to serve: {reason}"),
            Self::PeerIncompatible { ours, theirs } => write!(
                f,
                "the predecessor speaks protocol version {theirs}, this process {ours}: restart \
                 the service instead of upgrading it"
            ),
            Self::PeerMisbehaved(violation) => {
                write!(f, "the predecessor broke the protocol with {violation}")
            }
            Self::PredecessorSilent => write!(f, "the predecessor is there but does not answer"),
            Self::Stopped => write!(f, "a stop signal came before this process served"),
            Self::AlreadyStarted => {
                write!(f, "handover was started before in this process: start it once and keep it")
            }
            Self::PidFile { path, .. } => write!(
                f,
                "cannot write the PID file {}: choose a folder that this user may write to",
                path.display()
            ),
            Self::Control { path, source } => {
                write!(f, "cannot have the control socket {}: {source}", path.display())
            }
            Self::TakeOver(error) => error.fmt(f),
            Self::FdStoreTooSmall { needed, max } => write_too_small(*needed, *max, f),
            Self::FdStoreName { name } => write_too_long(name, f),
            Self::Signal { .. } => write!(f, "cannot catch a signal: choose another"),
            Self::NulByte { what } => write!(f, "{what} has a NUL byte in it"),
            Self::VariableName { name } => write!(
                f,
                "no variable can be called \"{name}\": give it a name without an equals sign"
            ),
            Self::Io { doing, .. } => write!(f, "the kernel refused {doing}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::PidFile { source, .. }
            | ErrorKind::Signal { source }
            | ErrorKind::Io { source, .. } => Some(source),
            ErrorKind::TakeOver(error) => error.source(),
            ErrorKind::Control { source, .. } => source.cause(),
            ErrorKind::Aborted { .. }
            | ErrorKind::Refused { .. }
            | ErrorKind::PeerIncompatible { .. }
            | ErrorKind::PeerMisbehaved(_)
            | ErrorKind::PredecessorSilent
            | ErrorKind::Stopped
            | ErrorKind::AlreadyStarted
            | ErrorKind::FdStoreTooSmall { .. }
            | ErrorKind::FdStoreName { .. }
            | ErrorKind::NulByte { .. }
            | ErrorKind::VariableName { .. } => None,
        }
    }
}

fn write_too_small(needed: u64, max: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "there are {needed} descriptors for the fd store, which takes {max}: write \
         FileDescriptorStoreMax={needed} in the unit, and restart the service (systemd 254 or newer)"
    )
}

fn write_too_long(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "\"{name}\" is too long for the fd store: choose a shorter name")
}

/// Why a listener, socket or descriptor could not be had.
///
/// `Debug` shows it for people as well, as that of [`Error`] does.
pub struct ClaimError {
    name: String,
    kind: ClaimErrorKind,
    who_serves: WhoServes,
}

/// What went wrong with a claim.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClaimErrorKind {
    /// The name cannot be one.
    Name(InvalidName),
    /// The name is one of the library's own: they begin with `handover:`.
    NameReserved,
    /// The name is in use in this process.
    NameTaken,
    /// The address is none.
    Address(AddressError),
    /// The address is of another family than this type of socket: a path for TCP, say.
    WrongFamily {
        /// The address.
        address: String,
        /// What the type wants.
        wanted: &'static str,
    },
    /// The socket that was given is of another type, or does not listen.
    WrongSocket,
    /// What systemd has passed by that name is of another type or has another address.
    OtherSocketPassed {
        /// What it has passed by that name.
        passed: Vec<String>,
    },
    /// The socket was to come from systemd, which has passed none of that name.
    NoSocketPassed {
        /// The names of those that are left.
        passed: Vec<String>,
    },
    /// Something else has the address.
    AddressInUse {
        /// The address.
        address: String,
    },
    /// A process is listening on the path.
    PathAlive {
        /// The path.
        path: PathBuf,
    },
    /// There is something at the path that is no socket, and it is left alone.
    PathOccupied {
        /// The path.
        path: PathBuf,
    },
    /// systemd's fd store has no room for another socket (`Builder::fd_store`).
    FdStoreTooSmall {
        /// How many descriptors there would be.
        needed: u64,
        /// How many it keeps.
        max: u64,
    },
    /// A name is too long, with its address, for systemd to keep the socket by it.
    FdStoreName {
        /// The name.
        name: String,
    },
    /// An upgrade is under way, and the successor would not know of a new listener.
    UpgradeUnderWay,
    /// The kernel refused to bind the address: it is none of this machine, say, or its folder does
    /// not exist.
    Bind {
        /// The address.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused something.
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ClaimError {
    pub(crate) fn new(name: &str, kind: ClaimErrorKind, who_serves: WhoServes) -> Self {
        Self { name: name.to_owned(), kind, who_serves }
    }

    /// The name that was to be claimed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What went wrong.
    pub fn kind(&self) -> &ClaimErrorKind {
        &self.kind
    }

    /// Who serves now.
    pub fn who_serves(&self) -> WhoServes {
        self.who_serves
    }
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot claim \"{}\": {} ({})", self.name, self.kind, self.who_serves)
    }
}

impl fmt::Debug for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_with_causes(self, f)
    }
}

impl ClaimErrorKind {
    fn cause(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. } | Self::Io { source, .. } => Some(source),
            Self::Name(_)
            | Self::NameReserved
            | Self::NameTaken
            | Self::Address(_)
            | Self::WrongFamily { .. }
            | Self::WrongSocket
            | Self::OtherSocketPassed { .. }
            | Self::NoSocketPassed { .. }
            | Self::AddressInUse { .. }
            | Self::PathAlive { .. }
            | Self::PathOccupied { .. }
            | Self::FdStoreTooSmall { .. }
            | Self::FdStoreName { .. }
            | Self::UpgradeUnderWay => None,
        }
    }
}

impl fmt::Display for ClaimErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(error) => error.fmt(f),
            Self::NameReserved => {
                write!(f, "names that begin with \"handover:\" are the library's: choose another")
            }
            Self::NameTaken => {
                write!(f, "the name is in use in this process: give each listener its own")
            }
            Self::Address(error) => error.fmt(f),
            Self::WrongFamily { address, wanted } => {
                write!(f, "{address} is an address for another kind of socket: write {wanted}")
            }
            Self::WrongSocket => {
                write!(f, "the socket that was given is of another type, or does not listen")
            }
            Self::OtherSocketPassed { passed } => write!(
                f,
                "systemd has passed another socket by that name ({}): have the .socket unit and the \
                 program agree on type and address",
                passed.join(", ")
            ),
            Self::NoSocketPassed { passed } if passed.is_empty() => write!(
                f,
                "systemd has passed no socket by that name, and no other: write \
                 FileDescriptorName= in a .socket unit, and start the service by it"
            ),
            Self::NoSocketPassed { passed } => write!(
                f,
                "systemd has passed no socket by that name, but {}: set FileDescriptorName= in the \
                 .socket unit, or claim another name",
                passed.join(", ")
            ),
            Self::AddressInUse { address } => write!(
                f,
                "{address} is in use by another socket: stop who has it, or choose another address"
            ),
            Self::PathAlive { path } => write!(
                f,
                "another process listens on {}: stop it, or choose another path",
                path.display()
            ),
            Self::PathOccupied { path } => write!(
                f,
                "{} exists and is no socket: remove it, or choose another path",
                path.display()
            ),
            Self::FdStoreTooSmall { needed, max } => write_too_small(*needed, *max, f),
            Self::FdStoreName { name } => write_too_long(name, f),
            Self::UpgradeUnderWay => {
                write!(f, "an upgrade is under way: try again when its verdict is known")
            }
            Self::Bind { address, .. } => write!(f, "the kernel refused to bind {address}"),
            Self::Io { doing, .. } => write!(f, "the kernel refused {doing}"),
        }
    }
}

impl std::error::Error for ClaimError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.cause()
    }
}
