//! How a handover ends otherwise, from the successor's side, and what it does while it serves.

use handover_proto::*;

use crate::stage::*;
use crate::successor::{misbehaved, refuse};

/// The stages in which the successor does not serve yet.
const BEFORE_SERVICE: [Stage; 4] = [Stage::Hello, Stage::Transfer, Stage::Initialise, Stage::Ready];

#[test]
fn an_abort_before_service_ends_the_successor_without_a_word() {
    for stage in BEFORE_SERVICE {
        let mut machine = successor_in(stage);

        inform(&mut machine, &ToSuccessor::Abort { reason: "no".into(), versions: None });

        let failure = Failure::Aborted { reason: "no".into() };
        assert_eq!(noted(&mut machine), [SuccessorEvent::Failed(failure)], "{stage:?}");
        assert_eq!(replied(&mut machine), []);
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn an_abort_while_serving_is_a_rollback() {
    let mut machine = successor_in(Stage::Serving);

    inform(&mut machine, &ToSuccessor::Abort { reason: "no".into(), versions: None });

    assert_eq!(noted(&mut machine), [SuccessorEvent::RollBack { reason: "no".into() }]);
}

#[test]
fn an_abort_for_its_version_says_which_one_the_predecessor_speaks() {
    let theirs = Versions { oldest: Version(7), newest: Version(9) };
    let mut machine = successor_in(Stage::Hello);

    inform(&mut machine, &ToSuccessor::Abort { reason: "no".into(), versions: Some(theirs) });

    let failure = Failure::Incompatible { ours: Versions::OURS, theirs };
    assert_eq!(noted(&mut machine), [SuccessorEvent::Failed(failure)]);
}

#[test]
fn an_abort_with_versions_that_fit_is_a_plain_one() {
    let mut machine = successor_in(Stage::Hello);

    let versions = Some(Versions::OURS);
    inform(&mut machine, &ToSuccessor::Abort { reason: "no".into(), versions });

    let failure = Failure::Aborted { reason: "no".into() };
    assert_eq!(noted(&mut machine), [SuccessorEvent::Failed(failure)]);
}

#[test]
fn a_predecessor_that_is_silent_for_too_long_is_given_up() {
    for (stage, deadline) in
        [(Stage::Hello, at(60)), (Stage::Transfer, at(60)), (Stage::Ready, at(20))]
    {
        let mut machine = successor_in(stage);
        assert_eq!(machine.poll_timeout(), Some(deadline), "{stage:?}");

        machine.handle_timeout(deadline);

        assert_eq!(noted(&mut machine), [SuccessorEvent::Failed(Failure::Silent)]);
        assert_eq!(replied(&mut machine), [refuse("the predecessor is silent")]);
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn a_timeout_without_a_deadline_or_before_it_changes_nothing() {
    for stage in STAGES {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        let waits = [Stage::Hello, Stage::Transfer, Stage::Ready].contains(&stage);
        machine.handle_timeout(if waits { at(19) } else { at(1_000_000) });

        assert_eq!(machine, before, "{stage:?}");
    }
}

#[test]
fn each_frame_of_the_transfer_gives_the_next_one_its_time() {
    let mut machine = successor_in(Stage::Transfer);

    let items = vec![item("a")];
    inform_at(&mut machine, &ToSuccessor::Descriptors { frame: 1, items }, at(40));

    assert_eq!(machine.poll_timeout(), Some(at(100)));
}

#[test]
fn orphaned_during_the_transfer_it_goes_on_with_what_has_arrived() {
    for stage in [Stage::Hello, Stage::Transfer] {
        let mut machine = successor_in(stage);

        machine.handle_closed();

        let events = [SuccessorEvent::Adopted, SuccessorEvent::PredecessorGone];
        assert_eq!(noted(&mut machine), events, "{stage:?}");
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn orphaned_before_ready_it_serves_at_ready() {
    let mut machine = successor_in(Stage::Initialise);
    machine.handle_closed();
    assert_eq!(noted(&mut machine), [SuccessorEvent::PredecessorGone]);

    machine.ready([name("http")], Time::ZERO);

    let committed = SuccessorEvent::Committed(CommittedBy::Orphaned);
    assert_eq!(noted(&mut machine), [committed, SuccessorEvent::Confirmed]);
    assert_eq!(replied(&mut machine), [], "there is nobody to tell");
}

#[test]
fn orphaned_after_ready_it_serves_at_once() {
    let mut machine = successor_in(Stage::Ready);

    machine.handle_closed();

    let committed = SuccessorEvent::Committed(CommittedBy::Orphaned);
    assert_eq!(
        noted(&mut machine),
        [committed, SuccessorEvent::Confirmed, SuccessorEvent::PredecessorGone]
    );
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn orphaned_when_that_changes_nothing_it_only_takes_note() {
    for stage in [Stage::Confirmed, Stage::Replaced] {
        let mut machine = successor_in(stage);

        machine.handle_closed();

        assert_eq!(noted(&mut machine), [SuccessorEvent::PredecessorGone], "{stage:?}");
    }
}

#[test]
fn orphaned_on_probation_it_is_confirmed() {
    let mut machine = successor_in(Stage::Serving);

    machine.handle_closed();

    let events = [SuccessorEvent::Confirmed, SuccessorEvent::PredecessorGone];
    assert_eq!(noted(&mut machine), events);
    assert!(!machine.is_on_probation());
}

#[test]
fn listeners_can_be_let_go_once_the_predecessor_has_resumed() {
    let mut machine = successor_in(Stage::Stopped);

    inform(&mut machine, &ToSuccessor::Resumed {});
    assert_eq!(noted(&mut machine), [SuccessorEvent::Replaced]);

    machine.handle_closed();
    assert_eq!(noted(&mut machine), [SuccessorEvent::PredecessorGone], "it does not serve again");
}

#[test]
fn orphaned_before_the_predecessor_has_resumed_it_serves_again() {
    for stage in [Stage::RollingBack, Stage::Stopped] {
        let mut machine = successor_in(stage);

        machine.handle_closed();
        machine.stopped(0);

        let committed = SuccessorEvent::Committed(CommittedBy::Orphaned);
        assert_eq!(
            noted(&mut machine),
            [committed, SuccessorEvent::Confirmed, SuccessorEvent::PredecessorGone],
            "{stage:?}"
        );
        assert_eq!(replied(&mut machine), []);
    }
}

#[test]
fn a_successor_that_failed_does_not_serve_when_it_is_orphaned() {
    let mut machine = successor_in(Stage::Failed);

    machine.handle_closed();

    assert_eq!(noted(&mut machine), []);
}

#[test]
fn the_end_of_the_channel_comes_once() {
    for stage in STAGES {
        let mut machine = successor_in(stage);
        machine.handle_closed();
        let before = machine.clone();

        machine.handle_closed();
        inform(&mut machine, &ToSuccessor::Rollback { reason: "from beyond".into() });

        assert_eq!(machine, before, "{stage:?}");
    }
}

#[test]
fn orphaned_it_has_nothing_left_to_send() {
    let mut machine = successor();

    machine.handle_closed();
    machine.progress("test", None);
    machine.ready([], Time::ZERO);
    machine.healthy();

    assert_eq!(replied(&mut machine), []);
}

#[test]
fn whoever_serves_goes_on_whatever_the_predecessor_says() {
    for stage in
        [Stage::Serving, Stage::Confirmed, Stage::RollingBack, Stage::Stopped, Stage::Replaced]
    {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        machine.handle_frame(b"nonsense", Received::default(), Time::ZERO);
        machine.handle_frame(b"{}", Received { descriptors: 9, truncated: true }, Time::ZERO);

        let events = noted(&mut machine);
        assert!(
            matches!(
                &events[..],
                [
                    SuccessorEvent::Ignored(Violation::Malformed { .. }),
                    SuccessorEvent::Ignored(Violation::Truncated)
                ]
            ),
            "{events:?}"
        );
        assert_eq!(machine, before, "{stage:?}");
    }
}

#[test]
fn nonsense_before_service_ends_the_successor() {
    for stage in BEFORE_SERVICE {
        let mut machine = successor_in(stage);

        machine.handle_frame(&vec![b' '; MAX_FRAME_BYTES + 1], Received::default(), Time::ZERO);

        let violation = Violation::TooLong { bytes: MAX_FRAME_BYTES + 1 };
        assert_eq!(noted(&mut machine), [misbehaved(violation)], "{stage:?}");
    }
}

#[test]
fn the_application_can_refuse_until_it_serves() {
    for stage in STAGES {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        machine.refuse("cannot read this");

        if BEFORE_SERVICE.contains(&stage) {
            assert_eq!(replied(&mut machine), [refuse("cannot read this")]);
            let failed = SuccessorEvent::Failed(Failure::Refused);
            assert_eq!(noted(&mut machine), [failed], "{stage:?}");
        } else {
            assert_eq!(machine, before, "{stage:?}");
        }
    }
}

#[test]
fn the_first_word_on_probation_counts() {
    let mut machine = successor_in(Stage::Serving);

    machine.unhealthy("500s");
    machine.healthy();
    machine.unhealthy("more 500s");
    machine.request_rollback("says the operator");

    let unhealthy = ToPredecessor::Unhealthy { reason: "500s".into(), requested: false };
    assert_eq!(replied(&mut machine), [unhealthy]);
}

#[test]
fn a_rollback_that_somebody_asked_for_says_so() {
    let mut machine = successor_in(Stage::Serving);

    machine.request_rollback("500s");

    let unhealthy = ToPredecessor::Unhealthy { reason: "500s".into(), requested: true };
    assert_eq!(replied(&mut machine), [unhealthy]);
}

#[test]
fn a_word_on_probation_has_no_effect_but_while_serving() {
    for stage in STAGES.into_iter().filter(|stage| *stage != Stage::Serving) {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        machine.healthy();
        machine.unhealthy("test");
        machine.request_rollback("test");

        assert_eq!(machine, before, "{stage:?}");
        assert!(!machine.is_on_probation(), "{stage:?}");
    }
}

#[test]
fn stopped_is_said_once_and_only_when_asked_for() {
    for stage in STAGES {
        let mut machine = successor_in(stage);

        machine.stopped(0);
        machine.stopped(0);

        let asked = stage == Stage::RollingBack;
        let expected = if asked { vec![ToPredecessor::Stopped { states: 0 }] } else { vec![] };
        assert_eq!(replied(&mut machine), expected, "{stage:?}");
    }
}
