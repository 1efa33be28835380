//! What became of an upgrade.

use std::fmt;
use std::process::ExitStatus;
use std::time::Duration;

use handover_proto::{Cause, Versions, Violation};

use crate::preflight::Unfit;

/// What is told of each verdict.
pub(crate) type OnVerdict = Box<dyn Fn(&Verdict) + Send + Sync>;

/// What became of an upgrade.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// The successor serves; this process drains.
    Succeeded(Success),
    /// This process serves on.
    Failed(Box<Failure>),
    /// The successor served for a while; this process serves again.
    RolledBack(Box<Failure>),
}

impl Verdict {
    /// Whether the successor serves.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Succeeded(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded(success) => write!(
                f,
                "generation {} (pid {}) serves after {:?}",
                success.generation, success.pid, success.timings.total
            ),
            Self::Failed(failure) => failure.fmt(f),
            Self::RolledBack(failure) => {
                write!(f, "rolled back: {}", failure.reason)?;
                failure.write_status(f)
            }
        }
    }
}

/// An upgrade that succeeded.
#[derive(Debug)]
#[non_exhaustive]
pub struct Success {
    /// The number of the generation that serves.
    pub generation: u64,
    /// Its process.
    pub pid: u32,
    /// How long everything took.
    pub timings: Timings,
}

/// An upgrade that failed: this process serves on.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The number that the successor would have had.
    pub generation: u64,
    /// Its process, if it came that far.
    pub pid: Option<u32>,
    /// Where it failed.
    pub phase: Phase,
    /// Why.
    pub reason: Reason,
    /// How the process ended, or the check that came before it, if it is known: the status belongs
    /// to the process's parent.
    pub exit_status: Option<ExitStatus>,
    /// The last lines that the process wrote to stderr, if they are captured, or the check to stdout
    /// and stderr.
    pub stderr: Vec<String>,
    /// How long everything took.
    pub timings: Timings,
}

impl Failure {
    /// Of an upgrade that did not come as far as a successor.
    pub(crate) fn before_spawn(generation: u64, reason: Reason, total: Duration) -> Box<Self> {
        Self::before_hello(generation, Phase::Spawn, reason, total)
    }

    /// The same, while the executable was looked at or checked.
    pub(crate) fn before_hello(
        generation: u64,
        phase: Phase,
        reason: Reason,
        total: Duration,
    ) -> Box<Self> {
        Box::new(Self {
            generation,
            pid: None,
            phase,
            reason,
            exit_status: None,
            stderr: Vec::new(),
            timings: Timings { total, ..Timings::default() },
        })
    }

    fn write_status(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exit_status {
            Some(status) => write!(f, " ({status})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the upgrade failed in phase {}: {}", self.phase, self.reason)?;
        self.write_status(f)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason.source()
    }
}

/// Where an upgrade stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The executable is looked at.
    Preflight,
    /// The executable checks whether it would come to serve.
    Check,
    /// The process is being started.
    Spawn,
    /// The process runs, the library in it has not spoken.
    Hello,
    /// Listeners, descriptors and early states are on their way.
    Transfer,
    /// The successor initialises.
    Initialise,
    /// The successor is ready; this process stops accepting and writes its late states.
    Commit,
    /// The successor was told to accept and has not confirmed.
    Confirm,
    /// The successor serves, this process can still take back over.
    Probation,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preflight => "preflight",
            Self::Check => "check",
            Self::Spawn => "spawn",
            Self::Hello => "hello",
            Self::Transfer => "transfer",
            Self::Initialise => "initialise",
            Self::Commit => "commit",
            Self::Confirm => "confirm",
            Self::Probation => "probation",
        })
    }
}

impl From<handover_proto::Phase> for Phase {
    fn from(phase: handover_proto::Phase) -> Self {
        use handover_proto::Phase as P;
        match phase {
            P::Hello => Self::Hello,
            P::Transfer => Self::Transfer,
            P::Initialise => Self::Initialise,
            P::Commit => Self::Commit,
            P::Probation => Self::Probation,
            // A handover fails in none of the later ones, but an enum may grow.
            _ => Self::Confirm,
        }
    }
}

/// Why an upgrade failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The executable could not be started.
    Spawn(SpawnError),
    /// The executable did not pass its check ([`Builder::check`](crate::Builder::check)).
    CheckFailed(CheckFailure),
    /// The successor ended before it was ready.
    Exited,
    /// The successor took longer than it may.
    TimedOut,
    /// The successor, or the library in it, said that it will not serve.
    Refused {
        /// Why.
        reason: String,
    },
    /// There is no version of the protocol that both processes speak.
    PeerIncompatible {
        /// What this process speaks.
        ours: Versions,
        /// What the successor speaks.
        theirs: Versions,
    },
    /// The successor broke the protocol.
    PeerMisbehaved(Violation),
    /// A state could not be written.
    State {
        /// Its name.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// This process was told to stop meanwhile.
    Stopping,
    /// The successor, on probation, said that it should not serve.
    Unhealthy {
        /// Why.
        reason: String,
    },
    /// The successor was on probation, and somebody asked for this process to serve again.
    RollbackRequested {
        /// Why.
        reason: String,
    },
    /// The successor was on probation and did not answer.
    Unresponsive,
    /// Another upgrade is under way, or this process itself is on probation.
    Busy {
        /// What is under way, since when, and who asked for it.
        with: String,
    },
    /// As many generations are alive as there may be: older ones still drain.
    TooManyGenerations {
        /// How many are alive.
        alive: u32,
    },
    /// This process does not serve any more, or not yet.
    NotServing,
    /// The kernel refused something on this side.
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Called off for another reason.
    CalledOff {
        /// Why.
        reason: String,
    },
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Exited => Self::Exited,
            Cause::TimedOut => Self::TimedOut,
            Cause::Refused { reason } => Self::Refused { reason },
            Cause::Unhealthy { reason } => Self::Unhealthy { reason },
            Cause::RollbackRequested { reason } => Self::RollbackRequested { reason },
            Cause::Unresponsive => Self::Unresponsive,
            Cause::Incompatible { ours, theirs } => Self::PeerIncompatible { ours, theirs },
            Cause::Misbehaved(violation) => Self::PeerMisbehaved(violation),
            Cause::CalledOff { reason } => Self::CalledOff { reason },
            other => Self::CalledOff { reason: other.to_string() },
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spawn(error) => error.fmt(f),
            Self::CheckFailed(failure) => failure.fmt(f),
            Self::Exited => write!(f, "the successor ended before it served"),
            Self::TimedOut => write!(f, "the successor took too long"),
            Self::Refused { reason } => write!(f, "the successor refused: {reason}"),
            Self::PeerIncompatible { ours, theirs } => {
                write!(f, "the successor speaks protocol version {theirs}, this process {ours}")
            }
            Self::PeerMisbehaved(violation) => {
                write!(f, "the successor broke the protocol with {violation}")
            }
            Self::State { name, .. } => write!(f, "the state \"{name}\" could not be written"),
            Self::Stopping => write!(f, "this process was told to stop"),
            Self::Unhealthy { reason } => write!(f, "the successor is unhealthy: {reason}"),
            Self::RollbackRequested { reason } => write!(f, "a rollback was asked for: {reason}"),
            Self::Unresponsive => write!(f, "the successor did not answer"),
            Self::Busy { with } => write!(f, "busy: {with}"),
            Self::TooManyGenerations { alive } => write!(
                f,
                "{alive} generations are alive, which is as many as there may be: wait until an \
                 older one has drained"
            ),
            Self::NotServing => write!(f, "this process does not serve"),
            Self::Io { doing, .. } => write!(f, "the kernel refused {doing}"),
            Self::CalledOff { reason } => write!(f, "called off: {reason}"),
        }
    }
}

impl std::error::Error for Reason {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Spawn(error) => error.source(),
            Self::State { source, .. } => Some(&**source),
            Self::Io { source, .. } => Some(source),
            Self::CheckFailed(_)
            | Self::Exited
            | Self::TimedOut
            | Self::Refused { .. }
            | Self::PeerIncompatible { .. }
            | Self::PeerMisbehaved(_)
            | Self::Stopping
            | Self::Unhealthy { .. }
            | Self::RollbackRequested { .. }
            | Self::Unresponsive
            | Self::Busy { .. }
            | Self::TooManyGenerations { .. }
            | Self::NotServing
            | Self::CalledOff { .. } => None,
        }
    }
}

/// How an executable did not pass its check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckFailure {
    /// It says no: [`Failure::exit_status`] is not zero or a signal, and what it has to say is in
    /// [`Failure::stderr`].
    Refused,
    /// It took longer than it may, and was killed.
    TimedOut {
        /// How long it may take.
        timeout: Duration,
    },
    /// What it says cannot be known: something else in this process has waited for it, or SIGCHLD
    /// is ignored (wait(2)).
    StatusTaken,
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(f, "the new executable did not pass its check"),
            Self::TimedOut { timeout } => write!(f, "the check took longer than {timeout:?}"),
            Self::StatusTaken => {
                write!(
                    f,
                    "the status of the check is lost: SIGCHLD is ignored, or all are waited for"
                )
            }
        }
    }
}

/// Why an executable could not be started.
#[derive(Debug)]
#[non_exhaustive]
pub enum SpawnError {
    /// The executable cannot be executed, for a reason that its deployer can do something about.
    Unfit {
        /// Its path.
        path: std::path::PathBuf,
        /// The reason.
        why: Unfit,
        /// What the kernel said, if it was asked.
        source: Option<std::io::Error>,
    },
    /// The executable cannot be executed, for another reason.
    Execute {
        /// Its path.
        path: std::path::PathBuf,
        /// What the kernel said (open(2), execve(2)).
        source: std::io::Error,
    },
    /// The working directory of this service does not exist any more or cannot be entered.
    Directory {
        /// Its path.
        path: std::path::PathBuf,
        /// What the kernel said (chdir(2)).
        source: std::io::Error,
    },
    /// The kernel has no process or memory to give.
    Process {
        /// What the kernel said (clone(2)).
        source: std::io::Error,
    },
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit { path, why, .. } => {
                write!(f, "cannot execute {}: {why}", path.display())
            }
            Self::Execute { path, .. } => write!(f, "cannot execute {}", path.display()),
            Self::Directory { path, .. } => {
                write!(f, "cannot enter the working directory {}", path.display())
            }
            Self::Process { .. } => write!(f, "cannot start a process"),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unfit { source, .. } => source.as_ref().map(|source| source as _),
            Self::Execute { source, .. }
            | Self::Directory { source, .. }
            | Self::Process { source } => Some(source),
        }
    }
}

/// How long the parts of an upgrade took; zero for those that were not reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// To look at the executable and to have it checked.
    pub preflight: Duration,
    /// In the call that starts the process.
    pub spawn: Duration,
    /// From the start of the process to its first word.
    pub hello: Duration,
    /// To hand over listeners, descriptors and early states.
    pub transfer: Duration,
    /// For the successor to initialise, up to its `ready()`.
    pub initialise: Duration,
    /// From the arrival of the successor's word that it is ready to the moment when this process
    /// had stopped accepting.
    pub commit: Duration,
    /// From there, late states included, to the successor's word that it accepts: the kernel queued
    /// for no longer than that.
    pub confirm: Duration,
    /// For how long the successor was on probation.
    pub probation: Duration,
    /// Everything.
    pub total: Duration,
}
