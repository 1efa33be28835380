//! The operator's end of the control socket.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Answer, Request};

/// The longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// A connection to the process that serves, as it was when this was made.
///
/// When that process hands over it finishes what it was asked and closes the connection: connect
/// again to speak to the one that serves then.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    /// What was read of a line that was not at its end when the timeout came.
    line: Vec<u8>,
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
            Ok(stream) => Ok(Self { path, stream: BufReader::new(stream), line: Vec::new() }),
            Err(source) => Err(ClientError::Connect { path, source }),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// If the service has closed the connection.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let line = serde_json::to_vec(request).map_err(|e| self.io(e.into()))?;
        self.send_line(line)
    }

    /// Sends a command of the application's own: an object whose `request` is the command's name.
    ///
    /// # Errors
    ///
    /// If the service has closed the connection.
    pub fn send_command(&mut self, command: &Value) -> Result<(), ClientError> {
        self.send_line(command.to_string().into_bytes())
    }

    fn send_line(&mut self, mut line: Vec<u8>) -> Result<(), ClientError> {
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(|source| self.io(source))
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
        // A timeout of zero is refused by the call.
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_micros(1)));
        self.stream.get_ref().set_read_timeout(timeout).map_err(|source| self.io(source))?;
        let room = MAX_ANSWER_BYTES.saturating_sub(self.line.len() as u64);
        let mut limited = (&mut self.stream).take(room);
        match limited.read_until(b'\n', &mut self.line) {
            Ok(_) => {}
            Err(source) => return Err(self.io(source)),
        }
        let mut line = std::mem::take(&mut self.line);
        match line.pop() {
            Some(b'\n') => Ok(Some(line)),
            None => Ok(None),
            Some(_) => Err(self.io(io::ErrorKind::UnexpectedEof.into())),
        }
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
