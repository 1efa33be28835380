//! The channel after the handover: a process that drains, and whoever serves.

use std::time::Duration;

use handover_proto::*;

use crate::stage::*;

#[test]
fn a_process_that_drains_is_asked_and_answers() {
    let (mut old, mut line) = (predecessor_in(Phase::Served), Line::new());

    line.inquire();
    carry_to_old(&mut line, &mut old);
    assert_eq!(said(&mut old), [PredecessorEvent::Inquired { number: 1 }]);
    old.report(1, report("1.4.0"), Time::ZERO);
    carry_to_line(&mut old, &mut line);

    assert_eq!(events(&mut line), [LineEvent::Report(report("1.4.0"))]);
}

#[test]
fn what_is_asked_of_a_process_that_drains_comes_through_the_line() {
    let (mut old, mut line) = (predecessor_in(Phase::Served), Line::new());

    assert!(old.forward_upgrade(Time::ZERO));
    assert!(old.forward_stop(Some(Duration::from_secs(2)), Time::ZERO));
    carry_to_line(&mut old, &mut line);

    let drain = Some(Duration::from_secs(2));
    assert_eq!(events(&mut line), [LineEvent::Upgrade, LineEvent::Stop { drain }]);
}

#[test]
fn what_was_announced_to_the_service_manager_is_told_through_the_line() {
    let (mut old, mut line) = (predecessor_in(Phase::Served), Line::new());

    old.announced(Time::ZERO);
    carry_to_line(&mut old, &mut line);

    assert_eq!(events(&mut line), [LineEvent::Announced]);
}

#[test]
fn nothing_is_announced_before_the_handover_is_done() {
    for phase in PREDECESSOR_PHASES.into_iter().filter(|phase| *phase != Phase::Served) {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        machine.announced(Time::ZERO);

        assert_eq!(machine, before, "{phase:?}");
    }
}

#[test]
fn a_stop_goes_through_the_line() {
    let (mut old, mut line) = (predecessor_in(Phase::Served), Line::new());

    line.stop(None);
    line.stop(Some(Duration::ZERO));
    carry_to_old(&mut line, &mut old);

    let drain = Some(Duration::ZERO);
    assert_eq!(said(&mut old), [PredecessorEvent::StopAsked { drain }], "the last word counts");
}

#[test]
fn what_does_not_leave_a_line_does_not_pile_up() {
    let mut line = Line::new();

    for _ in 0..100_000 {
        line.inquire();
        line.stop(None);
    }

    assert_eq!(
        frames(&mut line),
        [ToPredecessor::Inquire { number: 100_000 }, ToPredecessor::Stop { drain_ms: None }]
    );
}

#[test]
fn reports_that_cannot_be_sent_are_bounded_and_the_newest_stay() {
    let mut old = predecessor_in(Phase::Served);

    for number in 0..1000 {
        old.report(number, report("1.4.0"), Time::ZERO);
    }

    let sent = sent(&mut old);
    assert_eq!(sent.len(), MAX_UNSENT_REPORTS);
    let newest = ToSuccessor::Report { number: 999, report: report("1.4.0") };
    assert_eq!(sent.last(), Some(&newest));
}

#[test]
fn a_report_is_made_where_it_can_be_asked_for() {
    for phase in PREDECESSOR_PHASES.into_iter().filter(|phase| *phase != Phase::Served) {
        let mut machine = predecessor_in(phase);
        let before = machine.clone();

        machine.report(1, report("1.4.0"), Time::ZERO);

        assert_eq!(machine, before, "{phase:?}");
    }
    let mut gone = predecessor_in(Phase::Served);
    gone.handle_closed(Time::ZERO);
    gone.report(1, report("1.4.0"), Time::ZERO);
    assert_eq!(sent(&mut gone), []);
}

#[test]
fn a_version_that_is_too_long_is_cut() {
    let (mut old, mut line) = (predecessor_in(Phase::Served), Line::new());

    old.report(1, report(&"\u{1}".repeat(10 * MAX_TEXT_BYTES)), Time::ZERO);
    carry_to_line(&mut old, &mut line);
    let cut = LineEvent::Report(report(&"\u{1}".repeat(MAX_TEXT_BYTES)));
    assert_eq!(events(&mut line), [cut], "by the sender");

    let long = ToSuccessor::Report { number: 1, report: report(&"x".repeat(10_000)) };
    line.handle_frame(&encode(&long).expect("it fits a frame"), Received::default());
    let cut = LineEvent::Report(report(&"x".repeat(MAX_TEXT_BYTES)));
    assert_eq!(events(&mut line), [cut], "by the receiver");
}

#[test]
fn what_crossed_with_the_end_of_the_handover_is_let_pass() {
    for message in [ToSuccessor::Confirmed {}, ToSuccessor::Ping {}, ToSuccessor::Ack { frame: 1 }]
    {
        let mut line = Line::new();
        let before = line.clone();

        line.handle_frame(&encode(&message).expect("a short message"), Received::default());

        assert_eq!(line, before, "{message:?}");
    }
}

#[test]
fn what_does_not_belong_on_a_line_is_reported() {
    let reason = || "test".to_owned();
    for message in [
        welcome(0, 0),
        ToSuccessor::Descriptors { frame: 1, items: vec![] },
        ToSuccessor::Commit { upgrade_pending: false },
        ToSuccessor::Rollback { reason: reason() },
        ToSuccessor::Resumed {},
        ToSuccessor::Abort { reason: reason(), versions: None },
    ] {
        let mut line = Line::new();

        line.handle_frame(&encode(&message).expect("a short message"), Received::default());

        let violation = Violation::OutOfOrder { message: message.name(), during: "a drain" };
        assert_eq!(events(&mut line), [LineEvent::Ignored(violation)]);
    }
}

#[test]
fn nonsense_and_descriptors_on_a_line_are_reported() {
    let upgrade = encode(&ToSuccessor::Upgrade {}).expect("a short message");
    let received = |descriptors, truncated| Received { descriptors, truncated };
    let mut line = Line::new();

    line.handle_frame(b"nonsense", received(0, false));
    line.handle_frame(&upgrade, received(1, false));
    line.handle_frame(&upgrade, received(0, true));

    let events = events(&mut line);
    assert!(
        matches!(
            &events[..],
            [
                LineEvent::Ignored(Violation::Malformed { .. }),
                LineEvent::Ignored(Violation::DescriptorCount { expected: 0, received: 1 }),
                LineEvent::Ignored(Violation::Truncated),
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn a_line_that_has_ended_says_nothing_and_hears_nothing() {
    let mut line = Line::new();
    line.inquire();

    line.handle_closed();
    line.stop(None);
    line.inquire();
    line.handle_frame(&encode(&ToSuccessor::Upgrade {}).expect("short"), Received::default());

    assert_eq!(frames(&mut line), []);
    assert_eq!(events(&mut line), []);
}

#[test]
fn nonsense_from_whoever_serves_does_not_end_a_drain() {
    let mut old = predecessor_in(Phase::Served);
    let before = old.clone();

    old.handle_frame(b"nonsense", Received::default(), Time::ZERO);
    old.handle_frame(b"{}", Received { descriptors: 3, truncated: true }, Time::ZERO);

    assert_eq!(old, before);
}

fn report(version: &str) -> Report {
    Report {
        generation: 1,
        pid: 100,
        version: Some(version.into()),
        in_flight: 3,
        drain_left_ms: Some(1000),
        age_ms: 500,
        memory_bytes: None,
    }
}

fn carry_to_old(line: &mut Line, old: &mut Predecessor) {
    frames(line).iter().for_each(|message| tell(old, message));
}

fn carry_to_line(old: &mut Predecessor, line: &mut Line) {
    while let Some(Transmit { frame, slots }) = old.poll_transmit() {
        line.handle_frame(&frame, Received { descriptors: slots.len(), truncated: false });
    }
}

fn frames(line: &mut Line) -> Vec<ToPredecessor> {
    std::iter::from_fn(|| line.poll_transmit())
        .map(|frame| decode(&frame).expect("what we write can be read"))
        .collect()
}

fn events(line: &mut Line) -> Vec<LineEvent> {
    std::iter::from_fn(|| line.poll_event()).collect()
}
