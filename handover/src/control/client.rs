//! The operator's end of the control socket.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Answer, Request};
use crate::sys::channel::receive_with_descriptor;
use crate::sys::peer::credentials;
use crate::sys::poll::wait_readable;

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// How much is read in one call.
const READ_BYTES: usize = 16 * 1024;

/// A connection to the process that serves, as it was when this was made.
///
/// When that process hands over it finishes what it was asked and closes the connection: connect
/// again to speak to the one that serves then.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: UnixStream,
    /// What has come and was not looked at yet.
    bytes: Vec<u8>,
    /// Up to where there is no end of a line in it.
    searched: usize,
    /// What came with it.
    descriptor: Option<OwnedFd>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`ClientError`] says what to check.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref().to_owned();
        match UnixStream::connect(&path) {
            Ok(stream) => {
                Ok(Self { path, stream, bytes: Vec::new(), searched: 0, descriptor: None })
            }
            Err(source) => Err(ClientError::Connect { path, source }),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// If the connection is of no use. That the service has closed it is told by the next answer.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let line = serde_json::to_vec(request).map_err(|e| self.io(e.into()))?;
        self.send_line(line)
    }

    /// Sends a command of the application's own: an object whose `request` is the command's name.
    ///
    /// # Errors
    ///
    /// If the connection is of no use. That the service has closed it is told by the next answer.
    pub fn send_command(&mut self, command: &Value) -> Result<(), ClientError> {
        self.send_line(command.to_string().into_bytes())
    }

    fn send_line(&mut self, mut line: Vec<u8>) -> Result<(), ClientError> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        line.push(b'\n');
        match self.stream.write_all(&line) {
            // It has said why before it closed: that is read next.
            Err(e) if matches!(e.kind(), BrokenPipe | ConnectionReset) => Ok(()),
            sent => sent.map_err(|source| self.io(source)),
        }
    }

    /// Waits for the next line; `None` when the service has closed the connection.
    ///
    /// # Errors
    ///
    /// If what comes is no answer.
    pub fn next_answer(&mut self) -> Result<Option<Answer>, ClientError> {
        self.next_answer_within(None)
    }

    /// The same, but waits no longer than that: [`ClientError::is_timeout`] then, and nothing is
    /// lost.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn next_answer_within(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<Answer>, ClientError> {
        let Some(line) = self.next_line_within(timeout)? else { return Ok(None) };
        match serde_json::from_slice(&line) {
            Ok(answer) => Ok(Some(answer)),
            Err(source) => Err(ClientError::Answer { path: self.path.clone(), source }),
        }
    }

    /// The same, but as it was received, without its newline: whatever a later version says is
    /// kept. It is an [`Answer`] in JSON, unless another program listens there.
    ///
    /// # Errors
    ///
    /// If the connection breaks.
    pub fn next_line_within(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        use io::ErrorKind::ConnectionReset;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut was_reset = false;
        loop {
            if let Some(line) = self.next_line() {
                return Ok(Some(line));
            }
            let stream = self.stream.as_fd();
            wait_readable(&[stream], deadline).map_err(|source| self.io(source))?;
            let mut buffer = [0; READ_BYTES];
            match receive_with_descriptor(stream, &mut buffer) {
                Ok((0, _)) if self.bytes.is_empty() => return Ok(None),
                Ok((0, _)) => return Err(self.io(io::ErrorKind::UnexpectedEof.into())),
                Ok((_, _)) if self.bytes.len() >= MAX_ANSWER_BYTES => {
                    return Err(self.io(io::ErrorKind::FileTooLarge.into()));
                }
                Ok((bytes, descriptor)) => {
                    self.bytes.extend_from_slice(&buffer[..bytes]);
                    self.descriptor = descriptor.or(self.descriptor.take());
                }
                // It has not read all that was sent. What it had to say comes after this word.
                Err(e) if e.kind() == ConnectionReset && !was_reset => was_reset = true,
                Err(e) if e.kind() == ConnectionReset && self.bytes.is_empty() => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if e.kind() == io::ErrorKind::WouldBlock
                        && deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
                Err(source) => return Err(self.io(source)),
            }
        }
    }

    /// Takes the descriptor that has come with [`Answer::Channel`], once that has.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// The user that had made the socket at the path.
    pub(super) fn maker(&self) -> Result<u32, ClientError> {
        match credentials(self.stream.as_fd()) {
            Ok(maker) => Ok(maker.uid),
            Err(source) => Err(self.io(source)),
        }
    }

    fn next_line(&mut self) -> Option<Vec<u8>> {
        let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let rest = self.bytes.split_off(self.searched + end + 1);
        self.searched = 0;
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        Some(line)
    }

    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io { path: self.path.clone(), source }
    }
}

/// Why the service could not be spoken to.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no service at that path, or it may not be spoken to.
    Connect {
        /// The path.
        path: PathBuf,
        /// What the kernel said (connect(2)).
        source: io::Error,
    },
    /// The connection broke.
    Io {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What came is no answer: it is another service's socket, perhaps.
    Answer {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl ClientError {
    /// Whether it is only that nothing has come in time.
    pub fn is_timeout(&self) -> bool {
        use io::ErrorKind::{TimedOut, WouldBlock};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), WouldBlock | TimedOut))
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Connect { path, source } => {
                let path = path.display();
                return match source.kind() {
                    io::ErrorKind::NotFound => write!(
                        f,
                        "there is no control socket at {path}: check the path, and that the \
                         service runs and was started with it"
                    ),
                    io::ErrorKind::ConnectionRefused => write!(
                        f,
                        "nobody listens at {path}: the service has ended, or it is another file"
                    ),
                    io::ErrorKind::PermissionDenied => write!(
                        f,
                        "you may not speak to {path}: only the service's own user and root may, \
                         and the group that the service names"
                    ),
                    _ => write!(f, "cannot connect to {path}"),
                };
            }
            Self::Io { path, .. } => ("the connection to", path, "broke"),
            Self::Answer { path, .. } => {
                ("what answers at", path, "is no handover service of this version")
            }
        };
        write!(f, "{} {} {}", what.0, what.1.display(), what.2)
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect { source, .. } | Self::Io { source, .. } => Some(source),
            Self::Answer { source, .. } => Some(source),
        }
    }
}
