//! Every phase against every message: what is accepted, what is out of order, what is let pass.

use std::time::Duration;

use handover_proto::*;

use crate::stage::*;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It does what it is there for.
    Taken,
    /// It ends the handover as out of order.
    Violation,
    /// It changes nothing.
    Ignored,
    /// It is reported, and changes nothing else.
    Reported,
}

use Fate::{Ignored, Reported, Taken, Violation as Refused};

#[rustfmt::skip]
const PREDECESSOR: [(&str, [Fate; 8]); 15] = [
    //                 Hello    Transfer Initialise Commit  Confirm  Probation Served   Failed
    ("hello",           [Taken,   Refused, Refused, Refused, Refused, Refused, Ignored, Ignored]),
    ("ack",             [Refused, Taken,   Refused, Refused, Refused, Refused, Ignored, Ignored]),
    ("progress",        [Refused, Taken,   Taken,   Refused, Refused, Refused, Ignored, Ignored]),
    ("claim",           [Refused, Refused, Taken,   Refused, Refused, Refused, Ignored, Ignored]),
    ("ready",           [Refused, Refused, Taken,   Refused, Refused, Refused, Ignored, Ignored]),
    ("refuse",          [Taken,   Taken,   Taken,   Taken,   Taken,   Refused, Ignored, Ignored]),
    ("serving",         [Refused, Refused, Refused, Refused, Taken,   Refused, Ignored, Ignored]),
    ("healthy",         [Refused, Refused, Refused, Refused, Refused, Taken,   Ignored, Ignored]),
    ("unhealthy",       [Refused, Refused, Refused, Refused, Refused, Taken,   Ignored, Ignored]),
    ("pong",            [Refused, Refused, Refused, Refused, Refused, Taken,   Ignored, Ignored]),
    ("stopped",         [Refused, Refused, Refused, Refused, Refused, Refused, Ignored, Ignored]),
    ("state",           [Refused, Refused, Refused, Refused, Refused, Refused, Ignored, Ignored]),
    ("states-complete", [Refused, Refused, Refused, Refused, Refused, Refused, Ignored, Ignored]),
    ("stop",            [Refused, Refused, Refused, Refused, Refused, Taken,   Taken,   Ignored]),
    ("inquire",         [Refused, Refused, Refused, Refused, Refused, Refused, Taken,   Ignored]),
];

/// The stages are in the order of [`STAGES`].
#[rustfmt::skip]
const SUCCESSOR: [(&str, [Fate; 10]); 15] = [
    //             Hello    Transfer Initialise Ready Serving   Confirmed RollingBack Stopped Replaced  Failed
    ("welcome",     [Taken,   Refused, Refused, Refused, Reported, Reported, Reported, Reported, Reported, Ignored]),
    ("descriptors", [Refused, Taken,   Refused, Refused, Reported, Reported, Reported, Reported, Reported, Ignored]),
    ("early state", [Refused, Taken,   Refused, Refused, Reported, Reported, Reported, Reported, Reported, Ignored]),
    ("late state",  [Refused, Refused, Refused, Taken,   Reported, Reported, Reported, Reported, Reported, Ignored]),
    ("commit",      [Refused, Refused, Refused, Taken,   Reported, Reported, Reported, Reported, Reported, Ignored]),
    ("upgrade",     [Refused, Refused, Refused, Refused, Taken,    Taken,    Reported, Reported, Reported, Ignored]),
    ("stop",        [Refused, Refused, Refused, Refused, Taken,    Taken,    Reported, Reported, Reported, Ignored]),
    ("ping",        [Refused, Refused, Refused, Refused, Taken,    Taken,    Taken,    Taken,    Taken,    Ignored]),
    ("confirmed",   [Refused, Refused, Refused, Refused, Taken,    Reported, Reported, Reported, Reported, Ignored]),
    ("announced",   [Refused, Refused, Refused, Refused, Reported, Taken,    Reported, Reported, Reported, Ignored]),
    ("report",      [Refused, Refused, Refused, Refused, Ignored,  Ignored,  Reported, Reported, Reported, Ignored]),
    ("rollback",    [Refused, Refused, Refused, Refused, Taken,    Reported, Reported, Reported, Reported, Ignored]),
    ("ack",         [Refused, Refused, Refused, Refused, Reported, Reported, Reported, Reported, Reported, Ignored]),
    ("resumed",     [Refused, Refused, Refused, Refused, Reported, Reported, Reported, Taken,    Reported, Ignored]),
    ("abort",       [Taken,   Taken,   Taken,   Taken,   Taken,    Reported, Reported, Reported, Reported, Ignored]),
];

#[test]
fn a_predecessor_takes_each_message_where_it_belongs_and_nowhere_else() {
    for (message, fates) in PREDECESSOR {
        for (phase, expected) in PREDECESSOR_PHASES.into_iter().zip(fates) {
            let fate = fate_at_predecessor(&to_predecessor(message), phase);

            assert_eq!(fate, expected, "\"{message}\" in {phase:?}");
        }
    }
}

#[test]
fn an_ack_in_the_commit_is_taken_for_a_late_state() {
    let mut machine = predecessor_in(Phase::Commit);
    machine.state(name("late"), 1, 10, Time::ZERO);

    tell(&mut machine, &ToPredecessor::Ack { frame: 3 });

    assert_eq!(said(&mut machine), []);
}

#[test]
fn a_successor_takes_each_message_where_it_belongs_and_nowhere_else() {
    for (message, fates) in SUCCESSOR {
        for (stage, expected) in STAGES.into_iter().zip(fates) {
            let fate = fate_at_successor(&to_successor(message), stage);

            assert_eq!(fate, expected, "\"{message}\" in {stage:?}");
        }
    }
}

#[test]
fn a_predecessor_that_waits_for_the_end_only_listens_for_stopped_and_stop() {
    let stop_asked = PredecessorEvent::StopAsked { drain: Some(Duration::from_millis(1)) };
    for phase in PREDECESSOR_PHASES.into_iter().filter(|phase| *phase < Phase::Served) {
        for (message, _) in PREDECESSOR {
            let mut machine = predecessor_in(phase);
            machine.handle_frame(b"nonsense", Received::default(), Time::ZERO);
            said(&mut machine);

            tell(&mut machine, &to_predecessor(message));

            let may_have_served = phase >= Phase::Confirm;
            let over = message == "stopped" && may_have_served;
            assert_eq!(machine.phase() == Phase::Failed, over, "\"{message}\" in {phase:?}");
            let asked = said(&mut machine).contains(&stop_asked);
            assert_eq!(asked, message == "stop" && may_have_served, "\"{message}\" in {phase:?}");
        }
    }
}

fn fate_at_predecessor(message: &ToPredecessor, phase: Phase) -> Fate {
    let mut machine = predecessor_in(phase);
    let before = machine.clone();
    tell(&mut machine, message);
    if machine == before {
        return Ignored;
    }
    let violations = [
        Violation::OutOfOrder { message: message.name(), during: during(phase) },
        Violation::UnexpectedAck { frame: 1 },
    ];
    match outcome(&mut machine) {
        Some(
            Outcome::Failed { cause: Cause::Misbehaved(violation), .. }
            | Outcome::RolledBack { cause: Cause::Misbehaved(violation) },
        ) if violations.contains(&violation) => Refused,
        Some(Outcome::Failed { .. } | Outcome::RolledBack { .. } | Outcome::Succeeded) | None => {
            Taken
        }
    }
}

fn fate_at_successor(message: &ToSuccessor, stage: Stage) -> Fate {
    let mut machine = successor_in(stage);
    let before = machine.clone();
    inform(&mut machine, message);
    if machine == before {
        return Ignored;
    }
    let events = noted(&mut machine);
    replied(&mut machine);
    match &events[..] {
        [SuccessorEvent::Ignored(violation)] => {
            let reported = match violation {
                Violation::OutOfOrder { message: named, .. } => *named == message.name(),
                other => *other == Violation::UnexpectedAck { frame: 1 },
            };
            assert!(reported, "{violation}");
            assert_eq!(machine, before, "who serves goes on");
            Reported
        }
        [SuccessorEvent::Failed(Failure::Misbehaved(Violation::OutOfOrder { .. }))] => Refused,
        _ => Taken,
    }
}

fn during(phase: Phase) -> &'static str {
    match phase {
        Phase::Hello => "the greeting",
        Phase::Transfer => "the transfer",
        Phase::Initialise => "initialisation",
        Phase::Commit => "the commit",
        Phase::Confirm => "the confirmation",
        Phase::Probation => "probation",
        Phase::Served => "a finished handover",
        _ => "a failed handover",
    }
}

fn to_predecessor(message: &str) -> ToPredecessor {
    let reason = || "test".to_owned();
    match message {
        "hello" => hello(),
        "ack" => ToPredecessor::Ack { frame: 1 },
        "progress" => ToPredecessor::Progress { text: reason(), more_ms: None },
        "claim" => ToPredecessor::Claim { names: vec![name("http")] },
        "ready" => ToPredecessor::Ready {},
        "refuse" => ToPredecessor::Refuse { reason: reason() },
        "serving" => ToPredecessor::Serving {},
        "healthy" => ToPredecessor::Healthy {},
        "unhealthy" => ToPredecessor::Unhealthy { reason: reason(), requested: false },
        "pong" => ToPredecessor::Pong {},
        "stopped" => ToPredecessor::Stopped { states: 0 },
        "state" => ToPredecessor::State { frame: 1, name: name("x"), version: 1, bytes: 1 },
        "states-complete" => ToPredecessor::StatesComplete {},
        "stop" => ToPredecessor::Stop { drain_ms: Some(1) },
        "inquire" => ToPredecessor::Inquire { number: 1 },
        other => panic!("no message \"{other}\""),
    }
}

fn to_successor(message: &str) -> ToSuccessor {
    let state =
        |late| ToSuccessor::State { frame: 1, name: name("cache"), version: 1, bytes: 10, late };
    let reason = || "test".to_owned();
    match message {
        "welcome" => welcome(0, 0),
        "descriptors" => ToSuccessor::Descriptors { frame: 1, items: vec![item("http")] },
        "early state" => state(false),
        "late state" => state(true),
        "commit" => ToSuccessor::Commit { upgrade_pending: false },
        "upgrade" => ToSuccessor::Upgrade {},
        "stop" => ToSuccessor::Stop { drain_ms: Some(1) },
        "ping" => ToSuccessor::Ping {},
        "confirmed" => ToSuccessor::Confirmed {},
        "announced" => ToSuccessor::Announced {},
        "report" => ToSuccessor::Report { number: 1, report: Report::default() },
        "ack" => ToSuccessor::Ack { frame: 1 },
        "resumed" => ToSuccessor::Resumed {},
        "rollback" => ToSuccessor::Rollback { reason: reason() },
        "abort" => ToSuccessor::Abort { reason: reason(), versions: None },
        other => panic!("no message \"{other}\""),
    }
}
