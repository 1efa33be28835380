//! Probation: who passes it, and who serves when one of the two hangs or dies meanwhile.

use std::time::Duration;

use handover_proto::*;

use crate::crashes::{Who, who};
use crate::pair::Pair;
use crate::process::{Life, Script};

const PROBATION: Duration = Duration::from_secs(30);

#[test]
fn a_successor_that_answers_passes_however_slow_the_channel() {
    for delay in [0, 1, 1_000, 5_900] {
        let mut pair = on_probation();
        pair.to_old.delay = Duration::from_millis(delay);
        pair.to_new.delay = Duration::from_millis(delay);

        pair.settle();

        assert_eq!(pair.old.outcome, Some(Outcome::Succeeded), "{delay} ms");
        let confirmed = pair.new.events.iter().filter(|e| **e == SuccessorEvent::Confirmed);
        assert_eq!(confirmed.count(), 1);
        assert_eq!(who(&pair), Who::Successor);
    }
}

#[test]
fn answers_that_take_longer_than_allowed_are_none() {
    let mut pair = on_probation();
    pair.to_old.delay = Duration::from_millis(6_001);
    pair.to_new.delay = Duration::from_millis(6_001);

    pair.settle();

    assert_eq!(pair.old.outcome, Some(Outcome::RolledBack { cause: Cause::Unresponsive }));
    assert_eq!(who(&pair), Who::Predecessor);
}

#[test]
fn a_successor_that_hangs_before_the_last_question_is_rolled_back() {
    let mut moments = 0;
    for moment in 0.. {
        let mut pair = on_probation();
        (0..moment).for_each(|_| assert!(pair.step()));
        // From its answer to this one it is not asked any more.
        if pair.now >= Time::from_origin(Duration::from_secs(27)) {
            break;
        }
        let began = pair.now;

        pair.new.life = Life::Hung(None);
        pair.settle();

        assert_eq!(pair.old.outcome, Some(Outcome::RolledBack { cause: Cause::Unresponsive }));
        assert_eq!(who(&pair), Who::Predecessor, "after step {moment}");
        let most = pair.script.answer_timeout * 5 / 4 + ABORT_GRACE;
        assert!(pair.now - began <= most, "after {:?}", pair.now - began);
        moments += 1;
    }
    assert!(moments > 30, "{moments}");
}

#[test]
fn whoever_hangs_for_a_while_exactly_one_serves_in_the_end() {
    for seconds in [1, 8, 11, 13, 14, 29, 31, 100] {
        for moment in 0..50 {
            for which in 0..2 {
                let mut pair = on_probation();
                (0..moment).for_each(|_| {
                    pair.step();
                });

                let until = Life::Hung(Some(pair.now + Duration::from_secs(seconds)));
                if which == 0 {
                    pair.old.life = until;
                } else {
                    pair.new.life = until;
                }
                pair.settle();

                let old_hung = which == 0;
                let expected = if old_hung || seconds < 12 { Who::Successor } else { who(&pair) };
                assert_eq!(who(&pair), expected, "{seconds} s after step {moment}");
                assert_ne!(who(&pair), Who::Nobody);
            }
        }
    }
}

/// A freezer stops both, a laptop sleeps: the successor had no time to answer in.
#[test]
fn two_that_hang_together_go_on_as_if_nothing_had_happened() {
    for moment in 0..50 {
        let mut pair = on_probation();
        (0..moment).for_each(|_| {
            pair.step();
        });

        let until = Life::Hung(Some(pair.now + Duration::from_secs(1000)));
        (pair.old.life, pair.new.life) = (until, until);
        pair.settle();

        assert_eq!(pair.old.outcome, Some(Outcome::Succeeded), "after step {moment}");
    }
}

#[test]
fn whoever_dies_at_any_moment_of_probation_the_other_one_serves() {
    for moment in 0.. {
        let mut pair = on_probation();
        if !(0..moment).all(|_| pair.step() && pair.old.machine.phase() == Phase::Probation) {
            break;
        }
        let mut other = pair.clone();

        pair.crash_new();
        pair.settle();
        assert_eq!(who(&pair), Who::Predecessor, "after step {moment}");

        other.crash_old();
        other.settle();
        assert_eq!(who(&other), Who::Successor, "after step {moment}");
        assert!(other.new.events.contains(&SuccessorEvent::Confirmed));
    }
}

#[test]
fn when_a_confirmation_crosses_ill_health_exactly_one_serves_and_both_agree() {
    for delay in [0, 1, 1_000] {
        for steps_between in 0..8 {
            for confirmed_first in [false, true] {
                let mut pair = on_probation();
                pair.to_old.delay = Duration::from_millis(delay);
                pair.to_new.delay = Duration::from_millis(delay);
                let say = |pair: &mut Pair, confirm: bool| {
                    if confirm {
                        pair.ask_old("confirm", |machine, now| machine.confirm(now));
                    } else {
                        pair.ask_new("unhealthy", |machine| machine.unhealthy("test"));
                    }
                };
                say(&mut pair, confirmed_first);
                (0..steps_between).for_each(|_| {
                    pair.step();
                });
                say(&mut pair, !confirmed_first);
                pair.settle();

                let confirmed = pair.new.events.contains(&SuccessorEvent::Confirmed);
                let expected = if confirmed { Who::Successor } else { Who::Predecessor };
                assert_eq!(who(&pair), expected, "{:#?}", pair.steps);
                let succeeded = pair.old.outcome == Some(Outcome::Succeeded);
                assert_eq!(succeeded, confirmed, "{:#?}", pair.steps);
            }
        }
    }
}

pub(crate) fn on_probation() -> Pair {
    let mut pair = Pair::new(Script { probation: Some(PROBATION), ..Script::default() });
    while pair.old.machine.phase() != Phase::Probation {
        assert!(pair.step());
    }
    pair
}
