//! Frames that nobody should send, at any moment: no panic, no growth without bound, and who
//! serves goes on.

use handover_proto::*;

use crate::normal::steps_of_a_handover;
use crate::pair::Pair;
use crate::process::Script;
use crate::rng::Rng;

const RUNS: u64 = 1_000;
const FRAMES: usize = 20;

#[test]
fn no_bytes_make_a_predecessor_panic() {
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut machine = any_moment(&mut rng).old.machine;

        for _ in 0..FRAMES {
            let frame = any_frame(&mut rng);
            let descriptors = rng.pick(&[0, 0, 0, 1, 64]);
            let received = Received { descriptors, truncated: rng.once_in(50) };
            machine.handle_frame(&frame, received, any_time(&mut rng));
            machine.handle_timeout(any_time(&mut rng));
            let events = std::iter::from_fn(|| machine.poll_event()).count();
            let transmits = std::iter::from_fn(|| machine.poll_transmit()).count();
            assert!(events <= 8 && transmits <= 4, "{events} events, {transmits} transmits");
        }
        machine.handle_exited(any_time(&mut rng));
        assert!(matches!(machine.phase(), Phase::Served | Phase::Failed));
    }
}

#[test]
fn no_bytes_make_a_successor_panic() {
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut machine = any_moment(&mut rng).new.machine;

        for _ in 0..FRAMES {
            let frame = any_frame(&mut rng);
            let descriptors = rng.pick(&[0, 0, 1, 2, 64, 253]);
            let received = Received { descriptors, truncated: rng.once_in(50) };
            machine.handle_frame(&frame, received, any_time(&mut rng));
            machine.handle_timeout(any_time(&mut rng));
            let events = std::iter::from_fn(|| machine.poll_event()).count();
            let transmits = std::iter::from_fn(|| machine.poll_transmit()).count();
            assert!(events <= 8 && transmits <= 4, "{events} events, {transmits} transmits");
        }
        machine.handle_closed();
    }
}

#[test]
fn no_bytes_make_a_line_panic_or_grow() {
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut line = Line::new();

        for _ in 0..FRAMES {
            let received = Received { descriptors: rng.pick(&[0, 0, 1]), truncated: false };
            line.handle_frame(&any_frame(&mut rng), received);
            assert!(std::iter::from_fn(|| line.poll_event()).count() <= 1);
            assert_eq!(line.poll_transmit(), None);
        }

        assert_eq!(line, Line::new());
    }
}

#[test]
fn who_serves_for_good_does_not_fail_whatever_comes() {
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut pair = Pair::new(Script::default());
        pair.settle();
        let mut machine = pair.new.machine;

        for _ in 0..FRAMES {
            let frame = any_frame(&mut rng);
            machine.handle_frame(&frame, Received::default(), any_time(&mut rng));
            machine.handle_timeout(any_time(&mut rng));
        }

        while let Some(event) = machine.poll_event() {
            assert!(!matches!(event, SuccessorEvent::Failed(_)), "seed {seed}: {event:?}");
        }
        machine.stop(None);
        let stops = std::iter::from_fn(|| machine.poll_transmit())
            .any(|transmit| decode(&transmit.frame) == Ok(ToPredecessor::Stop { drain_ms: None }));
        assert!(stops, "seed {seed}: it is there to be stopped");
    }
}

#[test]
fn a_hundred_thousand_messages_leave_nothing_behind() {
    let mut pair = Pair::new(Script::default());
    while pair.old.machine.phase() != Phase::Initialise {
        assert!(pair.step());
    }
    let mut machine = pair.old.machine;
    let progress = ToPredecessor::Progress { text: "warming".into(), more_ms: Some(1) };
    let frame = encode(&progress).unwrap();
    machine.handle_frame(&frame, Received::default(), Time::ZERO);
    assert_eq!(std::iter::from_fn(|| machine.poll_event()).count(), 1);
    let before = machine.clone();

    for _ in 0..100_000 {
        machine.handle_frame(&frame, Received::default(), Time::ZERO);
        assert!(machine.poll_event().is_some());
        assert_eq!(machine.poll_event(), None);
    }

    assert_eq!(machine, before);
    assert_eq!(machine.poll_transmit(), None);
}

#[test]
fn mutated_frames_are_decoded_or_refused_and_what_is_decoded_can_be_written() {
    for seed in 0..20 * RUNS {
        let frame = any_frame(&mut Rng::new(seed));

        if let Ok(message) = decode::<ToPredecessor>(&frame) {
            let written = encode(&message).expect("no longer than what was read");
            assert_eq!(decode(&written), Ok(message));
        }
        if let Ok(message) = decode::<ToSuccessor>(&frame) {
            let written = encode(&message).expect("no longer than what was read");
            assert_eq!(decode(&written), Ok(message));
        }
        Preamble::decode(&frame);
    }
}

fn any_moment(rng: &mut Rng) -> Pair {
    let probation = rng.pick(&[None, Some(std::time::Duration::from_secs(30))]);
    let mut pair = Pair::new(Script { probation, ..Script::default() });
    for _ in 0..rng.below(steps_of_a_handover() + 1) {
        pair.step();
    }
    while pair.old.machine.poll_transmit().is_some() {}
    while pair.new.machine.poll_transmit().is_some() {}
    pair
}

fn any_time(rng: &mut Rng) -> Time {
    let milliseconds = match rng.below(10) {
        0 => rng.next(),
        _ => rng.next() % 20_000,
    };
    Time::from_origin(std::time::Duration::from_millis(milliseconds))
}

/// A message of version 1 as it is, changed a little, or something else altogether.
fn any_frame(rng: &mut Rng) -> Vec<u8> {
    let golden: Vec<_> = [
        include_str!("../golden/v1-to-predecessor.jsonl"),
        include_str!("../golden/v1-to-successor.jsonl"),
    ]
    .into_iter()
    .flat_map(str::lines)
    .collect();
    let mut frame = rng.pick(&golden).as_bytes().to_vec();
    match rng.below(8) {
        0..=2 => {}
        3 => {
            for _ in 0..=rng.below(3) {
                let position = rng.below(frame.len());
                frame[position] = rng.next() as u8;
            }
        }
        4 => frame.truncate(rng.below(frame.len())),
        5 => {
            let other = rng.pick(&golden).as_bytes();
            let position = rng.below(frame.len());
            frame.splice(position.., other[rng.below(other.len())..].iter().copied());
        }
        6 => {
            let number =
                rng.pick(&["-1", "0", "4294967296", "1e9", "18446744073709551616", "null"]);
            let text = String::from_utf8_lossy(&frame);
            frame = text.replacen(char::is_numeric, number, 1).into_bytes();
        }
        _ => frame = (0..rng.below(200)).map(|_| rng.next() as u8).collect(),
    }
    frame
}
