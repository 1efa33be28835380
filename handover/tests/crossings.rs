//! What is asked for, or dies, while something else is under way: stops, rollbacks, hooks, status.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use common::Stage;
use handover::control::{Answer, Client, Request, StatusReport};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Pid, soon};

/// A stage with a control socket.
fn stage(arguments: &[&str]) -> Stage {
    Stage::with(arguments, |launch, folder| {
        launch
            .arg("--control")
            .arg(folder.join("control"))
            .arg("--commit-gate")
            .arg(folder.join("commit"))
            .arg("--rollback-gate")
            .arg(folder.join("rollback"))
    })
}

fn client(stage: &Stage) -> Client {
    Client::connect(stage.folder.join("control")).unwrap()
}

fn status(client: &mut Client) -> StatusReport {
    client.send(&Request::Status {}).unwrap();
    match client.next_answer().unwrap() {
        Some(Answer::Status(status)) => status,
        other => panic!("{other:?}"),
    }
}

fn line_of(stage: &Stage, text: &str) -> usize {
    let lines = stage.service.lines();
    let found = lines.iter().position(|line| line.text.contains(text));
    found.unwrap_or_else(|| panic!("no line has {text:?}"))
}

#[track_caller]
fn assert_ends_well(stage: Stage) {
    assert_eq!(stage.service.exit_status(soon()).unwrap().code(), Some(0));
    stage.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn successor_that_waits_for_its_commit_is_told_of_a_stop_and_not_killed() {
    let stage = stage(&[]);
    let gate = stage.gate("late");
    let asked = stage.ask();
    asked.waiting("late");
    process::signal(asked.pid, Signal::TERM);
    let verdict = asked.verdict();
    assert!(verdict.contains("status exit status: 1"), "{verdict}");
    drop(gate);
    assert_ends_well(stage);
}

#[test]
fn second_stop_signal_during_an_upgrade_is_told_as_its_verdict() {
    let stage = stage(&[]);
    stage.script("adopted stop");
    let asked = stage.ask();
    assert!(process::wait_state_stopped(asked.starting(), soon()));
    process::signal(asked.pid, Signal::TERM);
    process::signal(asked.pid, Signal::INT);
    let verdict = asked.verdict();
    assert!(verdict.contains("told to stop"), "{verdict}");
    assert_ends_well(stage);
}

#[test]
fn timeouts_that_never_come_do_no_harm() {
    let never =
        ["ready", "commit", "drain", "answer", "check"].map(|what| format!("--{what}-timeout"));
    let mut arguments = vec!["--hooks", "--check", "--probation", "max"];
    never.iter().for_each(|name| arguments.extend([name.as_str(), "max"]));
    let stage = stage(&arguments);
    let server = stage.server();
    stage.script("later 10 unhealthy as it was told");
    let verdict = stage.ask().verdict();
    assert!(verdict.contains("rolled back"), "{verdict}");
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    stage.script("later 10 confirm");
    let since = stage.service.line_count();
    process::signal(server, Signal::HUP);
    let success = |line: &str| line.contains(" serves after ");
    stage.service.wait_line_after(since, success, soon()).unwrap();
    process::signal(stage.server(), Signal::TERM);
    assert_ends_well(stage);
}

#[test]
fn stop_of_a_successor_that_is_rolled_back_outlives_its_predecessor() {
    let stage = stage(&["--hooks", "--probation", "60000"]);
    let gate = stage.gate("rollback");
    let asked = stage.ask();
    let serving = asked.serving();
    stage.load.wait_answered_by(|pid| pid == serving, soon()).unwrap();
    let (mut client, mut other) = (client(&stage), client(&stage));
    status(&mut other);
    client.send(&Request::Rollback { reason: None }).unwrap();
    let successor = asked.waiting("rollback");
    // It does not lose its patience with the successor.
    process::signal(asked.pid, Signal::STOP);
    process::signal(successor, Signal::TERM);
    // It has seen that before it answers.
    status(&mut other);
    process::signal(asked.pid, Signal::KILL);
    assert!(process::exited(asked.pid, soon()));
    gate.open();
    assert!(process::exited(successor, soon()), "it was told to stop");
    stage.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn second_stop_signal_ends_a_predecessor_that_waits_for_states_to_come_back() {
    let stage = stage(&["--probation", "60000", "--commit-timeout", "600000"]);
    let asked = stage.ask();
    let successor = asked.serving();
    stage.load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    // The late state that goes back, and not the one that came.
    let gate = stage.gate("late");
    let mut client = client(&stage);
    client.send(&Request::Rollback { reason: None }).unwrap();
    asked.waiting("late");
    process::signal(asked.pid, Signal::TERM);
    process::signal(asked.pid, Signal::INT);
    assert!(process::exited(asked.pid, soon()));
    assert!(process::exited(successor, soon()));
    drop(gate);
    stage.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn rollback_is_told_to_the_application_after_the_commit_that_it_takes_back() {
    let stage = stage(&["--hooks", "--commit-timeout", "200"]);
    let server = stage.server();
    let gate = stage.gate("commit");
    let asked = stage.ask();
    asked.waiting("commit");
    // The commit takes too long, and is taken back.
    asked.line("subject: ");
    gate.open();
    asked.verdict();
    asked.line(&format!("hook {server} Rollback"));
    assert!(line_of(&stage, "Commit {") < line_of(&stage, "Rollback {"));
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    stage.assert_unharmed(server);
}

#[test]
fn older_generation_answers_whoever_serves_on_probation() {
    let stage = stage(&["--probation", "60000"]);
    let _held = stage.hold();
    let first = confirmed_upgrade(&stage);
    assert!(process::is_alive(first), "it has a connection");
    let asked = stage.ask();
    let serving = asked.serving();
    stage.load.wait_answered_by(|pid| pid == serving, soon()).unwrap();
    let mut client = client(&stage);
    // An answer may be late on a busy machine. If two heard the question, every other one would be missing.
    let silent = (0..50).filter(|_| {
        let status = status(&mut client);
        assert_eq!(status.generations.len(), 3);
        status.generations.iter().any(|one| !one.answers)
    });
    assert!(silent.count() < 5);
}

#[test]
fn process_that_drains_knows_that_older_ones_do_so_too() {
    let stage = stage(&[]);
    let first = stage.server();
    let held = stage.hold();
    let second = stage.upgrade();
    stage.load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    let _held = stage.hold();
    let third = stage.upgrade();
    stage.wait(&format!("draining {second}"));
    stage.load.wait_answered_by(|pid| pid == third, soon()).unwrap();
    let alone = |pid: Pid| format!("alone {pid}");
    let printed = |text: &str| stage.service.lines().iter().any(|line| line.text == text);
    assert!(!printed(&alone(second)) && !printed(&alone(third)), "{first} drains");
    held.release();
    stage.wait(&alone(second));
    assert!(!printed(&alone(third)), "{second} drains");
}

#[test]
fn process_that_waits_to_take_over_is_told_when_the_service_stops() {
    let stage = stage(&["--max-generations", "2", "--cut-oldest"]);
    let _held = stage.hold();
    let first = stage.server();
    let second = stage.upgrade();
    stage.load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    // It does not hear that its drain is to be cut short.
    process::signal(first, Signal::STOP);
    let mut client = client(&stage);
    client.send(&Request::TakeOver {}).unwrap();
    let answer = client.next_answer().unwrap();
    assert!(matches!(answer, Some(Answer::Channel { .. })), "{answer:?}");
    let mut channel = UnixStream::from(client.take_descriptor().unwrap());
    channel.set_nonblocking(false).unwrap();
    process::signal(second, Signal::TERM);
    assert!(process::exited(second, soon()));
    let mut frame = || {
        let mut buffer = [0; 4096];
        let bytes = channel.read(&mut buffer).unwrap();
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    };
    assert!(frame().contains("token"));
    assert!(frame().contains(r#""type":"abort""#), "else it would think that it is to serve");
    process::signal(first, Signal::KILL);
}

/// Upgrades, and ends probation; returns who served before.
fn confirmed_upgrade(stage: &Stage) -> Pid {
    let asked = stage.ask();
    let serving = asked.serving();
    stage.load.wait_answered_by(|pid| pid == serving, soon()).unwrap();
    let mut client = client(stage);
    client.send(&Request::Confirm {}).unwrap();
    let answer = client.next_answer().unwrap();
    assert!(matches!(answer, Some(Answer::Done { .. })), "{answer:?}");
    asked.verdict();
    asked.pid
}
