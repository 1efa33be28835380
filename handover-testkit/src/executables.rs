//! Executables that cannot be started, or not to any good: the bad releases of a fault test.
//!
//! Each function writes into a [`Folder`] and returns the path; what starting it does is in the
//! first line of its documentation, as [execve(2)](https://man7.org/linux/man-pages/man2/execve.2.html)
//! has it. After `ENOEXEC` execvp(3) has a shell run the file as a script; execve(2) and
//! posix_spawn(3) do not.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{env, io};

use crate::Folder;

/// What a script starts with.
const SHELL: &str = "#!/bin/sh\n";

/// The size of the header of a 64-bit ELF file, the larger one.
const ELF_HEADER_BYTES: usize = 64;

/// Where `e_machine` is in the header; 16 bits in the byte order of the file.
const ELF_MACHINE_AT: usize = 18;

/// `EM_S390` and `EM_68K`: whichever this machine is not.
const FOREIGN_MACHINES: [u16; 2] = [22, 4];

/// Names a path where there is nothing: `ENOENT`.
pub fn missing(folder: &Folder) -> PathBuf {
    folder.join("missing")
}

/// Writes a script without the permission to execute it: `EACCES`, for root as well.
pub fn not_executable(folder: &Folder) -> PathBuf {
    folder.write("not-executable", format!("{SHELL}exit 0\n"))
}

/// Makes a directory: `EACCES`.
pub fn directory(folder: &Folder) -> PathBuf {
    let path = folder.join("directory");
    std::fs::create_dir(&path).expect("a new directory in our own");
    path
}

/// Writes an executable file with nothing in it, as a full disk leaves: `ENOEXEC`.
///
/// A shell that is tried after that succeeds, by doing nothing.
pub fn empty(folder: &Folder) -> PathBuf {
    folder.write_executable("empty", "")
}

/// Writes an ELF executable for another kind of machine: `ENOEXEC`.
///
/// It is the header of the running test with another `e_machine`, so all else in it is right.
pub fn wrong_architecture(folder: &Folder) -> PathBuf {
    let mut header = own_elf_header().expect("the running test can be read");
    let machine: [u8; 2] = header[ELF_MACHINE_AT..][..2].try_into().expect("two bytes");
    let foreign = FOREIGN_MACHINES.map(u16::to_ne_bytes).into_iter().find(|&it| it != machine);
    header[ELF_MACHINE_AT..][..2].copy_from_slice(&foreign.expect("two differ"));
    folder.write_executable("wrong-architecture", header)
}

/// Writes a script whose interpreter is missing: `ENOENT`, although the file is there.
pub fn without_interpreter(folder: &Folder) -> PathBuf {
    folder.write_executable("without-interpreter", "#!/nonexistent/interpreter\n")
}

/// Writes a script that starts, prints `message` to standard error, and exits with `code`.
pub fn failing(folder: &Folder, message: &str, code: u8) -> PathBuf {
    let script = format!("{SHELL}echo {} >&2\nexit {code}\n", quoted(message));
    folder.write_executable(&format!("failing-{code}"), script)
}

/// Writes a script that starts, and then does nothing for ever: a successor that hangs.
pub fn hanging(folder: &Folder) -> PathBuf {
    folder.write_executable("hanging", format!("{SHELL}exec sleep 1000000\n"))
}

/// Writes a script that replaces itself with `executable`, arguments and environment kept: a
/// wrapper, as many deployments have.
pub fn execs(folder: &Folder, executable: impl AsRef<Path>) -> PathBuf {
    let executable = executable.as_ref().to_str().expect("a path in UTF-8, to be put in a script");
    folder.write_executable("execs", format!("{SHELL}exec {} \"$@\"\n", quoted(executable)))
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn own_elf_header() -> io::Result<[u8; ELF_HEADER_BYTES]> {
    let mut header = [0; ELF_HEADER_BYTES];
    File::open(env::current_exe()?)?.read_exact(&mut header)?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::io::Errno;

    use super::*;
    use crate::{Launch, soon, while_nothing_spawns};

    #[test]
    fn what_cannot_be_started_fails_as_documented() {
        let folder = Folder::create();
        // Not by `Launch`, which execs as execvp(3) does: the C library then tries a shell.
        let spawn = |path| Command::new(path).spawn();
        let error = |path| while_nothing_spawns(|| spawn(path)).unwrap_err().raw_os_error();
        assert_eq!(error(missing(&folder)), Some(Errno::NOENT.raw_os_error()));
        assert_eq!(error(not_executable(&folder)), Some(Errno::ACCESS.raw_os_error()));
        assert_eq!(error(directory(&folder)), Some(Errno::ACCESS.raw_os_error()));
        assert_eq!(error(empty(&folder)), Some(Errno::NOEXEC.raw_os_error()));
        assert_eq!(error(wrong_architecture(&folder)), Some(Errno::NOEXEC.raw_os_error()));
        assert_eq!(error(without_interpreter(&folder)), Some(Errno::NOENT.raw_os_error()));
    }

    #[test]
    fn a_failing_script_says_why_and_exits_with_its_code() {
        let folder = Folder::create();
        let path = failing(&folder, "it isn't configured", 3);
        let finished = Launch::of(path).start().finish(soon()).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stderr(), "it isn't configured\n");
    }

    #[test]
    fn a_wrapper_keeps_the_arguments() {
        let folder = Folder::create();
        let path = execs(&folder, "/bin/echo");
        let finished = Launch::of(path).args(["a b", "c"]).start().finish(soon()).unwrap();
        assert_eq!(finished.stdout(), "a b c\n");
    }
}
