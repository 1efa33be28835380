//! The messages, one enum per direction, so that the wrong direction does not compile.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Name, Report, Version, Versions};

/// What the successor says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToPredecessor {
    /// The first message: the library runs in the new process. Means the same in every version.
    Hello {
        /// What the successor speaks.
        versions: Versions,
        /// The successor's process, as it sees itself.
        pid: u32,
        /// Which library speaks, for the log.
        software: String,
    },
    /// The frame of that number, and every descriptor in it, has arrived.
    Ack {
        /// The number that the frame carried.
        frame: u32,
    },
    /// Initialisation goes on.
    Progress {
        /// What is being done, for people.
        text: String,
        /// How much more time to allow from now, in milliseconds, if the successor asks for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        more_ms: Option<u64>,
    },
    /// These listeners and descriptors are taken over. Sent before `Ready`, as often as needed.
    Claim {
        /// Their names.
        names: Vec<Name>,
    },
    /// Initialisation is done: commit when you like. Nothing is accepted before `Commit`.
    Ready {},
    /// The successor will not serve, and says why: a state that it cannot read, say.
    Refuse {
        /// Why, for people.
        reason: String,
    },
    /// `Commit` has arrived: the successor accepts.
    Serving {},
    /// On probation: all is well, the predecessor may let go before the time is over.
    Healthy {},
    /// On probation: the successor wants to be replaced by its predecessor.
    Unhealthy {
        /// Why, for people.
        reason: String,
        /// Whether somebody asked the successor for it, and not its own judgement.
        #[serde(default, skip_serializing_if = "is_false")]
        requested: bool,
    },
    /// On probation: the answer to `Ping`.
    Pong {},
    /// After `Rollback`: the successor does not accept any more.
    Stopped {
        /// How many states follow at most. Fewer end with `StatesComplete`.
        #[serde(default, skip_serializing_if = "is_zero")]
        states: u32,
    },
    /// After `Stopped`: a state that the predecessor is to go on with; the frame carries its sealed
    /// memfd.
    State {
        /// The number to be acked.
        frame: u32,
        /// Its name.
        name: Name,
        /// The application's version of its format.
        version: u32,
        /// How long it is.
        bytes: u64,
    },
    /// After `Stopped`: no more states follow.
    StatesComplete {},
    /// The service is to stop: on probation, do not take back over when the successor exits; in any
    /// case, do not serve, and finish.
    Stop {
        /// How long what is in flight may take at most, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain_ms: Option<u64>,
    },
    /// Say how you are. Only to a predecessor that drains.
    Inquire {
        /// To be repeated in the answer.
        number: u32,
    },
}

/// What the predecessor says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToSuccessor {
    /// The answer to `Hello`. Carries the descriptor of the real stderr when `stderr` is true.
    Welcome {
        /// The version that is spoken from here.
        version: Version,
        /// The number of the successor's generation.
        generation: u64,
        /// The predecessor's process, as it sees itself.
        pid: u32,
        /// The number of the predecessor's generation; others between the two may have been rolled
        /// back.
        predecessor: u64,
        /// How many listeners and other descriptors will come.
        descriptors: u32,
        /// How many early states will come.
        states: u32,
        /// Whether the successor's stderr is a pipe to the predecessor, to be swapped for the
        /// descriptor that comes with this message.
        #[serde(default)]
        stderr: bool,
        /// How long the predecessor gives the successor to become ready, in milliseconds; so long
        /// may a state take to be written, too.
        ready_timeout_ms: u64,
        /// How long the predecessor gives itself between `Ready` and `Commit`, in milliseconds.
        commit_timeout_ms: u64,
        /// How long probation lasts, in milliseconds, if there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        probation_ms: Option<u64>,
    },
    /// Listeners and other descriptors; the frame carries one descriptor for each item, in order.
    Descriptors {
        /// The number to be acked.
        frame: u32,
        /// What each descriptor is.
        items: Vec<Item>,
    },
    /// A state; the frame carries its sealed memfd.
    State {
        /// The number to be acked.
        frame: u32,
        /// Its name.
        name: Name,
        /// The application's version of its format.
        version: u32,
        /// How long it is.
        bytes: u64,
        /// Whether it was written after the predecessor stopped accepting.
        #[serde(default)]
        late: bool,
    },
    /// The predecessor has stopped accepting: accept.
    Commit {
        /// Whether an upgrade was asked for meanwhile, which the successor is to honour.
        #[serde(default)]
        upgrade_pending: bool,
    },
    /// An upgrade was asked of the draining predecessor: it is the successor's to honour.
    Upgrade {},
    /// A stop was asked of the predecessor when it was too late to call the handover off: it is the
    /// successor's to honour.
    Stop {
        /// How long what is in flight may take at most, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain_ms: Option<u64>,
    },
    /// On probation: say `Pong`.
    Ping {},
    /// The successor serves for good: probation is over. Without probation it says that `Serving` was heard.
    Confirmed {},
    /// The service manager takes the successor for the main process of the service: what it is to
    /// know is the successor's to say from here on. Not sent where nothing was announced.
    Announced {},
    /// The state of that number has arrived.
    Ack {
        /// The number that the frame carried.
        frame: u32,
    },
    /// The answer to `Inquire`.
    Report {
        /// The number of the question.
        number: u32,
        /// How the predecessor is.
        report: Report,
    },
    /// On probation: stop accepting, say `Stopped`, drain and exit.
    Rollback {
        /// Why, for people.
        reason: String,
    },
    /// After `Stopped`: the predecessor takes back over, and waits for no more states. A successor
    /// that has not heard it when the channel ends serves again.
    Resumed {},
    /// The handover is called off: exit. Means the same in every version.
    Abort {
        /// Why, for people.
        reason: String,
        /// What the predecessor speaks, if that is why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        versions: Option<Versions>,
    },
}

/// A listener or another descriptor that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: Name,
    /// For a listener: the address that was asked for when it was bound. It may have been port 0;
    /// the address that it has is the socket's to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether somebody outside the service may have it as well, a service manager say: then it is
    /// not to be taken out of service, not even on a stop.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
    /// Whether a service manager has passed it, and keeps it: then it is kept for later generations
    /// even if nobody claims it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub activated: bool,
}

impl Item {
    /// What is known by its name alone.
    pub fn new(name: Name) -> Self {
        Self { name, address: None, shared: false, activated: false }
    }
}

/// Absent is the same, and shorter.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Absent is the same, and shorter.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// A direction of the protocol.
pub trait Message: Serialize + DeserializeOwned {
    /// The values of `type` that this direction knows.
    const TYPES: &'static [&'static str];

    /// The value of `type` of this message.
    fn name(&self) -> &'static str;
}

impl Message for ToPredecessor {
    const TYPES: &'static [&'static str] = &[
        "hello",
        "ack",
        "progress",
        "claim",
        "ready",
        "refuse",
        "serving",
        "healthy",
        "unhealthy",
        "pong",
        "stopped",
        "state",
        "states-complete",
        "stop",
        "inquire",
    ];

    fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Ack { .. } => "ack",
            Self::Progress { .. } => "progress",
            Self::Claim { .. } => "claim",
            Self::Ready {} => "ready",
            Self::Refuse { .. } => "refuse",
            Self::Serving {} => "serving",
            Self::Healthy {} => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::Pong {} => "pong",
            Self::Stopped { .. } => "stopped",
            Self::State { .. } => "state",
            Self::StatesComplete {} => "states-complete",
            Self::Stop { .. } => "stop",
            Self::Inquire { .. } => "inquire",
        }
    }
}

impl Message for ToSuccessor {
    const TYPES: &'static [&'static str] = &[
        "welcome",
        "descriptors",
        "state",
        "commit",
        "upgrade",
        "stop",
        "ping",
        "confirmed",
        "announced",
        "ack",
        "report",
        "rollback",
        "resumed",
        "abort",
    ];

    fn name(&self) -> &'static str {
        match self {
            Self::Welcome { .. } => "welcome",
            Self::Descriptors { .. } => "descriptors",
            Self::State { .. } => "state",
            Self::Commit { .. } => "commit",
            Self::Upgrade {} => "upgrade",
            Self::Stop { .. } => "stop",
            Self::Ping {} => "ping",
            Self::Confirmed {} => "confirmed",
            Self::Announced {} => "announced",
            Self::Ack { .. } => "ack",
            Self::Report { .. } => "report",
            Self::Rollback { .. } => "rollback",
            Self::Resumed {} => "resumed",
            Self::Abort { .. } => "abort",
        }
    }
}
