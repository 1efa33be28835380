//! What was accepted is finished, counted, and cut only when it has to be.

mod control;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use control::Subject;
use handover_testkit::{KeepAlive, Load, Signal, soon};

/// What a test that asks for the deadline waits for.
const NEVER: &str = "drain=3600000";

#[test]
fn what_is_in_flight_is_finished_and_counted() {
    let subject = Subject::start([NEVER]);
    let mut old = subject.control();
    for _ in 0..5 {
        old.ask("guard");
    }
    let connections: Vec<_> = (0..7).map(|_| echoing(&subject)).collect();
    assert_eq!(old.ask("in-flight"), "12");

    subject.service.signal(Signal::HUP);
    subject.wait("draining 1 HandedOver");
    // Both kinds are served on.
    assert_eq!(old.ask("in-flight"), "12");
    for mut connection in connections {
        ping(&mut connection);
    }
    subject.wait("serving 2");
    assert!(!subject.printed("drained 1 12 0"));
    old.ask("release");

    subject.wait("drained 1 12 0");
    subject.stop();
}

#[test]
fn what_ended_before_the_drain_is_not_counted() {
    let subject = Subject::start(["late=l:1:write", NEVER]);
    let mut old = subject.control();
    for _ in 0..3 {
        old.ask("guard");
        old.ask("release");
    }
    // A late state waits for what is in flight; that is before the drain, too.
    old.ask("guard");
    old.ask("set l idle");
    subject.service.signal(Signal::HUP);
    subject.wait("writing late l");
    old.ask("release");

    subject.wait("idle true");
    subject.wait("drained 1 0 0");
    subject.stop();
}

#[test]
fn a_late_state_that_waits_in_vain_for_idleness_leaves_the_drain_as_it_is() {
    let subject = Subject::start(["late=l:1:write", NEVER]);
    let mut old = subject.control();
    old.ask("guard");
    old.ask("set l busy");
    subject.service.signal(Signal::HUP);
    subject.wait("idle false");
    subject.wait("draining 1 HandedOver");

    old.ask("release");

    subject.wait("drained 1 1 0");
    subject.stop();
}

#[test]
fn a_drain_beside_a_late_state_that_gives_up_waiting_still_ends_when_all_is_done() {
    // The commit times out while the provider waits for idleness, and it does so into the drain.
    let subject = Subject::start(["late=l:1:write", "commit=1500", NEVER]);
    let mut old = subject.control();
    old.ask("guard");
    old.ask("set l a-while");
    assert!(old.ask("upgrade").contains("in phase commit"));

    subject.service.signal(Signal::TERM);
    subject.wait("draining 1 Stopped");
    subject.wait("idle false");
    old.ask("release");

    subject.wait("drained 1 1 0");
    subject.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn the_deadline_cuts_what_is_in_flight_and_counts_it() {
    let subject = Subject::start(["drain=300"]);
    let mut old = subject.control();
    old.ask("guard");
    let mut connection = echoing(&subject);
    let begun = Instant::now();
    subject.service.signal(Signal::HUP);

    subject.wait("drained 1 0 2");

    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(connection.read(&mut [0; 1]).unwrap_or(0), 0, "it ends with the process");
    subject.stop();
}

#[test]
fn a_second_stop_signal_cuts_at_once() {
    let subject = Subject::start([NEVER]);
    let mut old = subject.control();
    old.ask("guard");
    subject.service.signal(Signal::TERM);
    subject.wait("draining 1 Stopped");
    assert_eq!(old.ask("draining"), "true");

    subject.service.signal(Signal::TERM);

    subject.wait("drained 1 0 1");
    subject.service.wait_all_gone(soon()).unwrap();
    assert_eq!(subject.service.exit_status(soon()).unwrap().code(), Some(0));
}

#[test]
fn a_drain_after_a_handover_is_cut_by_the_second_stop_signal_too() {
    let subject = Subject::start([NEVER]);
    let mut old = subject.control();
    old.ask("guard");
    subject.service.signal(Signal::HUP);
    subject.wait("draining 1 HandedOver");
    subject.wait("serving 2");

    subject.service.signal(Signal::TERM);
    assert_eq!(old.ask("in-flight"), "1");
    subject.service.signal(Signal::INT);

    subject.wait("drained 1 0 1");
    assert_eq!(subject.control().ask("generation"), "2");
    subject.stop();
}

#[test]
fn generations_drain_side_by_side() {
    let subject = Subject::start([NEVER]);
    let mut generations = Vec::new();
    for generation in 1..5 {
        let mut control = subject.control();
        assert_eq!(control.ask("generation"), generation.to_string());
        control.ask("guard");
        generations.push((control, echoing(&subject)));
        subject.upgrade();
    }
    assert_eq!(subject.service.alive().len(), 5);

    // The last one first.
    for (generation, (mut control, mut connection)) in generations.into_iter().enumerate().rev() {
        ping(&mut connection);
        drop(connection);
        control.ask("release");
        let line = format!("drained {} ", generation + 1);
        subject.service.wait_line(|printed| printed.starts_with(&line), soon()).unwrap();
    }
    subject.stop();
}

#[test]
fn connections_accepted_at_the_moment_of_commit_are_not_lost() {
    const UPGRADES: usize = 20;
    let subject = Subject::start(["threads=8", "late=l:1:write"]);
    let load = Load::echo(subject.address).rate(1500).start();
    let mut kept = Vec::new();

    for _ in 0..UPGRADES {
        // Opened before an upgrade, they live on beyond it.
        let connections = KeepAlive::echo(subject.address).connections(4).start();
        connections.wait_open(soon()).unwrap();
        let new = subject.upgrade().pid;
        load.wait_answered_by(|pid| pid == new, soon()).unwrap();
        connections.wait_pings(4, soon()).unwrap();
        kept.push(connections);
    }

    load.stop().assert_nothing_lost();
    for (generation, connections) in kept.into_iter().enumerate() {
        let outcome = connections.stop();
        assert_eq!(outcome.ends, [], "of generation {}", generation + 1);
        assert_eq!(outcome.answered_by.len(), 1, "of generation {}", generation + 1);
    }
    subject.stop();
}

#[test]
fn connections_opened_before_a_stop_live_on_in_the_drain() {
    let subject = Subject::start([NEVER]);
    let connections = KeepAlive::echo(subject.address).connections(8).start();
    connections.wait_open(soon()).unwrap();
    subject.service.signal(Signal::TERM);
    subject.wait("draining 1 Stopped");

    connections.wait_pings(50, soon()).unwrap();

    assert_eq!(connections.stop().ends, []);
    subject.wait("drained 1 8 0");
    subject.service.wait_all_gone(soon()).unwrap();
}

/// A connection that counts as in flight.
fn echoing(subject: &Subject) -> TcpStream {
    let mut connection = TcpStream::connect(subject.address).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ping(&mut connection);
    connection
}

fn ping(connection: &mut TcpStream) {
    connection.write_all(b"ping\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ping\n") {
        let mut bytes = [0; 64];
        let count = connection.read(&mut bytes).unwrap();
        assert!(count > 0, "closed after {answer:?}");
        answer.extend_from_slice(&bytes[..count]);
    }
}
