//! Why a command could not do what it was told.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use handover::control::ClientError;

use super::exit::Exit;

/// What is said on stderr, and the exit code.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    /// `None` if there is nobody to say it to.
    pub(super) error: Option<anyhow::Error>,
    /// The refusal as it was received, if it is one.
    pub(super) line: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: Some(error.into()), line: None }
    }
}

/// Writing the result has failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // Whoever reads has seen enough, as `head` does.
            return Self { exit: Exit::Done, error: None, line: None };
        }
        Self::new(Exit::Failed, anyhow::Error::new(error).context("cannot write the result"))
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nobody could be connected to.
    Unreachable(ClientError),
    /// The connection was not taken: the service hangs.
    NotTaken { path: PathBuf, within: Duration },
    /// It was asked, and nothing came.
    NoAnswer { path: PathBuf, within: Duration },
    /// It was asked, and the connection was closed.
    Closed { path: PathBuf },
    /// It was asked, and the connection broke.
    Broken(ClientError),
    /// What came is no answer.
    NotUnderstood(ClientError),
}

impl Trouble {
    /// Whether the service may have got the request.
    pub(super) fn was_asked(&self) -> bool {
        !matches!(self, Self::Unreachable(_) | Self::NotTaken { .. })
    }

    /// Whether the connection ended, so that another one may find out more.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Closed { .. } | Self::Broken(_))
    }

    /// The failure of a command that changes something.
    pub(super) fn of_order(self) -> Failure {
        let exit = match self {
            Self::Unreachable(_) | Self::NotTaken { .. } => Exit::Unreachable,
            Self::NotUnderstood(_) => Exit::Failed,
            Self::NoAnswer { .. } | Self::Closed { .. } | Self::Broken(_) => Exit::Unknown,
        };
        Failure::new(exit, self)
    }

    /// The failure of a command that only wants to know something.
    pub(super) fn of_question(self) -> Failure {
        let exit = match self {
            Self::NotUnderstood(_) => Exit::Failed,
            _ => Exit::Unreachable,
        };
        Failure::new(exit, self)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) | Self::Broken(error) | Self::NotUnderstood(error) => {
                error.fmt(f)
            }
            Self::NotTaken { path, within } => write!(
                f,
                "the service at {} took no connection within {}: it hangs, or has too many clients",
                path.display(),
                humantime::format_duration(*within)
            ),
            Self::NoAnswer { path, within } => write!(
                f,
                "the service at {} did not answer within {} (--timeout)",
                path.display(),
                humantime::format_duration(*within)
            ),
            Self::Closed { path } => {
                write!(
                    f,
                    "the service at {} closed the connection without an answer",
                    path.display()
                )
            }
        }
    }
}

impl std::error::Error for Trouble {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable(error) | Self::Broken(error) | Self::NotUnderstood(error) => {
                error.source()
            }
            _ => None,
        }
    }
}
