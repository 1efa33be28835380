//! Programs that tests use and cargo does not bring.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cargo::run;

/// A program that tests use if it is there, and are skipped without.
struct Program {
    /// Any of these will do.
    names: &'static [&'static str],
    /// The Debian package that has one.
    package: &'static str,
}

const PROGRAMS: [Program; 2] = [
    // To look at the page that `handover verify --report` writes.
    Program {
        names: &["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"],
        package: "chromium",
    },
    // To look at the backlog of listeners, and for a network of a test's own.
    Program { names: &["ss"], package: "iproute2" },
];

/// Installs what is missing, where this is Debian and we are root. What cannot be installed is not
/// an error: the tests that want it say that they are skipped.
pub(crate) fn install_missing() {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|program| !program.names.iter().any(|name| is_on_path(name)))
        .map(|program| program.package)
        .collect();
    if missing.is_empty() || !is_on_path("apt-get") || !is_root() {
        return;
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run(command.stdin(Stdio::null()))
    };
    let installed = apt(&["update"]).and_then(|()| {
        apt(&[&["install", "--yes", "--no-install-recommends"], &*missing].concat())
    });
    if let Err(error) = installed {
        eprintln!("cannot install {}: {error:#}", missing.join(" and "));
    }
}

fn is_on_path(name: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// Root's own folder of the process table belongs to root.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}
