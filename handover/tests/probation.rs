//! How probation ends well, and what may be asked of either process meanwhile.

#![allow(clippy::unwrap_used)]

mod common;
mod trial;

use std::time::Duration;

use common::assert_only_accepted_lost;
use handover::control::{
    Answer, ErrorCode, GenerationState, Request, UpgradeRequest, VerdictOutcome,
};
use handover_testkit::process::{self, Signal};
use handover_testkit::soon;
use trial::{Trial, answer, assert_refused, suspend};

/// How many requests one process may have accepted that is killed.
const ACCEPTED_MAX: usize = 4;

#[test]
fn application_confirms() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("later 0 confirm");
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn operator_confirms() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    assert_eq!(state(&trial, tried.pid), Some(GenerationState::OnProbation));
    assert_eq!(state(&trial, trial.old), Some(GenerationState::Standby));
    let confirmed = trial.request(&Request::Confirm {});
    assert_eq!(confirmed, Answer::Done { message: "generation 2 is confirmed".into() });
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn operator_confirms_by_way_of_the_predecessor() {
    let trial = Trial::new(&[]);
    // Who was connected before is connected to the predecessor still.
    let mut client = trial.client();
    answer(&mut client, &Request::Status {});
    let tried = trial.upgrade("");
    let confirmed = answer(&mut client, &Request::Confirm {});
    assert_eq!(confirmed, Answer::Done { message: "generation 2 is confirmed".into() });
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn operator_rolls_back_by_way_of_the_predecessor() {
    let trial = Trial::new(&[]);
    let mut client = trial.client();
    answer(&mut client, &Request::Status {});
    let tried = trial.upgrade("");
    let back = answer(&mut client, &Request::Rollback { reason: Some("too slow".into()) });
    assert_eq!(back, Answer::Done { message: "generation 2 is rolled back".into() });
    tried.rolled_back(&["too slow"]);
    tried.left();
    trial.finish().assert_nothing_lost();
}

#[test]
fn time_confirms() {
    let trial = Trial::new(&["--probation", "200"]);
    let tried = trial.upgrade("");
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_without_probation_is_confirmed_at_once() {
    let trial = Trial::new(&[]);
    let request = UpgradeRequest { probation_ms: Some(0), ..UpgradeRequest::default() };
    let answer = trial.request(&Request::Upgrade(request));
    let Answer::Verdict(verdict) = answer else { panic!("{answer:?}") };
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded);
    let new = trial.stage.wait_generation(2);
    assert!(process::exited(trial.old, soon()));
    assert_serves_for_good(&trial, new);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_can_be_on_probation_where_others_are_not() {
    let trial = Trial::new(&["--probation", "0"]);
    let mut client = trial.client();
    let request = UpgradeRequest { probation_ms: Some(60_000), ..UpgradeRequest::default() };
    client.send(&Request::Upgrade(request)).unwrap();
    let tried = trial.stage.wait_generation(2);
    assert_eq!(state(&trial, tried), Some(GenerationState::OnProbation));
    assert!(matches!(trial.request(&Request::Rollback { reason: None }), Answer::Done { .. }));
    trial.assert_old_serves();
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_signal_to_the_successor_is_honoured_after_probation() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    process::signal(tried.pid, Signal::HUP);
    assert_upgrades_after_probation(&trial);
}

#[test]
fn upgrade_signal_to_the_predecessor_is_honoured_after_probation() {
    let trial = Trial::new(&[]);
    trial.upgrade("");
    process::signal(trial.old, Signal::HUP);
    assert_upgrades_after_probation(&trial);
}

#[test]
fn upgrade_signal_to_the_predecessor_is_honoured_after_a_rollback() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    process::signal(trial.old, Signal::HUP);
    // It has taken the signal by the time that it answers.
    assert!(matches!(trial.request(&Request::Rollback { reason: None }), Answer::Done { .. }));
    tried.rolled_back(&[]);
    tried.left();
    let third = trial.stage.wait_generation(3);
    assert_eq!(process::parent(third), trial.old);
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    assert!(process::exited(trial.old, soon()));
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_asked_for_by_an_operator_on_probation_is_busy() {
    let trial = Trial::new(&[]);
    let mut client = trial.client();
    answer(&mut client, &Request::Status {});
    let tried = trial.upgrade("");
    let upgrade = Request::Upgrade(UpgradeRequest::default());

    let of_successor = trial.request(&upgrade);
    let told = ["generation 2 is on probation for another ", " s: confirm it or roll it back"];
    assert_refused(&of_successor, ErrorCode::Busy, &told);
    let of_predecessor = answer(&mut client, &upgrade);
    let told =
        ["the upgrade to generation 2, asked for by a signal ", " s ago, is in phase probation"];
    assert_refused(&of_predecessor, ErrorCode::Busy, &told);

    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    tried.confirmed();
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_that_waits_for_its_turn_has_it_after_probation() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    let mut client = trial.client();
    let wait = UpgradeRequest { wait: true, probation_ms: Some(0), ..UpgradeRequest::default() };
    client.send(&Request::Upgrade(wait)).unwrap();
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    tried.confirmed();
    let third = trial.stage.wait_generation(3);
    assert!(process::exited(tried.pid, soon()));
    assert_serves_for_good(&trial, third);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn stop_signal_to_the_successor_stops_the_service() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    process::signal(tried.pid, Signal::TERM);
    tried.asked.line(&format!("draining {} Stopped", tried.pid));
    assert_stopped(trial);
}

#[test]
fn stop_by_an_operator_on_probation_stops_the_service() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    let answer = trial.request(&Request::Stop { drain_timeout_ms: None });
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
    tried.asked.line(&format!("draining {} Stopped", tried.pid));
    assert_stopped(trial);
}

#[test]
fn stop_by_an_operator_by_way_of_the_predecessor_stops_the_service() {
    let trial = Trial::new(&[]);
    let mut client = trial.client();
    answer(&mut client, &Request::Status {});
    let tried = trial.upgrade("");
    let answer = answer(&mut client, &Request::Stop { drain_timeout_ms: None });
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
    tried.asked.line(&format!("draining {} Stopped", tried.pid));
    assert_stopped(trial);
}

#[test]
fn stop_by_the_application_on_probation_stops_the_service() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("later 0 stop-service");
    tried.asked.line(&format!("draining {} Stopped", tried.pid));
    assert_stopped(trial);
}

#[test]
fn second_stop_signal_to_the_successor_ends_both_at_once() {
    let trial = Trial::new(&["--drain-timeout", "600000"]);
    let of_old = trial.stage.hold();
    let tried = trial.upgrade("");
    let of_new = trial.stage.hold();
    process::signal(tried.pid, Signal::TERM);
    tried.asked.line(&format!("draining {} Stopped", tried.pid));
    tried.asked.line(&format!("draining {} ", trial.old));
    process::signal(tried.pid, Signal::TERM);
    assert_stopped(trial);
    drop((of_old, of_new));
}

#[test]
fn stop_signal_to_the_predecessor_ends_it_alone() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    process::signal(trial.old, Signal::TERM);
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn second_stop_signal_to_the_predecessor_ends_it_alone_and_at_once() {
    let trial = Trial::new(&["--drain-timeout", "600000"]);
    let held = trial.stage.hold();
    let tried = trial.upgrade("");
    process::signal(trial.old, Signal::TERM);
    tried.asked.line(&format!("draining {} HandedOver", trial.old));
    process::signal(trial.old, Signal::TERM);
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    // A second stop cuts what is in flight.
    assert_only_accepted_lost(&trial.stage.load.stop(), ACCEPTED_MAX);
    drop(held);
}

#[test]
fn predecessor_killed_on_probation_leaves_the_successor_serving_for_good() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    process::signal(trial.old, Signal::KILL);
    assert!(process::exited(trial.old, soon()));
    assert_serves_for_good(&trial, tried.pid);
    let next = trial.stage.ask_of(tried.pid);
    trial
        .stage
        .load
        .wait_answered_by(
            {
                let next = next.serving();
                move |pid| pid == next
            },
            soon(),
        )
        .unwrap();
    assert_only_accepted_lost(&trial.stage.load.stop(), ACCEPTED_MAX);
}

#[test]
fn predecessor_that_hangs_on_probation_harms_nobody() {
    let trial = Trial::new(&["--probation", "400", "--answer-timeout", "200"]);
    let tried = trial.upgrade("");
    suspend(trial.old);
    pass(&trial, Duration::from_millis(800));
    // Nobody has let it go.
    assert_eq!(state(&trial, tried.pid), Some(GenerationState::OnProbation));
    process::signal(trial.old, Signal::CONT);
    tried.confirmed();
    assert_serves_for_good(&trial, tried.pid);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn stop_of_a_successor_of_which_the_predecessor_hangs_stops_both() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("");
    suspend(trial.old);
    process::signal(tried.pid, Signal::TERM);
    assert!(process::exited(tried.pid, soon()));
    process::signal(trial.old, Signal::CONT);
    assert_stopped(trial);
}

/// Whichever comes first, and if they cross.
#[test]
fn stop_that_crosses_a_rollback_is_waited_for_by_nobody() {
    for _ in 0..5 {
        let trial = Trial::new(&["--drain-timeout", "600000"]);
        let mut client = trial.client();
        answer(&mut client, &Request::Status {});
        let tried = trial.upgrade("ready listen mine 127.0.0.1:0");
        client.send(&Request::Rollback { reason: None }).unwrap();
        // Unless it is gone already.
        let _ = process::try_signal(tried.pid, Signal::TERM);
        assert!(process::exited(tried.pid, soon()));
        // If the rollback was over, the stop was the successor's own, and the predecessor serves.
        let _ = process::try_signal(trial.old, Signal::TERM);
        trial.stage.service.wait_all_gone(soon()).unwrap();
        assert_eq!(trial.named(), None);
    }
}

#[test]
fn pid_file_names_who_serves_at_each_moment() {
    let trial = Trial::new(&[]);
    assert_eq!(trial.named(), Some(trial.old));
    let tried = trial.upgrade("");
    assert_eq!(trial.named(), Some(tried.pid));
    assert!(matches!(trial.request(&Request::Rollback { reason: None }), Answer::Done { .. }));
    tried.rolled_back(&[]);
    assert_eq!(trial.named(), Some(trial.old));
    tried.left();
    assert_eq!(trial.named(), Some(trial.old));
    let next = trial.upgrade("");
    assert_eq!(trial.named(), Some(next.pid));
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    next.confirmed();
    assert_eq!(trial.named(), Some(next.pid));
    process::signal(next.pid, Signal::TERM);
    trial.stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(trial.named(), None);
}

#[test]
fn generations_have_their_own_numbers_after_a_rollback() {
    let trial = Trial::new(&[]);
    trial.upgrade("later 0 unhealthy no").left();
    let tried = trial.upgrade("");
    let numbered = |pid| trial.generation(pid).map(|generation| generation.report.generation);
    assert_eq!(numbered(tried.pid), Some(3));
    assert_eq!(numbered(trial.old), Some(1), "the one that was rolled back is not in between");
    process::signal(tried.pid, Signal::KILL);
    tried.rolled_back(&[]);
    trial.finish();
}

/// Waits, while the load is answered.
fn pass(trial: &Trial, time: Duration) {
    let until = trial.stage.load.elapsed() + time;
    while trial.stage.load.elapsed() < until {
        trial.stage.load.wait_answers(1, soon()).unwrap();
    }
}

fn state(trial: &Trial, pid: handover_testkit::Pid) -> Option<GenerationState> {
    trial.generation(pid).map(|generation| generation.state)
}

#[track_caller]
fn assert_serves_for_good(trial: &Trial, pid: handover_testkit::Pid) {
    trial.stage.load.wait_answered_by(|by| by == pid, soon()).unwrap();
    assert_eq!(state(trial, pid), Some(GenerationState::Serving));
    assert_eq!(trial.named(), Some(pid));
    let confirmed = trial.request(&Request::Confirm {});
    assert_refused(&confirmed, ErrorCode::NotOnProbation, &["there is no probation to end"]);
}

/// Upgrades while a successor is on probation, and asserts that it is one upgrade, after that.
#[track_caller]
fn assert_upgrades_after_probation(trial: &Trial) {
    let second = trial.stage.server();
    // It has taken the signal by the time that it answers.
    assert_eq!(state(trial, second), Some(GenerationState::OnProbation));
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    assert!(process::exited(trial.old, soon()));
    let third = trial.stage.wait_generation(3);
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    assert!(process::exited(second, soon()));
    assert_serves_for_good(trial, third);
}

/// Asserts that every process is gone and nobody was served wrongly.
#[track_caller]
fn assert_stopped(trial: Trial) {
    trial.stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(trial.named(), None);
    let resurrected =
        trial.stage.service.lines().iter().any(|line| line.text.contains("rolled back"));
    assert!(!resurrected);
}
