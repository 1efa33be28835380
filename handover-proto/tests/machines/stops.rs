//! A stop of the service while it is handed over, and after.

use std::time::Duration;

use handover_proto::*;

use crate::stage::*;

const DRAIN: Option<Duration> = Some(Duration::from_secs(7));

#[test]
fn a_stop_on_probation_ends_it_so_that_nobody_serves_when_the_successor_exits() {
    let mut machine = predecessor_in(Phase::Probation);

    tell(&mut machine, &stop_message());
    machine.handle_exited(Time::ZERO);

    assert_eq!(
        said(&mut machine),
        [
            PredecessorEvent::Entered(Phase::Served),
            PredecessorEvent::Finished(Outcome::Succeeded),
            PredecessorEvent::StopAsked { drain: DRAIN },
        ]
    );
}

#[test]
fn a_stop_reaches_a_process_that_drains() {
    let mut machine = predecessor_in(Phase::Served);

    tell(&mut machine, &stop_message());

    assert_eq!(said(&mut machine), [PredecessorEvent::StopAsked { drain: DRAIN }]);
}

#[test]
fn a_stop_that_crosses_a_rollback_is_heard_before_accepting_resumes() {
    let mut machine = predecessor_in(Phase::Probation);
    machine.roll_back("test", Time::ZERO);

    tell(&mut machine, &stop_message());
    tell(&mut machine, &ToPredecessor::Stopped { states: 0 });

    let events = said(&mut machine);
    assert_eq!(
        events[..2],
        [PredecessorEvent::StopAsked { drain: DRAIN }, PredecessorEvent::ResumeAccepting]
    );
}

#[test]
fn a_stop_is_heard_from_a_successor_that_was_rolled_back() {
    let mut machine = predecessor_in(Phase::Probation);
    machine.roll_back("test", Time::ZERO);
    tell(&mut machine, &ToPredecessor::Stopped { states: 0 });
    said(&mut machine);

    tell(&mut machine, &stop_message());

    assert_eq!(said(&mut machine), [PredecessorEvent::StopAsked { drain: DRAIN }]);
}

#[test]
fn a_stop_is_not_heard_from_a_successor_that_never_served() {
    for phase in [Phase::Hello, Phase::Transfer, Phase::Initialise, Phase::Commit] {
        let mut machine = predecessor_in(phase);
        machine.abort("test", Time::ZERO);
        said(&mut machine);

        tell(&mut machine, &stop_message());

        assert_eq!(said(&mut machine), [], "{phase:?}");
    }
}

#[test]
fn a_stop_goes_to_the_successor_once_it_is_committed() {
    for phase in PREDECESSOR_PHASES {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        let goes = machine.forward_stop(DRAIN, Time::ZERO);

        assert_eq!(goes, [Phase::Confirm, Phase::Probation, Phase::Served].contains(&phase));
        if goes {
            let stop = ToSuccessor::Stop { drain_ms: Some(7000) };
            assert_eq!(sent(&mut machine).last(), Some(&stop), "{phase:?}");
        } else {
            assert_eq!(machine, before, "{phase:?}");
        }
    }
}

#[test]
fn a_stop_that_was_passed_on_leaves_no_probation() {
    let mut on_probation = predecessor_in(Phase::Probation);
    on_probation.forward_stop(None, Time::ZERO);

    let mut before_it = predecessor_in(Phase::Confirm);
    before_it.forward_stop(None, Time::ZERO);
    tell(&mut before_it, &ToPredecessor::Serving {});

    for mut machine in [on_probation, before_it] {
        assert_eq!(machine.phase(), Phase::Served);
        let told = sent(&mut machine);
        assert!(told.contains(&ToSuccessor::Confirmed {}), "{told:?}");
        said(&mut machine);
        machine.handle_exited(Time::ZERO);
        assert_eq!(said(&mut machine), [], "it is not replaced");
    }
}

#[test]
fn a_stop_is_not_passed_on_to_who_must_go_or_is_gone() {
    let mut failing = predecessor_in(Phase::Probation);
    failing.roll_back("test", Time::ZERO);
    let mut gone = predecessor_in(Phase::Served);
    gone.handle_closed(Time::ZERO);

    assert!(!failing.forward_stop(None, Time::ZERO));
    assert!(!gone.forward_stop(None, Time::ZERO));
}

#[test]
fn of_stops_that_have_not_left_the_last_one_counts() {
    let mut old = predecessor_in(Phase::Served);
    let mut new = successor_in(Stage::Confirmed);

    for drain_ms in (0..1000).rev() {
        old.forward_stop(Some(Duration::from_millis(drain_ms)), Time::ZERO);
        new.stop(Some(Duration::from_millis(drain_ms)));
    }

    assert_eq!(sent(&mut old), [ToSuccessor::Stop { drain_ms: Some(0) }]);
    assert_eq!(replied(&mut new), [ToPredecessor::Stop { drain_ms: Some(0) }]);
}

#[test]
fn a_successor_says_that_the_service_is_to_stop_once_it_serves() {
    for stage in STAGES {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        machine.stop(DRAIN);

        match stage {
            Stage::Serving
            | Stage::Confirmed
            | Stage::RollingBack
            | Stage::Stopped
            | Stage::Replaced => {
                assert_eq!(replied(&mut machine), [stop_message()], "{stage:?}");
            }
            Stage::Hello | Stage::Transfer | Stage::Initialise | Stage::Ready | Stage::Failed => {
                assert_eq!(machine, before, "{stage:?}");
            }
        }
    }
}

#[test]
fn a_stop_is_the_last_word_on_probation() {
    let mut machine = successor_in(Stage::Serving);

    machine.stop(None);
    machine.healthy();
    machine.unhealthy("test");

    assert_eq!(replied(&mut machine), [ToPredecessor::Stop { drain_ms: None }]);
}

#[test]
fn a_rollback_that_crosses_a_stop_is_carried_out() {
    let mut machine = successor_in(Stage::Serving);
    machine.stop(None);

    inform(&mut machine, &ToSuccessor::Rollback { reason: "test".into() });
    machine.stopped(0);

    assert_eq!(noted(&mut machine), [SuccessorEvent::RollBack { reason: "test".into() }]);
    let stopped = ToPredecessor::Stopped { states: 0 };
    assert_eq!(replied(&mut machine), [ToPredecessor::Stop { drain_ms: None }, stopped]);
}

#[test]
fn a_successor_that_is_to_stop_does_not_serve_again() {
    for stage in [Stage::RollingBack, Stage::Stopped] {
        let mut machine = successor_in(stage);
        machine.stop(None);

        machine.handle_closed();

        let events = [SuccessorEvent::Confirmed, SuccessorEvent::PredecessorGone];
        assert_eq!(noted(&mut machine), events, "{stage:?}");
    }
}

#[test]
fn a_stop_that_was_passed_on_is_the_successors_to_honour() {
    let mut machine = successor_in(Stage::Serving);

    inform(&mut machine, &ToSuccessor::Stop { drain_ms: Some(7000) });
    machine.unhealthy("it stops");

    assert_eq!(noted(&mut machine), [SuccessorEvent::Stop { drain: DRAIN }]);
    assert_eq!(replied(&mut machine), []);
}

#[test]
fn a_stop_without_end_is_the_greatest_number() {
    let mut machine = successor_in(Stage::Serving);

    machine.stop(Some(Duration::MAX));

    assert_eq!(replied(&mut machine), [ToPredecessor::Stop { drain_ms: Some(u64::MAX) }]);
}

fn stop_message() -> ToPredecessor {
    ToPredecessor::Stop { drain_ms: Some(7000) }
}
