//! Who has which connection, so that it is known when that process is not there to tell.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// Set beside the number of a process from which a connection is on its way to another; Linux numbers processes below 2^22
/// (proc(5), `pid_max`).
const ON_ITS_WAY: u32 = 1 << 31;

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// That process has it.
    Has(u32),
    /// That process has begun to give it away, and nobody has said yet that he has it.
    Gives(u32),
}

/// An owner for each port of a client, in a file: what was written there stays when its writer is killed.
#[derive(Clone, Debug)]
pub(crate) struct Ledger(Arc<File>);

impl Ledger {
    pub(crate) fn create(folder: &Path) -> io::Result<()> {
        File::create(folder.join("ledger"))?.set_len(4 << 16)
    }

    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(folder.join("ledger"))?;
        Ok(Self(Arc::new(file)))
    }

    /// Whose the client at that port is now.
    pub(crate) fn note(&self, port: u16, owner: Option<Owner>) {
        let owner = match owner {
            None => 0,
            Some(Owner::Has(pid)) => pid,
            Some(Owner::Gives(pid)) => pid | ON_ITS_WAY,
        };
        // Whoever could not note it is found out as somebody who lost it.
        let _ = self.0.write_all_at(&owner.to_ne_bytes(), u64::from(port) * 4);
    }

    /// Whose the client at that port is.
    pub(crate) fn owner(&self, port: u16) -> Option<Owner> {
        let mut owner = [0; 4];
        self.0.read_exact_at(&mut owner, u64::from(port) * 4).ok()?;
        match u32::from_ne_bytes(owner) {
            0 => None,
            pid if pid & ON_ITS_WAY == 0 => Some(Owner::Has(pid)),
            pid => Some(Owner::Gives(pid ^ ON_ITS_WAY)),
        }
    }
}
