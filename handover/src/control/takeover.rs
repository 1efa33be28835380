//! Asking a running service to hand over to this process, which it has not started.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use handover_proto::Preamble;

use super::{Answer, Client, ClientError, ErrorCode, Request};
use crate::sys::channel::{Channel, Received};
use crate::sys::peer::effective_user;

/// How long the service may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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
    Client(ClientError),
    /// What answers is no service of this library.
    NoAnswer,
    /// Somebody else listens there, whose listeners and states are not to be trusted.
    OtherUser {
        /// The user that had made the socket.
        uid: u32,
    },
}

impl fmt::Display for TakeOverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.failure {
            TakeOverFailure::Refused { message, .. } => {
                write!(f, "the service at {path} does not hand over: {message}")
            }
            TakeOverFailure::Client(error) => {
                write!(f, "cannot take over the service at {path}: {error}")
            }
            TakeOverFailure::NoAnswer => {
                write!(f, "what listens at {path} does not answer as a handover service does")
            }
            TakeOverFailure::OtherUser { uid } => write!(
                f,
                "what listens at {path} is of the user {uid}, and neither of this process's nor of \
                 root: it is not taken over"
            ),
        }
    }
}

impl std::error::Error for TakeOverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.failure {
            TakeOverFailure::Client(error) => error.source(),
            TakeOverFailure::Refused { .. }
            | TakeOverFailure::NoAnswer
            | TakeOverFailure::OtherUser { .. } => None,
        }
    }
}

/// A channel to the service that runs, and its first message.
#[derive(Debug)]
pub(crate) struct Takeover {
    pub(crate) channel: Channel,
    pub(crate) preamble: Preamble,
}

/// Asks the service at that control socket; `None` if none runs there.
pub(crate) fn take_over(path: &Path) -> Result<Option<Takeover>, TakeOverError> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    match Client::connect(path) {
        Ok(client) => converse(client).map(Some),
        Err(ClientError::Connect { source, .. })
            if matches!(source.kind(), NotFound | ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => Err(TakeOverFailure::Client(error)),
    }
    .map_err(|failure| TakeOverError { path: path.to_owned(), failure })
}

fn converse(mut client: Client) -> Result<Takeover, TakeOverFailure> {
    // This process is going to serve with what it gets, and a rollback executes it. Anybody may have made a
    // socket at a path, where a service was that has ended.
    let uid = client.maker().map_err(TakeOverFailure::Client)?;
    if uid != 0 && uid != effective_user() {
        return Err(TakeOverFailure::OtherUser { uid });
    }
    client.send(&Request::TakeOver {}).map_err(TakeOverFailure::Client)?;
    let answer =
        client.next_answer_within(Some(ANSWER_TIMEOUT)).map_err(TakeOverFailure::Client)?;
    match (answer, client.take_descriptor()) {
        (Some(Answer::Channel { token, .. }), Some(fd)) => {
            preamble(Channel::received(fd), &token).ok_or(TakeOverFailure::NoAnswer)
        }
        (Some(Answer::Error { code, message }), _) => {
            Err(TakeOverFailure::Refused { code, message })
        }
        _ => Err(TakeOverFailure::NoAnswer),
    }
}

/// Takes the first message, which was there before the channel was given away.
fn preamble(channel: Channel, token: &str) -> Option<Takeover> {
    let mut buffer = [0; Preamble::MAX_BYTES + 1];
    let Ok(Received::Frame { bytes, .. }) = channel.receive::<0>(&mut buffer) else { return None };
    let preamble = Preamble::decode(&buffer[..bytes]).filter(|it| it.token == token)?;
    Some(Takeover { channel, preamble })
}
