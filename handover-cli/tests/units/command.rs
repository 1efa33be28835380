//! The command, run.

use std::path::Path;
use std::process::Command;

/// What it printed and how it exited.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `handover` with these arguments.
pub(crate) fn handover<A: AsRef<std::ffi::OsStr>>(arguments: &[A]) -> Ended {
    handover_in(Path::new("/"), arguments)
}

/// Runs it in a directory.
pub(crate) fn handover_in<A: AsRef<std::ffi::OsStr>>(directory: &Path, arguments: &[A]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    let output = command.current_dir(directory).args(arguments).output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Has a unit written: what was printed. The command is where a package puts it.
#[track_caller]
pub(crate) fn unit(arguments: &[&str]) -> String {
    let ended = handover(&[&["unit", "--handover", "/usr/bin/handover"], arguments].concat());
    assert_eq!((ended.code, &*ended.stderr), (0, ""), "{arguments:?}");
    ended.stdout
}

/// What a unit sets by that name, one after the other.
pub(crate) fn settings<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let assignments = text.lines().filter_map(|line| line.split_once('='));
    assignments.filter(|(left, _)| *left == name).map(|(_, right)| right).collect()
}
