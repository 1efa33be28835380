//! Who serves when one of the two is stopped (SIGSTOP), for ever or for a while.

use std::time::Duration;

use handover_proto::*;

use crate::crashes::{Who, after, moment_of, rolling_back, who};
use crate::normal::steps_of_a_handover;
use crate::pair::Pair;
use crate::process::Life;

#[test]
fn a_successor_that_hangs_is_killed_until_it_has_said_that_it_serves() {
    for moment in 0..moment_of("successor sends serving") {
        let mut pair = after(moment, None);

        pair.new.life = Life::Hung(None);
        pair.settle();

        assert_eq!(who(&pair), Who::Predecessor, "after step {moment}");
        assert_eq!(pair.new.life, Life::Dead);
        assert!(pair.now <= at(61), "the ready timeout and the grace, not {:?}", pair.now);
    }
}

#[test]
fn a_successor_that_hangs_before_ready_is_not_noticed_by_clients() {
    for moment in 0..moment_of("successor sends ready") {
        let mut pair = after(moment, None);

        pair.new.life = Life::Hung(None);
        pair.settle();

        assert!(!pair.old.paused, "after step {moment}");
    }
}

#[test]
fn a_successor_that_hangs_on_probation_is_rolled_back() {
    let mut pair = after(moment_of("predecessor receives serving"), Some(at(30).since_origin()));

    pair.new.life = Life::Hung(None);
    pair.settle();

    let cause = Cause::Unresponsive;
    assert_eq!(pair.old.outcome, Some(Outcome::RolledBack { cause }));
    assert_eq!(who(&pair), Who::Predecessor);
    assert_eq!(pair.now, Time::ZERO + pair.script.answer_timeout + ABORT_GRACE);
}

#[test]
fn a_successor_that_hangs_in_a_rollback_is_killed_after_the_grace() {
    let mut pair = rolling_back();
    let asked = pair.now;

    pair.new.life = Life::Hung(None);
    pair.settle();

    assert_eq!(who(&pair), Who::Predecessor);
    assert_eq!(pair.now, asked + ABORT_GRACE);
}

#[test]
fn a_predecessor_that_hangs_in_a_rollback_resumes_when_it_wakes() {
    let mut pair = rolling_back();
    while pair.steps.last().is_none_or(|step| step != "successor sends stopped") {
        assert!(pair.step());
    }

    hang_old(&mut pair, 1000);
    assert_eq!(who(&pair), Who::Nobody);
    pair.settle();

    assert_eq!(who(&pair), Who::Predecessor);
}

#[test]
fn a_predecessor_that_hangs_before_commit_is_not_replaced() {
    for moment in 0..moment_of("predecessor sends commit") {
        let mut pair = after(moment, None);

        pair.old.life = Life::Hung(None);
        pair.settle();

        assert_eq!(who(&pair), Who::Nobody, "after step {moment}");
        assert_eq!(pair.new.life, Life::Dead, "it gave up");
    }
}

#[test]
fn a_predecessor_that_hangs_after_commit_is_not_missed() {
    for moment in moment_of("predecessor sends commit")..=steps_of_a_handover() {
        let mut pair = after(moment, None);

        pair.old.life = Life::Hung(None);
        pair.settle();

        assert_eq!(who(&pair), Who::Successor, "after step {moment}");
    }
}

#[test]
fn whoever_hangs_for_a_while_exactly_one_serves_in_the_end() {
    for seconds in [1, 9, 11, 19, 21, 59, 61, 200] {
        for moment in 0..=steps_of_a_handover() {
            for probation in [None, Some(Duration::from_secs(30))] {
                for hang in [hang_old, hang_new] {
                    let mut pair = after(moment, probation);

                    hang(&mut pair, seconds);
                    pair.settle();

                    assert_ne!(who(&pair), Who::Nobody, "{:#?}", pair.steps);
                }
            }
        }
    }
}

#[test]
fn a_predecessor_that_was_suspended_while_it_was_answered_does_not_kill() {
    let mut pair = after(moment_of("predecessor sends commit"), None);

    hang_old(&mut pair, 100);
    pair.settle();

    assert_eq!(pair.old.outcome, Some(Outcome::Succeeded));
}

fn hang_old(pair: &mut Pair, seconds: u64) {
    pair.old.life = Life::Hung(Some(pair.now + Duration::from_secs(seconds)));
}

fn hang_new(pair: &mut Pair, seconds: u64) {
    pair.new.life = Life::Hung(Some(pair.now + Duration::from_secs(seconds)));
}

fn at(seconds: u64) -> Time {
    Time::from_origin(Duration::from_secs(seconds))
}
