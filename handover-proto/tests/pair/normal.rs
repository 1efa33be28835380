//! Handovers in which nothing fails.

use std::time::Duration;

use handover_proto::*;

use crate::pair::Pair;
use crate::process::{Life, Script};

#[test]
fn a_handover_goes_through_its_phases_in_order() {
    let mut pair = Pair::new(Script::default());

    pair.settle();

    let entered: Vec<_> = pair
        .old
        .events
        .iter()
        .filter_map(|event| match event {
            PredecessorEvent::Entered(phase) => Some(*phase),
            PredecessorEvent::Greeted { .. }
            | PredecessorEvent::Progress { .. }
            | PredecessorEvent::StopAccepting { .. }
            | PredecessorEvent::ResumeAccepting
            | PredecessorEvent::Kill
            | PredecessorEvent::TakeState { .. }
            | PredecessorEvent::StopAsked { .. }
            | PredecessorEvent::Inquired { .. }
            | PredecessorEvent::Serving
            | PredecessorEvent::Finished(_) => None,
        })
        .collect();
    assert_eq!(
        entered,
        [Phase::Transfer, Phase::Initialise, Phase::Commit, Phase::Confirm, Phase::Served]
    );
    assert_eq!(pair.old.outcome, Some(Outcome::Succeeded));
    assert!(pair.new_serves() && !pair.old_serves());
    assert_eq!(pair.now, Time::ZERO, "nothing waits for time to pass");
}

#[test]
fn handovers_of_all_sizes_succeed() {
    for items in [0, 1, 64, 65, 1000] {
        for states in [0, 1, 5] {
            let mut pair = Pair::new(Script {
                items,
                early_states: states,
                late_states: states,
                ..Script::default()
            });

            pair.settle();

            assert_eq!(pair.old.outcome, Some(Outcome::Succeeded), "{items} items");
        }
    }
}

#[test]
fn the_predecessor_serves_until_ready_and_nobody_for_the_round_trip_of_the_commit() {
    let mut pair = Pair::new(Script::default());

    let mut who = Vec::new();
    while pair.step() {
        let serves = match (pair.old_serves(), pair.new_serves()) {
            (true, false) => "predecessor",
            (false, false) => "nobody",
            (false, true) => "successor",
            (true, true) => "both",
        };
        if who.last() != Some(&serves) {
            who.push(serves);
        }
    }

    assert_eq!(who, ["predecessor", "nobody", "successor"]);
}

#[test]
fn a_successor_that_refuses_leaves_the_predecessor_serving() {
    let mut pair = Pair::new(Script { refuses: true, ..Script::default() });

    pair.settle();

    let cause = Cause::Refused { reason: "test".into() };
    let failed = Outcome::Failed { phase: Phase::Initialise, cause };
    assert_eq!(pair.old.outcome, Some(failed));
    assert!(!pair.old.paused);
}

#[test]
fn the_successor_learns_that_the_predecessor_has_gone() {
    let mut pair = Pair::new(Script { exits: true, ..Script::default() });

    pair.settle();

    assert_eq!(pair.old.life, Life::Dead);
    assert_eq!(pair.new.events.last(), Some(&SuccessorEvent::PredecessorGone));
}

#[test]
fn probation_that_passes_confirms() {
    let probation = Some(Duration::from_secs(30));
    let mut pair = Pair::new(Script { probation, ..Script::default() });

    pair.settle();

    assert_eq!(pair.old.outcome, Some(Outcome::Succeeded));
    assert_eq!(pair.now, Time::from_origin(Duration::from_secs(30)));
}

#[test]
fn a_rollback_asked_by_either_side_puts_the_predecessor_back() {
    for asked_by_new in [false, true] {
        let probation = Some(Duration::from_secs(30));
        let mut pair = Pair::new(Script { probation, ..Script::default() });
        while pair.old.machine.phase() != Phase::Probation {
            assert!(pair.step());
        }

        if asked_by_new {
            pair.ask_new("unhealthy", |machine| machine.unhealthy("test"));
        } else {
            pair.ask_old("roll back", |machine, now| machine.roll_back("test", now));
        }
        pair.settle();

        assert!(matches!(pair.old.outcome, Some(Outcome::RolledBack { .. })));
        assert!(pair.old_serves());
        assert!(!pair.old.events.contains(&PredecessorEvent::Kill));
    }
}

#[test]
fn an_upgrade_asked_at_any_moment_reaches_the_one_who_serves_in_the_end() {
    for moment in 0..steps_of_a_handover() {
        let mut pair = Pair::new(Script::default());
        for _ in 0..moment {
            pair.step();
        }

        pair.ask_old("forward an upgrade", |machine, now| {
            machine.forward_upgrade(now);
        });
        pair.settle();

        let by = CommittedBy::Predecessor { upgrade_pending: true, probation: None };
        let heard = [SuccessorEvent::Committed(by), SuccessorEvent::Upgrade];
        let times = pair.new.events.iter().filter(|event| heard.contains(event)).count();
        assert_eq!(times, 1, "after {:#?}", &pair.steps[..moment]);
    }
}

pub(crate) fn steps_of_a_handover() -> usize {
    let mut pair = Pair::new(Script::default());
    pair.settle();
    pair.steps.len()
}
