//! Whatever is wrong with a successor on probation, the predecessor takes back over and says why.

#![allow(clippy::unwrap_used)]

mod common;
mod trial;

use common::assert_only_accepted_lost;
use handover_testkit::process::{self, Signal};
use handover_testkit::soon;
use trial::{Trial, assert_no_child_left};

/// How many requests one process may have accepted that is killed.
const ACCEPTED_MAX: usize = 4;

/// Upgrades to a successor that follows the script, and asserts that it is rolled back for these
/// reasons. Returns the service.
#[track_caller]
fn assert_rolled_back(script: &str, reasons: &[&str]) -> Trial {
    let trial = Trial::new(&[]);
    trial.upgrade(script).rolled_back(reasons);
    trial
}

#[test]
fn successor_that_exits_with_zero_is_rolled_back() {
    let trial = assert_rolled_back("later 20 exit 0", &["the successor ended", "exit status: 0"]);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn successor_that_exits_with_an_error_is_rolled_back() {
    let trial = assert_rolled_back("later 20 exit 3", &["the successor ended", "exit status: 3"]);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn successor_that_is_killed_is_rolled_back() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    process::signal(tried.pid, Signal::KILL);
    tried.rolled_back(&["the successor ended", "signal: 9 (SIGKILL)"]);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn successor_that_closes_the_channel_is_killed_and_rolled_back() {
    let reasons = ["the successor ended", "signal: 9 (SIGKILL)"];
    let trial = assert_rolled_back("later 20 raw-beside close", &reasons);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn successor_that_speaks_garbage_is_rolled_back_and_drains() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("later 20 raw-beside garbage");
    tried.rolled_back(&["broke the protocol"]);
    tried.left();
    trial.finish().assert_nothing_lost();
}

#[test]
fn successor_that_is_rolled_back_finishes_what_it_has_accepted() {
    let trial = Trial::new(&[]);
    let gate = trial.stage.gate("gate");
    let tried = trial
        .upgrade(&format!("later 0 wait {}\nlater 0 unhealthy no disk", gate.path().display()));
    let held = trial.stage.hold();
    gate.open();
    tried.rolled_back(&["unhealthy: no disk"]);
    trial.assert_old_serves();
    assert!(process::is_alive(tried.pid), "it holds a connection");

    // It is not in the way of the next upgrade.
    let next = trial.upgrade("");
    assert!(next.asked.line("serving ").ends_with(" generation 3"));
    process::signal(next.pid, Signal::KILL);
    next.rolled_back(&["the successor ended"]);

    held.release();
    tried.left();
    assert_no_child_left(trial.old);
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn stop_asked_of_a_successor_that_is_just_replaced_stops_the_service() {
    let trial = Trial::new(&[]);
    trial.stage.script("start raw stop-when-replaced");
    let asked = trial.stage.ask();
    asked.line(&format!("draining {} Stopped", trial.old));
    trial.stage.service.wait_all_gone(soon()).unwrap();
}

/// Either is right, as long as they agree: at the end of probation the predecessor lets go.
#[test]
fn successor_that_exits_at_the_end_of_probation_is_rolled_back_or_confirmed() {
    for milliseconds in [96, 98, 100, 102, 104] {
        let trial = Trial::new(&["--probation", "100"]);
        let tried = trial.upgrade(&format!("later {milliseconds} exit 0"));
        let verdict = tried.asked.verdict();
        if verdict.contains("rolled back: the successor ended") {
            trial.assert_old_serves();
        } else {
            assert!(verdict.contains(" serves after "), "{verdict}");
            trial.stage.service.wait_all_gone(soon()).unwrap();
        }
    }
}
