//! One client: what it is doing, what it sends, and what it has still to read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::output::{self, Output};
use super::permission::Peer;
use super::request::{self, Asked, BadRequest, Input, TooLong};
use super::{Answer, ErrorCode, MAX_REQUEST_BYTES, TimedEvent};
use crate::sys;
use crate::sys::poll::{Interest, Poller, Readiness};
use crate::sys::process::Process;

/// How long a client may take to send a whole request, from when it connected or had read the
/// answer to the one before. Then it is told so, and the connection is closed.
pub const CONTROL_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to read the final answer of its request. Then the connection is
/// closed.
pub const CONTROL_WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client that was told to go may take to do so. It is listened to for so long, without
/// being heard, since one that still writes would else learn of a broken pipe and not why.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much of what a client sends is read in one call, and how often in one step at most.
const READ_BYTES: usize = 16 * 1024;
const READS_PER_STEP: usize = 4;

/// How long to wait when too many descriptors of this user are in flight: nothing tells when that
/// is over.
const QUOTA_PAUSE: Duration = Duration::from_millis(50);

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: OwnedFd,
    pub(super) peer: Peer,
    poller: Arc<Poller>,
    registered: Interest,
    input: Input,
    /// It sends no more, and may still read.
    ended: bool,
    output: Output,
    /// When to try again to send.
    retry: Option<Instant>,
    phase: Phase,
    /// Whether it gets events.
    pub(super) follows: bool,
}

/// What a client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It may ask.
    Idle { since: Instant },
    /// Its request is under way.
    Busy,
    /// The final answer is on its way to it.
    Answered { since: Instant },
    /// It was told why it has to go; what it sends goes nowhere.
    Leaving { since: Instant },
    /// It is gone. `orphaned` says that its request is still under way.
    Over { orphaned: bool },
}

impl Connection {
    /// Begins to listen to a client.
    pub(super) fn new(
        stream: OwnedFd,
        peer: Peer,
        poller: &Arc<Poller>,
        now: Instant,
    ) -> io::Result<Self> {
        let registered = Interest::Read;
        poller.add(&stream, registered)?;
        Ok(Self {
            stream,
            peer,
            poller: Arc::clone(poller),
            registered,
            input: Input::default(),
            ended: false,
            output: Output::default(),
            retry: None,
            phase: Phase::Idle { since: now },
            follows: false,
        })
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Does what it is ready for; its next request, if it has sent one.
    pub(super) fn step(&mut self, ready: Readiness, now: Instant) -> Option<Asked> {
        let asked = match self.phase {
            Phase::Idle { since } => self.listen(ready, since, now),
            Phase::Busy if ready.hung_up => {
                self.end();
                None
            }
            Phase::Busy => {
                self.flush_if(ready, now);
                None
            }
            Phase::Answered { since } => {
                self.flush_if(ready, now);
                if self.is_late(since, CONTROL_WRITE_TIMEOUT, now) {
                    tracing::debug!(peer = %self.peer, "a control client does not read its answer");
                    self.end();
                }
                None
            }
            Phase::Leaving { since } => {
                self.flush_if(ready, now);
                self.discard(ready);
                if self.is_late(since, LEAVE_TIMEOUT, now) {
                    self.end();
                }
                None
            }
            Phase::Over { .. } => None,
        };
        self.register();
        asked
    }

    /// Sends an answer to its request; one that is no event ends that.
    pub(super) fn answer(&mut self, answer: &Answer, descriptor: Option<OwnedFd>, now: Instant) {
        if self.phase != Phase::Busy {
            return;
        }
        if let Answer::Event(event) = answer {
            return self.tell(event, &output::line(answer), now);
        }
        self.follows = false;
        self.output.add_final(&output::line(answer), descriptor);
        self.phase = Phase::Answered { since: now };
        self.flush(now);
        self.register();
    }

    /// Sends an event, as a line.
    pub(super) fn tell(&mut self, event: &TimedEvent, line: &[u8], now: Instant) {
        if self.phase == Phase::Busy {
            self.output.add_event(event, line);
            self.flush(now);
            self.register();
        }
    }

    /// Has it go, and says why, if it waits for a request of it. One that sends no more is done.
    pub(super) fn dismiss_idle(&mut self, code: ErrorCode, message: &str, now: Instant) {
        if !matches!(self.phase, Phase::Idle { .. }) {
            return;
        }
        if !self.input.is_due(self.ended) {
            self.read();
        }
        if self.ended && self.input.next_line(true) == Ok(None) {
            self.end();
            return self.register();
        }
        self.dismiss(code, message.into(), now);
    }

    /// Has it go, and says why.
    pub(super) fn dismiss(&mut self, code: ErrorCode, message: String, now: Instant) {
        self.phase = Phase::Leaving { since: now };
        self.follows = false;
        self.input.clear();
        self.output.add_final(&output::line(&Answer::Error { code, message }), None);
        self.flush(now);
        self.register();
    }

    /// When it has to be looked at although nothing comes; whenever that is, if it is at once.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let timeout = match self.phase {
            Phase::Idle { since } if self.input.is_due(self.ended) => Some(since),
            Phase::Idle { since } => since.checked_add(CONTROL_REQUEST_TIMEOUT),
            Phase::Busy => None,
            Phase::Answered { since } => since.checked_add(CONTROL_WRITE_TIMEOUT),
            Phase::Leaving { since } => since.checked_add(LEAVE_TIMEOUT),
            Phase::Over { .. } => Some(Instant::now()),
        };
        timeout.into_iter().chain(self.retry).min()
    }

    /// The process that it is.
    pub(super) fn process(&self) -> io::Result<Process> {
        sys::peer::process(self.stream.as_fd())
    }

    fn listen(&mut self, ready: Readiness, since: Instant, now: Instant) -> Option<Asked> {
        if ready.readable && !self.input.is_due(self.ended) {
            self.read();
        }
        match self.input.next_line(self.ended) {
            Ok(Some(line)) => {
                self.phase = Phase::Busy;
                match request::read(&line) {
                    Ok(asked) => return Some(asked),
                    Err(BadRequest { message }) => {
                        let code = ErrorCode::BadRequest;
                        self.answer(&Answer::Error { code, message }, None, now);
                    }
                }
            }
            Ok(None) if self.ended => self.end(),
            Ok(None) if self.is_late(since, CONTROL_REQUEST_TIMEOUT, now) => {
                let seconds = CONTROL_REQUEST_TIMEOUT.as_secs();
                let message = format!("no request has come for {seconds} s: connect again to ask");
                self.dismiss(ErrorCode::BadRequest, message, now);
            }
            Ok(None) => {}
            Err(TooLong) => {
                let message = format!("a line may have {MAX_REQUEST_BYTES} bytes");
                self.dismiss(ErrorCode::TooLong, message, now);
            }
        }
        None
    }

    /// Reads what there is room for.
    fn read(&mut self) {
        let mut buffer = [0; READ_BYTES];
        while !self.ended && !self.input.is_due(false) {
            let room = self.input.room().min(READ_BYTES);
            match sys::file::read_available(&self.stream, &mut buffer[..room]) {
                Ok(Some(0)) | Err(_) => self.ended = true,
                Ok(Some(bytes)) => self.input.add(&buffer[..bytes]),
                Ok(None) => return,
            }
        }
    }

    fn discard(&mut self, ready: Readiness) {
        let mut buffer = [0; READ_BYTES];
        for _ in 0..READS_PER_STEP {
            if !ready.readable || matches!(self.phase, Phase::Over { .. }) {
                return;
            }
            match sys::file::read_available(&self.stream, &mut buffer) {
                Ok(Some(0)) if !self.output.is_empty() => {
                    self.ended = true;
                    return;
                }
                Ok(Some(0)) | Err(_) => self.end(),
                Ok(Some(_)) => {}
                Ok(None) => return,
            }
        }
    }

    fn flush_if(&mut self, ready: Readiness, now: Instant) {
        let is_time = self.retry.is_none_or(|at| at <= now);
        if is_time && (ready.writable || ready.hung_up) {
            self.flush(now);
        }
    }

    /// Sends what is taken.
    fn flush(&mut self, now: Instant) {
        self.retry = None;
        while !self.output.is_empty() {
            let (bytes, descriptor) = self.output.next();
            match sys::socket::send(self.stream.as_fd(), bytes, descriptor) {
                Ok(sent) => self.output.sent(sent),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                    self.retry = now.checked_add(QUOTA_PAUSE);
                    return;
                }
                // It does not read any more.
                Err(_) => return self.end(),
            }
            if self.output.is_empty() {
                // There is room again.
                self.output.add_missed();
            }
        }
        match self.phase {
            Phase::Answered { .. } => self.phase = Phase::Idle { since: now },
            Phase::Leaving { .. } => {
                // It fails if the other end is gone, which is noticed elsewhere.
                let _ = SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
            }
            Phase::Idle { .. } | Phase::Busy | Phase::Over { .. } => {}
        }
    }

    fn end(&mut self) {
        let orphaned = self.phase == Phase::Busy;
        self.phase = Phase::Over { orphaned };
        self.follows = false;
    }

    /// Has the poller tell of what can be gone on with, and of nothing else: it tells for as long
    /// as it lasts.
    fn register(&mut self) {
        let writes = !self.output.is_empty() && self.retry.is_none();
        let interest = match self.phase {
            Phase::Idle { .. } if !self.input.is_due(self.ended) => Interest::Read,
            Phase::Busy | Phase::Answered { .. } if writes => Interest::Write,
            Phase::Leaving { .. } if writes && self.ended => Interest::Write,
            Phase::Leaving { .. } if writes => Interest::ReadWrite,
            Phase::Leaving { .. } => Interest::Read,
            Phase::Idle { .. } | Phase::Busy | Phase::Answered { .. } | Phase::Over { .. } => {
                Interest::HangUp
            }
        };
        if interest == self.registered {
            return;
        }
        match self.poller.modify(&self.stream, interest) {
            Ok(()) => self.registered = interest,
            Err(error) => {
                tracing::warn!(%error, "a control client cannot be waited for");
                self.end();
            }
        }
    }

    fn is_late(&self, since: Instant, timeout: Duration, now: Instant) -> bool {
        now.saturating_duration_since(since) >= timeout
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.poller.remove(&self.stream);
    }
}
