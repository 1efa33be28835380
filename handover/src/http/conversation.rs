//! What is known of a connection beside what hyper knows: where in the conversation it is.
//!
//! hyper does not tell whether it is between two requests, nor what it has read ahead. So what it reads
//! is paced here: of one request at a time, and not a byte of the next one before the answer has left.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Instant;

use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
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
    /// That many bytes of the body, and no more before the answer has left. None if nobody knows how many
    /// there are.
    Body(Option<u64>),
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
        match &mut state.reading {
            Reading::Freely | Reading::Body(None) => bytes.len(),
            Reading::Head(end) => {
                let admitted = end.find(bytes);
                if *end != HeadEnd::Before && state.head_since.is_none() {
                    state.head_since = Some(Instant::now());
                }
                if admitted.is_some() {
                    // Whoever reads on without having begun an answer has not found the end.
                    state.reading = Reading::Head(HeadEnd::Within);
                }
                admitted.unwrap_or(bytes.len())
            }
            Reading::Body(Some(left)) => {
                let admitted = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= admitted as u64;
                if *left == 0 && state.answering == 0 {
                    state.reading = Reading::Head(HeadEnd::Before);
                }
                admitted
            }
        }
    }

    /// Whether nothing may be read now. Then the reader is woken when that changes.
    pub(super) fn holds_back(&self, cx: &Context<'_>) -> bool {
        let mut state = self.state();
        let holds = state.reading == Reading::Body(Some(0));
        if holds {
            state.reader = Some(cx.waker().clone());
        }
        holds
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
        let is_upgrade = method == Method::CONNECT || request.headers().contains_key(UPGRADE);
        state.latest = Some((method, uri, Instant::now()));
        state.head_since = None;
        if state.is_http2 {
            return;
        }
        let headers = request.headers();
        let length = headers.get(CONTENT_LENGTH).map(|value| value.to_str().ok()?.parse().ok());
        state.reading = Reading::Body(match length {
            _ if is_upgrade || headers.contains_key(TRANSFER_ENCODING) => None,
            None => Some(0),
            Some(length) => length,
        });
    }

    /// An answer has been given to the last byte, or given up.
    pub(super) fn end_answer(&self) {
        let reader = {
            let mut state = self.state();
            state.answering = state.answering.saturating_sub(1);
            if state.answering == 0 && matches!(state.reading, Reading::Body(None | Some(0))) {
                state.reading = Reading::Head(HeadEnd::Before);
            }
            // What the answer ends with has not left.
            state.unflushed = true;
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
            None => f.write_str("without a request"),
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
}
