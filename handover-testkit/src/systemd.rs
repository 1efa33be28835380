//! A systemd of one's own: a real one, as PID 1 of its own namespaces.

mod files;
mod hold;
mod pids;
mod unit;
mod version;

use std::process::ExitStatus;

use crate::deadline::soon;
use crate::folder::Folder;
use crate::process::Pid;
use crate::service::{Finished, Launch, Service, StillAlive};

pub use version::SystemdVersion;

use hold::Hold;
use pids::PidNamespace;

/// Where the folder of a box is made: not below `/tmp`, because a service with `PrivateTmp=`, which
/// `DynamicUser=` implies, has a `/tmp` of its own.
const FOLDERS: &str = "/run";

/// What a command inside finds in its environment, and nothing else.
const ENVIRONMENT: [&str; 6] = [
    "HOME=/root",
    "LANG=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS=0",
    "SYSTEMD_PAGER=",
    "TERM=dumb",
];

/// A running systemd: the system manager, its journal and nothing else, in a box of its own.
///
/// The box has its own processes (systemd is PID 1 there), mounts, host name and control groups,
/// over a small Debian that nothing writes to: what a test changes is gone with the box. The
/// network is that of the test, so load goes to `127.0.0.1`, and a service must bind port 0 or
/// inherit its listener, as in any other test. Each test boots one, or several; boxes know nothing
/// of each other.
///
/// Dropping it kills every process inside. The same happens should the test process be killed.
///
/// There is no D-Bus daemon, no login manager, no udev and no network setup inside, and `/sys` is
/// read-only. Units start as on a machine otherwise, sandboxing (`ProtectSystem=`, `DynamicUser=`,
/// ...) included, except that `DefaultTimeoutStartSec` is 20 s and `DefaultTimeoutStopSec` 10 s.
///
/// ```no_run
/// # use handover_testkit::{Systemd, SystemdVersion, skip, soon};
/// fn restarts_when_told() {
///     let systemd = match Systemd::boot(SystemdVersion::V257) {
///         Ok(systemd) => systemd,
///         Err(reason) => skip!("restarts_when_told", &reason),
///     };
///     systemd.put_unit("web.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n");
///     systemd.start_unit("web.service");
///     let first = systemd.main("web.service");
///     systemd.systemctl(&["restart", "web.service"]);
///     assert_ne!(systemd.main("web.service"), first);
/// }
/// ```
#[derive(Debug)]
pub struct Systemd {
    // Dropped first: nothing writes to the folder any more when it is removed.
    hold: Hold,
    folder: Folder,
    version: SystemdVersion,
    pids: PidNamespace,
}

impl Systemd {
    /// Boots a systemd, and returns once it has started what belongs to a boot.
    ///
    /// The trees to boot from are looked for in the directory that the environment variable
    /// `HANDOVER_SDBOX_DIR` names (an absolute path), by default `sdbox` in the directory for
    /// temporary files. They are built by `cargo xtask test`, never here.
    ///
    /// # Errors
    ///
    /// The reason, in one line for [`skip!`](crate::skip), why there can be none here: the test does
    /// not run as root, may make no namespaces or mounts, the tree is not built, or it has another
    /// version than this (of the one from Debian testing, which moves, this is only printed).
    ///
    /// # Panics
    ///
    /// If the directory `/run` cannot be written to.
    pub fn boot(version: SystemdVersion) -> Result<Self, String> {
        hold::check(version)?;
        let folder = Folder::create_in(FOLDERS.as_ref()).open_to_all();
        let hold = Hold::boot(version, &folder)?;
        version.check(hold.version())?;
        let pids = PidNamespace::of(hold.init());
        let pids = pids.ok_or("systemd has ended as soon as it was up")?;
        Ok(Self { hold, folder, version, pids })
    }

    /// Returns which version was asked for.
    pub fn version(&self) -> SystemdVersion {
        self.version
    }

    /// Returns the name of the box, which no other one has. `sdbox-` and this is the name of its
    /// control group below the root of the hierarchy.
    pub fn name(&self) -> &str {
        self.hold.name()
    }

    /// Returns the directory that is seen at the same path inside and outside, by every user.
    ///
    /// For sockets, pid files and what a service writes. Executables go in by
    /// [`install`](Self::install): on some machines nothing can be executed from here. A service
    /// with `ProtectSystem=strict` writes to it if `ReadWritePaths=` names it. It is removed when
    /// this is dropped.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Returns the pid of systemd on the host; inside it is 1.
    pub fn init(&self) -> Pid {
        self.hold.init()
    }

    /// Runs a command inside, as root, and waits for its end.
    ///
    /// It is given by its path or by a name to be looked for in the usual directories, in a clean
    /// environment. What it leaves running in its session is killed.
    ///
    /// # Panics
    ///
    /// If it has not ended after the time of [`soon`]; the panic shows the jobs of systemd and the
    /// end of its journal. A command that is not there has status 127, and is no panic.
    #[track_caller]
    pub fn run(&self, command: &[&str]) -> Ran {
        match self.try_run(command) {
            Ok(ran) => ran,
            Err(error) => panic!("`{}`: {error}\n{}", command.join(" "), self.state()),
        }
    }

    /// Starts a command inside as [`run`](Self::run) does and leaves it running, such as a
    /// `systemctl reload` that blocks.
    ///
    /// [`Service::finish`] waits for it. [`Service::pid`] is no process inside, but the one outside
    /// that waits for it. Dropping it kills the command.
    ///
    /// # Panics
    ///
    /// If there is no `nsenter`, which there was at the boot.
    #[track_caller]
    pub fn start(&self, command: &[&str]) -> Service {
        // The same fds, environment and guard against leaks as any service has.
        Launch::of("nsenter")
            .args(["--target", &self.init().to_string()])
            .args(["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd"])
            .args(["--", "env", "-i"])
            .args(ENVIRONMENT)
            .args(command)
            .start()
    }

    /// Runs `systemctl` with these arguments, as [`run`](Self::run) does. That it fails is for the
    /// caller to see.
    ///
    /// # Panics
    ///
    /// As `run`.
    #[track_caller]
    pub fn systemctl(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["systemctl", "--no-pager"], arguments].concat())
    }

    fn try_run(&self, command: &[&str]) -> Result<Ran, StillAlive> {
        self.start(command).finish(soon()).map(Ran::from)
    }

    /// Returns what systemd is at, for a panic that is about no unit in particular.
    fn state(&self) -> String {
        let jobs = self.output(&["systemctl", "list-jobs", "--no-pager"]);
        let journal = self.output(&["journalctl", "--no-pager", "--no-hostname", "--lines=100"]);
        format!("{jobs}\n{journal}")
    }

    /// Returns all that a command prints: for panics, so itself without one.
    fn output(&self, command: &[&str]) -> String {
        let shown = command.join(" ");
        match self.try_run(command) {
            Ok(ran) => format!("--- {shown}\n{}{}", ran.stdout, ran.stderr),
            Err(error) => format!("--- {shown}\n{error}"),
        }
    }
}

/// What a command inside a [`Systemd`] has left.
#[derive(Clone, Debug)]
pub struct Ran {
    /// How it exited.
    pub status: ExitStatus,
    /// Its standard output, each line with its end; what is not UTF-8 is replaced.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

impl Ran {
    /// Returns whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }
}

impl From<Finished> for Ran {
    fn from(finished: Finished) -> Self {
        Self { status: finished.status, stdout: finished.stdout(), stderr: finished.stderr() }
    }
}
