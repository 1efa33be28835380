//! What a successor's driver gives, and what it gets.

use std::fmt;
use std::time::Duration;

#[cfg(doc)]
use crate::Successor;
use crate::{Item, Name, Versions, Violation};

/// What a [`Successor`] says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SuccessorConfig {
    /// The versions to speak, normally [`Versions::OURS`].
    pub versions: Versions,
    /// This process.
    pub pid: u32,
    /// Which library this is, for the predecessor's log.
    pub software: String,
}

/// What made the successor the one who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommittedBy {
    /// The predecessor has stopped accepting and drains.
    Predecessor {
        /// Whether an upgrade was asked for meanwhile: do it.
        upgrade_pending: bool,
        /// How long the predecessor can take back over, if at all.
        probation: Option<Duration>,
    },
    /// The predecessor is gone.
    Orphaned,
}

/// Why the successor must not serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// The predecessor called the handover off.
    Aborted {
        /// Why.
        reason: String,
    },
    /// There is no version of the protocol that both speak.
    Incompatible {
        /// What this end speaks.
        ours: Versions,
        /// What the predecessor speaks.
        theirs: Versions,
    },
    /// The predecessor broke the protocol.
    Misbehaved(Violation),
    /// The predecessor is there but says nothing.
    Silent,
    /// The application refused.
    Refused,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted { reason } => write!(f, "the predecessor called it off: {reason}"),
            Self::Incompatible { ours, theirs } => {
                write!(f, "the predecessor speaks protocol version {theirs}, this process {ours}")
            }
            Self::Misbehaved(violation) => {
                write!(f, "the predecessor broke the protocol with {violation}")
            }
            Self::Silent => write!(f, "the predecessor is silent"),
            Self::Refused => write!(f, "this process refused"),
        }
    }
}

/// What the driver of a [`Successor`] is to do or to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Know: the predecessor's answer.
    Welcomed {
        /// The number of this generation.
        generation: u64,
        /// The number of the predecessor's generation.
        predecessor: u64,
        /// Its process, as it sees itself.
        pid: u32,
    },
    /// Do: the one descriptor of this frame is the real stderr.
    TakeStderr,
    /// Do: keep the descriptors of this frame, one for each item.
    TakeDescriptors {
        /// What they are.
        items: Vec<Item>,
    },
    /// Do: keep the one descriptor of this frame, a sealed memfd.
    TakeState {
        /// Its name.
        name: Name,
        /// The version of its format.
        version: u32,
        /// How long it says to be.
        bytes: u64,
        /// Whether it was written after the predecessor stopped accepting.
        late: bool,
    },
    /// Know: everything has arrived that will arrive before the commit. Initialise.
    Adopted,
    /// Do: accept. The handover is done. Comes again, as [`CommittedBy::Orphaned`], if the
    /// predecessor dies after [`Event::RollBack`] and before it has taken back over: keep the
    /// listeners until [`Event::Replaced`].
    Committed(CommittedBy),
    /// Know: the predecessor does not take back over any more. Comes once, without probation right
    /// after [`Event::Committed`].
    ///
    /// From here, and once everything has been sent, the channel can go on as a
    /// [`Line`](crate::Line). Without probation the predecessor may not have heard that this process
    /// serves, and call it off after all, which a line does not know: let the first inquiry, or the
    /// next generation, be the time for one.
    Confirmed,
    /// Know: the service manager takes this process for the main one of the service.
    Announced,
    /// Do: an upgrade was asked of the draining predecessor.
    Upgrade,
    /// Do: stop the service. It was asked of the predecessor when that did not serve any more.
    Stop {
        /// How long what is in flight may take at most.
        drain: Option<Duration>,
    },
    /// Know: the predecessor serves again. Drain and exit.
    Replaced,
    /// Do: stop accepting, call [`Successor::stopped`], and wait for [`Event::Replaced`].
    RollBack {
        /// Why.
        reason: String,
    },
    /// Know: this process serves, and the predecessor sent what it should not.
    Ignored(Violation),
    /// Know: the predecessor is gone, no old code runs.
    PredecessorGone,
    /// Know: this process must not serve.
    Failed(Failure),
}
