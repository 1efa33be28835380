//! What a predecessor's driver gives, and what it gets.

use std::time::Duration;

#[cfg(doc)]
use crate::Predecessor;
use crate::{Item, Name, Outcome, Phase, Versions};

/// What a [`Predecessor`] needs to know of its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PredecessorConfig {
    /// The versions to speak, normally [`Versions::OURS`].
    pub versions: Versions,
    /// This process.
    pub pid: u32,
    /// The number of this process's own generation.
    pub own_generation: u64,
    /// The number that the successor gets.
    pub generation: u64,
    /// How long the successor may take from its start to `Ready`; `Progress` can add to it.
    pub ready_timeout: Duration,
    /// How long the way from `Ready` to `Serving` may take, the late state included.
    pub commit_timeout: Duration,
    /// How long the predecessor stays able to take back over, if at all.
    pub probation: Option<Duration>,
    /// How long a successor on probation may take to answer, before it counts as hung.
    pub answer_timeout: Duration,
}

/// What there is to hand over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inventory {
    /// The listeners and other descriptors.
    pub items: Vec<Item>,
    /// How many early states will be given with [`Predecessor::state`].
    pub states: u32,
    /// Whether the real stderr goes along with `Welcome`.
    pub stderr: bool,
}

/// What the driver of a [`Predecessor`] is to do or to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The library runs in the new process.
    Greeted {
        /// The process, as it sees itself.
        pid: u32,
        /// Which library it is.
        software: String,
    },
    /// A new phase has begun. `Failed` is not entered, but [`Event::Finished`] says it.
    Entered(Phase),
    /// The successor says what it does.
    Progress {
        /// What it says.
        text: String,
    },
    /// Do: stop accepting on what is claimed, keep everything open, then call
    /// [`Predecessor::accepting_stopped`] and, when the late states are given,
    /// [`Predecessor::late_states_complete`]; both are needed for the commit.
    StopAccepting {
        /// What the successor has claimed.
        claimed: Vec<Name>,
    },
    /// Do: keep the one descriptor of this frame, a sealed memfd: a state of a successor that is
    /// rolled back, to go on with.
    TakeState {
        /// Its name.
        name: Name,
        /// The version of its format.
        version: u32,
        /// How long it says to be.
        bytes: u64,
    },
    /// Do: accept again, on everything. What queued meanwhile is still there.
    ResumeAccepting,
    /// Do: end the process, it had its time (SIGKILL), and report its end.
    Kill,
    /// Know: the successor accepts. Without probation [`Event::Finished`] follows at once.
    Serving,
    /// Do: stop, nobody is to serve any more; or, when the handover is over, finish sooner.
    StopAsked {
        /// How long what is in flight may take at most.
        drain: Option<Duration>,
    },
    /// Do: call [`Predecessor::report`] with this number.
    Inquired {
        /// The number.
        number: u32,
    },
    /// Know: it is over. Only `Upgrade`, `Stop` and what concerns a process that drains may still
    /// follow.
    Finished(Outcome),
}
