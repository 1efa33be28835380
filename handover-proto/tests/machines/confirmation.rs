//! When the successor serves for good, and how both ends know.

use handover_proto::*;

use crate::stage::*;

#[test]
fn probation_that_ends_well_is_told() {
    let endings: [fn(&mut Predecessor); 4] = [
        |machine| {
            tell(machine, &ToPredecessor::Pong {});
            machine.handle_timeout(at(30));
        },
        |machine| tell(machine, &ToPredecessor::Healthy {}),
        |machine| tell(machine, &ToPredecessor::Stop { drain_ms: None }),
        |machine| machine.confirm(Time::ZERO),
    ];
    for end in endings {
        let mut machine = predecessor_in(Phase::Probation);

        end(&mut machine);

        assert_eq!(sent(&mut machine), [ToSuccessor::Confirmed {}]);
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn without_probation_the_successor_is_told_that_it_was_heard() {
    let mut machine = Predecessor::new(predecessor_config(None), Inventory::default(), Time::ZERO);
    tell(&mut machine, &hello());
    tell(&mut machine, &ToPredecessor::Ready {});
    machine.accepting_stopped(Time::ZERO);
    machine.late_states_complete(Time::ZERO);
    sent(&mut machine);

    tell(&mut machine, &ToPredecessor::Serving {});

    assert_eq!(machine.phase(), Phase::Served);
    assert_eq!(sent(&mut machine), [ToSuccessor::Confirmed {}]);
}

#[test]
fn without_probation_the_commit_confirms() {
    let mut machine = ready_without_probation();

    inform(&mut machine, &ToSuccessor::Commit { upgrade_pending: true });

    let by = CommittedBy::Predecessor { upgrade_pending: true, probation: None };
    assert_eq!(noted(&mut machine), [SuccessorEvent::Committed(by), SuccessorEvent::Confirmed]);
    assert!(!machine.is_on_probation());
    // But it can be called off until it was heard.
    assert!(!machine.is_known());

    inform(&mut machine, &ToSuccessor::Confirmed {});

    assert_eq!(noted(&mut machine), []);
    assert!(machine.is_known());
}

#[test]
fn a_predecessor_that_is_gone_does_not_need_to_have_heard() {
    let mut machine = ready_without_probation();
    inform(&mut machine, &ToSuccessor::Commit { upgrade_pending: false });

    machine.handle_closed();

    assert!(machine.is_known());
}

#[test]
fn on_probation_the_word_of_the_predecessor_confirms() {
    let mut machine = successor_in(Stage::Serving);
    assert!(machine.is_on_probation());

    inform(&mut machine, &ToSuccessor::Confirmed {});

    assert_eq!(noted(&mut machine), [SuccessorEvent::Confirmed]);
    assert!(!machine.is_on_probation());
    machine.handle_closed();
    assert_eq!(noted(&mut machine), [SuccessorEvent::PredecessorGone], "confirmed once");
}

#[test]
fn who_was_confirmed_is_not_rolled_back() {
    let rollback = ToSuccessor::Rollback { reason: "test".into() };
    let mut without_probation = ready_without_probation();
    inform(&mut without_probation, &ToSuccessor::Commit { upgrade_pending: false });
    noted(&mut without_probation);

    for mut machine in [successor_in(Stage::Confirmed), without_probation] {
        inform(&mut machine, &rollback);

        let violation = Violation::OutOfOrder { message: "rollback", during: "service" };
        assert_eq!(noted(&mut machine), [SuccessorEvent::Ignored(violation)]);
    }
}

/// The predecessor's patience may have ended while `Serving` was on its way.
#[test]
fn an_abort_that_crosses_serving_is_a_rollback_without_probation_too() {
    let mut machine = ready_without_probation();
    inform(&mut machine, &ToSuccessor::Commit { upgrade_pending: false });
    noted(&mut machine);

    inform(&mut machine, &ToSuccessor::Abort { reason: "late".into(), versions: None });

    assert_eq!(noted(&mut machine), [SuccessorEvent::RollBack { reason: "late".into() }]);
}

#[test]
fn unhealthy_that_crosses_the_confirmation_is_let_pass() {
    let mut old = predecessor_in(Phase::Probation);
    let mut new = successor_in(Stage::Serving);
    new.unhealthy("500s");

    old.confirm(Time::ZERO);
    replied(&mut new).iter().for_each(|message| tell(&mut old, message));
    sent(&mut old).iter().for_each(|message| inform(&mut new, message));

    assert_eq!(old.phase(), Phase::Served);
    assert_eq!(noted(&mut new), [SuccessorEvent::Confirmed]);
    assert_eq!(sent(&mut old), []);
}

fn ready_without_probation() -> Successor {
    let mut machine = successor_in(Stage::Hello);
    let mut message = welcome(0, 0);
    if let ToSuccessor::Welcome { probation_ms, .. } = &mut message {
        *probation_ms = None;
    }
    inform(&mut machine, &message);
    machine.ready([], Time::ZERO);
    noted(&mut machine);
    replied(&mut machine);
    machine
}
