//! Events, over the changes of those who tell them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::json;

use crate::service::{Ended, Service, Step, error, event, handover, say};
use crate::terminal::interrupt;

fn draining(generation: u64, ending: &str) -> Step {
    let fields = json!({
        "generation": generation, "ending": ending, "in_flight": 3, "timeout_ms": 30_000,
    });
    event("draining", fields)
}

fn drained(generation: u64) -> Step {
    event("drained", json!({"generation": generation, "finished": 2, "cut": 1}))
}

#[test]
fn events_are_told_over_a_handover_until_the_service_stops() {
    let first =
        || [event("committed", json!({"generation": 2})), draining(1, "handed-over"), drained(1)];
    let second = || [draining(2, "stopped"), drained(2), Step::Hold];
    let service = Service::start().on("events", first()).on("events", second());
    let ended = service.run(&["events"]);
    assert_eq!(ended.code, 0);
    assert_eq!(
        ended.stdout,
        "\
2023-11-14T22:13:20.000Z  generation 2: committed
2023-11-14T22:13:20.000Z  generation 1 draining (handed-over): 3 in flight, at most 30 s
2023-11-14T22:13:20.000Z  generation 1 drained: 2 finished, 1 cut
2023-11-14T22:13:20.000Z  generation 2 draining (stopped): 3 in flight, at most 30 s
2023-11-14T22:13:20.000Z  generation 2 drained: 2 finished, 1 cut
"
    );
    let expected =
        "handover: the connection has ended, connecting again: some events may be missing\n";
    assert_eq!(ended.stderr, expected);

    let service = Service::start().on("events", first()).on("events", second());
    let ended = service.run(&["events", "--json"]);
    assert_eq!(ended.code, 0);
    let Step::Say(line) = draining(2, "stopped") else { panic!("it says something") };
    assert_eq!(ended.stdout.lines().nth(3), Some(&*line));
}

#[test]
fn a_stop_whose_end_is_not_told_is_the_end() {
    let service = Service::start().on("events", [draining(1, "stopped"), Step::Vanish]);
    assert_eq!(service.run(&["events"]).code, 0);
}

#[test]
fn a_service_that_is_gone_without_having_been_stopped_is_told() {
    let service = Service::start().on("events", [drained(1), Step::Vanish]);
    let ended = service.run(&["events", "--timeout", "1s"]);
    assert_eq!(ended.code, 6);
    assert!(ended.stderr.contains("there is no control socket"), "{ended:?}");

    let ended: Ended =
        handover(&["events", "--socket", "/nowhere/control"]).output().unwrap().into();
    assert_eq!(ended.code, 6, "at once");
}

#[test]
fn a_refusal_is_told() {
    let service = Service::start().on("events", [say(error("too-many-clients", "16 are here"))]);
    let ended = service.run(&["events"]);
    assert_eq!(ended.code, 5);
    assert_eq!(ended.stderr, "handover: refused: 16 are here\n");
}

#[test]
fn ctrl_c_and_a_reader_that_leaves_are_the_end() {
    let service = Service::start()
        .on("events", [drained(1), Step::Hold])
        .on("events", [drained(1), drained(2), drained(3), Step::Hold]);
    let start = || service.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut child = start();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut child = start();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
