//! What is known of a connection beside what hyper knows: where in the conversation it is.
//!
//! hyper does not tell whether it is between two requests, nor what it has read ahead. So what it reads
//! is paced here: of one request at a time, and not a byte of the next one before the answer has left.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use hyper::{Method, Request, Uri};

use crate::drain::Describe;

/// Where a connection is; shared by its stream, its service and its driver.
#[derive(Debug)]
pub(super) struct Conversation {
    peer: String,
    since: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    reading: Reading,
    /// When the first byte came of a head that is not complete.
    head_since: Option<Instant>,
    /// How many requests are being answered.
    answering: usize,
    /// The latest of them.
    latest: Option<(Method, Uri, Instant)>,
    /// Something was written that may not have left.
    unflushed: bool,
    /// Something has come that belongs to a later request.
    input_waits: bool,
    /// Who wants to read what is held back.
    reader: Option<Waker>,
    /// Since when nothing is asked; counts while nothing is.
    quiet_since: Instant,
    /// It cannot change hands.
    stays: bool,
    is_upgraded: bool,
    is_http2: bool,
}

/// What of the bytes that come may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Everything.
    Freely,
    /// Up to the end of the head.
    Head(HeadEnd),
    /// That many bytes of the body, and no more before the answer has left.
    Body(u64),
    /// A body in chunks up to its end, and no more before the answer has left.
    Chunked(Chunks),
}

impl Reading {
    /// The request is here to its last byte.
    const WHOLE: Self = Self::Body(0);
}

/// How much of the end of a head has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HeadEnd {
    /// Nothing of the head but empty lines, which may come before it.
    #[default]
    Before,
    Within,
    /// A line has ended.
    Line,
    /// A line has ended, and a carriage return came.
    Return,
}

impl HeadEnd {
    /// Reads on; returns how many bytes belong to the head, if it ends here.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            *self = match (*self, byte) {
                (Self::Before, b'\r' | b'\n') => Self::Before,
                (Self::Line | Self::Return, b'\n') => return Some(index + 1),
                (_, b'\n') => Self::Line,
                (Self::Line, b'\r') => Self::Return,
                _ => Self::Within,
            };
        }
        None
    }
}

/// How much of a body in chunks has been seen (RFC 9112, 7.1). Only where it ends is of interest; whether it is
/// valid, hyper finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunks {
    /// The digits of a length.
    Length(u64),
    /// What follows them in the line.
    Extension(u64),
    /// That many bytes of data.
    Data(u64),
    /// The end of the line after them.
    DataEnd,
    /// What comes after the last chunk, to an empty line.
    Trailer(HeadEnd),
}

impl Chunks {
    /// Reads on; returns how many bytes belong to the body, if it ends here.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match self {
                Self::Data(left) => {
                    let rest = (bytes.len() - at) as u64;
                    let data = rest.min(*left);
                    *left -= data;
                    at = usize::try_from(data).map_or(bytes.len(), |data| at + data);
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    continue;
                }
                Self::Trailer(end) => return end.find(&bytes[at..]).map(|length| at + length),
                Self::DataEnd if *byte == b'\n' => *self = Self::Length(0),
                Self::DataEnd => {}
                Self::Length(0) | Self::Extension(0) if *byte == b'\n' => {
                    *self = Self::Trailer(HeadEnd::Line);
                }
                Self::Length(length) | Self::Extension(length) if *byte == b'\n' => {
                    *self = Self::Data(*length);
                }
                Self::Extension(_) => {}
                Self::Length(length) => {
                    *self = match char::from(*byte).to_digit(16) {
                        Some(digit) => {
                            Self::Length(length.saturating_mul(16).saturating_add(digit.into()))
                        }
                        None => Self::Extension(*length),
                    };
                }
            }
            at += 1;
        }
        None
    }
}

impl Conversation {
    pub(super) fn new(peer: String, since: Instant) -> Arc<Self> {
        let state = State {
            reading: Reading::Freely,
            head_since: None,
            answering: 0,
            latest: None,
            unflushed: false,
            input_waits: false,
            reader: None,
            quiet_since: since,
            stays: false,
            is_upgraded: false,
            is_http2: false,
        };
        Arc::new(Self { peer, since, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// HTTP/1 is spoken, from the beginning of a request on.
    pub(super) fn begin_http1(&self) {
        let mut state = self.state();
        state.reading = Reading::Head(HeadEnd::Before);
        state.head_since = None;
    }

    /// What may be read.
    pub(super) fn reading(&self) -> Reading {
        self.state().reading
    }

    /// How many of the bytes that have come may be read.
    pub(super) fn admit(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let end = match &mut state.reading {
            Reading::Freely => return bytes.len(),
            Reading::Head(end) => {
                let admitted = end.find(bytes);
                if *end != HeadEnd::Before && state.head_since.is_none() {
                    state.head_since = Some(Instant::now());
                }
                if admitted.is_some() {
                    // Whoever reads on without having begun an answer has not found the end.
                    state.reading = Reading::Head(HeadEnd::Within);
                }
                return admitted.unwrap_or(bytes.len());
            }
            Reading::Body(left) => {
                let admitted = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= admitted as u64;
                (*left == 0).then_some(admitted)
            }
            Reading::Chunked(chunks) => chunks.find(bytes),
        };
        let Some(admitted) = end else { return bytes.len() };
        state.reading = Reading::WHOLE;
        state.next_head();
        admitted
    }

    /// Whether nothing may be read now. Then the reader is woken when that changes.
    pub(super) fn holds_back(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state();
        let holds = state.reading == Reading::WHOLE;
        if holds {
            state.reader = Some(cx.waker().clone());
        }
        holds
    }

    /// Whether what comes next is the beginning of a request.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state().reading, Reading::WHOLE | Reading::Head(HeadEnd::Before))
    }

    /// Whether something has come that belongs to a later request.
    pub(super) fn set_input_waits(&self, waits: bool) {
        self.state().input_waits = waits;
    }

    pub(super) fn set_unflushed(&self, unflushed: bool) {
        self.state().unflushed = unflushed;
    }

    /// A request has come.
    pub(super) fn begin_answer<B>(&self, request: &Request<B>) {
        let mut state = self.state();
        state.answering += 1;
        let (method, uri) = (request.method().clone(), request.uri().clone());
        state.latest = Some((method, uri, Instant::now()));
        state.head_since = None;
        if state.is_http2 {
            return;
        }
        // hyper has found them to be in order. What comes after an upgrade waits until it is agreed to.
        let headers = request.headers();
        let length =
            headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        state.reading = if headers.contains_key(TRANSFER_ENCODING) {
            Reading::Chunked(Chunks::Length(0))
        } else {
            Reading::Body(length.unwrap_or(0))
        };
    }

    /// An answer has been given to the last byte, or given up.
    pub(super) fn end_answer(&self) {
        let reader = {
            let mut state = self.state();
            state.answering = state.answering.saturating_sub(1);
            state.next_head();
            // What the answer ends with has not left.
            state.unflushed = true;
            state.quiet_since = Instant::now();
            state.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }

    /// The connection is not HTTP any more, or is about not to be.
    pub(super) fn upgrade(&self) {
        let reader = {
            let mut state = self.state();
            state.is_upgraded = true;
            state.reading = Reading::Freely;
            state.reader.take()
        };
        reader.into_iter().for_each(Waker::wake);
    }

    /// HTTP/2 is spoken.
    pub(super) fn begin_http2(&self) {
        self.state().is_http2 = true;
    }

    /// Whether the stream is the end of whoever has it, and not its driver's to go on with.
    pub(super) fn is_given_up(&self) -> bool {
        let state = self.state();
        state.is_upgraded || state.is_http2
    }

    /// Whether more requests have come than are answered.
    pub(super) fn input_waits(&self) -> bool {
        self.state().input_waits
    }

    /// How many requests are being answered.
    pub(super) fn answering(&self) -> usize {
        self.state().answering
    }

    /// Since when nothing is asked, if nothing is.
    pub(super) fn quiet_since(&self) -> Instant {
        self.state().quiet_since
    }

    /// It cannot change hands.
    pub(super) fn stay(&self) {
        self.state().stays = true;
    }

    /// Whether it cannot change hands.
    pub(super) fn stays(&self) -> bool {
        self.state().stays
    }

    /// Whether it is between two requests, as far as is known here.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state();
        state.answering == 0
            && !state.unflushed
            && state.head_since.is_none()
            && !state.is_upgraded
            && matches!(state.reading, Reading::Head(_))
    }

    /// Since when a head is being read.
    pub(super) fn head_since(&self) -> Option<Instant> {
        self.state().head_since
    }
}

impl State {
    /// Has the head of the next request read, if this one is over.
    fn next_head(&mut self) {
        if self.answering == 0 && self.reading == Reading::WHOLE {
            self.reading = Reading::Head(HeadEnd::Before);
        }
    }
}

impl Describe for Conversation {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "{}, {:.1} s old, ", self.peer, self.since.elapsed().as_secs_f64())?;
        match &state.latest {
            Some((method, uri, since)) if state.answering > 0 => {
                let path = uri.path();
                if state.answering > 1 {
                    write!(f, "{} requests, the latest: ", state.answering)?;
                }
                write!(f, "{method} {path} for {:.1} s", since.elapsed().as_secs_f64())
            }
            Some((method, uri, _)) if state.is_upgraded => {
                write!(f, "upgraded by {method} {}", uri.path())
            }
            _ if state.head_since.is_some() => f.write_str("in the middle of a request's head"),
            Some(_) => f.write_str("idle"),
            None => f.write_str("before its first request"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(pieces: &[&str]) -> Option<usize> {
        let mut end = HeadEnd::default();
        let mut before = 0;
        for piece in pieces {
            if let Some(found) = end.find(piece.as_bytes()) {
                return Some(before + found);
            }
            before += piece.len();
        }
        None
    }

    #[test]
    fn the_end_of_a_head_is_its_first_empty_line() {
        for head in ["GET / HTTP/1.1\r\nA: b\r\n\r\n", "GET / HTTP/1.1\n\n", "\r\n\nGET /\r\n\n"] {
            let whole = format!("{head}GET /next");
            assert_eq!(end(&[&whole]), Some(head.len()), "{head:?}");
            for cut in 1..head.len() {
                assert_eq!(
                    end(&[&whole[..cut], &whole[cut..]]),
                    Some(head.len()),
                    "{head:?} {cut}"
                );
            }
            assert_eq!(end(&[&head[..head.len() - 1]]), None);
        }
        assert_eq!(end(&["\r\n\r\n\r\n"]), None, "no head has begun");
        assert_eq!(end(&["GET /\r\nA:\rb\r\n"]), None);
    }

    #[test]
    fn the_end_of_chunks_is_the_empty_line_after_the_last_one() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "00a;name=\"0\"\r\n0\r\n\r\n0\r\n\r\n\r\n000;x\r\n\r\n",
            "1 \r\n\n\r\n0\r\nTrailer: 0\r\nOther:\r\n\r\n",
        ] {
            let whole = format!("{body}GET /next");
            for cut in 0..body.len() {
                let mut chunks = Chunks::Length(0);
                let (first, second) = whole.split_at(cut);
                assert_eq!(chunks.find(first.as_bytes()), None, "{body:?} {cut}");
                assert_eq!(
                    chunks.find(second.as_bytes()),
                    Some(body.len() - cut),
                    "{body:?} {cut}"
                );
            }
        }
    }
}
