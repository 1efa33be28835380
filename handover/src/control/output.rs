//! What a client has still to read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Answer, Event, TimedEvent};

/// The most that is kept for a client that reads too slowly, in bytes. Events that do not fit are
/// left out, and [`Event::Missed`] says later how many. The final answer of a request is kept in
/// any case.
pub const MAX_CONTROL_BACKLOG_BYTES: usize = 256 * 1024;

/// Lines on their way to a client.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: VecDeque<u8>,
    /// Goes with the byte that has so many before it.
    descriptor: Option<(usize, OwnedFd)>,
    missed: Option<Missed>,
}

/// Events that did not fit.
#[derive(Debug)]
struct Missed {
    events: u64,
    /// When the last one was.
    at_ms: u64,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds an event, or counts it as missed.
    pub(super) fn add_event(&mut self, event: &TimedEvent, line: &[u8]) {
        let missed = self.missed_line();
        let length = self.bytes.len() + missed.as_ref().map_or(0, Vec::len) + line.len();
        if length > MAX_CONTROL_BACKLOG_BYTES {
            let missed = self.missed.get_or_insert(Missed { events: 0, at_ms: 0 });
            missed.events += 1;
            missed.at_ms = event.at_ms;
            return;
        }
        self.missed = None;
        self.bytes.extend(missed.into_iter().flatten());
        self.bytes.extend(line);
    }

    /// Adds what there is room for in any case: the last line about a request.
    pub(super) fn add_final(&mut self, line: &[u8], descriptor: Option<OwnedFd>) {
        self.add_missed();
        self.descriptor = descriptor.map(|descriptor| (self.bytes.len(), descriptor));
        self.bytes.extend(line);
    }

    /// Says what was missed, if anything was.
    pub(super) fn add_missed(&mut self) {
        let line = self.missed_line();
        self.missed = None;
        self.bytes.extend(line.into_iter().flatten());
    }

    /// What is to be sent in one call, and the descriptor that goes with its first byte.
    pub(super) fn next(&self) -> (&[u8], Option<BorrowedFd<'_>>) {
        let (bytes, _) = self.bytes.as_slices();
        match &self.descriptor {
            Some((0, descriptor)) => (bytes, Some(descriptor.as_fd())),
            Some((before, _)) => (&bytes[..bytes.len().min(*before)], None),
            None => (bytes, None),
        }
    }

    /// So much was taken of it; a descriptor that went along is closed.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes.drain(..bytes);
        self.descriptor = match self.descriptor.take() {
            Some((before, descriptor)) if before > 0 => Some((before - bytes, descriptor)),
            _ => None,
        };
        if self.bytes.is_empty() {
            // A client that has read everything needs no memory.
            self.bytes = VecDeque::new();
        }
    }

    fn missed_line(&self) -> Option<Vec<u8>> {
        let Missed { events, at_ms } = *self.missed.as_ref()?;
        Some(line(&Answer::Event(TimedEvent { at_ms, event: Event::Missed { events } })))
    }
}

/// An answer as it goes out.
pub(super) fn line(answer: &Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_else(|error| {
        // There is no value of these types that cannot be written.
        tracing::error!(%error, "an answer cannot be written");
        br#"{"type":"error","code":"failed","message":"the answer cannot be written"}"#.to_vec()
    });
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use super::*;

    fn event(at_ms: u64) -> TimedEvent {
        TimedEvent { at_ms, event: Event::Ready { generation: 1 } }
    }

    fn written(output: &mut Output) -> Vec<Answer> {
        let mut text = Vec::new();
        while !output.is_empty() {
            let (bytes, _) = output.next();
            // As a socket does that is nearly full.
            let taken = bytes.len().min(1000);
            text.extend_from_slice(&bytes[..taken]);
            output.sent(taken);
        }
        let text = String::from_utf8(text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_not_is_counted() {
        let mut output = Output::default();
        let line = [b'x'; 1000];
        for at_ms in 0..1000 {
            output.add_event(&event(at_ms), &line);
            assert!(output.bytes.len() <= MAX_CONTROL_BACKLOG_BYTES);
        }
        let missed = output.missed.as_ref().unwrap();
        assert_eq!((missed.events, missed.at_ms), (1000 - 262, 999));
        let final_line = super::line(&Answer::Done { message: "m".into() });
        output.bytes.clear();
        output.add_final(&final_line, None);
        let missed = TimedEvent { at_ms: 999, event: Event::Missed { events: 738 } };
        let expected = [Answer::Event(missed), Answer::Done { message: "m".into() }];
        assert_eq!(written(&mut output), expected);
    }

    #[test]
    fn what_was_missed_is_told_where_it_was() {
        let mut output = Output::default();
        let first = line(&Answer::Event(event(1)));
        let fits = MAX_CONTROL_BACKLOG_BYTES / first.len();
        for _ in 0..fits + 5 {
            output.add_event(&event(1), &first);
        }
        output.sent(first.len() * 10);
        output.add_event(&event(2), &line(&Answer::Event(event(2))));
        let told = written(&mut output);
        let missed = Event::Missed { events: 5 };
        let last = &told[told.len() - 2..];
        let expected = [TimedEvent { at_ms: 1, event: missed }, event(2)].map(Answer::Event);
        assert_eq!(last, expected);
    }

    #[test]
    fn a_descriptor_goes_with_the_first_byte_of_its_line() {
        let mut output = Output::default();
        output.add_event(&event(1), b"first\n");
        let (mut reader, writer) = pipe().unwrap();
        output.add_final(b"second\n", Some(writer.into()));
        assert!(matches!(output.next(), (b"first\n", None)));
        output.sent(2);
        assert!(matches!(output.next(), (b"rst\n", None)));
        output.sent(4);
        assert!(matches!(output.next(), (b"second\n", Some(_))));
        output.sent(1);
        assert!(matches!(output.next(), (b"econd\n", None)));
        let end = std::io::Read::read(&mut reader, &mut [0; 1]).unwrap();
        assert_eq!(end, 0, "it is closed as soon as it is sent");
    }
}
