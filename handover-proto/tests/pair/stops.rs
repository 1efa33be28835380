//! The service is to stop while it is handed over: in the end nobody serves, whatever it crosses.

use handover_proto::*;

use crate::crashes::{Who, who};
use crate::pair::Pair;
use crate::probation::on_probation;
use crate::process::Script;
use crate::rollbacks::rolling_back;

#[test]
fn a_stop_of_the_successor_on_probation_stops_both() {
    for moment in 0..40 {
        let mut pair = on_probation();
        if !(0..moment).all(|_| pair.step() && pair.old.machine.phase() == Phase::Probation) {
            break;
        }

        pair.stop_new();
        pair.settle();

        assert_eq!(who(&pair), Who::Nobody, "after step {moment}");
        assert_eq!(pair.old.outcome, Some(Outcome::Succeeded));
        assert!(pair.old.stopping, "it knows");
    }
}

#[test]
fn a_stop_of_the_successor_at_any_moment_of_a_rollback_stops_both() {
    for drains in [false, true] {
        for moment in 0.. {
            let mut pair = rolling_back();
            pair.script.drains = drains;
            if !(0..moment).all(|_| pair.step()) {
                break;
            }
            let was_there = pair.new.life == crate::process::Life::Alive;

            pair.stop_new();
            pair.settle();

            let expected = if was_there { Who::Nobody } else { Who::Predecessor };
            assert_eq!(who(&pair), expected, "after step {moment}: {:#?}", pair.steps);
        }
    }
}

#[test]
fn a_successor_that_stops_is_not_killed_by_the_rollback_that_crosses() {
    let mut pair = rolling_back();

    pair.stop_new();
    pair.settle();

    assert!(!pair.old.events.contains(&PredecessorEvent::Kill), "{:#?}", pair.steps);
    assert!(matches!(pair.old.outcome, Some(Outcome::RolledBack { .. })));
}

#[test]
fn a_stop_of_the_predecessor_after_the_commit_stops_both() {
    for probation in [None, on_probation().script.probation] {
        let script = Script { probation, ..Script::default() };
        let mut began = Pair::new(script);
        while began.old.machine.phase() != Phase::Confirm {
            assert!(began.step());
        }
        for moment in 0.. {
            let mut pair = began.clone();
            let undecided = |pair: &Pair| pair.old.machine.phase() < Phase::Served;
            if !(0..moment).all(|_| pair.step() && undecided(&pair)) {
                break;
            }

            pair.stop_old();
            pair.settle();

            assert_eq!(who(&pair), Who::Nobody, "after step {moment}: {:#?}", pair.steps);
            assert_eq!(pair.old.outcome, Some(Outcome::Succeeded));
            let stops = SuccessorEvent::Stop { drain: None };
            assert!(pair.new.events.contains(&stops), "after step {moment}");
        }
    }
}

#[test]
fn a_predecessor_that_passed_a_stop_on_stops_itself_if_it_has_to_resume() {
    let mut pair = Pair::new(Script::default());
    while pair.old.machine.phase() != Phase::Confirm {
        assert!(pair.step());
    }
    pair.stop_old();

    pair.crash_new();
    pair.settle();

    assert!(matches!(pair.old.outcome, Some(Outcome::Failed { phase: Phase::Confirm, .. })));
    assert_eq!(who(&pair), Who::Nobody);
}
