//! What a process leaves to its successor, so that the successor can go back to it.
//!
//! The executable is handed over open: a deploy that replaces the file, or removes it, does not take
//! the way back.

use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

use handover_proto::{Item, Name};

use crate::registry::Held;
use crate::sys::{file, memfd};

/// The names of what is left, beside those of the application.
const EXECUTABLE: &str = "handover:executable";
const ARGUMENTS: &str = "handover:arguments";

/// The most bytes of arguments that are read.
const MAX_ARGUMENTS_BYTES: u64 = 4 << 20;

/// This process, as a successor would start it again.
#[derive(Debug)]
pub(crate) struct Own {
    executable: Arc<OwnedFd>,
    /// Each ended by a NUL, as in proc_pid_cmdline(5).
    arguments: Arc<OwnedFd>,
    path: String,
}

/// The predecessor, as it was started.
#[derive(Debug, Default)]
pub(crate) struct Previous {
    pub(crate) executable: Option<Arc<OwnedFd>>,
    pub(crate) arguments: Option<Vec<OsString>>,
    /// For people.
    pub(crate) path: String,
}

impl Own {
    /// `None` where the system does not tell.
    pub(crate) fn of_this_process(path: &Path) -> Option<Self> {
        let executable = file::open_executable_of_this_process().ok()?;
        let arguments: Vec<u8> = std::env::args_os()
            .flat_map(|argument| argument.into_vec().into_iter().chain([0]))
            .collect();
        let arguments = memfd::of_bytes(ARGUMENTS, &arguments).ok()?;
        let path = path.to_string_lossy().into_owned();
        Some(Self { executable: Arc::new(executable), arguments: Arc::new(arguments), path })
    }

    /// What a successor gets.
    pub(crate) fn inventory(&self) -> impl Iterator<Item = (Item, Held)> {
        let item = |name: &str, fd: &Arc<OwnedFd>, address| {
            let name = Name::new(name).ok()?;
            Some((Item { address, ..Item::new(name) }, Held::Other(Arc::clone(fd))))
        };
        [
            item(EXECUTABLE, &self.executable, Some(self.path.clone())),
            item(ARGUMENTS, &self.arguments, None),
        ]
        .into_iter()
        .flatten()
    }
}

impl Previous {
    /// Takes over what a predecessor left, if it is of this kind.
    pub(crate) fn inherit(
        previous: &mut Option<Self>,
        item: &Item,
        fd: OwnedFd,
    ) -> Option<OwnedFd> {
        match item.name.as_str() {
            EXECUTABLE => {
                let previous = previous.get_or_insert_default();
                previous.executable = Some(Arc::new(fd));
                previous.path = item.address.clone().unwrap_or_default();
            }
            ARGUMENTS => {
                previous.get_or_insert_default().arguments = read_arguments(fd);
            }
            _ => return Some(fd),
        }
        None
    }
}

fn read_arguments(fd: OwnedFd) -> Option<Vec<OsString>> {
    let mut file = std::fs::File::from(fd);
    let mut bytes = Vec::new();
    // All generations share the position.
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(MAX_ARGUMENTS_BYTES).read_to_end(&mut bytes).ok()?;
    let arguments = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    Some(arguments.map(|argument| OsString::from_vec(argument.to_vec())).collect())
}
