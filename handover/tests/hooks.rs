//! What the application is told when the service changes hands, and what it may do wrong then.

#![allow(clippy::unwrap_used)]

mod common;
mod trial;

use common::assert_only_accepted_lost;
use handover::control::{Answer, Request};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Pid, soon};
use trial::{Trial, Tried, answer};

/// How many requests one process may have accepted that is killed.
const ACCEPTED_MAX: usize = 4;

fn trial(arguments: &[&str]) -> Trial {
    Trial::new(&[&["--hooks"], arguments].concat())
}

fn roll_back(trial: &Trial) {
    let answer = trial.request(&Request::Rollback { reason: Some("too slow".into()) });
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
}

fn confirm(trial: &Trial) {
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
}

fn told(pid: Pid, what: &str) -> String {
    format!("hook {pid} {what}")
}

fn commit(generation: u64) -> String {
    format!("Commit {{ generation: {generation} }}")
}

fn rollback(generation: u64, who_serves: &str, reason: &str) -> String {
    format!(
        "Rollback {{ generation: {generation}, who_serves: {who_serves}, reason: \"{reason}\" }}"
    )
}

fn confirmed(generation: u64, who_serves: &str) -> String {
    format!("Confirm {{ generation: {generation}, who_serves: {who_serves} }}")
}

/// Waits for these lines, and asserts that they came in this order.
#[track_caller]
fn assert_in_order(tried: &Tried<'_>, expected: &[String]) {
    for line in expected {
        tried.asked.line(line);
    }
    let lines = tried.asked.lines();
    let place = |line: &String| lines.iter().position(|printed| printed.starts_with(line));
    let places: Vec<_> = expected.iter().map(place).collect();
    assert!(places.is_sorted(), "{expected:#?} in {lines:#?}");
}

#[test]
fn commit_and_confirmation_are_told_in_order() {
    let trial = trial(&[]);
    let tried = trial.upgrade("");
    confirm(&trial);
    tried.confirmed();
    let (old, new) = (trial.old, tried.pid);
    let serving = format!("serving {new} ");
    assert_in_order(
        &tried,
        &[told(old, &commit(2)), serving, told(new, &confirmed(2, "ThisProcess"))],
    );
    assert_in_order(&tried, &[told(old, &commit(2)), told(old, &confirmed(2, "Successor"))]);
    let hooks = tried.asked.lines().iter().filter(|line| line.starts_with("hook ")).count();
    assert_eq!(hooks, 3);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn rollback_is_told_first_where_it_stops_and_then_where_it_goes_on() {
    let trial = trial(&[]);
    let tried = trial.upgrade("");
    roll_back(&trial);
    tried.rolled_back(&["too slow"]);
    tried.left();
    let (old, new) = (trial.old, tried.pid);
    let why = "a rollback was asked for: too slow";
    assert_in_order(
        &tried,
        &[
            told(old, &commit(2)),
            told(new, &rollback(2, "Predecessor", why)),
            format!("hooked {new} giving-back"),
            told(old, &rollback(2, "ThisProcess", why)),
            format!("hooked {old} taking-back"),
            "verdict ".into(),
        ],
    );
    trial.finish().assert_nothing_lost();
}

#[test]
fn crash_is_told_to_the_predecessor() {
    let trial = trial(&[]);
    let tried = trial.upgrade("");
    process::signal(tried.pid, Signal::KILL);
    tried.rolled_back(&["signal: 9"]);
    let told = told(trial.old, &rollback(2, "ThisProcess", "the successor ended"));
    assert_in_order(&tried, &[told, "verdict ".into()]);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn upgrade_that_fails_before_its_commit_is_told_to_no_hook() {
    let trial = trial(&[]);
    trial.stage.script("ready refuse no database");
    let asked = trial.stage.ask();
    assert!(asked.verdict().contains("phase initialise"));
    trial.assert_old_serves();
    assert!(!asked.lines().iter().any(|line| line.starts_with("hook ")));
    trial.finish().assert_nothing_lost();
}

#[test]
fn hooks_that_panic_change_nothing() {
    let trial = trial(&[]);
    let panics = "on-commit panic 1\ngiving-back panic 2\ntaking-back panic 3\non-confirm panic 4";
    let tried = trial.upgrade(panics);
    roll_back(&trial);
    tried.rolled_back(&["too slow"]);
    tried.left();
    trial.assert_old_serves();

    // They are called again.
    let next = trial.upgrade(panics);
    next.asked.line(&told(trial.old, &commit(3)));
    confirm(&trial);
    next.asked.line(&told(next.pid, "Confirm"));
    next.confirmed();
    trial.stage.load.wait_answered_by(|pid| pid == next.pid, soon()).unwrap();
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn predecessor_serves_again_although_its_hook_hangs() {
    let trial = trial(&["--commit-timeout", "300"]);
    let gate = trial.stage.gate("gate");
    let tried = trial.upgrade(&format!("taking-back wait {}", gate.path().display()));
    roll_back(&trial);
    tried.asked.waiting("taking-back");
    tried.rolled_back(&["too slow"]);
    trial.assert_old_serves();
    tried.left();
    gate.open();
    tried.asked.line(&format!("hooked {} taking-back", trial.old));
    trial.finish().assert_nothing_lost();
}

#[test]
fn predecessor_killed_in_its_hook_leaves_the_successor_serving() {
    let trial = trial(&[]);
    let tried = trial.upgrade("taking-back hang");
    trial.client().send(&Request::Rollback { reason: None }).unwrap();
    tried.asked.line(&format!("hanging {} taking-back", trial.old));
    process::signal(trial.old, Signal::KILL);
    trial.stage.load.wait_answered_by(|pid| pid == tried.pid, soon()).unwrap();
    tried.asked.line(&told(tried.pid, &rollback(2, "ThisProcess", "the predecessor is gone")));
    assert_eq!(trial.named(), Some(tried.pid));
    assert_only_accepted_lost(&trial.stage.load.stop(), ACCEPTED_MAX);
}

#[test]
fn stop_signals_to_a_predecessor_that_hangs_in_its_hook_end_everything() {
    let trial = trial(&["--commit-timeout", "600000"]);
    let tried = trial.upgrade("taking-back hang");
    trial.client().send(&Request::Rollback { reason: None }).unwrap();
    tried.asked.line(&format!("hanging {} taking-back", trial.old));
    process::signal(trial.old, Signal::TERM);
    trial::wait_taken(trial.old);
    process::signal(trial.old, Signal::TERM);
    trial.stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(trial.named(), None);
}

#[test]
fn successor_that_hangs_in_its_hook_is_killed() {
    let trial = trial(&[]);
    let tried = trial.upgrade("giving-back hang");
    trial.client().send(&Request::Rollback { reason: Some("too slow".into()) }).unwrap();
    tried.asked.line(&format!("hanging {} giving-back", tried.pid));
    tried.rolled_back(&["too slow", "signal: 9 (SIGKILL)"]);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn upgrade_fails_in_time_when_the_hook_before_its_commit_hangs() {
    let trial = trial(&["--commit-timeout", "300"]);
    let gate = trial.stage.gate("gate");
    trial.stage.script(&format!("on-commit wait {}", gate.path().display()));
    let asked = trial.stage.ask();
    asked.waiting("on-commit");
    let verdict = asked.verdict();
    assert!(
        verdict
            .contains("phase commit; reason called off: this process took too long in on_commit"),
        "{verdict}"
    );
    trial.assert_old_serves();
    // Hooks are told one after the other.
    gate.open();
    asked.line(&format!("hooked {} on-commit", trial.old));
    asked.line(&told(trial.old, "Rollback { generation: 2, who_serves: ThisProcess, "));
    trial.finish().assert_nothing_lost();
}

#[test]
fn successor_that_dies_while_the_hook_before_its_commit_runs_is_told() {
    let trial = trial(&[]);
    let gate = trial.stage.gate("gate");
    trial.stage.script(&format!("on-commit wait {}", gate.path().display()));
    let asked = trial.stage.ask();
    let successor = asked.starting();
    asked.waiting("on-commit");
    process::signal(successor, Signal::KILL);
    // Accepting goes on when the application has been told, in order.
    gate.open();
    let verdict = asked.verdict();
    assert!(verdict.contains("phase commit"), "{verdict}");
    trial.assert_old_serves();
    asked.line(&told(trial.old, &rollback(2, "ThisProcess", "the successor ended")));
    trial.finish().assert_nothing_lost();
}

#[test]
fn operators_are_answered_while_hooks_run() {
    let trial = trial(&[]);
    let gate = trial.stage.gate("gate");
    let mut client = trial.client();
    answer(&mut client, &Request::Status {});
    trial.stage.script(&format!("on-commit wait {}", gate.path().display()));
    let asked = trial.stage.ask();
    asked.waiting("on-commit");
    let Answer::Status(status) = answer(&mut client, &Request::Status {}) else { panic!() };
    assert_eq!(status.upgrade.expect("there is one").phase, "commit");
    gate.open();
    asked.serving();
    roll_back(&trial);
    trial.finish().assert_nothing_lost();
}
