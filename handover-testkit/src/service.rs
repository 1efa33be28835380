//! A service under test: all generations of it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{error, fmt, io};

pub use rustix::process::Resource;
use rustix::process::{Gid, Rlimit, Uid};

use crate::confine::Filter;
use crate::guard::{leave, watch};
use crate::lines::{Line, Log, NoSuchLine, Stream, show};
use crate::process::{Pid, Signal, exit_status, signal};
use crate::spawn::{Inside, aside, spawn};
use crate::sweep::Marks;

/// Variables that name a process, a socket or an fd of whoever started the tests, and that are
/// kept from every service.
const FOREIGN: [&str; 8] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// How long a process may take from closing its last fd to being a zombie: no time, but for noise.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// How to start a service; a builder.
///
/// Inherits the environment and the directory of the test, less the variables of a surrounding
/// systemd (`LISTEN_FDS`, `NOTIFY_SOCKET`, ...). Standard input is empty, and of other fds the
/// service has those alone that it is told to [`inherit`](Self::inherit).
#[derive(Debug)]
#[must_use]
pub struct Launch {
    command: Command,
    inside: Inside,
}

impl Launch {
    /// Starts from the path of an executable, or from a name to be looked for in `PATH`.
    pub fn of(executable: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(executable);
        for name in FOREIGN {
            command.env_remove(name);
        }
        Self { command, inside: Inside::default() }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets the name that the service finds before its arguments; the executable by default.
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.arg0(name);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Keeps an environment variable from the service.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the directory in which the service starts. A relative path of the executable is then
    /// looked up in it.
    pub fn cwd(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Limits the number of open fds, as `RLIMIT_NOFILE`.
    pub fn limit_open_fds(self, soft: u64, hard: u64) -> Self {
        self.limit(Resource::Nofile, soft, hard)
    }

    /// Sets any resource limit, in its unit of
    /// [setrlimit(2)](https://man7.org/linux/man-pages/man2/setrlimit.2.html).
    pub fn limit(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        self.inside.limits.push((resource, limit));
        self
    }

    /// Runs the service as another user and group, in no other groups. Takes root.
    ///
    /// What the service is to reach must be open to that user: see
    /// [`Folder::open_to_all`](crate::Folder::open_to_all).
    pub fn user(mut self, user: u32, group: u32) -> Self {
        self.inside.user = Some((Uid::from_raw(user), Gid::from_raw(group)));
        self
    }

    /// Takes all capabilities from the service, and all system calls but those of these numbers: it is killed by
    /// SIGSYS, as is every process that it starts, if it makes another one.
    ///
    /// See [seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html). execve(2) has to be among them.
    pub fn allow_only(mut self, calls: impl IntoIterator<Item = i64>) -> Self {
        self.inside.filter = Some(Filter::allowing(calls));
        self
    }

    /// Lets the service inherit an fd under the number that it has here.
    pub fn inherit(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.inside.inherited.push(fd.into());
        self
    }

    /// Passes listeners the way systemd's socket activation does, as
    /// [sd_listen_fds(3)](https://man7.org/linux/man-pages/man3/sd_listen_fds.3.html) has it: from
    /// fd 3 on, in this order, named by `LISTEN_FDNAMES`. Names may repeat.
    ///
    /// A shell that knows its pid sets `LISTEN_PID` and becomes the service, so one that cannot be
    /// started exits with 126 or 127 instead of being an error, and [`arg0`](Self::arg0) has no
    /// effect.
    ///
    /// # Panics
    ///
    /// If there are more than 90 listeners.
    pub fn activate<F: AsFd>(
        mut self,
        listeners: impl IntoIterator<Item = (&'static str, F)>,
    ) -> Self {
        const LISTENERS_MAX: usize = 90;
        let (names, fds): (Vec<_>, Vec<_>) =
            listeners.into_iter().map(|(name, fd)| (name, aside(fd))).unzip();
        assert!(fds.len() <= LISTENERS_MAX, "{} listeners to activate with", fds.len());
        self.command.env("LISTEN_FDS", fds.len().to_string());
        self.command.env("LISTEN_FDNAMES", names.join(":"));
        self.inside.activated = fds;
        self
    }

    /// Starts the service.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    pub fn start(self) -> Service {
        let executable = OsString::from(self.command.get_program());
        match self.try_start() {
            Ok(service) => service,
            Err(error) => panic!("{} cannot be started: {error}", executable.display()),
        }
    }

    /// Starts the service.
    ///
    /// # Errors
    ///
    /// If the executable is missing or cannot be executed, or a limit, the user or the directory
    /// cannot be set.
    pub fn try_start(mut self) -> io::Result<Service> {
        if !self.inside.activated.is_empty() {
            self.command = through_shell(&self.command);
        }
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(self.command, self.inside)?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        watch(child.id());
        let marks = Marks::new(child.id(), [&stdout, &stderr]);
        let log = Log::default();
        log.follow(Stream::Stdout, stdout);
        log.follow(Stream::Stderr, stderr);
        // Dropping a `Child` neither kills nor reaps: both are done by pid, for all alike.
        Ok(Service { pid: child.id(), marks, log })
    }
}

/// Returns the command that sets `LISTEN_PID` to its own pid and becomes `command`.
fn through_shell(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell
}

/// A service under test: the process that was started, and all that came of it.
///
/// The first process leads a session of its own, and all generations print into the same two pipes.
/// Dropping the service kills every process of it that is alive, whether it is a child, a sibling,
/// an orphan or a daemon, and reaps those that are children of the test. Should the test process be
/// killed, so that nothing is dropped, the process group of the service is killed as well.
#[derive(Debug)]
pub struct Service {
    pid: Pid,
    marks: Marks,
    log: Log,
}

impl Service {
    /// Returns the pid of the first process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns the processes of the service that run, of all generations, lowest pid first.
    pub fn alive(&self) -> Vec<Pid> {
        self.marks.alive()
    }

    /// Sends a signal to the first process.
    ///
    /// # Panics
    ///
    /// If it is gone. Others are signalled by [`process::signal`](crate::process::signal).
    #[track_caller]
    pub fn signal(&self, number: Signal) {
        signal(self.pid, number);
    }

    /// Waits for the first line that `matches`, among those printed before and those to come.
    ///
    /// # Errors
    ///
    /// If there is none by `deadline`, or the service has ended without.
    pub fn wait_line(
        &self,
        matches: impl FnMut(&str) -> bool,
        deadline: Instant,
    ) -> Result<String, NoSuchLine> {
        self.log.wait_line(0, matches, deadline)
    }

    /// Waits as [`wait_line`](Self::wait_line), but ignores the first `skip` lines: those that
    /// [`line_count`](Self::line_count) counted before the event whose line is waited for.
    ///
    /// # Errors
    ///
    /// As `wait_line`.
    pub fn wait_line_after(
        &self,
        skip: usize,
        matches: impl FnMut(&str) -> bool,
        deadline: Instant,
    ) -> Result<String, NoSuchLine> {
        self.log.wait_line(skip, matches, deadline)
    }

    /// Returns how many lines were printed so far.
    pub fn line_count(&self) -> usize {
        self.log.len()
    }

    /// Returns every line printed so far, in the order in which they were read: that is the order
    /// of printing within each stream, not between the two.
    pub fn lines(&self) -> Vec<Line> {
        self.log.lines()
    }

    /// Waits until no process of any generation is left: both pipes are at their end.
    ///
    /// # Errors
    ///
    /// If there is one at `deadline`.
    pub fn wait_all_gone(&self, deadline: Instant) -> Result<(), StillAlive> {
        if self.log.wait_end(deadline) {
            return Ok(());
        }
        Err(StillAlive { alive: self.alive(), printed: self.lines() })
    }

    /// Waits until the first process has exited, and returns how; `None` if it has not by
    /// `deadline`. Its successors may live on.
    pub fn exit_status(&self, deadline: Instant) -> Option<ExitStatus> {
        exit_status(self.pid, deadline)
    }

    /// Waits until every process is gone, and returns what the first one exited with and all that
    /// was printed: for a command that is run for its result.
    ///
    /// # Errors
    ///
    /// If a process is left at `deadline`; it is then killed.
    pub fn finish(self, deadline: Instant) -> Result<Finished, StillAlive> {
        self.wait_all_gone(deadline)?;
        // The pipes close a moment before the process that held them has exited.
        let status = self.exit_status(deadline.max(Instant::now() + EXIT_TIMEOUT));
        match status {
            Some(status) => Ok(Finished { status, printed: self.lines() }),
            None => Err(StillAlive { alive: self.alive(), printed: self.lines() }),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // First: the sweep reaps, and from then on the pid may be another process's.
        leave(self.pid);
        self.marks.sweep();
    }
}

/// What a service that has ended leaves.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How the first process exited.
    pub status: ExitStatus,
    /// Every line printed by any process.
    pub printed: Vec<Line>,
}

impl Finished {
    /// Returns the lines of standard output, each with its end.
    pub fn stdout(&self) -> String {
        self.text(Stream::Stdout)
    }

    /// Returns the lines of standard error, each with its end.
    pub fn stderr(&self) -> String {
        self.text(Stream::Stderr)
    }

    fn text(&self, stream: Stream) -> String {
        let lines = self.printed.iter().filter(|line| line.stream == stream);
        lines.flat_map(|line| [line.text.as_str(), "\n"]).collect()
    }
}

/// A process of the service is left that should be gone. Shows everything that was printed.
#[derive(Clone)]
pub struct StillAlive {
    /// The processes that run.
    pub alive: Vec<Pid>,
    /// Everything printed since the start of the service.
    pub printed: Vec<Line>,
}

impl fmt::Display for StillAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processes {:?} of the service are alive; printed so far:", self.alive)?;
        show(&self.printed, f)
    }
}

// For `unwrap` and `expect`, which show nothing else.
impl fmt::Debug for StillAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for StillAlive {}
