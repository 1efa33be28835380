//! Asking a running service to hand over to this process, which it has not started.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Answer, ErrorCode, Request};
use crate::sys::channel::{Channel, receive_with_descriptor};
use crate::sys::poll::wait_readable;

/// How long the service may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why a running service does not hand over to this process.
#[derive(Debug)]
pub struct TakeOverError {
    /// The path of its control socket.
    pub path: PathBuf,
    /// What went wrong.
    pub failure: TakeOverFailure,
}

/// What went wrong with a takeover.
#[derive(Debug)]
#[non_exhaustive]
pub enum TakeOverFailure {
    /// The service said no.
    Refused {
        /// Why, for programs.
        code: ErrorCode,
        /// Why, for people.
        message: String,
    },
    /// There is something at the path, but it cannot be spoken to.
    Io(io::Error),
    /// What answers is no service of this library.
    NoAnswer,
}

impl fmt::Display for TakeOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.failure {
            TakeOverFailure::Refused { message, .. } => {
                write!(f, "the service at {path} does not hand over: {message}")
            }
            TakeOverFailure::Io(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "this user may not take over the service at {path}: run as the service's own \
                     user, or as root"
                )
            }
            TakeOverFailure::Io(_) => write!(f, "cannot speak to the service at {path}"),
            TakeOverFailure::NoAnswer => {
                write!(f, "what listens at {path} does not answer as a handover service does")
            }
        }
    }
}

impl std::error::Error for TakeOverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.failure {
            TakeOverFailure::Io(source) => Some(source),
            TakeOverFailure::Refused { .. } | TakeOverFailure::NoAnswer => None,
        }
    }
}

/// A channel to the service that runs, and what its first message has to say.
#[derive(Debug)]
pub(crate) struct Takeover {
    pub(crate) channel: Channel,
    pub(crate) token: String,
}

/// Asks the service at that control socket; `None` if none runs there.
pub(crate) fn take_over(path: &Path) -> Result<Option<Takeover>, TakeOverError> {
    let fail = |failure| TakeOverError { path: path.to_owned(), failure };
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(source) => return Err(fail(TakeOverFailure::Io(source))),
    };
    converse(stream).map(Some).map_err(fail)
}

fn converse(mut stream: UnixStream) -> Result<Takeover, TakeOverFailure> {
    let io = TakeOverFailure::Io;
    let mut request = serde_json::to_vec(&Request::TakeOver {}).map_err(|e| io(e.into()))?;
    request.push(b'\n');
    stream.write_all(&request).map_err(io)?;
    stream.set_nonblocking(true).map_err(io)?;

    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let (mut line, mut descriptor) = (Vec::new(), None);
    let mut buffer = [0; 4096];
    while !line.ends_with(b"\n") {
        if Instant::now() >= deadline || line.len() > MAX_ANSWER_BYTES {
            return Err(TakeOverFailure::NoAnswer);
        }
        wait_readable(&[stream.as_fd()], Some(deadline)).map_err(io)?;
        match receive_with_descriptor(stream.as_fd(), &mut buffer) {
            Ok((0, _)) => return Err(TakeOverFailure::NoAnswer),
            Ok((bytes, came)) => {
                line.extend_from_slice(&buffer[..bytes]);
                descriptor = came.or(descriptor);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(io(e)),
        }
    }
    match (serde_json::from_slice(&line), descriptor) {
        (Ok(Answer::Channel { token, .. }), Some(fd)) => {
            Ok(Takeover { channel: Channel::received(fd), token })
        }
        (Ok(Answer::Error { code, message }), _) => Err(TakeOverFailure::Refused { code, message }),
        _ => Err(TakeOverFailure::NoAnswer),
    }
}
