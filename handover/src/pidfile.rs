//! The PID file: names who serves, from one moment to the next.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::sys::file::create_new;

/// A PID file that is written but not in its place yet.
///
/// Writing can fail, so it is done before this process serves; the change of place cannot, but for
/// a folder that vanishes meanwhile.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
    temporary: PathBuf,
}

impl PidFile {
    /// Writes it beside its place.
    pub(crate) fn prepare(path: &Path) -> io::Result<Self> {
        let pid = std::process::id();
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(format!(".{pid}.tmp"));
        let temporary = path.with_file_name(name);
        let file = Self { path: path.to_owned(), temporary };
        // Left by a process that had our number and was killed in between.
        if let Err(error) = std::fs::remove_file(&file.temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        // A file at the path that cannot be replaced is found out by trying to write beside it,
        // a directory only by looking.
        if file.path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        writeln!(create_new(&file.temporary)?, "{pid}")?;
        Ok(file)
    }

    /// Puts it into its place, in one step.
    pub(crate) fn publish(&self) {
        if let Err(error) = std::fs::rename(&self.temporary, &self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot replace the PID file");
        }
    }

    /// Names this process again after another one was named.
    pub(crate) fn restore(path: &Path) {
        match Self::prepare(path) {
            Ok(file) => file.publish(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot restore the PID file");
            }
        }
    }

    /// Removes it, if it still names this process.
    pub(crate) fn remove(path: &Path) {
        if names_this_process(path)
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the PID file");
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // It is there only if it was not published.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Whether the file holds our number.
pub(crate) fn names_this_process(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim().parse() == Ok(std::process::id()))
}
