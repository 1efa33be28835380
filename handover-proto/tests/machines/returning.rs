//! States that come back with a rollback.

use handover_proto::*;

use crate::stage::*;

#[test]
fn states_come_back_one_by_one_before_accepting_resumes() {
    let mut machine = rolling_back();

    tell(&mut machine, &ToPredecessor::Stopped { states: 2 });
    assert_eq!(said(&mut machine), [], "they are waited for");
    tell(&mut machine, &state(1, "a"));
    assert_eq!(said(&mut machine), [take("a")]);
    assert_eq!(sent(&mut machine), [ToSuccessor::Ack { frame: 1 }]);
    tell(&mut machine, &state(2, "b"));

    let finished = PredecessorEvent::Finished(rolled_back());
    assert_eq!(said(&mut machine), [take("b"), PredecessorEvent::ResumeAccepting, finished]);
    assert_eq!(sent(&mut machine), [ToSuccessor::Ack { frame: 2 }, ToSuccessor::Resumed {}]);
}

#[test]
fn without_states_accepting_resumes_at_once() {
    let mut machine = rolling_back();

    tell(&mut machine, &ToPredecessor::Stopped { states: 0 });

    let finished = PredecessorEvent::Finished(rolled_back());
    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting, finished]);
    assert_eq!(sent(&mut machine), [ToSuccessor::Resumed {}]);
}

#[test]
fn states_that_do_not_come_are_waited_for_until_their_time_their_end_or_the_successors() {
    let endings: [fn(&mut Predecessor); 6] = [
        |machine| machine.handle_timeout(at(10)),
        |machine| tell(machine, &ToPredecessor::StatesComplete {}),
        |machine| machine.handle_closed(Time::ZERO),
        |machine| machine.handle_exited(Time::ZERO),
        |machine| machine.handle_frame(b"nonsense", Received::default(), Time::ZERO),
        |machine| {
            let frame = encode(&state(2, "b")).expect("a short message");
            let received = Received { descriptors: 0, truncated: true };
            machine.handle_frame(&frame, received, Time::ZERO);
        },
    ];
    for end in endings {
        let mut machine = rolling_back();
        tell(&mut machine, &ToPredecessor::Stopped { states: 2 });
        tell(&mut machine, &state(1, "a"));
        said(&mut machine);
        assert_eq!(machine.poll_timeout(), Some(Time::ZERO + COMMIT_TIMEOUT));

        end(&mut machine);

        let finished = PredecessorEvent::Finished(rolled_back());
        assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting, finished], "no kill");
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn a_successor_that_is_killed_while_it_says_that_it_has_stopped_is_listened_to() {
    let mut machine = rolling_back();
    machine.handle_timeout(Time::ZERO + ABORT_GRACE);
    assert_eq!(said(&mut machine), [PredecessorEvent::Kill]);

    tell_at(&mut machine, &ToPredecessor::Stopped { states: 1 }, at(1));
    tell_at(&mut machine, &state(1, "a"), at(1));

    let finished = PredecessorEvent::Finished(rolled_back());
    assert_eq!(said(&mut machine), [take("a"), PredecessorEvent::ResumeAccepting, finished]);
}

#[test]
fn states_also_come_back_from_a_commit_that_was_confirmed_too_late() {
    let mut machine = predecessor_in(Phase::Confirm);
    machine.handle_timeout(at(10));
    sent(&mut machine);

    tell_at(&mut machine, &ToPredecessor::Serving {}, at(10));
    tell_at(&mut machine, &ToPredecessor::Stopped { states: 1 }, at(10));
    tell_at(&mut machine, &state(1, "a"), at(11));

    assert_eq!(said(&mut machine).first(), Some(&take("a")));
    assert_eq!(machine.phase(), Phase::Failed);
}

#[test]
fn what_was_not_announced_is_not_taken() {
    let mut before_stopped = rolling_back();
    tell(&mut before_stopped, &state(1, "a"));
    tell(&mut before_stopped, &ToPredecessor::StatesComplete {});
    assert_eq!(said(&mut before_stopped), []);
    assert_eq!(sent(&mut before_stopped), [], "no ack");
    assert_eq!(before_stopped.phase(), Phase::Probation);

    let mut after_the_last = rolling_back();
    tell(&mut after_the_last, &ToPredecessor::Stopped { states: 1 });
    tell(&mut after_the_last, &state(1, "a"));
    said(&mut after_the_last);
    sent(&mut after_the_last);
    tell(&mut after_the_last, &state(2, "b"));
    assert_eq!(said(&mut after_the_last), []);
    assert_eq!(sent(&mut after_the_last), []);
}

#[test]
fn no_more_states_come_back_than_allowed() {
    let mut old = rolling_back();
    tell(&mut old, &ToPredecessor::Stopped { states: u32::MAX });
    for frame in 0..2 * MAX_STATES {
        tell(&mut old, &state(frame, "a"));
    }
    let taken = said(&mut old).iter().filter(|event| **event == take("a")).count();
    assert_eq!(taken, MAX_STATES as usize);

    let mut new = successor_in(Stage::RollingBack);
    new.stopped(u32::MAX);
    assert_eq!(replied(&mut new), [ToPredecessor::Stopped { states: MAX_STATES }]);
}

#[test]
fn a_successor_sends_one_state_and_waits_for_its_ack() {
    let mut machine = successor_in(Stage::RollingBack);
    machine.stopped(2);
    machine.returned_state(name("a"), 1, 10);
    machine.returned_state(name("b"), 1, 10);
    machine.returned_state(name("c"), 1, 10);
    assert_eq!(
        transmits(&mut machine),
        [(ToPredecessor::Stopped { states: 2 }, vec![]), (state(1, "a"), vec![Slot::State(0)])]
    );

    inform(&mut machine, &ToSuccessor::Ack { frame: 1 });
    assert_eq!(transmits(&mut machine), [(state(2, "b"), vec![Slot::State(1)])]);
    assert!(machine.is_returning_states());
    inform(&mut machine, &ToSuccessor::Ack { frame: 2 });

    assert_eq!(transmits(&mut machine), [], "the third was not announced");
    assert!(!machine.is_returning_states());
    assert_eq!(noted(&mut machine), []);
}

#[test]
fn fewer_states_than_announced_are_ended_by_a_word() {
    let mut machine = successor_in(Stage::RollingBack);
    machine.stopped(3);
    machine.returned_state(name("a"), 1, 10);
    replied(&mut machine);

    machine.states_complete();
    machine.states_complete();
    machine.returned_state(name("b"), 1, 10);
    assert_eq!(replied(&mut machine), [], "after the ack");
    inform(&mut machine, &ToSuccessor::Ack { frame: 1 });

    assert_eq!(replied(&mut machine), [ToPredecessor::StatesComplete {}]);
    assert!(!machine.is_returning_states());
}

#[test]
fn as_many_states_as_announced_need_no_word() {
    let mut machine = successor_in(Stage::RollingBack);
    machine.stopped(1);
    machine.returned_state(name("a"), 1, 10);
    replied(&mut machine);

    machine.states_complete();
    inform(&mut machine, &ToSuccessor::Ack { frame: 1 });

    assert_eq!(replied(&mut machine), []);
}

#[test]
fn an_ack_of_another_number_is_reported() {
    let mut machine = successor_in(Stage::RollingBack);
    machine.stopped(1);
    machine.returned_state(name("a"), 1, 10);

    inform(&mut machine, &ToSuccessor::Ack { frame: 9 });

    let violation = Violation::UnexpectedAck { frame: 9 };
    assert_eq!(noted(&mut machine), [SuccessorEvent::Ignored(violation)]);
    assert!(machine.is_returning_states());
}

#[test]
fn a_predecessor_that_resumes_without_the_states_ends_them() {
    let mut machine = successor_in(Stage::RollingBack);
    machine.stopped(2);
    machine.returned_state(name("a"), 1, 10);
    replied(&mut machine);

    inform(&mut machine, &ToSuccessor::Resumed {});
    machine.returned_state(name("b"), 1, 10);

    assert!(!machine.is_returning_states());
    assert_eq!(replied(&mut machine), []);
}

#[test]
fn states_go_back_when_nothing_is_accepted_and_nowhere_else() {
    for stage in STAGES {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        machine.returned_state(name("a"), 1, 10);
        machine.states_complete();

        assert_eq!(machine, before, "{stage:?}");
        assert!(!machine.is_returning_states(), "{stage:?}");
    }
}

fn rolling_back() -> Predecessor {
    let mut machine = predecessor_in(Phase::Probation);
    machine.roll_back("test", Time::ZERO);
    sent(&mut machine);
    machine
}

fn rolled_back() -> Outcome {
    Outcome::RolledBack { cause: Cause::RollbackRequested { reason: "test".into() } }
}

fn state(frame: u32, text: &str) -> ToPredecessor {
    ToPredecessor::State { frame, name: name(text), version: 1, bytes: 10 }
}

fn take(text: &str) -> PredecessorEvent {
    PredecessorEvent::TakeState { name: name(text), version: 1, bytes: 10 }
}

fn transmits(machine: &mut Successor) -> Vec<(ToPredecessor, Vec<Slot>)> {
    std::iter::from_fn(|| machine.poll_transmit())
        .map(|Transmit { frame, slots }| (decode(&frame).expect("what we write"), slots))
        .collect()
}
