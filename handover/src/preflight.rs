//! What comes before the start of a successor: its executable is found, looked at, and checked.

mod elf;
mod unfit;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config::{Check, Config};
use crate::program::Program;
use crate::stderr::Relay;
use crate::sys::executable;
use crate::sys::file;
use crate::sys::poll::{Interest, Poller};
use crate::sys::process::{Condition, Process};
use crate::sys::spawn::{self, Command, Group, Parent};
use crate::verdict::{CheckFailure, Failure, Phase, Reason, SpawnError, Timings};

pub use unfit::Unfit;

/// What a successor is started from: the very file that was looked at.
#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) program: Program,
    pub(crate) file: executable::Executable,
    /// When the upgrade began.
    pub(crate) begun: Instant,
}

/// The part of an upgrade before there is a successor.
#[derive(Debug)]
pub(crate) struct Preflight {
    generation: u64,
    /// Until it is handed on.
    executable: Option<Executable>,
    /// None if there is nothing to wait for.
    checking: Option<Checking>,
    begun: Instant,
}

/// The executable, saying whether it would come to serve.
#[derive(Debug)]
struct Checking {
    process: Process,
    relay: Relay,
    /// None once it is over, or its end is on its way.
    deadline: Option<Instant>,
    timeout: Duration,
    /// Why it was called off.
    called_off: Option<Reason>,
}

impl Preflight {
    /// Opens the executable, unless it is open already, and if it is to be checked, starts it for
    /// that.
    pub(crate) fn begin(
        config: &Config,
        program: Program,
        pinned: Option<OwnedFd>,
        generation: u64,
        poller: &Poller,
    ) -> Result<Self, Box<Failure>> {
        let begun = Instant::now();
        let fail =
            |phase, reason| Failure::before_hello(generation, phase, reason, begun.elapsed());
        let file = unfit::open(program.executable(), pinned)
            .map_err(|error| fail(Phase::Preflight, Reason::Spawn(error)))?;
        let executable = Executable { program, file, begun };
        let checking = match &config.check {
            Some(check) => Some(
                Checking::begin(check, &executable, poller)
                    .map_err(|reason| fail(Phase::Check, reason))?,
            ),
            None => None,
        };
        Ok(Self { generation, executable: Some(executable), checking, begun })
    }

    /// When to come back if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.checking.as_ref().and_then(|checking| checking.deadline)
    }

    /// Calls it off: the check is killed, and its end will be the end of this.
    pub(crate) fn abort(&mut self, reason: Reason) {
        if let Some(checking) = &mut self.checking {
            checking.abort(reason);
        }
    }

    /// Does what can be done without waiting; returns what came of it, once.
    pub(crate) fn step(&mut self, poller: &Poller) -> Option<Result<Executable, Box<Failure>>> {
        if let Some(checking) = &mut self.checking {
            let condition = checking.step(poller);
            let Condition::Ended(status) = condition else { return None };
            let reason = match status {
                _ if checking.called_off.is_some() => checking.called_off.take(),
                Some(status) if status.success() => None,
                Some(_) => Some(Reason::CheckFailed(CheckFailure::Refused)),
                None => Some(Reason::CheckFailed(CheckFailure::StatusTaken)),
            };
            let stderr = checking.relay.last_lines();
            self.checking = None;
            if let Some(reason) = reason {
                let total = self.begun.elapsed();
                let failure = Failure::before_hello(self.generation, Phase::Check, reason, total);
                let timings = Timings { preflight: total, ..failure.timings };
                let failure = Failure { exit_status: status, stderr, timings, ..*failure };
                return Some(Err(Box::new(failure)));
            }
        }
        self.executable.take().map(Ok)
    }
}

impl Checking {
    fn begin(check: &Check, executable: &Executable, poller: &Poller) -> Result<Self, Reason> {
        let io = |doing| move |source| Reason::Io { doing, source };
        let stdin = file::nothing().map_err(io("/dev/null"))?;
        let (reader, writer) = file::pipe().map_err(io("a pipe"))?;
        let image = executable
            .program
            .check_image(&check.arguments)
            .map_err(|invalid| Reason::CalledOff { reason: invalid.to_string() })?;
        let begun = Instant::now();
        let process = Command {
            executable: &executable.file,
            arguments: &image.arguments,
            environment: &image.environment,
            pid_variables: &image.pid_variables,
            directory: &image.directory,
            inherit: None,
            streams: [Some(stdin.as_fd()), Some(writer.as_fd()), Some(writer.as_fd())],
            blocked: check.blocked,
            // Whosever the successor will be: the status is wanted here.
            parent: Parent::Us,
            group: Group::Own,
        }
        .spawn()
        .map_err(|error| Reason::Spawn(spawn_error(error, executable)))?;
        tracing::info!(pid = process.pid(), "checking the executable");
        let checking = Self {
            process,
            relay: Relay::new(reader),
            deadline: begun.checked_add(check.timeout),
            timeout: check.timeout,
            called_off: None,
        };
        checking.register(poller).map_err(io("epoll"))?;
        Ok(checking)
    }

    fn register(&self, poller: &Poller) -> io::Result<()> {
        poller.add(&self.process, Interest::Read)?;
        self.relay.register(poller)
    }

    fn step(&mut self, poller: &Poller) -> Condition {
        // Looked at first: what it wrote before its end is in the pipe then.
        let condition = self.process.condition();
        match condition {
            Condition::Running => {
                self.relay.step(poller);
                if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                    let timeout = self.timeout;
                    self.abort(Reason::CheckFailed(CheckFailure::TimedOut { timeout }));
                }
            }
            Condition::Ended(_) => {
                self.deadline = None;
                poller.remove(&self.process);
                self.relay.finish();
                self.relay.detach(poller);
            }
        }
        condition
    }

    fn abort(&mut self, reason: Reason) {
        // Once only: to look whether it is there still would take its status away.
        if self.called_off.is_none() {
            self.called_off = Some(reason);
            self.deadline = None;
            self.kill();
        }
    }

    fn kill(&self) {
        if let Err(error) = self.process.kill_group() {
            tracing::warn!(pid = self.process.pid(), %error, "cannot end the check");
        }
    }
}

impl Drop for Preflight {
    /// Nobody would wait for the check.
    fn drop(&mut self) {
        if let Some(checking) = &self.checking {
            checking.kill();
            // It fails only if it is not to be killed.
            let _ = checking.process.end();
        }
    }
}

/// Names what could not be started, and explains it.
pub(crate) fn spawn_error(error: spawn::Error, executable: &Executable) -> SpawnError {
    let program = &executable.program;
    let path = program.executable();
    match error {
        spawn::Error::Clone(source) => SpawnError::Process { source },
        spawn::Error::Directory(source) => {
            SpawnError::Directory { path: program.directory().to_owned(), source }
        }
        spawn::Error::Execute(source) => unfit::explain(path, &executable.file, source),
        spawn::Error::Replaced => {
            SpawnError::Unfit { path: path.to_owned(), why: Unfit::Replaced, source: None }
        }
    }
}
