//! A predecessor that is killed leaves a successor that serves, whatever they were at.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use common::{Stage, assert_only_accepted_lost};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Pid, Stream, recheck, soon};

/// How many requests a process may have accepted and not answered at any moment. A request takes
/// well below a millisecond, one comes every five.
const IN_FLIGHT_MAX: usize = 10;

/// Asserts that this process serves, that it can be upgraded, and that the death of the
/// predecessor cost only what that had accepted.
#[track_caller]
fn assert_taken_over(stage: Stage, successor: Pid) {
    assert_serves(&stage, successor);
    assert_only_accepted_lost(&stage.load.stop(), IN_FLIGHT_MAX);
}

#[track_caller]
fn assert_serves(stage: &Stage, successor: Pid) {
    stage.load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    assert_eq!(stage.server(), successor);
    assert_eq!(stage.service.alive(), [successor]);
    stage.script("");
    let next = stage.upgrade();
    stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
}

fn kill(pid: Pid) {
    process::signal(pid, Signal::KILL);
    assert!(process::exited(pid, soon()));
}

/// An address that no other test has: port 0 would be another one for who has to bind it again.
fn own_address(test: u16) -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, a | 0x80, b, c), 20_000 + test).into()
}

#[test]
fn predecessor_killed_before_welcome_leaves_a_successor_that_binds_anew() {
    let stage = Stage::new(&["--listen", &own_address(1).to_string()]);
    let gate = stage.gate("gate");
    stage.script(&format!("start wait {}", gate.path().display()));
    let asked = stage.ask();
    let successor = asked.waiting("start");

    kill(asked.pid);
    gate.open();

    assert_eq!(asked.serving(), successor);
    // Nobody held the listener for a moment, so this is not about what was lost.
    assert_serves(&stage, successor);
}

#[test]
fn predecessor_killed_during_the_transfer_leaves_a_successor_with_what_has_arrived() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("early");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("early");
    let listener = listener_of(asked.pid, stage.address);
    let arrived = || process::fds(successor).values().any(|fd| *fd == listener).then_some(());
    assert!(recheck(soon(), arrived).is_some(), "the listener does not wait for the state");

    kill(asked.pid);

    assert_eq!(asked.serving(), successor);
    gate.remove();
    assert_taken_over(stage, successor);
}

#[test]
fn predecessor_killed_while_the_successor_initialises_leaves_it_to_serve_when_ready() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path().display()));
    let asked = stage.ask();
    let successor = asked.waiting("ready");

    kill(asked.pid);
    gate.open();

    assert_eq!(asked.serving(), successor);
    assert_taken_over(stage, successor);
}

#[test]
fn predecessor_killed_between_ready_and_commit_leaves_a_successor_that_serves_at_once() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("late");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("late");

    kill(asked.pid);

    assert_eq!(asked.serving(), successor);
    gate.remove();
    assert_taken_over(stage, successor);
}

#[test]
fn predecessor_killed_while_it_drains_costs_only_what_it_had_accepted() {
    let stage = Stage::new(&[]);
    let held = stage.hold();
    let asked = stage.ask();
    let successor = asked.serving();
    asked.line(&format!("draining {} HandedOver", asked.pid));
    stage.load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    stage.load.wait_answers(20, soon()).unwrap();

    kill(asked.pid);

    held.release();
    assert_serves(&stage, successor);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_killed_with_its_predecessor_leaves_nobody() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path().display()));
    let asked = stage.ask();
    let successor = asked.waiting("ready");
    kill(asked.pid);
    kill(successor);
    stage.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn stderr_of_a_successor_outlives_the_predecessor() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}\nready shout 1000000", gate.path().display()));
    let asked = stage.ask();
    let successor = asked.waiting("ready");
    kill(asked.pid);
    gate.open();

    asked.line(&format!("shouted {successor} 10000"));

    assert_eq!(asked.serving(), successor);
    assert!(all_shouted(&stage, 10_000).is_sorted(), "in order");
    assert_taken_over(stage, successor);
}

#[test]
fn stderr_that_is_being_written_outlives_the_predecessor() {
    for _ in 0..3 {
        let stage = Stage::new(&[]);
        // Stopped, it does not read the pipe: the successor fills it and waits in the middle of a
        // write.
        let gate = stage.gate("gate");
        stage.script(&format!("ready wait {}\nready shout 1000000", gate.path().display()));
        let asked = stage.ask();
        let successor = asked.waiting("ready");
        process::signal(asked.pid, Signal::STOP);
        assert!(process::wait_state_stopped(asked.pid, soon()));
        gate.open();
        asked.line("shouting ");
        let writes = || blocked_in_write(successor).then_some(());
        assert!(recheck(soon(), writes).is_some());

        kill(asked.pid);

        asked.line(&format!("shouted {successor} 10000"));
        assert_eq!(asked.serving(), successor);
        // What the predecessor had read and not passed on died with it: nothing, as it was stopped.
        assert!(all_shouted(&stage, 10_000).is_sorted(), "in order");
        stage.script("");
        stage.upgrade();
    }
}

#[test]
fn stderr_that_is_being_written_outlives_the_commit() {
    for _ in 0..3 {
        let stage = Stage::new(&[]);
        stage.script("ready shout-aside 1000000");
        let asked = stage.ask();
        let successor = asked.serving();
        // It has nothing to finish and exits at once, with the pipe that it reads.
        assert!(process::exited(asked.pid, soon()));
        asked.line(&format!("shouted {successor} 10000"));
        // Not line by line: what is relayed and what is written directly may meet within one.
        let all = || (stderr_bytes(&stage) == 1_000_000).then_some(());
        recheck(soon(), all).unwrap_or_else(|| panic!("{} bytes arrived", stderr_bytes(&stage)));
        stage.load.stop().assert_nothing_lost();
    }
}

#[test]
fn stderr_of_a_successor_that_serves_is_the_service_s_own() {
    let stage = Stage::new(&[]);
    let stderr = process::fds(stage.server())[&2].clone();
    let second = stage.upgrade();
    assert_eq!(process::fds(second)[&2], stderr);
    let third = stage.upgrade();
    assert_eq!(process::fds(third)[&2], stderr);
    stage.load.stop().assert_nothing_lost();
}

/// How much has arrived on stderr, ends of lines included.
fn stderr_bytes(stage: &Stage) -> usize {
    let lines = stage.service.lines();
    let stderr = lines.iter().filter(|line| line.stream == Stream::Stderr);
    stderr.map(|line| line.text.len() + 1).sum()
}

/// The numbers of the lines of `shout`, once all have arrived, each once.
#[track_caller]
fn all_shouted(stage: &Stage, count: usize) -> Vec<usize> {
    let mut missing = count;
    let shouted = |line: &str| line.strip_prefix("shout ")?.parse().ok();
    let all = |line: &str| {
        missing -= usize::from(shouted(line).is_some());
        missing == 0
    };
    stage.service.wait_line(all, soon()).unwrap();
    let lines = stage.service.lines();
    let stderr = lines.iter().filter(|line| line.stream == Stream::Stderr);
    let numbers: Vec<usize> = stderr.filter_map(|line| shouted(&line.text)).collect();
    let distinct: BTreeSet<usize> = numbers.iter().copied().collect();
    assert_eq!(distinct, (0..count).collect());
    assert_eq!(numbers.len(), count);
    numbers
}

/// Whether a thread of the process waits in write(2) on a pipe.
fn blocked_in_write(pid: Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().any(|task| {
        let syscall = std::fs::read_to_string(task.path().join("syscall")).unwrap_or_default();
        // write(2), to descriptor 2.
        syscall.starts_with("1 0x2 ")
    })
}

/// The socket, as `/proc` names it, that the process listens on.
fn listener_of(pid: Pid, address: SocketAddr) -> String {
    let port = format!(":{:04X} ", address.port());
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let listening = table.lines().find(|line| line.contains(&port) && line.contains(" 0A "));
    let inode = listening.and_then(|line| line.split_whitespace().nth(9)).expect("it listens");
    format!("socket:[{inode}]")
}
