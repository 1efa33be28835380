//! The PID file: names who serves, from one moment to the next.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::sys::file::{create_new, is_held_by_another, read_beginning};

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
        // A folder that cannot be written to is found out by trying to write beside the path, what
        // cannot be replaced only by looking.
        if file.path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if is_held_by_another(&file.path) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "another user's file is there, and the folder lets nobody else replace it",
            ));
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
    let own = format!("{}\n", std::process::id());
    // One byte more than a number has, to tell what only begins like it.
    let mut buffer = [0; 16];
    read_beginning(path, &mut buffer).is_ok_and(|bytes| buffer[..bytes] == *own.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;
    use handover_testkit::Folder;

    #[test]
    fn a_link_in_the_place_of_the_pid_file_is_replaced_and_not_followed() {
        let folder = Folder::create();
        let target = folder.write("target", "precious");
        let path = folder.join("pid");
        // At its place, and where it is prepared.
        symlink(&target, &path).unwrap();
        symlink(&target, folder.join(format!("pid.{}.tmp", std::process::id()))).unwrap();

        let file = PidFile::prepare(&path).unwrap();
        file.publish();

        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert!(names_this_process(&path));
        PidFile::remove(&path);
        assert!(!path.exists() && target.exists());
    }

    #[test]
    fn what_is_not_our_pid_file_is_neither_waited_for_nor_removed() {
        let folder = Folder::create();
        let path = folder.join("pid");
        let own = folder.write("own", format!("{}\n", std::process::id()));
        let is_left = || {
            PidFile::remove(&path);
            let is_there = path.symlink_metadata().is_ok();
            fs::remove_file(&path).unwrap();
            is_there
        };
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(is_left(), "a FIFO, which nobody writes to");
        symlink("/dev/zero", &path).unwrap();
        assert!(is_left(), "what never ends");
        symlink(&own, &path).unwrap();
        assert!(is_left(), "a link, although to our number");
        let numbers = [format!("{}1\n", std::process::id()), "1\n".into(), String::new()];
        for number in numbers {
            folder.write("pid", &number);
            assert!(is_left(), "{number:?}");
        }
    }

    #[test]
    fn a_folder_in_the_place_of_the_pid_file_is_told_before_anybody_serves() {
        let folder = Folder::create();
        fs::create_dir(folder.join("pid")).unwrap();
        let error = PidFile::prepare(&folder.join("pid")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
