//! What a service prints, line by line.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{error, fmt, thread};

use crate::deadline::left;

/// Where a line was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line that a service printed, in whatever generation.
#[derive(Clone, Debug)]
pub struct Line {
    /// Where it was printed.
    pub stream: Stream,
    /// The line without its end; what is not UTF-8 is replaced.
    pub text: String,
    /// When it was read.
    pub read_at: Instant,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = match self.stream {
            Stream::Stdout => "out",
            Stream::Stderr => "err",
        };
        write!(f, "{stream}| {}", self.text)
    }
}

/// The line that was waited for did not come. Shows everything that was printed.
#[derive(Clone)]
pub struct NoSuchLine {
    /// Whether it can come no more, because no process of the service is left to print it; else
    /// the deadline has passed.
    pub ended: bool,
    /// Everything printed since the start of the service.
    pub printed: Vec<Line>,
}

impl fmt::Display for NoSuchLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.ended { "the service has ended" } else { "the deadline has passed" };
        write!(f, "{why} without the line; printed so far:")?;
        show(&self.printed, f)
    }
}

// For `unwrap` and `expect`, which show nothing else.
impl fmt::Debug for NoSuchLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for NoSuchLine {}

/// Writes each line on a line of its own.
pub(crate) fn show(lines: &[Line], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if lines.is_empty() {
        write!(f, " nothing")?;
    }
    lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
}

/// The lines of one service, filled by a thread per pipe until its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: Vec<Line>,
    /// How many pipes are read still.
    open: usize,
}

impl Log {
    /// Reads `pipe` in a thread until its end.
    pub(crate) fn follow(&self, stream: Stream, pipe: impl Read + Send + 'static) {
        self.state().open += 1;
        let log = self.clone();
        let body = move || {
            log.fill(stream, pipe);
            log.state().open -= 1;
            log.shared.changed.notify_all();
        };
        thread::Builder::new().name(format!("{stream:?}")).spawn(body).expect("a thread starts");
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.state().lines.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.state().lines.len()
    }

    /// Waits for a line with `matches`, the first `skip` lines left aside.
    pub(crate) fn wait_line(
        &self,
        skip: usize,
        mut matches: impl FnMut(&str) -> bool,
        deadline: Instant,
    ) -> Result<String, NoSuchLine> {
        let mut state = self.state();
        let mut seen = skip;
        loop {
            if let Some(line) = state.lines.iter().skip(seen).find(|line| matches(&line.text)) {
                return Ok(line.text.clone());
            }
            seen = seen.max(state.lines.len());
            let ended = state.open == 0;
            if ended || left(deadline).is_zero() {
                return Err(NoSuchLine { ended, printed: state.lines.clone() });
            }
            state = self.changed(state, deadline);
        }
    }

    /// Waits for the end of all pipes; false if it has not come by `deadline`.
    pub(crate) fn wait_end(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        while state.open > 0 && !left(deadline).is_zero() {
            state = self.changed(state, deadline);
        }
        state.open == 0
    }

    fn fill(&self, stream: Stream, pipe: impl Read) {
        let mut pipe = BufReader::new(pipe);
        let mut bytes = Vec::new();
        // An error is taken for the end: a pipe has none but those of the reader's own making.
        while pipe.read_until(b'\n', &mut bytes).unwrap_or(0) > 0 {
            let text = String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
            let line = Line { stream, text: text.into_owned(), read_at: Instant::now() };
            self.state().lines.push(line);
            self.shared.changed.notify_all();
            bytes.clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        // The predicates of tests run under this lock and may panic, and the lines are whole.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed<'a>(
        &'a self,
        state: MutexGuard<'a, LogState>,
        deadline: Instant,
    ) -> MutexGuard<'a, LogState> {
        let waited = self.shared.changed.wait_timeout(state, left(deadline));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
