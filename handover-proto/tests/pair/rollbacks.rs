//! Rollbacks that give states back, cut off after each step.

use std::time::Duration;

use handover_proto::*;

use crate::crashes::{Who, who};
use crate::pair::Pair;
use crate::probation::on_probation;
use crate::process::Life;

#[test]
fn all_states_come_back_before_the_predecessor_accepts_again() {
    let mut pair = rolling_back();

    pair.settle();

    assert_eq!(states_taken(&pair), 2);
    let events = &pair.old.events;
    let last_state =
        events.iter().rposition(|event| matches!(event, PredecessorEvent::TakeState { .. }));
    let resumed = events.iter().position(|event| *event == PredecessorEvent::ResumeAccepting);
    assert!(last_state < resumed, "{events:?}");
    assert_eq!(pair.now, Time::ZERO, "nothing waits for time to pass");
}

#[test]
fn fewer_states_than_announced_cost_no_waiting() {
    for given in [0, 1] {
        let mut pair = rolling_back();
        pair.script.states_given_back = given;

        pair.settle();

        assert_eq!(states_taken(&pair), given as usize);
        assert_eq!(pair.now, Time::ZERO);
    }
}

#[test]
fn a_successor_that_dies_at_any_moment_of_a_rollback_is_replaced_at_once() {
    each_moment(|pair| {
        pair.crash_new();
        pair.settle();

        assert_eq!(who(pair), Who::Predecessor);
        assert_eq!(pair.now, Time::ZERO);
        assert!(!pair.old.events.contains(&PredecessorEvent::Kill));
    });
}

#[test]
fn a_predecessor_that_dies_at_any_moment_of_a_rollback_is_replaced_until_it_has_resumed() {
    each_moment(|pair| {
        let was_told = pair.steps.iter().any(|step| step == "predecessor sends resumed");

        pair.crash_old();
        pair.settle();

        assert_eq!(who(pair), if was_told { Who::Nobody } else { Who::Successor });
    });
}

#[test]
fn a_successor_that_closes_the_channel_at_any_moment_of_a_rollback_is_replaced() {
    each_moment(|pair| {
        pair.close_new();
        pair.settle();

        assert_eq!(who(pair), Who::Predecessor);
    });
}

#[test]
fn a_successor_that_hangs_at_any_moment_of_a_rollback_is_replaced_in_time() {
    each_moment(|pair| {
        pair.new.life = Life::Hung(None);
        pair.settle();

        assert_eq!(who(pair), Who::Predecessor);
        assert!(pair.now <= Time::ZERO + Duration::from_secs(10), "the commit timeout");
        let stopped = pair.steps.iter().any(|step| step == "predecessor receives stopped");
        let killed = pair.old.events.contains(&PredecessorEvent::Kill);
        assert_eq!(killed, !stopped, "who has stopped drains, if it wakes");
    });
}

#[test]
fn whoever_hangs_for_a_while_in_a_rollback_the_predecessor_serves_in_the_end() {
    for seconds in [1, 2, 9, 11, 100] {
        each_moment(|pair| {
            let until = Life::Hung(Some(pair.now + Duration::from_secs(seconds)));
            let mut other = pair.clone();

            pair.old.life = until;
            pair.settle();
            assert_eq!(who(pair), Who::Predecessor);

            other.new.life = until;
            other.settle();
            assert_eq!(who(&other), Who::Predecessor);
        });
    }
}

/// Calls with a rollback after each of its steps.
fn each_moment(mut check: impl FnMut(&mut Pair)) {
    let mut moments = 0;
    for moment in 0.. {
        let mut pair = rolling_back();
        if !(0..moment).all(|_| pair.step()) {
            break;
        }
        check(&mut pair);
        moments += 1;
    }
    assert!(moments > 15, "{moments}");
}

/// Two states come back, and the successor has something in flight for ever.
pub(crate) fn rolling_back() -> Pair {
    let mut pair = on_probation();
    pair.script.states_back = 2;
    pair.script.states_given_back = 2;
    pair.script.drains = true;
    pair.ask_old("roll back", |machine, now| machine.roll_back("test", now));
    pair
}

fn states_taken(pair: &Pair) -> usize {
    let taken = |event: &&PredecessorEvent| matches!(event, PredecessorEvent::TakeState { .. });
    pair.old.events.iter().filter(taken).count()
}
