//! Files by identity, the standard streams, pipes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::pipe::PipeFlags;

/// What tells a file from every other one that exists at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of what the path leads to; `None` if there is nothing.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        rustix::fs::stat(path).ok().map(Self::new)
    }

    /// Of the path itself, even if it is a link.
    pub(crate) fn of_link(path: &Path) -> Option<Self> {
        rustix::fs::lstat(path).ok().map(Self::new)
    }

    /// Of what is open.
    pub(crate) fn of_fd(fd: impl AsFd) -> io::Result<Self> {
        Ok(Self::new(rustix::fs::fstat(fd)?))
    }

    fn new(stat: rustix::fs::Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// How many descriptors there is room for from the start; it takes 32 KiB of the kernel's memory.
const ROOM: u64 = 4096;

/// Has the kernel make room for descriptors.
///
/// It begins with 64, or as many as the process had that started this one, and doubles them when they are used up. Once
/// there are threads, whoever opens the descriptor that is one too many waits for that, 10 ms and more: until no processor
/// can be looking at the old table any more (`expand_fdtable` in fs/file.c). To be called before there are threads.
pub(crate) fn make_room_for_descriptors(any: impl AsFd) -> io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let last = ROOM.min(limit.unwrap_or(ROOM)).saturating_sub(1);
    // There is nothing to be done with it but to have it.
    rustix::io::fcntl_dupfd_cloexec(any, i32::try_from(last).unwrap_or_default())?;
    Ok(())
}

/// Has a socket that is bound from here on appear in the file system with this mode, less the umask.
///
/// Linux makes the file with the mode of the socket itself (`unix_bind_bsd` in net/unix/af_unix.c), so
/// that there is no moment in which it has another.
pub(crate) fn set_mode_at_bind(socket: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(socket, Mode::from_raw_mode(mode))?)
}

/// A socket by its place in the file system.
#[derive(Debug)]
pub(crate) struct SocketFile {
    file: OwnedFd,
    pub(crate) group: u32,
    mode: u32,
}

impl SocketFile {
    /// Finds it, without following a link at its name; what is done with it then is done with this
    /// one, whatever comes to the path.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self { file, group: stat.st_gid, mode: stat.st_mode & 0o7777 })
    }

    pub(crate) fn set_group(&self, group: u32) -> io::Result<()> {
        let group = Some(rustix::process::Gid::from_raw(group));
        Ok(rustix::fs::chownat(&self.file, "", None, group, AtFlags::EMPTY_PATH)?)
    }

    /// Gives it this mode, unless it was found with it.
    pub(crate) fn set_mode_if_other(&self, mode: u32) -> io::Result<()> {
        if self.mode == mode { Ok(()) } else { self.set_mode(mode) }
    }

    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        // There is no call for the mode of what is not opened, before Linux 6.6; this is how its
        // manual page says to do without (fchmodat(2)).
        let place = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(rustix::fs::chmod(place, Mode::from_raw_mode(mode))?)
    }
}

/// The descriptor of standard error.
pub(crate) fn stderr() -> BorrowedFd<'static> {
    rustix::stdio::stderr()
}

/// Makes this what standard error is.
pub(crate) fn replace_stderr(with: impl AsFd) -> io::Result<()> {
    Ok(rustix::stdio::dup2_stderr(with)?)
}

/// Opens what reads as empty: a stdin for who is to have none.
pub(crate) fn nothing() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, "/dev/null", flags, Mode::empty())?)
}

/// A pipe whose reading end does not block.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader, writer))
}

/// Reads what is there: `None` if nothing is yet, 0 at the end.
pub(crate) fn read_available(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    use rustix::io::Errno;
    match rustix::io::read(fd, buffer) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Writes once, as much as is taken.
pub(crate) fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(fd, bytes)?)
}

/// Creates a file that must not exist, without following a link at its name.
pub(crate) fn create_new(path: &Path) -> io::Result<std::fs::File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644))?.into())
}

/// Reads what fits of a regular file. Does not follow a link at its name, and waits for nobody, should it be
/// a FIFO.
pub(crate) fn read_beginning(path: &Path, buffer: &mut [u8]) -> io::Result<usize> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(rustix::io::pread(&file, buffer, 0)?)
}

/// Whether what is at the path is another user's, in a folder whose sticky bit keeps it from being replaced or
/// removed by this process (inode(7)).
pub(crate) fn is_held_by_another(path: &Path) -> bool {
    let user = rustix::process::geteuid();
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let (Ok(file), Ok(folder)) = (rustix::fs::lstat(path), rustix::fs::stat(folder)) else {
        return false;
    };
    Mode::from_raw_mode(folder.st_mode).contains(Mode::SVTX)
        && !user.is_root()
        && ![file.st_uid, folder.st_uid].contains(&user.as_raw())
}

/// The file that this process executes, whatever its path leads to by now (proc_pid_exe(5)).
pub(crate) fn open_executable_of_this_process() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, "/proc/self/exe", flags, Mode::empty())?)
}

/// Whether this process may execute the file.
pub(crate) fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// 128 bits that nobody can guess, in hexadecimal digits.
pub(crate) fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    if filled != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_descriptors_once_it_was_made() {
        make_room_for_descriptors(io::stderr()).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        assert!(size.trim().parse::<u64>().unwrap() >= ROOM.min(limit.unwrap_or(ROOM)));
    }
}
