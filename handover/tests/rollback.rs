//! A successor on probation that goes wrong is replaced by its predecessor, again and again.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;
mod trial;

use std::time::Duration;

use common::{Gate, assert_only_accepted_lost};
use handover::control::{Answer, Request};
use handover_testkit::{Load, Outcome, soon};
use trial::{Footprint, Times, Trial, Tried, answer_after_death, suspend};

const ROUNDS: usize = 50;

/// A round of these takes more than a second: a process that hangs is given one.
const SLOW_ROUNDS: usize = 25;

/// How many requests a process may have accepted that is killed, each round.
const ACCEPTED_MAX: usize = 4;

/// A machine that is busy otherwise may be slow now and then, but not as a rule.
const USUAL_MAX: Duration = Duration::from_millis(500);

/// On top of the usual load.
const RATE: u32 = 500;

/// Upgrades round by round, has each successor rolled back once it has answered, and asserts that
/// it leaves no trace. A successor does what the script says when it is let through the gate.
fn rounds(
    trial: Trial,
    rounds: usize,
    script: &str,
    mut round: impl FnMut(&Tried<'_>, Gate),
) -> [Outcome; 2] {
    let mut before = None;
    let load = Load::http(trial.stage.address).rate(RATE).start();
    for number in 1..=rounds {
        let gate = trial.stage.gate("gate");
        let tried = trial.upgrade(&format!("later 0 wait {}\n{script}", gate.path().display()));
        let generation = format!(" generation {}", number + 1);
        assert!(tried.asked.line("serving ").ends_with(&generation), "numbers are not used again");
        load.wait_answered_by(|pid| pid == tried.pid, soon()).unwrap();
        round(&tried, gate);
        trial.assert_old_serves();
        trial::assert_no_child_left(trial.old);
        before.get_or_insert_with(|| Footprint::of(trial.old));
    }
    before.expect("there were rounds").assert_kept(trial.old);
    let own = trial.generation(trial.old).expect("it serves");
    assert_eq!(own.report.generation, 1);
    let outcome = load.stop();
    [trial.finish(), outcome]
}

/// Asserts that the old process was there soon, and that each one that died took nothing with it
/// but what it had accepted.
fn assert_as_good_as_can_be(rounds: usize, times: &Times, outcomes: &[Outcome]) {
    let lost: usize = outcomes.iter().map(|outcome| outcome.lost.len()).sum();
    let ended: usize = outcomes.iter().map(Outcome::ended).sum();
    eprintln!("from the death to an answer: {times}; {lost} lost of {ended}");
    assert!(times.at(0.5) < USUAL_MAX, "{times}");
    outcomes.iter().for_each(|outcome| assert_only_accepted_lost(outcome, rounds * ACCEPTED_MAX));
}

fn assert_crashes_are_rolled_back(arguments: &[&str]) {
    let trial = Trial::new(arguments);
    let (old, address) = (trial.old, trial.stage.address);
    let mut times = Vec::new();
    let outcomes = rounds(trial, ROUNDS, "later 50 abort", |tried, gate| {
        gate.open();
        let (time, by) = answer_after_death(address, tried.pid);
        assert_eq!(by, old);
        times.push(time);
        tried.rolled_back(&["the successor ended", "signal: 6 (SIGABRT)"]);
    });
    assert_as_good_as_can_be(ROUNDS, &Times::of(times), &outcomes);
}

#[test]
fn successor_that_aborts_is_rolled_back_each_time() {
    assert_crashes_are_rolled_back(&[]);
}

#[test]
fn successor_that_aborts_in_tokio_is_rolled_back_each_time() {
    assert_crashes_are_rolled_back(&["--tokio"]);
}

fn assert_hangs_are_rolled_back(arguments: &[&str]) {
    let trial = Trial::new(&[arguments, &["--answer-timeout", "200"]].concat());
    let (old, address) = (trial.old, trial.stage.address);
    let mut times = Vec::new();
    let outcomes = rounds(trial, SLOW_ROUNDS, "", |tried, gate| {
        suspend(tried.pid);
        let (time, by) = answer_after_death(address, tried.pid);
        assert_eq!(by, old);
        times.push(time);
        tried.rolled_back(&["did not answer", "signal: 9 (SIGKILL)"]);
        gate.remove();
    });
    assert_as_good_as_can_be(SLOW_ROUNDS, &Times::of(times), &outcomes);
}

#[test]
fn successor_that_hangs_is_rolled_back_each_time() {
    assert_hangs_are_rolled_back(&[]);
}

#[test]
fn successor_that_hangs_in_tokio_is_rolled_back_each_time() {
    assert_hangs_are_rolled_back(&["--tokio"]);
}

fn assert_unhealthy_are_rolled_back(arguments: &[&str]) {
    let outcomes =
        rounds(Trial::new(arguments), ROUNDS, "later 0 unhealthy no disk", |tried, gate| {
            gate.open();
            tried.rolled_back(&["unhealthy: no disk"]);
            tried.left();
        });
    outcomes.iter().for_each(Outcome::assert_nothing_lost);
}

#[test]
fn successor_that_is_unhealthy_is_rolled_back_each_time_and_loses_nothing() {
    assert_unhealthy_are_rolled_back(&[]);
}

#[test]
fn successor_that_is_unhealthy_in_tokio_is_rolled_back_each_time_and_loses_nothing() {
    assert_unhealthy_are_rolled_back(&["--tokio"]);
}

fn assert_operator_rolls_back(arguments: &[&str]) {
    let trial = Trial::new(arguments);
    let control = trial.stage.folder.join("control");
    let outcomes = rounds(trial, ROUNDS, "", |tried, gate| {
        let mut client = handover::control::Client::connect(&control).unwrap();
        let request = Request::Rollback { reason: Some("too slow".into()) };
        let answer = trial::answer(&mut client, &request);
        let Answer::Done { message } = answer else { panic!("{answer:?}") };
        assert!(message.ends_with(" is rolled back"), "{message}");
        tried.rolled_back(&["too slow"]);
        tried.left();
        gate.remove();
    });
    outcomes.iter().for_each(Outcome::assert_nothing_lost);
}

#[test]
fn operator_rolls_back_each_time_and_nothing_is_lost() {
    assert_operator_rolls_back(&[]);
}

#[test]
fn operator_rolls_back_in_tokio_each_time_and_nothing_is_lost() {
    assert_operator_rolls_back(&["--tokio"]);
}
