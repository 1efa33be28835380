//! Who may speak to the service.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::ClaimErrorKind;
use crate::listener::{Address, Bind};
use crate::sys::file::{SocketFile, set_mode_at_bind};
use crate::sys::peer;

/// The mode of the socket: its owner may connect, and root.
const OWNER_ONLY: u32 = 0o600;

/// The mode of the socket where a group may as well.
const OWNER_AND_GROUP: u32 = 0o660;

/// Who may ask, apart from this process's own user and root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The members of this group.
    pub(crate) group: Option<u32>,
}

/// The process that is a client, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` for a process that has no number here: one outside of the container, say.
    pub(crate) pid: Option<u32>,
}

impl Peer {
    pub(super) fn of(stream: BorrowedFd<'_>) -> io::Result<Self> {
        let peer::Credentials { uid, gid, pid } = peer::credentials(stream)?;
        Ok(Self { uid, gid, pid })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}", self.uid)?;
        match self.pid {
            Some(pid) => write!(f, ", pid {pid}"),
            None => Ok(()),
        }
    }
}

impl Policy {
    /// Whether the client at the other end may ask. The mode of the socket has kept others away, but
    /// not from a socket in the abstract namespace, or who may read and write every file.
    pub(super) fn allows(self, peer: Peer, stream: BorrowedFd<'_>) -> bool {
        if peer.uid == 0 || peer.uid == peer::effective_user() {
            return true;
        }
        let Some(group) = self.group else { return false };
        peer.gid == group || peer::groups(stream).is_ok_and(|groups| groups.contains(&group))
    }
}

/// How the control socket is bound: nobody but its owner and root can connect, from the moment on
/// in which it exists. [`permit`] opens it to a group.
pub(crate) fn bind_how(path: &Path) -> Bind {
    Bind::to(path).before_bind(|socket| set_mode_at_bind(socket, OWNER_ONLY))
}

/// Gives the control socket the mode and the group that it is to have. To be called when it was
/// bound, and once this process serves when it was inherited: the group may be another one by now.
///
/// # Errors
///
/// If the kernel refuses; then nobody can connect who is not to.
pub(crate) fn permit(address: &Address, policy: Policy) -> Result<(), ClaimErrorKind> {
    let io = |doing| move |source| ClaimErrorKind::Io { doing, source };
    let Address::Path(path) = address else { return Ok(()) };
    let file = SocketFile::find(path).map_err(io("to look at the control socket"))?;
    if let Some(group) = policy.group
        && file.group != group
    {
        // Before the mode, or the members of another group could connect in between.
        file.set_mode_if_other(OWNER_ONLY).map_err(io("the mode of the control socket"))?;
        file.set_group(group).map_err(io(
            "to give the control socket to its group (run as root, or as a member of the group)",
        ))?;
        return file.set_mode(OWNER_AND_GROUP).map_err(io("the mode of the control socket"));
    }
    let mode = if policy.group.is_some() { OWNER_AND_GROUP } else { OWNER_ONLY };
    file.set_mode_if_other(mode).map_err(io("the mode of the control socket"))
}
