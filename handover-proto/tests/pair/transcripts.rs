//! Whole conversations of version 1, byte by byte: what both ends send, in order, and with how many
//! descriptors.
//!
//! A release that speaks version 1 has these very conversations. To be added to, never to be changed, once
//! releases that speak version 1 are out there. A new one is written by running the tests with
//! `HANDOVER_WRITE_TRANSCRIPTS` set, and then read by a person.

use std::path::PathBuf;
use std::time::Duration;

use handover_proto::*;

use crate::pair::Pair;
use crate::process::Script;

const PROBATION: Option<Duration> = Some(Duration::from_secs(30));

#[test]
fn upgrade_is_said_as_ever() {
    let mut pair = Pair::new(Script::default());
    pair.settle();
    assert!(pair.new_serves());
    assert_is("upgrade", &pair);
}

#[test]
fn upgrade_of_nothing_is_said_as_ever() {
    let script =
        Script { items: 0, early_states: 0, late_states: 0, progress: 0, ..Script::default() };
    let mut pair = Pair::new(script);
    pair.settle();
    assert!(pair.new_serves());
    assert_is("upgrade-of-nothing", &pair);
}

#[test]
fn upgrade_in_batches_is_said_as_ever() {
    let mut pair = Pair::new(Script { items: 65, ..Script::default() });
    pair.settle();
    assert!(pair.new_serves());
    assert_is("upgrade-in-batches", &pair);
}

#[test]
fn probation_that_passes_is_said_as_ever() {
    let mut pair = Pair::new(Script { probation: PROBATION, ..Script::default() });
    pair.settle();
    assert!(pair.new_serves());
    assert_is("probation", &pair);
}

#[test]
fn probation_that_is_confirmed_is_said_as_ever() {
    let mut pair = on_probation();
    pair.ask_new("healthy", Successor::healthy);
    pair.settle();
    assert!(pair.new_serves());
    assert_is("healthy", &pair);
}

#[test]
fn rollback_is_said_as_ever() {
    let mut pair = on_probation();
    pair.script.states_back = 2;
    pair.script.states_given_back = 1;
    pair.ask_new("unhealthy", |machine| machine.unhealthy("half of the answers are 500"));
    pair.settle();
    assert!(pair.old_serves());
    assert_is("rollback", &pair);
}

#[test]
fn rollback_that_an_operator_asks_for_is_said_as_ever() {
    let mut pair = on_probation();
    pair.ask_new("roll back", |machine| machine.request_rollback("by hand"));
    pair.settle();
    assert!(pair.old_serves());
    assert_is("rollback-requested", &pair);
}

#[test]
fn abort_is_said_as_ever() {
    let mut pair = Pair::new(Script::default());
    while pair.old.machine.phase() != Phase::Initialise {
        assert!(pair.step());
    }
    pair.ask_old("abort", |machine, now| machine.abort("by hand", now));
    pair.settle();
    assert!(pair.old_serves());
    assert_is("abort", &pair);
}

#[test]
fn refusal_is_said_as_ever() {
    let mut pair = Pair::new(Script { refuses: true, ..Script::default() });
    pair.settle();
    assert!(pair.old_serves());
    assert_is("refusal", &pair);
}

#[test]
fn lack_of_a_common_version_is_said_as_ever() {
    let mut pair = Pair::new(Script { new: crate::releases::V2, ..Script::default() });
    pair.settle();
    assert!(pair.old_serves());
    assert_is("incompatible", &pair);
}

#[test]
fn stop_and_upgrade_that_are_passed_on_are_said_as_ever() {
    let mut pair = on_probation();
    pair.ask_old("upgrade", |machine, now| {
        machine.forward_upgrade(now);
    });
    pair.stop_old();
    pair.settle();
    assert_is("passed-on", &pair);
}

#[test]
fn stop_of_a_successor_on_probation_is_said_as_ever() {
    let mut pair = on_probation();
    pair.stop_new();
    pair.settle();
    assert_is("stop", &pair);
}

#[test]
fn line_is_said_as_ever() {
    let mut pair = Pair::new(Script::default());
    pair.settle();
    let mut line = Line::new();
    let mut predecessor = pair.old.machine.clone();
    let mut text = String::new();
    let mut ask = |line: &mut Line, predecessor: &mut Predecessor| {
        while let Some(frame) = line.poll_transmit() {
            text += &written(false, &String::from_utf8(frame.clone()).expect("JSON"), 0);
            predecessor.handle_frame(&frame, Received::default(), Time::ZERO);
        }
        while let Some(event) = predecessor.poll_event() {
            if let PredecessorEvent::Inquired { number } = event {
                let version = Some("1.4.0".to_owned());
                let report =
                    Report { generation: 1, pid: 100, version, in_flight: 2, ..Report::default() };
                predecessor.report(number, report, Time::ZERO);
            }
        }
        while let Some(transmit) = predecessor.poll_transmit() {
            text += &written(true, &String::from_utf8(transmit.frame.clone()).expect("JSON"), 0);
            line.handle_frame(&transmit.frame, Received::default());
        }
    };
    predecessor.announced(Time::ZERO);
    line.inquire();
    ask(&mut line, &mut predecessor);
    line.inquire();
    line.stop(Some(Duration::from_secs(30)));
    ask(&mut line, &mut predecessor);
    predecessor.forward_upgrade(Time::ZERO);
    predecessor.forward_stop(None, Time::ZERO);
    ask(&mut line, &mut predecessor);
    assert_text_is("line", &text);
}

/// A moving conversation has no machine: its words are put together as the driver does.
#[test]
fn moving_of_connections_is_said_as_ever() {
    use handover_proto::moving::*;

    let name = Name::new("http").expect("a name");
    let takes = ToGiver::Takes { name: name.clone(), oldest: 1, newest: 3 };
    let mut batch = Batch::default();
    let moving = Moving { name: name.clone(), version: 2, unread: 3, state: 2, apart: false };
    batch.push(moving, &[b"GET", b"{}"]);
    batch.push(Moving { name: name.clone(), version: 2, unread: 0, state: 0, apart: false }, &[]);
    batch.push(Moving { name, version: 3, unread: 9000, state: 1, apart: true }, &[]);
    let connections = batch.into_frame(1, 2).expect("it fits");
    assert!(decode_for_taker(&connections).is_ok());
    let refused = vec![Refused { index: 2, reason: "its state is too new".into() }];
    let taken = ToGiver::Taken { frame: 1, refused };
    let all = ToGiver::Taken { frame: 2, refused: Vec::new() };
    let mut text = written(false, &said(&takes), 0);
    // NUL is the border between the message and the bytes that come with it.
    text += &written(true, &connections.escape_ascii().to_string().replace("\\\"", "\""), 4);
    text += &written(false, &said(&taken), 0);
    text += &written(false, &said(&all), 0);
    assert_text_is("moving", &text);
    for message in [takes, taken, all] {
        assert_eq!(decode(said(&message).as_bytes()), Ok(message));
    }
}

fn said(message: &impl Message) -> String {
    String::from_utf8(encode(message).expect("it fits")).expect("JSON")
}

fn on_probation() -> Pair {
    let mut pair = Pair::new(Script { probation: PROBATION, ..Script::default() });
    while pair.old.machine.phase() != Phase::Probation {
        assert!(pair.step());
    }
    pair
}

/// One line: who says it, with how many descriptors, and what.
fn written(by_old: bool, frame: &str, descriptors: usize) -> String {
    let who = if by_old { "predecessor" } else { "successor" };
    let with = if descriptors == 0 { String::new() } else { format!(" +{descriptors}") };
    format!("{who}{with}: {frame}\n")
}

#[track_caller]
fn assert_is(name: &str, pair: &Pair) {
    let said = pair.said.iter();
    let lines = said.map(|said| written(said.by_old, &said.frame, said.descriptors));
    assert_text_is(name, &lines.collect::<String>());
}

#[track_caller]
fn assert_text_is(name: &str, text: &str) {
    let file = format!("v1-{name}.txt");
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests/golden/conversations", &file].iter().collect();
    if std::env::var_os("HANDOVER_WRITE_TRANSCRIPTS").is_some() && !path.exists() {
        std::fs::write(&path, text).expect("the transcript can be written");
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (number, (said, golden)) in (1..).zip(text.lines().zip(golden.lines())) {
        assert_eq!(said, golden, "{file}:{number}");
    }
    assert_eq!(text, golden, "{file} has another length");
}
