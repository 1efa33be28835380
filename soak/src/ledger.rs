//! Who has accepted which connection, so that it is known when that process is not there to tell.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

/// A number of a process for each port of a client, in a file: what was written there stays when its writer is killed.
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

    /// The client at that port is that process's.
    pub(crate) fn note(&self, port: u16, pid: u32) {
        // Whoever could not note it is found out as somebody who lost it.
        let _ = self.0.write_all_at(&pid.to_ne_bytes(), u64::from(port) * 4);
    }

    /// Whose the client at that port is.
    pub(crate) fn owner(&self, port: u16) -> Option<u32> {
        let mut pid = [0; 4];
        self.0.read_exact_at(&mut pid, u64::from(port) * 4).ok()?;
        Some(u32::from_ne_bytes(pid)).filter(|pid| *pid != 0)
    }
}
