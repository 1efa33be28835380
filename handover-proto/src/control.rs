//! What operators and a service say to each other over the control socket: one JSON object a line.
//!
//! A client sends a [`Request`] and reads [`Answer`]s: any number of events, and then exactly one
//! that is not an event. Only [`Request::Events`] goes on until one end closes. The next request is
//! read when the last one is answered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Report;

/// The longest line that a client may send, in bytes, its newline included.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// What a client may ask for, by the value of `request`.
///
/// Any other value is one of the application's own commands. A field that is not known is an
/// error, for a mistyped option must not be lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What runs. Answered by [`Answer::Status`].
    Status {},
    /// Replace the process that serves. Answered by [`Answer::Verdict`], after the events of the
    /// upgrade.
    Upgrade(UpgradeRequest),
    /// Stop the service. Answered by [`Answer::Done`] when nothing more is accepted.
    Stop {
        /// How long what is in flight may take, in milliseconds; the service's own drain timeout
        /// unless given, and never more than that. 0 stops at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        drain_timeout_ms: Option<u64>,
    },
    /// Go back to the generation before this one. On probation: the predecessor serves again,
    /// answered by [`Answer::Done`]. Later: an upgrade to its executable, answered by
    /// [`Answer::Verdict`].
    Rollback {
        /// Why, for the log and the verdict.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// End probation early: the predecessor lets go. Answered by [`Answer::Done`].
    Confirm {},
    /// What happens from here on. Answered by events only.
    Events {},
    /// The client wants to become the successor. Answered by [`Answer::Channel`], with a descriptor.
    TakeOver {},
}

impl Request {
    /// The values of `request` that are not the application's.
    pub const NAMES: &'static [&'static str] =
        &["status", "upgrade", "stop", "rollback", "confirm", "events", "take-over"];
}

/// How to replace the process that serves. What is not given is as the service has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpgradeRequest {
    /// The executable; a relative path is resolved against the directory that the service was
    /// started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// The arguments, without the zeroth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
    /// Variables to set, or to remove where `null`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, Option<String>>,
    /// How long the successor may take to become ready, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_timeout_ms: Option<u64>,
    /// How long probation lasts, in milliseconds; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probation_ms: Option<u64>,
    /// Whether to wait for one's turn, if an upgrade is under way or too many generations are
    /// alive, instead of being told [`ErrorCode::Busy`].
    #[serde(skip_serializing_if = "is_false")]
    pub wait: bool,
}

/// Absent is the same, and shorter.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What a service answers, by the value of `type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Answer {
    /// Something has happened.
    Event(TimedEvent),
    /// What runs.
    Status(StatusReport),
    /// What became of an upgrade.
    Verdict(VerdictReport),
    /// It was done.
    Done {
        /// What, for people.
        message: String,
    },
    /// What the application's own command says.
    Result {
        /// Anything.
        value: Value,
    },
    /// The descriptor that comes with this line is the channel to the predecessor.
    Channel {
        /// What the first message in the channel has to say, so that it is not another one.
        token: String,
        /// The number of the generation that the client becomes.
        generation: u64,
    },
    /// It was not done.
    Error {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, and what to do, for people.
        message: String,
    },
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The line is no request.
    BadRequest,
    /// There is no request of that name.
    UnknownRequest,
    /// The line is longer than [`MAX_REQUEST_BYTES`].
    TooLong,
    /// There are too many clients.
    TooManyClients,
    /// The client is not allowed to ask.
    Forbidden,
    /// An upgrade is under way, or on probation, or too many generations are alive.
    Busy,
    /// This process does not serve any more: connect again.
    NotServing,
    /// There is no probation to end.
    NotOnProbation,
    /// There is no generation to go back to.
    NothingToRollBack,
    /// The application's own command failed.
    Failed,
    /// A code that this version does not know.
    #[serde(other)]
    Other,
}

/// Something that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened, by the value of `event`. `generation` is whom it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// This process serves: from its start, by a commit, or again after a rollback.
    Serving {
        /// Its number.
        generation: u64,
        /// Its process.
        pid: u32,
    },
    /// An upgrade has begun.
    UpgradeBegun {
        /// The number of the successor to be.
        generation: u64,
        /// Who asked.
        asked_by: String,
    },
    /// The new executable checks itself.
    Checking {
        /// The number of the successor to be.
        generation: u64,
    },
    /// The successor was started, or has asked to take over.
    Spawned {
        /// Its number.
        generation: u64,
        /// Its process.
        pid: u32,
    },
    /// The library in the successor has spoken.
    Hello {
        /// Its number.
        generation: u64,
        /// Which library it is.
        software: String,
    },
    /// A state is written and on its way to the successor.
    State {
        /// The number of the successor.
        generation: u64,
        /// The name of the state.
        name: String,
        /// How long it is.
        bytes: u64,
        /// Whether it was written after this process had stopped accepting.
        late: bool,
    },
    /// The successor has everything and initialises.
    Initialising {
        /// Its number.
        generation: u64,
        /// How many listeners and other descriptors it got.
        descriptors: u64,
    },
    /// The successor says what it does.
    Progress {
        /// Its number.
        generation: u64,
        /// What it says.
        text: String,
    },
    /// The successor is initialised; this process stops accepting.
    Ready {
        /// Its number.
        generation: u64,
    },
    /// The successor serves.
    Committed {
        /// Its number.
        generation: u64,
        /// How long it is on probation, in milliseconds, if at all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        probation_ms: Option<u64>,
    },
    /// Probation is over: the successor serves for good.
    Confirmed {
        /// Its number.
        generation: u64,
    },
    /// The successor served for a while; its predecessor serves again.
    RolledBack {
        /// The number of the successor.
        generation: u64,
        /// Why.
        reason: String,
    },
    /// The upgrade has failed; this process serves on.
    UpgradeFailed {
        /// The number that the successor would have had.
        generation: u64,
        /// Where it failed.
        phase: String,
        /// Why.
        reason: String,
    },
    /// This process accepts no more.
    Draining {
        /// Its number.
        generation: u64,
        /// Why: `handed-over`, `stopped` or `rolled-back`.
        ending: String,
        /// How much is in flight.
        in_flight: u64,
        /// How long that may take, in milliseconds.
        timeout_ms: u64,
    },
    /// This process has finished, and exits.
    Drained {
        /// Its number.
        generation: u64,
        /// How much came to its end.
        finished: u64,
        /// How much did not.
        cut: u64,
    },
    /// An older generation has ended.
    Gone {
        /// Its number.
        generation: u64,
    },
    /// The client is too slow: so many events are not shown to it.
    Missed {
        /// How many.
        events: u64,
    },
    /// Something that this version does not know.
    #[serde(other)]
    Other,
}

/// What runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The generations alive, the newest first.
    pub generations: Vec<GenerationReport>,
    /// The sockets of the process that answers.
    pub listeners: Vec<ListenerReport>,
    /// The upgrade that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeReport>,
    /// What `rollback` would go back to once probation is over: the path by which it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_executable: Option<String>,
}

/// A generation that is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationReport {
    /// What it is doing.
    pub state: GenerationState,
    /// The rest, as it says itself.
    #[serde(flatten)]
    pub report: Report,
    /// How long it will be on probation, in milliseconds, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation_left_ms: Option<u64>,
    /// Whether it has answered in time. If not, the numbers are the last ones known.
    pub answers: bool,
}

/// What a generation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GenerationState {
    /// It was started and is not ready.
    Initialising,
    /// It serves.
    Serving,
    /// It serves, and its predecessor can still take back over.
    OnProbation,
    /// It does not serve, and takes back over if its successor fails.
    Standby,
    /// It finishes what it has accepted.
    Draining,
    /// A state that this version does not know.
    #[serde(other)]
    Other,
}

/// A socket of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerReport {
    /// Its name.
    pub name: String,
    /// The address that it has.
    pub address: String,
    /// `tcp`, `udp`, `unix`, `unix-datagram` or `unix-seqpacket`.
    pub kind: String,
    /// How many connections wait to be accepted, if the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
    /// How many may wait, if the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u64>,
}

/// An upgrade that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// The number that the successor has or would have.
    pub generation: u64,
    /// Its process, if there is one yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where it stands.
    pub phase: String,
    /// How long ago it was begun, in milliseconds.
    pub age_ms: u64,
    /// Who asked.
    pub asked_by: String,
}

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictReport {
    /// How it ended.
    pub outcome: VerdictOutcome,
    /// The number that the successor has or would have had.
    pub generation: u64,
    /// Its process, if it came that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why it failed, for programs: `timed-out`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// All of it in one line, for people.
    pub message: String,
    /// The exit code of the successor, if it exited and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the successor, if one did and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The last lines that the successor wrote to stderr.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
    /// How long what took, in microseconds, by phase and in `total`.
    pub timings_us: BTreeMap<String, u64>,
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerdictOutcome {
    /// The successor serves.
    Succeeded,
    /// The old process serves, and has never stopped.
    Failed,
    /// The old process serves again.
    RolledBack,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_a_hand_would_type() {
        let read = |line| serde_json::from_str::<Request>(line).unwrap();
        assert_eq!(read(r#"{"request":"status"}"#), Request::Status {});
        let upgrade = UpgradeRequest { wait: true, ..UpgradeRequest::default() };
        assert_eq!(read(r#"{"request":"upgrade","wait":true}"#), Request::Upgrade(upgrade));
        assert_eq!(
            read(r#"{"request":"stop","drain_timeout_ms":0}"#),
            Request::Stop { drain_timeout_ms: Some(0) }
        );
    }

    #[test]
    fn a_mistyped_option_is_an_error_that_names_it() {
        for line in [
            r#"{"request":"upgrade","ready_timout_ms":1}"#,
            r#"{"request":"stop","ready_timout_ms":1}"#,
        ] {
            let error = serde_json::from_str::<Request>(line).unwrap_err();
            assert!(error.to_string().contains("ready_timout_ms"), "{error}");
        }
    }

    #[test]
    fn what_a_later_version_says_can_be_read() {
        let line = r#"{"type":"event","at_ms":1,"event":"moonrise","phase":"full"}"#;
        let answer: Answer = serde_json::from_str(line).unwrap();
        assert_eq!(answer, Answer::Event(TimedEvent { at_ms: 1, event: Event::Other }));
        let line = r#"{"type":"error","code":"moonstruck","message":"m"}"#;
        let answer: Answer = serde_json::from_str(line).unwrap();
        assert!(matches!(answer, Answer::Error { code: ErrorCode::Other, .. }));
    }

    #[test]
    fn every_answer_survives_the_wire() {
        let report = Report { generation: 2, pid: 7, ..Report::default() };
        let generation = GenerationReport {
            state: GenerationState::OnProbation,
            report,
            probation_left_ms: Some(5),
            answers: true,
        };
        let status = StatusReport { generations: vec![generation], ..StatusReport::default() };
        for answer in [
            Answer::Status(status),
            Answer::Event(TimedEvent { at_ms: 3, event: Event::Ready { generation: 2 } }),
            Answer::Result { value: serde_json::json!({"type": "x"}) },
            Answer::Done { message: "m".into() },
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer, "{line}");
        }
    }
}
