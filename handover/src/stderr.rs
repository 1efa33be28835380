//! The successor's stderr while it starts: shown where stderr goes, and remembered.
//!
//! It is a pipe to the predecessor until the successor serves. Then the successor puts the real
//! one in its place.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::sys::file::{self, Identity};
use crate::sys::poll::{Interest, Poller, is_writable, wait_hang_up};

/// How many lines a verdict shows.
const MAX_LINES: usize = 20;

/// How long a line in it may be.
const MAX_LINE_BYTES: usize = 1024;

/// How much is passed on before everything else gets its turn.
const MAX_READS: usize = 16;

/// The predecessor's end.
#[derive(Debug)]
pub(crate) struct Relay {
    reader: Option<OwnedFd>,
    /// Read, but not taken by our own stderr yet.
    pending: Vec<u8>,
    lines: VecDeque<Vec<u8>>,
    /// The line that is not at its end.
    line: Vec<u8>,
    waits: Waiting,
    /// What stands for our own stderr while that is waited for: the application may put another one in
    /// its place meanwhile.
    output: Option<OwnedFd>,
}

/// What the relay waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// For the successor to write.
    ForInput,
    /// For our own stderr to take more.
    ForOutput,
    /// For nothing any more.
    Finished,
}

impl Relay {
    pub(crate) fn new(reader: OwnedFd) -> Self {
        let (pending, lines, line) = (Vec::new(), VecDeque::new(), Vec::new());
        let waits = Waiting::ForInput;
        Self { reader: Some(reader), pending, lines, line, waits, output: None }
    }

    /// Has the poller tell when there is something to pass on.
    pub(crate) fn register(&self, poller: &Poller) -> io::Result<()> {
        match &self.reader {
            Some(reader) => poller.add(reader, Interest::Read),
            None => Ok(()),
        }
    }

    /// Takes everything out of the poller that outlives the relay.
    pub(crate) fn detach(&mut self, poller: &Poller) {
        if let Some(output) = self.output.take() {
            poller.remove(output);
        }
    }

    /// Passes on what there is, without blocking, and has the poller tell when there is more to do.
    pub(crate) fn step(&mut self, poller: &Poller) {
        if self.waits == Waiting::Finished {
            return;
        }
        // Closing the pipe takes it out of the poller as well: nobody else has this end.
        let waits = self.pump();
        if waits == std::mem::replace(&mut self.waits, waits) {
            return;
        }
        self.detach(poller);
        let watched = match waits {
            Waiting::ForInput => self.register(poller),
            Waiting::ForOutput => {
                // Not watched for its end either, which the poller would tell of all the time.
                if let Some(reader) = &self.reader {
                    poller.remove(reader);
                }
                self.output = file::stderr().try_clone_to_owned().ok();
                if let Some(output) = &self.output {
                    // A file is always writable, and never waited for.
                    let _ = poller.add(output, Interest::Write);
                }
                Ok(())
            }
            Waiting::Finished => Ok(()),
        };
        if let Err(error) = watched {
            tracing::warn!(%error, "the successor's stderr is not watched any more");
        }
    }

    /// Remembers what is left in the pipe of a process that has ended, even if our own stderr does not
    /// take it.
    pub(crate) fn finish(&mut self) {
        self.pump();
        let mut buffer = [0; 4096];
        // As much as a pipe holds. Others may have it still, and go on writing.
        for _ in 0..MAX_READS {
            let Some(reader) = &self.reader else { break };
            match file::read_available(reader, &mut buffer) {
                Ok(Some(bytes)) if bytes > 0 => {
                    self.remember(&buffer[..bytes]);
                    self.pending.extend_from_slice(&buffer[..bytes]);
                }
                _ => break,
            }
        }
        self.pass_on();
    }

    fn pump(&mut self) -> Waiting {
        let mut buffer = [0; 4096];
        for _ in 0..MAX_READS {
            if !self.pass_on() {
                return Waiting::ForOutput;
            }
            let Some(reader) = &self.reader else { return Waiting::Finished };
            match file::read_available(reader, &mut buffer) {
                Ok(Some(0)) | Err(_) => {
                    self.reader = None;
                    return Waiting::Finished;
                }
                Ok(Some(bytes)) => {
                    self.remember(&buffer[..bytes]);
                    self.pending.extend_from_slice(&buffer[..bytes]);
                }
                Ok(None) => return Waiting::ForInput,
            }
        }
        if self.pass_on() { Waiting::ForInput } else { Waiting::ForOutput }
    }

    /// The last lines.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        let unfinished = (!self.line.is_empty()).then_some(&self.line);
        self.lines
            .iter()
            .chain(unfinished)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect()
    }

    /// Returns whether everything is passed on.
    fn pass_on(&mut self) -> bool {
        while !self.pending.is_empty() {
            if !is_writable(file::stderr()) {
                return false;
            }
            // pipe(7): up to PIPE_BUF (4096) bytes go into a writable pipe without blocking.
            let bytes = self.pending.len().min(4096);
            match file::write(file::stderr(), &self.pending[..bytes]) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Nobody reads our stderr: there is nobody to show it to.
                Err(_) => self.pending.clear(),
            }
        }
        true
    }

    fn remember(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() < MAX_LINE_BYTES {
                    self.line.push(*byte);
                }
                continue;
            }
            if self.lines.len() == MAX_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(std::mem::take(&mut self.line));
        }
    }
}

/// The successor's end: puts the real stderr back when it serves, and keeps the pipe from losing its
/// reader before.
///
/// The application writes to stderr whenever it likes, a pipe without a reader would end it, and a
/// write may be under way at any moment. So a thread reads the pipe in the predecessor's place once
/// that is gone, until nobody can write to it any more.
#[derive(Debug)]
pub(crate) struct Substitute {
    real: Arc<OwnedFd>,
    /// Of the pipe.
    identity: Identity,
}

impl Substitute {
    /// `channel` is only waited on for its end.
    pub(crate) fn new(real: OwnedFd, channel: OwnedFd) -> io::Result<Self> {
        let real = Arc::new(real);
        Self::guard(&real, channel)
            .map(|identity| Self { real: Arc::clone(&real), identity })
            .or_else(|error| {
                // Better not remembered than lost.
                file::replace_stderr(&real)?;
                Err(error)
            })
    }

    fn guard(real: &Arc<OwnedFd>, channel: OwnedFd) -> io::Result<Identity> {
        // From here on the pipe has a reader in this process, too.
        let reader = OwnedFd::from(std::fs::File::open("/proc/self/fd/2")?);
        let identity = Identity::of_fd(&reader)?;
        let real = Arc::clone(real);
        let guard = move || {
            if wait_hang_up(channel.as_fd(), reader.as_fd()).is_ok_and(|gone| gone) {
                drop(channel);
                // If the real one cannot be written to, there is nowhere to say so; the pipe is
                // read all the same.
                let _ = io::copy(&mut std::fs::File::from(reader), &mut Real(&real));
            }
        };
        std::thread::Builder::new()
            .name("handover-stderr".into())
            .stack_size(64 * 1024)
            .spawn(guard)?;
        Ok(identity)
    }

    /// Puts the real stderr in place, unless the application has put another one there.
    pub(crate) fn end(self) -> io::Result<()> {
        if Identity::of_fd(file::stderr())? == self.identity {
            file::replace_stderr(&self.real)?;
        }
        Ok(())
    }
}

/// The real stderr. Takes everything, as there is nobody to tell if it does not.
struct Real<'a>(&'a OwnedFd);

impl io::Write for Real<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match file::write(self.0, bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(_) => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
