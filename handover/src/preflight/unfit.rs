//! What is wrong with an executable, in terms of what its deployer can do about it.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::elf::{HEADER_BYTES, Header};
use crate::sys::executable::{Executable, Kind};
use crate::verdict::SpawnError;

/// The longest path that the kernel takes (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;

/// What is wrong with an executable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unfit {
    /// There is none.
    Missing {
        /// What does not exist: the path, or what a symbolic link on the way leads to.
        absent: PathBuf,
    },
    /// A directory on the way to it cannot be entered by this process's user.
    Unreachable,
    /// It is a directory.
    Directory,
    /// It is a device, a socket or a pipe.
    NotAFile,
    /// Its permissions do not let this process's user execute it.
    NotPermitted {
        /// The permissions, as chmod(2) has them.
        mode: u32,
    },
    /// Its file system is mounted without the permission to execute anything.
    MountedNoexec,
    /// There is nothing in it.
    Empty,
    /// It ends before it should.
    Truncated {
        /// Its length.
        bytes: u64,
        /// How long it is at least, by what it says of itself.
        expected: u64,
    },
    /// It is for another kind of machine.
    ForeignMachine {
        /// For which one.
        machine: String,
        /// What this process runs on.
        ours: String,
    },
    /// It is neither a program that the kernel knows nor a script that names its interpreter.
    UnknownFormat,
    /// The interpreter or dynamic loader that it names is not there.
    NoInterpreter {
        /// Its path.
        interpreter: PathBuf,
    },
    /// It is open for writing.
    BeingWritten,
    /// It can be executed by its path only, as scripts can, and another file was put there since the
    /// upgrade had begun.
    Replaced,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { absent } => {
                write!(f, "{} does not exist: install it, or mend the link", absent.display())
            }
            Self::Unreachable => {
                write!(f, "this user may not enter a directory on the way: grant it with chmod +x")
            }
            Self::Directory => write!(f, "it is a directory: name the file in it"),
            Self::NotAFile => write!(f, "it is no file but a device, a socket or a pipe"),
            Self::NotPermitted { mode } => {
                write!(f, "its permissions, {mode:04o}, do not allow it: grant it with chmod +x")
            }
            Self::MountedNoexec => write!(
                f,
                "its file system is mounted noexec: install it elsewhere, or remount with exec"
            ),
            Self::Empty => write!(f, "it is empty: install it again"),
            Self::Truncated { bytes, expected } => {
                write!(f, "it has {bytes} of at least {expected} bytes: install it again")
            }
            Self::ForeignMachine { machine, ours } => {
                write!(f, "it is for {machine}, this machine is {ours}: install the one for {ours}")
            }
            Self::UnknownFormat => {
                write!(
                    f,
                    "it is neither a program for this system nor a script that begins with #!"
                )
            }
            Self::NoInterpreter { interpreter } => write!(
                f,
                "its interpreter, {}, does not exist: install that, or build for this system",
                interpreter.display()
            ),
            Self::BeingWritten => {
                write!(f, "it is being written: rename a finished file into its place")
            }
            Self::Replaced => {
                write!(f, "another file was put in its place during the upgrade: ask again")
            }
        }
    }
}

/// Opens what the path leads to, unless it is open already, and says what would keep it from being executed, as far as that can
/// be known before.
pub(super) fn open(path: &Path, pinned: Option<OwnedFd>) -> Result<Executable, SpawnError> {
    let opened = match pinned {
        Some(file) => Executable::pinned(file, path),
        None => Executable::open(path),
    };
    let executable = opened.map_err(|source| {
        let why = match source.kind() {
            io::ErrorKind::NotFound => Unfit::Missing { absent: absent(path) },
            io::ErrorKind::PermissionDenied => Unfit::Unreachable,
            io::ErrorKind::NotADirectory => Unfit::Missing { absent: path.to_owned() },
            _ => return SpawnError::Execute { path: path.to_owned(), source },
        };
        SpawnError::Unfit { path: path.to_owned(), why, source: Some(source) }
    })?;
    let unfit = |why, source| SpawnError::Unfit { path: path.to_owned(), why, source };
    match executable.kind() {
        Kind::Directory => return Err(unfit(Unfit::Directory, None)),
        Kind::Other => return Err(unfit(Unfit::NotAFile, None)),
        Kind::Regular => {}
    }
    if let Err(source) = executable.permission() {
        return Err(unfit(forbidden(&executable), Some(source)));
    }
    if executable.bytes() == 0 {
        return Err(unfit(Unfit::Empty, None));
    }
    match truncated(&executable) {
        Some(why) => Err(unfit(why, None)),
        None => Ok(executable),
    }
}

/// Says in better words what the kernel had against executing it.
pub(crate) fn explain(path: &Path, executable: &Executable, source: io::Error) -> SpawnError {
    let header = read_header(executable);
    let is_elf = header.is_some();
    let why = match source.kind() {
        io::ErrorKind::NotFound => interpreter(executable)
            .filter(|interpreter| !interpreter.exists())
            .map(|interpreter| Unfit::NoInterpreter { interpreter }),
        io::ErrorKind::PermissionDenied if executable.permission().is_err() => {
            Some(forbidden(executable))
        }
        io::ErrorKind::ExecutableFileBusy => Some(Unfit::BeingWritten),
        // What is for another machine is found out in this way only: the kernel may have been told
        // of an emulator for it (binfmt_misc).
        _ if is_not_executable_format(&source) => match (header, own_header()) {
            (Some(its), Some(ours)) if its.machine != ours.machine => Some(Unfit::ForeignMachine {
                machine: its.machine.to_string(),
                ours: ours.machine.to_string(),
            }),
            _ if is_elf => None,
            _ => Some(Unfit::UnknownFormat),
        },
        _ => None,
    };
    let path = path.to_owned();
    match why {
        Some(why) => SpawnError::Unfit { path, why, source: Some(source) },
        None => SpawnError::Execute { path, source },
    }
}

fn is_not_executable_format(error: &io::Error) -> bool {
    const ENOEXEC: i32 = 8;
    error.raw_os_error() == Some(ENOEXEC)
}

fn forbidden(executable: &Executable) -> Unfit {
    if executable.is_mounted_noexec() {
        Unfit::MountedNoexec
    } else {
        Unfit::NotPermitted { mode: executable.mode() }
    }
}

/// What it is on the way to the path that does not exist.
fn absent(path: &Path) -> PathBuf {
    let way: Vec<&Path> = path.ancestors().collect();
    let Some(first) = way.into_iter().rev().find(|part| !part.exists()) else {
        return path.to_owned();
    };
    match (first.read_link(), first.parent()) {
        (Ok(target), Some(parent)) => parent.join(target),
        _ => first.to_owned(),
    }
}

/// Whether something is missing at the end that would be loaded.
fn truncated(executable: &Executable) -> Option<Unfit> {
    let bytes = executable.bytes();
    let short = |expected| Unfit::Truncated { bytes, expected };
    let mut start = [0; HEADER_BYTES];
    let read = executable.read_at(&mut start, 0).ok()?;
    let Some(header) = Header::parse(&start[..read]) else {
        let is_elf = start[..read].starts_with(b"\x7fELF");
        return is_elf.then(|| short(HEADER_BYTES as u64));
    };
    // If it is for another machine, that is the better explanation.
    if own_header().is_some_and(|own| own.machine != header.machine) {
        return None;
    }
    let (at, length) = header.segments_at()?;
    let table = table(executable, at, length)?;
    let expected = header.segments(&table).end.max(at.saturating_add(length));
    (bytes < expected).then(|| short(expected))
}

/// The path of the interpreter of a script or of the loader of a program.
fn interpreter(executable: &Executable) -> Option<PathBuf> {
    let mut start = [0; 256];
    let read = executable.read_at(&mut start, 0).ok()?;
    let path = if let Some(line) = start[..read].strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii_start();
        line.split(u8::is_ascii_whitespace).next()?.to_vec()
    } else {
        let header = read_header(executable)?;
        let (at, length) = header.segments_at()?;
        let (at, length) = header.segments(&table(executable, at, length)?).interpreter?;
        let mut path = table(executable, at, length)?;
        path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
        path
    };
    Some(OsString::from_vec(path).into())
}

fn read_header(executable: &Executable) -> Option<Header> {
    let mut start = [0; HEADER_BYTES];
    let read = executable.read_at(&mut start, 0).ok()?;
    Header::parse(&start[..read])
}

fn own_header() -> Option<Header> {
    read_header(&Executable::open(Path::new("/proc/self/exe")).ok()?)
}

fn table(executable: &Executable, at: u64, length: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok().filter(|length| *length <= 16 * MAX_PATH_BYTES)?;
    let mut table = vec![0; length];
    let read = executable.read_at(&mut table, at).ok()?;
    table.truncate(read);
    Some(table)
}

#[cfg(test)]
mod tests {
    use handover_testkit::{Folder, executables};

    use super::*;

    fn unfit(path: &Path) -> Unfit {
        match open(path, None) {
            Err(SpawnError::Unfit { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    fn explained(path: &Path, errno: i32) -> Option<Unfit> {
        let executable = Executable::open(path).unwrap();
        match explain(path, &executable, io::Error::from_raw_os_error(errno)) {
            SpawnError::Unfit { why, .. } => Some(why),
            _ => None,
        }
    }

    #[test]
    fn what_cannot_be_executed_is_named_before() {
        let folder = Folder::create();
        let missing = executables::missing(&folder);
        assert_eq!(unfit(&missing), Unfit::Missing { absent: missing.clone() });
        assert_eq!(unfit(&executables::directory(&folder)), Unfit::Directory);
        assert_eq!(unfit(Path::new("/dev/null")), Unfit::NotAFile);
        let not_executable = executables::not_executable(&folder);
        assert_eq!(unfit(&not_executable), Unfit::NotPermitted { mode: 0o644 });
        assert_eq!(unfit(&executables::empty(&folder)), Unfit::Empty);
        open(Path::new("/proc/self/exe"), None).unwrap();
        open(&executables::without_interpreter(&folder), None).unwrap();
    }

    #[test]
    fn what_a_dangling_link_leads_to_is_named() {
        let folder = Folder::create();
        let current = folder.link("current", "releases/7");
        let absent = folder.join("releases/7");
        assert_eq!(unfit(&current), Unfit::Missing { absent: absent.clone() });
        assert_eq!(unfit(&current.join("bin/service")), Unfit::Missing { absent });
    }

    #[test]
    fn a_copy_that_was_cut_short_is_named() {
        let folder = Folder::create();
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let header = Header::parse(&whole).unwrap();
        let (at, length) = header.segments_at().unwrap();
        let table = &whole[usize::try_from(at).unwrap()..][..usize::try_from(length).unwrap()];
        let end = usize::try_from(header.segments(table).end).unwrap();
        for bytes in [5, 40, 63, 64, 4096, end / 2] {
            let path = folder.write_executable("cut", &whole[..bytes]);
            let why = unfit(&path);
            let Unfit::Truncated { bytes: found, expected } = why else { panic!("{why}") };
            assert_eq!(found, bytes as u64);
            assert!(expected > found && expected <= whole.len() as u64);
        }
        open(&folder.write_executable("enough", &whole[..end]), None).unwrap();
        assert!(open(&folder.write_executable("short", &whole[..end - 1]), None).is_err());
    }

    #[test]
    fn a_refusal_of_the_kernel_is_explained_if_it_can_be() {
        const ENOENT: i32 = 2;
        const ENOEXEC: i32 = 8;
        const EACCES: i32 = 13;
        const ETXTBSY: i32 = 26;
        let folder = Folder::create();
        let foreign = explained(&executables::wrong_architecture(&folder), ENOEXEC);
        let Some(Unfit::ForeignMachine { machine, ours }) = foreign else { panic!("{foreign:?}") };
        assert_ne!(machine, ours);
        let text = folder.write_executable("text", "echo hello\n");
        assert_eq!(explained(&text, ENOEXEC), Some(Unfit::UnknownFormat));
        let interpreter = PathBuf::from("/nonexistent/interpreter");
        let script = executables::without_interpreter(&folder);
        assert_eq!(explained(&script, ENOENT), Some(Unfit::NoInterpreter { interpreter }));
        assert_eq!(explained(&text, ETXTBSY), Some(Unfit::BeingWritten));
        // A security module has its own reasons.
        assert_eq!(explained(&text, EACCES), None);
        assert_eq!(explained(Path::new("/proc/self/exe"), ENOEXEC), None);
    }

    #[test]
    fn the_loader_that_a_program_names_is_found() {
        let own = Executable::open(Path::new("/proc/self/exe")).unwrap();
        // Statically linked ones have none.
        assert!(interpreter(&own).is_none_or(|loader| loader.is_file()));
    }
}
