//! What can be seen of the engine from outside.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::drain::Drained;
use crate::verdict::Verdict;
use crate::watch::Watch;

/// Where this process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// The predecessor's things are on their way.
    Adopting,
    /// The application claims and initialises.
    Claiming,
    /// `ready()` was called.
    Committing,
    /// This process serves, or stands by while its successor is on probation.
    Serving,
    Draining,
    Done,
    /// This process does not come to serve.
    Failed,
}

/// Why this process does not accept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// A successor serves.
    HandedOver,
    /// It was told to stop.
    Stopped,
    /// The predecessor serves again: probation went badly, or the predecessor had waited too long
    /// for this process's word that it serves.
    RolledBack,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HandedOver => "handed-over",
            Self::Stopped => "stopped",
            Self::RolledBack => "rolled-back",
        })
    }
}

/// What waiters and handles see.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) stage: Stage,
    pub(crate) ending: Option<Ending>,
    pub(crate) predecessor_gone: bool,
    pub(crate) confirmed: bool,
    pub(crate) drained: Option<Drained>,
    pub(crate) drain_deadline: Option<Instant>,
}

/// Where the verdict of one request arrives.
pub(crate) type Ticket = Arc<Watch<Option<Arc<Verdict>>>>;
