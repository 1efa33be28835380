//! Who serves when one of the two dies, after each step of a handover: the table of
//! `docs/protocol.md`, row by row.

use std::time::Duration;

use handover_proto::*;

use crate::pair::Pair;
use crate::process::{Life, Script};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Predecessor,
    Successor,
    Nobody,
}

use Who::{Nobody, Predecessor as Old, Successor as New};

/// A row holds from its step to the next row's: who serves if the successor dies, and who if the
/// predecessor does.
type Row = (&'static str, Who, Who);

const WITHOUT_PROBATION: [Row; 7] = [
    ("", Old, New),
    ("predecessor sends welcome", Old, New),
    ("successor sends ready", Old, New),
    ("predecessor does StopAccepting", Old, New),
    ("predecessor sends commit", Old, New),
    ("successor receives commit", Old, New),
    ("successor sends serving", Nobody, New),
];

const WITH_PROBATION: [Row; 5] = [
    ("", Old, New),
    ("successor sends ready", Old, New),
    ("predecessor sends commit", Old, New),
    ("successor sends serving", Old, New),
    ("predecessor lets go", Nobody, New),
];

#[test]
fn whoever_dies_the_table_says_who_serves() {
    walk(None, &WITHOUT_PROBATION);
}

#[test]
fn whoever_dies_on_probation_the_table_says_who_serves() {
    walk(Some(Duration::from_secs(30)), &WITH_PROBATION);
}

fn walk(probation: Option<Duration>, table: &[Row]) {
    for (moment, (step, if_new_dies, if_old_dies)) in rows(probation, table) {
        let mut pair = after(moment, probation);
        pair.crash_new();
        pair.settle();
        assert_eq!(who(&pair), if_new_dies, "the successor dies after step {moment}, {step}");

        let mut pair = after(moment, probation);
        pair.crash_old();
        pair.settle();
        assert_eq!(who(&pair), if_old_dies, "the predecessor dies after step {moment}, {step}");
    }
}

#[test]
fn a_successor_that_dies_before_ready_is_not_noticed_by_clients() {
    for moment in 0..moment_of("successor sends ready") {
        let mut pair = after(moment, None);

        pair.crash_new();
        pair.settle();

        assert!(!pair.old.paused, "after step {moment}");
        assert!(pair.old_serves());
    }
}

#[test]
fn a_successor_that_dies_before_the_commit_costs_no_waiting() {
    for moment in 0..moment_of("predecessor sends commit") {
        let mut pair = after(moment, None);
        pair.crash_new();

        while !pair.old_serves() || pair.old.outcome.is_none() {
            assert!(pair.step());
        }

        assert_eq!(pair.now, Time::ZERO, "after step {moment}");
    }
}

#[test]
fn a_successor_that_closes_the_channel_is_replaced_unless_it_serves_for_good() {
    let served = moment_of("successor sends serving");
    for moment in 0..=served {
        let mut pair = after(moment, None);

        pair.close_new();
        pair.settle();

        let expected = if moment < served { Old } else { New };
        assert_eq!(who(&pair), expected, "after step {moment}");
    }
}

#[test]
fn both_dying_leaves_nobody() {
    for moment in 0..=moment_of("predecessor receives serving") {
        let mut pair = after(moment, None);

        pair.crash_old();
        pair.crash_new();
        pair.settle();

        assert_eq!(who(&pair), Nobody);
    }
}

#[test]
fn a_predecessor_that_dies_during_a_rollback_is_replaced_until_it_has_said_resumed() {
    for (step, expected) in [
        ("predecessor is asked: roll back", New),
        ("successor receives rollback", New),
        ("successor does StopAccepting", New),
        ("successor sends stopped", New),
        ("predecessor receives stopped", New),
        ("predecessor sends resumed", Nobody),
    ] {
        let mut pair = rolling_back();
        pair.script.drains = true;
        while pair.steps.last().is_none_or(|last| last != step) {
            assert!(pair.step(), "no step \"{step}\"");
        }

        pair.crash_old();
        pair.settle();

        assert_eq!(who(&pair), expected, "after \"{step}\"");
    }
}

#[test]
fn a_successor_that_dies_during_a_rollback_is_replaced() {
    for more in 0.. {
        let mut pair = rolling_back();
        if (0..more).any(|_| !pair.step()) {
            break;
        }

        pair.crash_new();
        pair.settle();

        assert_eq!(who(&pair), Old, "{more} steps after the decision");
        assert!(matches!(pair.old.outcome, Some(Outcome::RolledBack { .. })));
    }
}

/// The limit of it all: whoever closes the predecessor's end of the channel while the predecessor
/// lives makes two of them serve. Drivers must not.
#[test]
#[should_panic(expected = "two serve")]
fn the_end_of_the_channel_is_taken_for_the_death_of_the_predecessor() {
    let mut pair = after(moment_of("predecessor receives ready"), None);
    assert_eq!(pair.old.life, Life::Alive);

    pair.old_closes_although_it_lives();
}

pub(crate) fn rolling_back() -> Pair {
    let probation = Some(Duration::from_secs(30));
    let mut pair = after(moment_of("predecessor receives serving"), probation);
    pair.ask_old("roll back", |machine, now| machine.roll_back("test", now));
    pair
}

fn rows(probation: Option<Duration>, table: &[Row]) -> Vec<(usize, Row)> {
    let mut pair = Pair::new(Script { probation, ..Script::default() });
    pair.settle();
    let mut next = table.iter();
    let mut row = *next.next().expect("a first row");
    let mut rows = vec![(0, row)];
    let mut ahead = next.next();
    for (index, step) in pair.steps.iter().enumerate() {
        if let Some(reached) = ahead.filter(|reached| reached.0 == step) {
            row = *reached;
            ahead = next.next();
        }
        rows.push((index + 1, row));
    }
    assert_eq!(ahead, None, "the row was never reached");
    rows
}

/// After how many steps of a plain handover this one is done.
pub(crate) fn moment_of(step: &str) -> usize {
    let mut pair = Pair::new(Script::default());
    pair.settle();
    let index = pair.steps.iter().position(|did| did == step);
    index.unwrap_or_else(|| panic!("no step \"{step}\"")) + 1
}

pub(crate) fn after(moment: usize, probation: Option<Duration>) -> Pair {
    let mut pair = Pair::new(Script { probation, ..Script::default() });
    for _ in 0..moment {
        assert!(pair.step());
    }
    pair
}

pub(crate) fn who(pair: &Pair) -> Who {
    let old = pair.old.accepts && pair.old.life == Life::Alive;
    let new = pair.new.accepts && pair.new.life == Life::Alive;
    match (old, new) {
        (true, true) => panic!("both serve"),
        (true, false) => Old,
        (false, true) => New,
        (false, false) => Nobody,
    }
}
