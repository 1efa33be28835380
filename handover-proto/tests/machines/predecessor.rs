//! What a predecessor does on the way to `Served`.

use std::time::Duration;

use handover_proto::*;

use crate::stage::*;

#[test]
fn hello_is_answered_by_welcome_and_the_first_descriptors() {
    let mut machine = predecessor();

    tell(&mut machine, &hello());

    let descriptors = ToSuccessor::Descriptors { frame: 1, items: vec![item("http")] };
    assert_eq!(sent(&mut machine), [welcome(1, 1), descriptors]);
    assert_eq!(
        said(&mut machine),
        [
            PredecessorEvent::Greeted { pid: 200, software: "test".into() },
            PredecessorEvent::Entered(Phase::Transfer)
        ]
    );
}

#[test]
fn nothing_to_hand_over_leads_from_hello_to_initialisation() {
    let config = predecessor_config(None);
    let mut machine = Predecessor::new(config, Inventory::default(), Time::ZERO);

    tell(&mut machine, &hello());

    assert_eq!(machine.phase(), Phase::Initialise);
}

#[test]
fn stderr_goes_along_with_welcome() {
    let inventory = Inventory { stderr: true, ..Inventory::default() };
    let mut machine = Predecessor::new(predecessor_config(None), inventory, Time::ZERO);

    tell(&mut machine, &hello());

    assert_eq!(machine.poll_transmit().map(|transmit| transmit.slots), Some(vec![Slot::Stderr]));
}

#[test]
fn one_frame_with_descriptors_is_outstanding_at_a_time() {
    let mut machine = predecessor();
    machine.state(name("cache"), 3, 10, Time::ZERO);
    tell(&mut machine, &hello());
    assert_eq!(slots(&mut machine), [vec![], vec![Slot::Item(0)]]);

    // Given first, the state has got the first number; the listeners still go first.
    tell(&mut machine, &ToPredecessor::Ack { frame: 2 });

    assert_eq!(slots(&mut machine), [vec![Slot::State(0)]]);
    assert_eq!(machine.phase(), Phase::Transfer);
    tell(&mut machine, &ToPredecessor::Ack { frame: 1 });
    assert_eq!(machine.phase(), Phase::Initialise);
}

#[test]
fn an_ack_of_another_number_is_a_violation() {
    let mut machine = predecessor_in(Phase::Transfer);

    tell(&mut machine, &ToPredecessor::Ack { frame: 7 });

    let violation = Violation::UnexpectedAck { frame: 7 };
    assert_eq!(outcome(&mut machine), failed(Phase::Transfer, Cause::Misbehaved(violation)));
}

#[test]
fn a_second_ack_of_a_frame_is_a_violation() {
    let mut machine = predecessor_in(Phase::Transfer);
    tell(&mut machine, &ToPredecessor::Ack { frame: 1 });

    tell(&mut machine, &ToPredecessor::Ack { frame: 1 });

    let violation = Violation::UnexpectedAck { frame: 1 };
    assert_eq!(outcome(&mut machine), failed(Phase::Transfer, Cause::Misbehaved(violation)));
}

#[test]
fn a_descriptor_from_the_successor_is_a_violation() {
    let mut machine = predecessor_in(Phase::Initialise);

    let received = Received { descriptors: 1, truncated: false };
    machine.handle_frame(&encode(&ToPredecessor::Ready {}).unwrap(), received, Time::ZERO);

    let violation = Violation::DescriptorCount { expected: 0, received: 1 };
    assert_eq!(outcome(&mut machine), failed(Phase::Initialise, Cause::Misbehaved(violation)));
}

#[test]
fn the_claimed_names_arrive_with_stop_accepting() {
    let mut machine = predecessor_in(Phase::Initialise);
    tell(&mut machine, &ToPredecessor::Claim { names: vec![name("http")] });

    tell(&mut machine, &ToPredecessor::Ready {});

    let claimed = vec![name("http")];
    assert_eq!(
        said(&mut machine),
        [PredecessorEvent::Entered(Phase::Commit), PredecessorEvent::StopAccepting { claimed }]
    );
}

#[test]
fn more_claims_than_descriptors_are_a_violation() {
    let mut machine = predecessor_in(Phase::Initialise);
    tell(&mut machine, &ToPredecessor::Claim { names: vec![name("http")] });

    tell(&mut machine, &ToPredecessor::Claim { names: vec![name("http")] });

    let violation = Violation::TooMany { what: "claims" };
    assert_eq!(outcome(&mut machine), failed(Phase::Initialise, Cause::Misbehaved(violation)));
}

#[test]
fn progress_without_more_time_leaves_the_deadline() {
    let mut machine = predecessor_in(Phase::Initialise);

    tell_at(&mut machine, &progress(None), at(59));

    assert_eq!(machine.poll_timeout(), Some(at(60)));
    assert_eq!(said(&mut machine), [PredecessorEvent::Progress { text: "warming".into() }]);
}

#[test]
fn progress_extends_the_deadline_and_never_shortens_it() {
    let mut machine = predecessor_in(Phase::Initialise);

    tell_at(&mut machine, &progress(Some(20_000)), at(50));
    assert_eq!(machine.poll_timeout(), Some(at(70)));

    tell_at(&mut machine, &progress(Some(1)), at(51));
    assert_eq!(machine.poll_timeout(), Some(at(70)));
}

#[test]
fn one_progress_extends_the_deadline_by_an_hour_at_most() {
    for phase in [Phase::Transfer, Phase::Initialise] {
        let mut machine = predecessor_in(phase);

        tell_at(&mut machine, &progress(Some(u64::MAX)), at(50));

        assert_eq!(machine.poll_timeout(), Some(at(50) + MAX_EXTENSION));
    }
}

#[test]
fn nothing_is_committed_before_accepting_has_stopped() {
    let mut machine = predecessor_in(Phase::Commit);

    machine.late_states_complete(Time::ZERO);
    assert_eq!(machine.phase(), Phase::Commit);

    machine.accepting_stopped(Time::ZERO);
    assert_eq!(machine.phase(), Phase::Confirm);
}

#[test]
fn what_the_program_says_before_ready_does_not_commit() {
    let mut machine = predecessor_in(Phase::Initialise);
    machine.accepting_stopped(Time::ZERO);
    machine.late_states_complete(Time::ZERO);

    tell(&mut machine, &ToPredecessor::Ready {});
    machine.accepting_stopped(Time::ZERO);

    assert_eq!(machine.phase(), Phase::Commit);
    assert_eq!(sent(&mut machine), []);
}

#[test]
fn late_states_are_acked_before_the_commit_leaves() {
    let mut machine = predecessor_in(Phase::Commit);
    machine.accepting_stopped(Time::ZERO);
    machine.state(name("sessions"), 1, 5, Time::ZERO);
    machine.late_states_complete(Time::ZERO);
    let late =
        ToSuccessor::State { frame: 3, name: name("sessions"), version: 1, bytes: 5, late: true };
    assert_eq!(sent(&mut machine), [late]);

    tell(&mut machine, &ToPredecessor::Ack { frame: 3 });

    assert_eq!(sent(&mut machine), [ToSuccessor::Commit { upgrade_pending: false }]);
}

#[test]
fn the_slot_of_a_late_state_goes_on_counting() {
    let mut machine = predecessor_in(Phase::Commit);

    machine.state(name("sessions"), 1, 5, Time::ZERO);

    assert_eq!(slots(&mut machine), [vec![Slot::State(1)]]);
}

#[test]
fn an_early_state_too_many_calls_the_handover_off() {
    for phase in [Phase::Transfer, Phase::Initialise] {
        let mut machine = predecessor_in(phase);
        if phase == Phase::Transfer {
            machine.state(name("cache"), 1, 10, Time::ZERO);
        }

        machine.state(name("another"), 1, 10, Time::ZERO);

        let cause = Cause::CalledOff { reason: "more than 1 early states".into() };
        assert_eq!(outcome(&mut machine), failed(phase, cause));
    }
}

#[test]
fn a_late_state_too_many_calls_the_handover_off() {
    let mut machine = predecessor_in(Phase::Commit);
    for _ in 0..MAX_STATES {
        machine.state(name("late"), 1, 0, Time::ZERO);
    }
    assert_eq!(said(&mut machine), []);

    machine.state(name("late"), 1, 0, Time::ZERO);

    let cause = Cause::CalledOff { reason: "more than 1024 late states".into() };
    assert_eq!(said(&mut machine), [PredecessorEvent::ResumeAccepting]);
    assert_eq!(outcome(&mut machine), failed(Phase::Commit, cause));
}

#[test]
fn an_upgrade_asked_before_the_commit_goes_along_with_it() {
    for phase in [Phase::Hello, Phase::Transfer, Phase::Initialise, Phase::Commit] {
        let mut machine = predecessor_in(phase);

        assert!(!machine.forward_upgrade(Time::ZERO));

        assert_eq!(sent(&mut machine), [], "{phase:?}");
    }
    let mut machine = predecessor_in(Phase::Commit);
    machine.forward_upgrade(Time::ZERO);
    machine.accepting_stopped(Time::ZERO);
    machine.late_states_complete(Time::ZERO);
    assert_eq!(sent(&mut machine), [ToSuccessor::Commit { upgrade_pending: true }]);
}

#[test]
fn an_upgrade_asked_after_the_commit_is_forwarded() {
    for phase in [Phase::Confirm, Phase::Probation, Phase::Served] {
        let mut machine = predecessor_in(phase);

        assert!(machine.forward_upgrade(Time::ZERO));

        assert_eq!(sent(&mut machine), [ToSuccessor::Upgrade {}], "{phase:?}");
    }
}

#[test]
fn a_storm_of_upgrades_leaves_one_message_unsent() {
    let mut machine = predecessor_in(Phase::Served);

    for _ in 0..100_000 {
        assert!(machine.forward_upgrade(Time::ZERO));
    }

    assert_eq!(sent(&mut machine), [ToSuccessor::Upgrade {}]);
    assert!(machine.forward_upgrade(Time::ZERO));
    assert_eq!(sent(&mut machine), [ToSuccessor::Upgrade {}]);
}

#[test]
fn an_upgrade_is_not_forwarded_to_a_successor_that_is_gone() {
    let mut machine = predecessor_in(Phase::Served);
    machine.handle_closed(Time::ZERO);

    assert!(!machine.forward_upgrade(Time::ZERO));

    assert_eq!(sent(&mut machine), []);
}

#[test]
fn without_probation_serving_ends_the_handover() {
    let config = predecessor_config(None);
    let mut machine = Predecessor::new(config, Inventory::default(), Time::ZERO);
    tell(&mut machine, &hello());
    tell(&mut machine, &ToPredecessor::Ready {});
    machine.accepting_stopped(Time::ZERO);
    machine.late_states_complete(Time::ZERO);
    said(&mut machine);

    tell(&mut machine, &ToPredecessor::Serving {});

    assert_eq!(
        said(&mut machine),
        [
            PredecessorEvent::Serving,
            PredecessorEvent::Entered(Phase::Served),
            PredecessorEvent::Finished(Outcome::Succeeded)
        ]
    );
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn probation_begins_with_serving_and_has_its_own_deadline() {
    let mut machine = predecessor_in(Phase::Confirm);

    tell_at(&mut machine, &ToPredecessor::Serving {}, at(5));

    assert_eq!(machine.phase(), Phase::Probation);
    tell_at(&mut machine, &ToPredecessor::Pong {}, at(34));
    assert_eq!(machine.poll_timeout(), Some(at(5) + PROBATION));
}

#[test]
fn probation_ends_well_by_time_by_word_and_by_decision() {
    let endings: [fn(&mut Predecessor); 3] = [
        |machine| {
            tell(machine, &ToPredecessor::Pong {});
            machine.handle_timeout(at(30));
        },
        |machine| tell(machine, &ToPredecessor::Healthy {}),
        |machine| machine.confirm(Time::ZERO),
    ];
    for end in endings {
        let mut machine = predecessor_in(Phase::Probation);

        end(&mut machine);

        let served = PredecessorEvent::Entered(Phase::Served);
        let finished = PredecessorEvent::Finished(Outcome::Succeeded);
        assert_eq!(said(&mut machine), [served, finished]);
    }
}

#[test]
fn confirm_has_no_effect_but_on_probation() {
    for phase in PREDECESSOR_PHASES.into_iter().filter(|phase| *phase != Phase::Probation) {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        machine.confirm(Time::ZERO);

        assert_eq!(machine, before, "{phase:?}");
    }
}

#[test]
fn a_timeout_of_the_greatest_duration_means_never() {
    let config = PredecessorConfig { ready_timeout: Duration::MAX, ..predecessor_config(None) };
    let mut machine = Predecessor::new(config, Inventory::default(), at(1));

    machine.handle_timeout(at(1_000_000_000));

    assert_eq!(machine.phase(), Phase::Hello);
    assert_eq!(said(&mut machine), []);
}

fn progress(more_ms: Option<u64>) -> ToPredecessor {
    ToPredecessor::Progress { text: "warming".into(), more_ms }
}

fn slots(machine: &mut Predecessor) -> Vec<Vec<Slot>> {
    std::iter::from_fn(|| machine.poll_transmit()).map(|transmit| transmit.slots).collect()
}

fn failed(phase: Phase, cause: Cause) -> Option<Outcome> {
    Some(Outcome::Failed { phase, cause })
}
