//! Whether a successor on probation answers.

use std::time::Duration;

use handover_proto::*;

use crate::stage::*;

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_secs(3);

const MOMENT: Duration = Duration::from_millis(1);

#[test]
fn probation_begins_with_a_question() {
    let mut machine = predecessor_in(Phase::Confirm);

    assert_eq!(machine.probation_end(), None);
    tell_at(&mut machine, &ToPredecessor::Serving {}, at(5));

    assert_eq!(machine.probation_end(), Some(at(35)));
    assert_eq!(sent(&mut machine), [ToSuccessor::Ping {}]);
    assert_eq!(machine.poll_timeout(), Some(at(5) + ANSWER_TIMEOUT));
}

#[test]
fn each_answer_is_followed_by_a_question_a_quarter_of_the_timeout_later() {
    let mut machine = predecessor_in(Phase::Probation);

    for asked in [4, 8, 12] {
        tell_at(&mut machine, &ToPredecessor::Pong {}, at(asked - 3));
        assert_eq!(machine.poll_timeout(), Some(at(asked)));
        machine.handle_timeout(at(asked - 1));
        assert_eq!(sent(&mut machine), [], "not yet");

        machine.handle_timeout(at(asked));

        assert_eq!(sent(&mut machine), [ToSuccessor::Ping {}]);
        assert_eq!(machine.poll_timeout(), Some(at(asked) + ANSWER_TIMEOUT));
    }
    assert_eq!(said(&mut machine), []);
}

#[test]
fn a_successor_that_does_not_answer_is_rolled_back() {
    let mut machine = predecessor_in(Phase::Probation);

    machine.handle_timeout(at(12));

    assert_eq!(machine.cause(), Some(&Cause::Unresponsive));
    assert_eq!(machine.probation_end(), None);
    let reason = "the successor does not answer".into();
    assert_eq!(sent(&mut machine), [ToSuccessor::Rollback { reason }]);
    assert_eq!(machine.poll_timeout(), Some(at(12) + ABORT_GRACE));
    machine.handle_timeout(at(12) + ABORT_GRACE);
    assert_eq!(said(&mut machine), [PredecessorEvent::Kill]);
    let cause = Cause::Unresponsive;
    assert_eq!(outcome(&mut machine), Some(Outcome::RolledBack { cause }));
}

#[test]
fn a_successor_that_hangs_does_not_pass_because_probation_is_over() {
    let mut machine = predecessor_in(Phase::Probation);
    tell_at(&mut machine, &ToPredecessor::Pong {}, at(22));
    machine.handle_timeout(at(25));

    machine.handle_timeout(at(30));
    assert_eq!(machine.phase(), Phase::Probation, "an answer is due");
    assert_eq!(machine.poll_timeout(), Some(at(37)));
    let mut answered = machine.clone();
    machine.handle_timeout(at(37));
    let cause = Cause::Unresponsive;
    assert_eq!(outcome(&mut machine), Some(Outcome::RolledBack { cause }));

    tell_at(&mut answered, &ToPredecessor::Pong {}, at(31));
    assert_eq!(answered.poll_timeout(), Some(at(30)), "at once");
    answered.handle_timeout(at(31));
    assert_eq!(answered.phase(), Phase::Served);
}

#[test]
fn an_answer_that_is_read_before_the_time_counts_however_late_that_is() {
    let mut machine = predecessor_in(Phase::Probation);

    // Suspended for long: the driver reads first.
    tell_at(&mut machine, &ToPredecessor::Pong {}, at(20));
    machine.handle_timeout(at(20));

    assert_eq!(said(&mut machine), []);
    assert_eq!(machine.phase(), Phase::Probation);
}

#[test]
fn a_predecessor_that_was_suspended_gives_a_second_chance_and_no_third() {
    let mut machine = predecessor_in(Phase::Probation);
    let late = at(12) + PAUSE + MOMENT;

    machine.handle_timeout(late);
    assert_eq!(machine.poll_timeout(), Some(late + ANSWER_TIMEOUT));
    assert_eq!(sent(&mut machine), [], "it was asked");
    machine.handle_timeout(late + ANSWER_TIMEOUT + Duration::from_secs(100));

    let cause = Cause::Unresponsive;
    assert_eq!(outcome(&mut machine), Some(Outcome::RolledBack { cause }));
}

#[test]
fn a_timeout_that_is_handled_a_little_late_is_no_excuse() {
    let mut machine = predecessor_in(Phase::Probation);

    machine.handle_timeout(at(12) + PAUSE);

    let cause = Cause::Unresponsive;
    assert_eq!(outcome(&mut machine), Some(Outcome::RolledBack { cause }));
}

#[test]
fn questions_that_cannot_be_sent_are_one() {
    let mut machine = predecessor_in(Phase::Confirm);
    tell(&mut machine, &ToPredecessor::Serving {});

    // Answers to what was never asked: they are taken as signs of life.
    for second in 0..20 {
        tell_at(&mut machine, &ToPredecessor::Pong {}, at(second));
        machine.handle_timeout(at(second) + PAUSE);
    }

    assert_eq!(sent(&mut machine), [ToSuccessor::Ping {}]);
}

#[test]
fn an_answer_timeout_of_the_greatest_duration_means_never() {
    let config = PredecessorConfig {
        answer_timeout: Duration::MAX,
        probation: Some(Duration::MAX),
        ..predecessor_config(None)
    };
    let mut machine = Predecessor::new(config, Inventory::default(), at(1));
    tell_at(&mut machine, &hello(), at(1));
    tell_at(&mut machine, &ToPredecessor::Ready {}, at(1));
    machine.accepting_stopped(at(1));
    machine.late_states_complete(at(1));
    tell_at(&mut machine, &ToPredecessor::Serving {}, at(1));

    machine.handle_timeout(at(1_000_000_000));

    assert_eq!(machine.phase(), Phase::Probation);
}

#[test]
fn a_successor_that_serves_answers_whatever_else_it_does() {
    for stage in
        [Stage::Serving, Stage::Confirmed, Stage::RollingBack, Stage::Stopped, Stage::Replaced]
    {
        let mut machine = successor_in(stage);

        inform(&mut machine, &ToSuccessor::Ping {});

        assert_eq!(replied(&mut machine), [ToPredecessor::Pong {}], "{stage:?}");
        assert_eq!(noted(&mut machine), []);
    }
}

#[test]
fn answers_that_cannot_be_sent_are_one() {
    let mut machine = successor_in(Stage::Serving);

    for _ in 0..100_000 {
        inform(&mut machine, &ToSuccessor::Ping {});
    }

    assert_eq!(replied(&mut machine), [ToPredecessor::Pong {}]);
}
