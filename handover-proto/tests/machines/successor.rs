//! What a successor does on the way to serving.

use std::time::Duration;

use handover_proto::*;

use crate::stage::*;

#[test]
fn hello_is_the_first_word() {
    let mut machine = successor();

    assert_eq!(replied(&mut machine), [hello()]);
    assert_eq!(machine.poll_timeout(), Some(Time::ZERO + SILENCE_TIMEOUT));
}

#[test]
fn welcome_with_nothing_to_come_leads_to_initialisation() {
    let mut machine = successor_in(Stage::Hello);

    inform(&mut machine, &welcome(0, 0));

    let welcomed = SuccessorEvent::Welcomed { generation: 2, predecessor: 1, pid: 100 };
    assert_eq!(noted(&mut machine), [welcomed, SuccessorEvent::Adopted]);
    assert_eq!(machine.poll_timeout(), None, "initialisation is the predecessor's to limit");
}

#[test]
fn stderr_is_taken_with_welcome() {
    let mut machine = successor_in(Stage::Hello);
    let mut message = welcome(1, 0);
    if let ToSuccessor::Welcome { stderr, .. } = &mut message {
        *stderr = true;
    }

    inform(&mut machine, &message);

    let welcomed = SuccessorEvent::Welcomed { generation: 2, predecessor: 1, pid: 100 };
    assert_eq!(noted(&mut machine), [welcomed, SuccessorEvent::TakeStderr]);
}

#[test]
fn each_frame_of_the_transfer_is_acked_and_the_last_one_is_adopted() {
    let mut machine = successor_in(Stage::Hello);
    inform(&mut machine, &welcome(2, 1));
    noted(&mut machine);
    replied(&mut machine);

    inform(&mut machine, &descriptors(7, &["a", "b"]));
    assert_eq!(replied(&mut machine), [ToPredecessor::Ack { frame: 7 }]);
    let items = vec![item("a"), item("b")];
    assert_eq!(noted(&mut machine), [SuccessorEvent::TakeDescriptors { items }]);

    inform(&mut machine, &state(9, false));
    assert_eq!(replied(&mut machine), [ToPredecessor::Ack { frame: 9 }]);
    assert_eq!(noted(&mut machine), [take_state(false), SuccessorEvent::Adopted]);
}

#[test]
fn more_descriptors_than_announced_are_a_violation() {
    let mut machine = successor_in(Stage::Transfer);

    inform(&mut machine, &descriptors(1, &["a", "b", "c"]));

    assert_eq!(noted(&mut machine), [misbehaved(Violation::TooMany { what: "descriptors" })]);
}

#[test]
fn descriptors_that_are_none_are_a_violation() {
    let mut machine = successor_in(Stage::Transfer);

    inform(&mut machine, &descriptors(1, &[]));

    let (message, why) = (Some("descriptors".to_owned()), "no descriptors in it".to_owned());
    assert_eq!(noted(&mut machine), [misbehaved(Violation::Malformed { message, why })]);
    assert!(!replied(&mut machine).contains(&ToPredecessor::Ack { frame: 1 }));
}

#[test]
fn more_states_than_announced_are_a_violation() {
    let mut machine = successor_in(Stage::Transfer);
    inform(&mut machine, &state(1, false));
    inform(&mut machine, &state(2, false));
    noted(&mut machine);

    inform(&mut machine, &state(3, false));

    assert_eq!(noted(&mut machine), [misbehaved(Violation::TooMany { what: "states" })]);
}

#[test]
fn more_late_states_than_allowed_are_a_violation() {
    let mut machine = successor_in(Stage::Ready);
    for frame in 0..MAX_STATES {
        inform(&mut machine, &state(frame, true));
        assert_eq!(noted(&mut machine), [take_state(true)]);
    }

    inform(&mut machine, &state(MAX_STATES, true));

    assert_eq!(noted(&mut machine), [misbehaved(Violation::TooMany { what: "late states" })]);
}

#[test]
fn a_welcome_beyond_the_limits_is_a_violation() {
    for (message, what) in [
        (welcome(MAX_DESCRIPTORS + 1, 0), "descriptors"),
        (welcome(0, MAX_STATES + 1), "states"),
        (welcome(u32::MAX, u32::MAX), "descriptors"),
    ] {
        let mut machine = successor_in(Stage::Hello);

        inform(&mut machine, &message);

        assert_eq!(noted(&mut machine), [misbehaved(Violation::TooMany { what })]);
    }
}

#[test]
fn a_welcome_at_the_limits_is_taken() {
    let mut machine = successor_in(Stage::Hello);

    inform(&mut machine, &welcome(MAX_DESCRIPTORS, MAX_STATES));

    let welcomed = SuccessorEvent::Welcomed { generation: 2, predecessor: 1, pid: 100 };
    assert_eq!(noted(&mut machine), [welcomed]);
}

#[test]
fn a_welcome_in_a_version_that_was_not_offered_is_refused() {
    let mut machine = successor_in(Stage::Hello);
    let mut message = welcome(0, 0);
    if let ToSuccessor::Welcome { version, .. } = &mut message {
        *version = Version(2);
    }

    inform(&mut machine, &message);

    let why = "version 2 was not offered".to_owned();
    let message = Some("welcome".to_owned());
    assert_eq!(noted(&mut machine), [misbehaved(Violation::Malformed { message, why })]);
}

#[test]
fn another_number_of_descriptors_than_the_frame_says_is_a_violation() {
    for (stage, message) in [
        (Stage::Hello, welcome(0, 0)),
        (Stage::Transfer, descriptors(1, &["a", "b"])),
        (Stage::Transfer, state(1, false)),
        (Stage::Ready, state(1, true)),
        (Stage::Ready, ToSuccessor::Commit { upgrade_pending: false }),
        (Stage::Initialise, ToSuccessor::Abort { reason: "test".into(), versions: None }),
    ] {
        let expected = descriptors_of(&message);
        for received in [expected + 1, expected.saturating_sub(1)] {
            if received == expected {
                continue;
            }
            let mut machine = successor_in(stage);

            let came = Received { descriptors: received, truncated: false };
            machine.handle_frame(&encode(&message).unwrap(), came, Time::ZERO);

            let violation = Violation::DescriptorCount { expected, received };
            assert_eq!(noted(&mut machine), [misbehaved(violation.clone())]);
            assert_eq!(replied(&mut machine), [refuse(&violation.to_string())], "and no ack");
        }
    }
}

#[test]
fn more_descriptors_in_a_frame_than_allowed_are_a_violation() {
    let mut machine = successor_in(Stage::Hello);
    inform(&mut machine, &welcome(200, 0));
    noted(&mut machine);
    let names: Vec<_> = (0..=MAX_FDS_PER_FRAME).map(|n| n.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();

    inform(&mut machine, &descriptors(1, &names));

    let what = "descriptors in a frame";
    assert_eq!(noted(&mut machine), [misbehaved(Violation::TooMany { what })]);
}

#[test]
fn dropped_descriptors_are_a_violation_whatever_the_frame_says() {
    for frame in [&encode(&descriptors(1, &["a"])).unwrap()[..], b"nonsense", b""] {
        let mut machine = successor_in(Stage::Transfer);

        machine.handle_frame(frame, Received { descriptors: 1, truncated: true }, Time::ZERO);

        assert_eq!(noted(&mut machine), [misbehaved(Violation::Truncated)]);
    }
}

#[test]
fn an_unknown_message_is_refused_by_its_name() {
    let mut machine = successor_in(Stage::Initialise);

    machine.handle_frame(br#"{"type":"dance"}"#, Received::default(), Time::ZERO);

    let name = "dance".into();
    assert_eq!(noted(&mut machine), [misbehaved(Violation::UnknownMessage { name })]);
    assert_eq!(replied(&mut machine), [refuse("an unknown message \"dance\"")]);
}

#[test]
fn ready_claims_and_waits_twice_the_time_of_the_predecessor() {
    let mut machine = successor_in(Stage::Initialise);

    machine.ready([name("http")], at(5));

    let claim = ToPredecessor::Claim { names: vec![name("http")] };
    assert_eq!(replied(&mut machine), [claim, ToPredecessor::Ready {}]);
    assert_eq!(machine.poll_timeout(), Some(at(5) + 2 * COMMIT_TIMEOUT));
    assert_eq!(noted(&mut machine), [], "nothing is accepted yet");
}

#[test]
fn ready_has_no_effect_but_in_initialisation() {
    for stage in STAGES.into_iter().filter(|stage| *stage != Stage::Initialise) {
        let mut machine = successor_in(stage);
        let before = machine.clone();

        machine.ready([name("http")], Time::ZERO);
        machine.progress("test", None);

        assert_eq!(machine, before, "{stage:?}");
    }
}

#[test]
fn progress_leaves_before_ready() {
    let mut machine = successor_in(Stage::Initialise);
    machine.progress("warming", Some(Duration::from_secs(5)));

    machine.ready([], Time::ZERO);

    let progress = ToPredecessor::Progress { text: "warming".into(), more_ms: Some(5000) };
    assert_eq!(replied(&mut machine), [progress, ToPredecessor::Ready {}]);
}

#[test]
fn progress_that_cannot_be_sent_is_replaced_by_the_next() {
    let mut machine = successor_in(Stage::Initialise);
    machine.progress("a long way", Some(Duration::from_secs(5)));

    for step in 0..100_000 {
        machine.progress(format!("step {step}"), None);
    }

    let text = "step 99999".into();
    let progress = ToPredecessor::Progress { text, more_ms: Some(5000) };
    assert_eq!(replied(&mut machine), [progress]);
}

#[test]
fn progress_that_asks_for_ever_is_sent_as_the_greatest_number() {
    let mut machine = successor_in(Stage::Initialise);

    machine.progress("test", Some(Duration::MAX));

    let progress = ToPredecessor::Progress { text: "test".into(), more_ms: Some(u64::MAX) };
    assert_eq!(replied(&mut machine), [progress]);
}

#[test]
fn commit_makes_the_successor_accept_and_say_so() {
    for upgrade_pending in [false, true] {
        let mut machine = successor_in(Stage::Ready);

        inform(&mut machine, &ToSuccessor::Commit { upgrade_pending });

        let by = CommittedBy::Predecessor { upgrade_pending, probation: Some(PROBATION) };
        assert_eq!(noted(&mut machine), [SuccessorEvent::Committed(by)]);
        assert_eq!(replied(&mut machine), [ToPredecessor::Serving {}]);
        assert_eq!(machine.poll_timeout(), None);
    }
}

#[test]
fn a_late_state_is_taken_before_the_commit() {
    let mut machine = successor_in(Stage::Ready);

    inform(&mut machine, &state(4, true));

    assert_eq!(noted(&mut machine), [take_state(true)]);
    assert_eq!(replied(&mut machine), [ToPredecessor::Ack { frame: 4 }]);
}

#[test]
fn a_forwarded_upgrade_is_passed_on() {
    let mut machine = successor_in(Stage::Serving);

    inform(&mut machine, &ToSuccessor::Upgrade {});

    assert_eq!(noted(&mut machine), [SuccessorEvent::Upgrade]);
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let mut machine = successor_in(Stage::Initialise);

    machine.progress("é".repeat(MAX_TEXT_BYTES), None);
    machine.ready([], Time::ZERO);

    let text = "é".repeat(MAX_TEXT_BYTES / 2);
    let progress = ToPredecessor::Progress { text, more_ms: None };
    assert_eq!(replied(&mut machine).first(), Some(&progress));
}

pub(crate) fn misbehaved(violation: Violation) -> SuccessorEvent {
    SuccessorEvent::Failed(Failure::Misbehaved(violation))
}

pub(crate) fn refuse(reason: &str) -> ToPredecessor {
    ToPredecessor::Refuse { reason: reason.into() }
}

fn descriptors(frame: u32, names: &[&str]) -> ToSuccessor {
    ToSuccessor::Descriptors { frame, items: names.iter().map(|name| item(name)).collect() }
}

fn state(frame: u32, late: bool) -> ToSuccessor {
    ToSuccessor::State { frame, name: name("cache"), version: 1, bytes: 10, late }
}

fn take_state(late: bool) -> SuccessorEvent {
    SuccessorEvent::TakeState { name: name("cache"), version: 1, bytes: 10, late }
}
