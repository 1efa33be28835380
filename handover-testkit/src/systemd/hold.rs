//! The process that keeps a box, and ends it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use super::SystemdVersion;
use crate::deadline::soon;
use crate::folder::Folder;
use crate::lines::{Line, Log, Stream};
use crate::process::{Pid, Signal, exit_status, try_signal};
use crate::skip::is_root;
use crate::spawn::{Inside, spawn};

/// Names the directory with the trees that boxes boot from.
const DIRECTORY_VARIABLE: &str = "HANDOVER_SDBOX_DIR";

/// The script that makes a box.
const SDBOX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sdbox");

/// How long a boot may take. It takes a third of a second, but there may be many at once.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the script has for it: less, so that it is the one to say what went wrong.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(45);

/// Finds out what can be known without a boot.
///
/// # Errors
///
/// The reason why this version cannot be booted here.
pub(super) fn check(version: SystemdVersion) -> Result<(), String> {
    if !is_root() {
        return Err("only root can boot a systemd".to_owned());
    }
    let suite = version.suite();
    let directory = directory();
    let complete = directory.join(format!("tree-{suite}/.complete"));
    match fs::metadata(&complete) {
        // The default place is one where everybody may write, and this runs as root.
        Ok(metadata) if metadata.uid() != 0 => {
            Err(format!("{} is not root's", directory.display()))
        }
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{version} is not set up in {} (`cargo xtask test` does it as root on Debian)",
            directory.display()
        )),
    }
}

fn directory() -> PathBuf {
    let named = env::var_os(DIRECTORY_VARIABLE).filter(|name| !name.is_empty());
    named.map_or_else(|| env::temp_dir().join("sdbox"), PathBuf::from)
}

/// A box that is up, in the hands of a process that ends it at the end of its standard input.
///
/// That comes when this is dropped, and just so when the test process is killed. The process is in
/// a session of its own, out of reach of a runner that kills the test's process group.
#[derive(Debug)]
pub(super) struct Hold {
    name: String,
    child: Child,
    log: Log,
    init: Pid,
    version: String,
}

impl Hold {
    /// Boots a box in which `folder` is seen at the path that it has here.
    ///
    /// # Errors
    ///
    /// The reason why it could not be booted, in one line.
    pub(super) fn boot(version: SystemdVersion, folder: &Folder) -> Result<Self, String> {
        let name = name(folder.path());
        let mut command = Command::new(SDBOX);
        command
            .arg("hold")
            .env("SD_SUITE", version.suite())
            .env("SD_DIR", directory())
            .env("SD_NAME", &name)
            .env("SD_BINDS", folder.path())
            // For when this process is killed: then nobody else removes it.
            .env("SD_SCRATCH", folder.path())
            .env("SD_TIMEOUT", SCRIPT_TIMEOUT.as_secs().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let spawned = spawn(command, Inside::default());
        let mut child = spawned.map_err(|error| format!("{SDBOX} cannot be started: {error}"))?;
        let log = Log::default();
        log.follow(Stream::Stdout, child.stdout.take().expect("stdout is a pipe"));
        log.follow(Stream::Stderr, child.stderr.take().expect("stderr is a pipe"));
        // From here on its drop cleans up, whatever comes.
        let mut hold = Self { name, child, log, init: 0, version: String::new() };
        let deadline = Instant::now() + BOOT_TIMEOUT;
        match hold.log.wait_line(0, |line| line.starts_with("running "), deadline) {
            Ok(line) => {
                let mut words = line.splitn(3, ' ').skip(1);
                let init = words.next().and_then(|pid| pid.parse().ok());
                hold.init = init.expect("the script tells the pid");
                words.next().unwrap_or_default().clone_into(&mut hold.version);
                Ok(hold)
            }
            Err(error) => Err(format!("{version} does not boot here: {}", reason(&error.printed))),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the pid of systemd on the host.
    pub(super) fn init(&self) -> Pid {
        self.init
    }

    /// Returns what `systemctl --version` said, its first line.
    pub(super) fn version(&self) -> &str {
        &self.version
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let status = exit_status(self.child.id(), soon());
        if status.is_none() {
            // The box dies with it, by way of `PR_SET_PDEATHSIG`.
            let _ = try_signal(self.child.id(), Signal::KILL);
        }
        // It is a zombie, or about to be one.
        let _ = self.child.wait();
        // What did not come up has said so.
        let stopped = self.init == 0 || status.is_some_and(|status| status.success());
        if !stopped && !thread::panicking() {
            panic!("the box {} did not stop: {}", self.name, reason(&self.log.lines()));
        }
    }
}

/// A name of which there is no other, that tells whose it is.
fn name(folder: &Path) -> String {
    let folder = folder.file_name().expect("a folder has a name").to_string_lossy();
    format!("{}-{folder}", process::id())
}

/// Returns the end of what the script printed, in one line.
fn reason(printed: &[Line]) -> String {
    const LINES_MAX: usize = 3;
    let lines: Vec<&str> = printed.iter().map(|line| line.text.trim()).collect();
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("; ")
}
