//! What tests and benches use and cargo does not bring: programs, and a systemd to boot.

use std::env;
use std::path::{Path, PathBuf};
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

/// Peers of the library that Debian has, and what counts instructions.
const BENCH_PROGRAMS: [Program; 3] = [
    Program { names: &["nginx"], package: "nginx" },
    Program { names: &["haproxy"], package: "haproxy" },
    Program { names: &["valgrind"], package: "valgrind" },
];

/// The script that sets up a systemd, and boots it.
const SDBOX: &str = "handover-testkit/sdbox";

/// The Debian suites whose systemd is booted: those of `handover_testkit::SystemdVersion`.
const SUITES: [&str; 3] = ["bookworm-backports", "trixie", "forky"];

/// Names the directory in which they are set up, here and in handover-testkit.
const SDBOX_DIRECTORY: &str = "HANDOVER_SDBOX_DIR";

/// Provides what is missing, where this is Debian (or made from it) and we are root. What cannot be
/// had is not an error: the tests that want it say that they are skipped.
pub(crate) fn provide() {
    if is_on_path("apt-get") && is_root() {
        install_missing(&PROGRAMS);
        set_up_systemds();
    }
}

/// The same for the benches, which say what they leave out.
pub(crate) fn provide_for_bench() {
    if is_on_path("apt-get") && is_root() {
        install_missing(&BENCH_PROGRAMS);
    }
}

/// Unpacks each systemd with what it needs, some 60 MB, unless it is there already.
fn set_up_systemds() {
    let named = env::var_os(SDBOX_DIRECTORY).filter(|name| !name.is_empty());
    let directory = named.map_or_else(|| env::temp_dir().join("sdbox"), PathBuf::from);
    for suite in SUITES {
        if directory.join(format!("tree-{suite}/.complete")).exists() {
            continue;
        }
        // It installs mmdebstrap and asks apt for its mirror, after an update if need be.
        let mut command = Command::new(SDBOX);
        command.arg("setup").env("SD_SUITE", suite).env("SD_DIR", &directory);
        if let Err(error) = run(command.stdin(Stdio::null())) {
            eprintln!("cannot set up the systemd of {suite}: {error:#}");
        }
    }
}

/// Installs those that are missing.
fn install_missing(programs: &[Program]) {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|program| !program.names.iter().any(|name| is_on_path(name)))
        .map(|program| program.package)
        .collect();
    if missing.is_empty() {
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
