//! Where a handover stands and how it ended, from the predecessor's side.

use std::fmt;

use crate::{Versions, Violation};

/// Where a handover stands, from the predecessor's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The process was started, its library has not spoken.
    Hello,
    /// Listeners, descriptors and early states are on their way.
    Transfer,
    /// The successor has everything and initialises.
    Initialise,
    /// The successor is ready; the predecessor stops accepting and writes its late state.
    Commit,
    /// `Commit` was sent, `Serving` has not come.
    Confirm,
    /// The successor serves, the predecessor can still take back over.
    Probation,
    /// The successor serves for good.
    Served,
    /// The handover came to nothing; the predecessor serves.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hello => "hello",
            Self::Transfer => "transfer",
            Self::Initialise => "initialise",
            Self::Commit => "commit",
            Self::Confirm => "confirm",
            Self::Probation => "probation",
            Self::Served => "served",
            Self::Failed => "failed",
        })
    }
}

impl Phase {
    /// Where a message does not belong, in words.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "the greeting",
            Self::Transfer => "the transfer",
            Self::Initialise => "initialisation",
            Self::Commit => "the commit",
            Self::Confirm => "the confirmation",
            Self::Probation => "probation",
            Self::Served => "a finished handover",
            Self::Failed => "a failed handover",
        }
    }
}

/// Why a handover came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The successor ended, or closed its end of the channel.
    Exited,
    /// The successor took longer than it may.
    TimedOut,
    /// The successor said that it will not serve.
    Refused {
        /// What it said.
        reason: String,
    },
    /// The successor, on probation, said that it should not serve.
    Unhealthy {
        /// What it said.
        reason: String,
    },
    /// Somebody asked for the predecessor to take back over from a successor on probation.
    RollbackRequested {
        /// Why.
        reason: String,
    },
    /// The successor, on probation, did not answer in time.
    Unresponsive,
    /// There is no version of the protocol that both speak.
    Incompatible {
        /// What this end speaks.
        ours: Versions,
        /// What the successor speaks.
        theirs: Versions,
    },
    /// The successor broke the protocol.
    Misbehaved(Violation),
    /// This end called it off.
    CalledOff {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited => write!(f, "the successor ended"),
            Self::TimedOut => write!(f, "the successor took too long"),
            Self::Refused { reason } => write!(f, "the successor refused: {reason}"),
            Self::Unhealthy { reason } => write!(f, "the successor is unhealthy: {reason}"),
            Self::RollbackRequested { reason } => write!(f, "a rollback was asked for: {reason}"),
            Self::Unresponsive => write!(f, "the successor does not answer"),
            Self::Incompatible { ours, theirs } => {
                write!(f, "the successor speaks protocol version {theirs}, this process {ours}")
            }
            Self::Misbehaved(violation) => {
                write!(f, "the successor broke the protocol with {violation}")
            }
            Self::CalledOff { reason } => write!(f, "called off: {reason}"),
        }
    }
}

/// How a handover ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The successor serves.
    Succeeded,
    /// The predecessor serves; it never gave up its place, or only for the length of a commit.
    Failed {
        /// Where it ended.
        phase: Phase,
        /// Why.
        cause: Cause,
    },
    /// The successor served for a while; the predecessor serves again.
    RolledBack {
        /// Why.
        cause: Cause,
    },
}
