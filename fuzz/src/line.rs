//! The line to a process that drains.

use std::time::Duration;

use handover_proto::*;

use crate::script::{self, Step};

/// Feeds a line.
///
/// Calls: `i` inquire, `s` stop, `c` the other end is closed. Each frame is worth one event at most,
/// only calls make it speak, and what waits is one frame of a kind.
pub fn line(data: &[u8]) {
    let (_, steps) = script::read(data);
    let (mut line, mut is_full, mut is_closed, mut calls) = (Line::new(), false, false, 0);
    for step in steps {
        match step {
            Step::Frame { bytes, descriptors, truncated } => {
                let received = Received { descriptors: descriptors.unwrap_or(0), truncated };
                line.handle_frame(bytes, received);
                let events: Vec<_> = std::iter::from_fn(|| line.poll_event()).collect();
                assert!(events.len() <= usize::from(!is_closed));
                events.iter().for_each(is_bounded);
            }
            Step::Wait(_) => {}
            Step::Full(full) => is_full = full,
            Step::Call(b'i') => {
                line.inquire();
                calls += 1;
            }
            Step::Call(b's') => {
                line.stop(Some(Duration::MAX));
                calls += 1;
            }
            Step::Call(b'c') => {
                line.handle_closed();
                is_closed = true;
            }
            Step::Call(_) => {}
        }
        assert_eq!(line.poll_event(), None);
        if !is_full {
            let frames: Vec<_> = std::iter::from_fn(|| line.poll_transmit()).collect();
            assert!(frames.len() <= 2.min(calls));
            assert!(!is_closed || frames.is_empty());
            for frame in frames {
                let message: ToPredecessor = decode(&frame).expect("what is sent can be read");
                let is_expected =
                    matches!(message, ToPredecessor::Inquire { .. } | ToPredecessor::Stop { .. });
                assert!(is_expected, "{message:?}");
            }
            calls = 0;
        }
    }
}

fn is_bounded(event: &LineEvent) {
    if let LineEvent::Report(Report { version: Some(version), .. }) = event {
        assert!(version.len() <= MAX_TEXT_BYTES);
    }
}
