//! Files inside the box, from outside.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use rustix::io::Errno;

use super::Systemd;
use crate::folder::replace;

impl Systemd {
    /// Copies an executable of the host to the path `inside`, and makes its parent directories.
    ///
    /// It is replaced, not overwritten, if there is one already: what runs it keeps the old one.
    /// All users can execute it. It finds the shared libraries of the box: one that is linked
    /// against a newer C library than that of [`version`](Self::version)'s suite does not start.
    ///
    /// # Panics
    ///
    /// If the executable cannot be read, `inside` is not an absolute path or cannot be written, or
    /// systemd has ended.
    #[track_caller]
    pub fn install(&self, executable: impl AsRef<Path>, inside: &str) {
        let executable = executable.as_ref();
        match fs::read(executable) {
            Ok(content) => self.put(inside, &content, 0o755),
            Err(error) => panic!("{} cannot be read: {error}", executable.display()),
        }
    }

    /// Writes a file at the path `inside`, readable by all, and makes its parent directories;
    /// replaces as [`install`](Self::install) does.
    ///
    /// # Panics
    ///
    /// If `inside` is not an absolute path or cannot be written, or systemd has ended.
    #[track_caller]
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>) {
        self.put(inside, content.as_ref(), 0o644);
    }

    /// Reads the file at the path `inside` as text; `None` if there is none.
    ///
    /// # Panics
    ///
    /// If it cannot be read, or systemd has ended.
    #[track_caller]
    pub fn read(&self, inside: &str) -> Option<String> {
        let file = match self.open(Path::new(inside), OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => return None,
            Err(error) => panic!("{inside} cannot be opened: {error}"),
        };
        let mut content = Vec::new();
        let read = File::from(file).read_to_end(&mut content);
        read.unwrap_or_else(|error| panic!("{inside} cannot be read: {error}"));
        Some(String::from_utf8_lossy(&content).into_owned())
    }

    #[track_caller]
    fn put(&self, inside: &str, content: &[u8], mode: u32) {
        let path = Path::new(inside);
        assert!(path.is_absolute(), "{inside} is not an absolute path");
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            panic!("{inside} names no file");
        };
        let parent = self.directory(parent);
        replace(&path_of(&parent).join(name), content, mode);
    }

    /// Opens a directory inside, and makes it if it is missing.
    #[track_caller]
    fn directory(&self, path: &Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = self.open(path, flags).or_else(|error| {
            if error != Errno::NOENT {
                return Err(error);
            }
            self.run(&["mkdir", "--parents", &path.to_string_lossy()]);
            self.open(path, flags)
        });
        opened.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Opens what is at a path inside. Symbolic links lead to where they lead inside, never out.
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let root = format!("/proc/{}/root", self.init());
        let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.unwrap_or_else(|error| {
            panic!("systemd has ended: {}", io::Error::from(error));
        });
        openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
    }
}

/// Returns a path to an open directory that is good as long as it is open.
fn path_of(directory: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", directory.as_raw_fd()).into()
}
