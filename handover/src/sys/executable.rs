//! The file that is executed: the same one from the first look at it to its start.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use super::file::Identity;

/// A file that was found by a path, and is kept however the path changes.
///
/// What is kept is the file and not its content: nothing hinders others from writing into it until
/// it is executed.
#[derive(Debug)]
pub(crate) struct Executable {
    file: OwnedFd,
    path: CString,
    identity: Identity,
    kind: Kind,
    mode: u32,
    bytes: u64,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    Directory,
    Other,
}

impl Executable {
    /// Opens what the path leads to.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::pinned(open(path)?, path)
    }

    /// One that is open already, and was found by that path.
    pub(crate) fn pinned(file: OwnedFd, path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::Regular,
            FileType::Directory => Kind::Directory,
            _ => Kind::Other,
        };
        Ok(Self {
            identity: Identity::of_fd(&file)?,
            file,
            path: CString::new(path.as_os_str().as_bytes())?,
            kind,
            mode: stat.st_mode & 0o7777,
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The bits of its permissions.
    pub(crate) fn mode(&self) -> u32 {
        self.mode
    }

    /// Its length when it was opened.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether this process may execute it, as faccessat2(2) has it: by its permissions and by how
    /// its file system is mounted. Security modules may think otherwise.
    ///
    /// `AT_EXECVE_CHECK` would ask those as well, but not in a process with threads: while it looks,
    /// clone(2) fails with `EAGAIN` in all others (`check_unsafe_exec` in the kernel's fs/exec.c), and
    /// the service cannot start a thread.
    pub(crate) fn permission(&self) -> io::Result<()> {
        let (fd, empty) = (self.file.as_raw_fd(), c"".as_ptr());
        let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
        // SAFETY: numbers, and a C string that outlives the call.
        match unsafe { libc::syscall(libc::SYS_faccessat2, fd, empty, libc::X_OK, flags) } {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
                // Linux before 5.8, or a filter that does not know the call: the start will tell.
                _ => Ok(()),
            },
        }
    }

    /// Whether nothing may be executed where it is.
    pub(crate) fn is_mounted_noexec(&self) -> bool {
        rustix::fs::fstatvfs(&self.file)
            .is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }

    /// Reads at a position, fewer bytes only at the end.
    pub(crate) fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::pread(&self.file, &mut buffer[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(filled)
    }

    /// Whether its path still leads to it.
    pub(crate) fn is_in_place(&self) -> bool {
        let path = Path::new(std::ffi::OsStr::from_bytes(self.path.to_bytes()));
        Identity::of_path(path) == Some(self.identity)
    }

    pub(super) fn path(&self) -> &CStr {
        &self.path
    }
}

impl AsFd for Executable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    // Without blocking, should it be a FIFO, and without a terminal becoming ours.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
    // What may be executed and not read can be held on to all the same. Sockets and devices cannot
    // be opened either, and are to be told apart.
    let unreadable = |e| matches!(e, Errno::ACCESS | Errno::PERM | Errno::NXIO | Errno::NODEV);
    let held = OFlags::PATH | OFlags::CLOEXEC;
    Ok(match opened {
        Err(e) if unreadable(e) => rustix::fs::openat(CWD, path, held, Mode::empty())?,
        opened => opened?,
    })
}

#[cfg(test)]
mod tests {
    use handover_testkit::{Folder, executables};

    use super::*;

    #[test]
    fn a_file_is_kept_when_its_path_leads_elsewhere() {
        let folder = Folder::create();
        let path = folder.write_executable("program", "one");
        let executable = Executable::open(&path).unwrap();
        assert!(executable.is_in_place());
        folder.write_executable("program", "another");
        assert!(!executable.is_in_place());
        let mut buffer = [0; 16];
        assert_eq!(executable.read_at(&mut buffer, 1).unwrap(), 2);
        assert_eq!(&buffer[..2], b"ne");
        assert_eq!(executable.bytes(), 3);
        std::fs::remove_file(&path).unwrap();
        assert!(!executable.is_in_place());
    }

    #[test]
    fn kinds_are_told_apart_and_none_is_waited_for() {
        use rustix::fs::mknodat;
        let folder = Folder::create();
        let kind = |path: &Path| Executable::open(path).unwrap().kind();
        assert_eq!(kind(&executables::empty(&folder)), Kind::Regular);
        assert_eq!(kind(folder.path()), Kind::Directory);
        let fifo = folder.join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o700), 0).unwrap();
        assert_eq!(kind(&fifo), Kind::Other);
        let socket = folder.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(kind(&socket), Kind::Other);
        assert_eq!(kind(Path::new("/dev/null")), Kind::Other);
    }

    #[test]
    fn permission_is_that_of_the_file() {
        let folder = Folder::create();
        let executable = Executable::open(&executables::empty(&folder)).unwrap();
        executable.permission().unwrap();
        let executable = Executable::open(&executables::not_executable(&folder)).unwrap();
        assert_eq!(executable.permission().unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert_eq!(executable.mode(), 0o644);
    }
}
