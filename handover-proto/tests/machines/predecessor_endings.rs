//! How a handover comes to nothing, from the predecessor's side: who is told, who is killed, and
//! when the predecessor accepts again.

use handover_proto::*;

use crate::stage::*;

/// The phases in which a handover can fail.
const UNDECIDED: [Phase; 6] = [
    Phase::Hello,
    Phase::Transfer,
    Phase::Initialise,
    Phase::Commit,
    Phase::Confirm,
    Phase::Probation,
];

#[test]
fn a_successor_that_takes_too_long_is_told_then_killed() {
    for (phase, deadline) in [
        (Phase::Hello, at(60)),
        (Phase::Transfer, at(60)),
        (Phase::Initialise, at(60)),
        (Phase::Commit, at(10)),
        (Phase::Confirm, at(10)),
    ] {
        let mut machine = predecessor_in(phase);
        assert_eq!(machine.poll_timeout(), Some(deadline), "{phase:?}");

        machine.handle_timeout(deadline);
        let reason = "the successor took too long".into();
        assert_eq!(sent(&mut machine), [ToSuccessor::Abort { reason, versions: None }]);
        assert_eq!(machine.poll_timeout(), Some(deadline + ABORT_GRACE));

        said(&mut machine);
        machine.handle_timeout(deadline + ABORT_GRACE);
        assert_eq!(said(&mut machine), [PredecessorEvent::Kill], "{phase:?}");
        assert_eq!(machine.poll_timeout(), None, "killed once");

        assert_eq!(outcome(&mut machine), Some(Outcome::Failed { phase, cause: Cause::TimedOut }));
    }
}

#[test]
fn a_timeout_that_comes_too_early_changes_nothing() {
    for phase in PREDECESSOR_PHASES {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        machine.handle_timeout(at(9));

        assert_eq!(machine, before, "{phase:?}");
    }
}

#[test]
fn the_end_of_the_channel_fails_the_handover_without_a_word() {
    for phase in UNDECIDED {
        let mut machine = predecessor_in(phase);

        machine.handle_closed(Time::ZERO);

        assert_eq!(sent(&mut machine), [], "{phase:?}");
        assert_eq!(outcome(&mut machine), Some(ending(phase, Cause::Exited)));
    }
}

#[test]
fn a_successor_that_closed_the_channel_after_the_commit_is_killed_at_once() {
    for phase in [Phase::Confirm, Phase::Probation] {
        let mut machine = predecessor_in(phase);

        machine.handle_closed(at(1));
        assert_eq!(machine.poll_timeout(), Some(at(1)));
        machine.handle_timeout(at(1));

        assert_eq!(said(&mut machine), [PredecessorEvent::Kill], "not resumed, {phase:?}");
    }
}

#[test]
fn the_end_of_the_process_finishes_the_handover_in_each_phase() {
    for phase in UNDECIDED {
        let mut machine = predecessor_in(phase);

        machine.handle_exited(Time::ZERO);

        let events = said(&mut machine);
        let (last, before) = events.split_last().expect("an event");
        assert_eq!(*last, PredecessorEvent::Finished(ending(phase, Cause::Exited)));
        let resumed = [PredecessorEvent::ResumeAccepting];
        assert_eq!(before, if phase < Phase::Commit { &[][..] } else { &resumed }, "{phase:?}");
    }
}

#[test]
fn whatever_happens_after_the_end_changes_nothing() {
    for phase in [Phase::Served, Phase::Failed] {
        let mut machine = predecessor_in(phase);

        machine.handle_exited(at(100));
        machine.handle_timeout(at(100));
        machine.handle_frame(b"nonsense", Received { descriptors: 3, truncated: false }, at(100));
        machine.abort("test", at(100));
        machine.roll_back("test", at(100));
        machine.state(name("late"), 1, 1, at(100));
        machine.accepting_stopped(at(100));
        machine.late_states_complete(at(100));
        machine.handle_closed(at(100));

        assert_eq!(machine.phase(), phase);
        assert_eq!(said(&mut machine), []);
        assert_eq!(sent(&mut machine), []);
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn the_first_cause_counts() {
    let mut machine = predecessor_in(Phase::Initialise);
    tell(&mut machine, &ToPredecessor::Refuse { reason: "bad config".into() });

    machine.handle_closed(Time::ZERO);
    machine.abort("too late", Time::ZERO);

    let cause = Cause::Refused { reason: "bad config".into() };
    assert_eq!(outcome(&mut machine), Some(ending(Phase::Initialise, cause)));
}

#[test]
fn before_ready_a_failure_does_not_touch_accepting() {
    for phase in [Phase::Hello, Phase::Transfer, Phase::Initialise] {
        let mut machine = predecessor_in(phase);

        machine.abort("test", Time::ZERO);
        machine.handle_exited(Time::ZERO);

        assert!(!said(&mut machine).contains(&PredecessorEvent::ResumeAccepting), "{phase:?}");
    }
}

#[test]
fn before_the_commit_accepting_resumes_at_once() {
    let mut machine = predecessor_in(Phase::Commit);

    machine.abort("test", Time::ZERO);

    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting]);
    let cause = Cause::CalledOff { reason: "test".into() };
    assert_eq!(outcome(&mut machine), Some(ending(Phase::Commit, cause)));
}

#[test]
fn after_the_commit_accepting_resumes_when_the_successor_is_dead() {
    let mut machine = predecessor_in(Phase::Confirm);
    machine.handle_timeout(at(10));
    machine.handle_timeout(at(11));
    assert_eq!(said(&mut machine), [PredecessorEvent::Kill]);

    machine.handle_exited(at(11));

    let finished = PredecessorEvent::Finished(ending(Phase::Confirm, Cause::TimedOut));
    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting, finished]);
}

#[test]
fn after_the_commit_accepting_resumes_when_the_successor_has_stopped() {
    let mut machine = predecessor_in(Phase::Confirm);
    machine.handle_timeout(at(10));
    // It served after all; its word was late and crossed with the abort.
    tell_at(&mut machine, &ToPredecessor::Serving {}, at(10));
    assert_eq!(said(&mut machine), []);

    tell_at(&mut machine, &ToPredecessor::Stopped { states: 0 }, at(10));

    let finished = PredecessorEvent::Finished(ending(Phase::Confirm, Cause::TimedOut));
    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting, finished]);
    assert_eq!(machine.poll_timeout(), None, "it drains and is not killed");
}

#[test]
fn after_the_commit_accepting_resumes_at_once_when_the_successor_refuses() {
    let mut machine = predecessor_in(Phase::Confirm);

    tell(&mut machine, &ToPredecessor::Refuse { reason: "test".into() });

    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting]);
    assert_eq!(machine.poll_timeout(), Some(Time::ZERO + ABORT_GRACE));
    machine.handle_exited(Time::ZERO);
    let cause = Cause::Refused { reason: "test".into() };
    let finished = PredecessorEvent::Finished(ending(Phase::Confirm, cause));
    assert_eq!(said(&mut machine), [finished], "resumed once");
}

#[test]
fn a_commit_that_has_not_left_is_taken_back() {
    let mut machine = predecessor_in(Phase::Commit);
    machine.accepting_stopped(Time::ZERO);
    machine.late_states_complete(Time::ZERO);

    machine.handle_timeout(at(10));

    let reason = "the successor took too long".into();
    assert_eq!(sent(&mut machine), [ToSuccessor::Abort { reason, versions: None }]);
}

#[test]
fn an_abort_before_the_commit_ends_the_handover_and_after_it_has_no_effect() {
    for phase in PREDECESSOR_PHASES {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        machine.abort("test", Time::ZERO);

        if phase < Phase::Confirm {
            let abort = ToSuccessor::Abort { reason: "called off: test".into(), versions: None };
            assert_eq!(sent(&mut machine), [abort], "{phase:?}");
        } else {
            assert_eq!(machine, before, "{phase:?}");
        }
    }
}

#[test]
fn a_rollback_is_possible_on_probation_and_nowhere_else() {
    for phase in PREDECESSOR_PHASES {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        machine.roll_back("test", Time::ZERO);

        if phase == Phase::Probation {
            let rollback =
                ToSuccessor::Rollback { reason: "a rollback was asked for: test".into() };
            assert_eq!(sent(&mut machine), [rollback]);
        } else {
            assert_eq!(machine, before, "{phase:?}");
        }
    }
}

#[test]
fn a_rollback_resumes_accepting_when_the_successor_has_stopped() {
    let mut machine = predecessor_in(Phase::Probation);
    machine.roll_back("test", Time::ZERO);
    assert_eq!(said(&mut machine), []);

    tell(&mut machine, &ToPredecessor::Stopped { states: 0 });

    let cause = Cause::RollbackRequested { reason: "test".into() };
    let finished = PredecessorEvent::Finished(Outcome::RolledBack { cause });
    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting, finished]);
    machine.handle_exited(at(9));
    assert_eq!(said(&mut machine), [], "finished once");
}

#[test]
fn a_rollback_kills_a_successor_that_does_not_stop() {
    let mut machine = predecessor_in(Phase::Probation);
    machine.roll_back("test", at(3));

    machine.handle_timeout(at(3) + ABORT_GRACE);

    assert_eq!(said(&mut machine), [PredecessorEvent::Kill]);
    let cause = Cause::RollbackRequested { reason: "test".into() };
    assert_eq!(outcome(&mut machine), Some(Outcome::RolledBack { cause }));
}

#[test]
fn an_unhealthy_successor_is_rolled_back() {
    let mut machine = predecessor_in(Phase::Probation);

    tell(&mut machine, &ToPredecessor::Unhealthy { reason: "500s".into(), requested: false });

    let reason = "the successor is unhealthy: 500s".into();
    assert_eq!(sent(&mut machine), [ToSuccessor::Rollback { reason }]);
    let cause = Cause::Unhealthy { reason: "500s".into() };
    assert_eq!(outcome(&mut machine), Some(Outcome::RolledBack { cause }));
}

#[test]
fn probation_that_ends_during_a_rollback_does_not_save_the_successor() {
    let mut machine = predecessor_in(Phase::Probation);
    machine.roll_back("test", Time::ZERO);

    machine.confirm(Time::ZERO);
    tell(&mut machine, &ToPredecessor::Healthy {});
    machine.handle_timeout(at(30));

    assert_eq!(said(&mut machine), [PredecessorEvent::Kill]);
}

#[test]
fn a_successor_of_another_version_is_told_what_is_spoken_here() {
    let theirs = Versions { oldest: Version(7), newest: Version(9) };
    let mut machine = predecessor();

    let software = "test".into();
    tell(&mut machine, &ToPredecessor::Hello { versions: theirs, pid: 200, software });

    let reason = "the successor speaks protocol version 7 to 9, this process 1".into();
    let versions = Some(Versions::OURS);
    assert_eq!(sent(&mut machine), [ToSuccessor::Abort { reason, versions }]);
    let cause = Cause::Incompatible { ours: Versions::OURS, theirs };
    assert_eq!(outcome(&mut machine), Some(ending(Phase::Hello, cause)));
}

#[test]
fn a_successor_that_also_speaks_a_newer_version_is_welcomed_in_ours() {
    let versions = Versions { oldest: Version(1), newest: Version(9) };
    let mut machine = predecessor();

    tell(&mut machine, &ToPredecessor::Hello { versions, pid: 200, software: "test".into() });

    assert_eq!(sent(&mut machine).first(), Some(&welcome(1, 1)));
}

#[test]
fn a_failing_handover_takes_no_upgrade_and_no_state() {
    for phase in UNDECIDED {
        let mut machine = predecessor_in(phase);
        machine.handle_frame(b"nonsense", Received::default(), Time::ZERO);
        sent(&mut machine);

        assert!(!machine.forward_upgrade(Time::ZERO));
        machine.state(name("cache"), 1, 1, Time::ZERO);
        machine.accepting_stopped(Time::ZERO);
        machine.late_states_complete(Time::ZERO);

        assert_eq!(sent(&mut machine), [], "{phase:?}");
    }
}

#[test]
fn an_unknown_message_is_refused_by_its_name() {
    let mut machine = predecessor_in(Phase::Initialise);

    machine.handle_frame(br#"{"type":"dance","with":["me"]}"#, Received::default(), Time::ZERO);

    let violation = Violation::UnknownMessage { name: "dance".into() };
    let cause = Cause::Misbehaved(violation);
    assert_eq!(outcome(&mut machine), Some(ending(Phase::Initialise, cause)));
}

fn ending(phase: Phase, cause: Cause) -> Outcome {
    if phase == Phase::Probation {
        Outcome::RolledBack { cause }
    } else {
        Outcome::Failed { phase, cause }
    }
}
