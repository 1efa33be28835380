//! What may be different about one upgrade, and who waits for its verdict.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use handover_proto::control::UpgradeRequest;

use crate::control::ClientId;
use crate::engine::{Taker, Ticket};
use crate::program::Overrides;

/// What is different about one upgrade. What is not set is as the [`Builder`](crate::Builder) has
/// it.
#[derive(Clone, Debug, Default)]
pub struct UpgradeOptions {
    pub(crate) overrides: Overrides,
    pub(crate) ready_timeout: Option<Duration>,
    pub(crate) probation: Option<Duration>,
}

impl UpgradeOptions {
    /// The executable of this successor; a relative path is resolved against the directory that this
    /// process was started in.
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.executable = Some(path.into());
        self
    }

    /// The arguments of this successor, without the zeroth.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.overrides.arguments = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a variable for this successor.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.overrides.environment.insert(name.into(), Some(value.into()));
        self
    }

    /// Removes a variable from the environment of this successor.
    pub fn environment_remove(mut self, name: impl Into<OsString>) -> Self {
        self.overrides.environment.insert(name.into(), None);
        self
    }

    /// How long this successor may take to become ready.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = Some(timeout);
        self
    }

    /// How long this successor is on probation; zero for not at all.
    pub fn probation(mut self, probation: Duration) -> Self {
        self.probation = Some(probation);
        self
    }
}

impl From<UpgradeRequest> for UpgradeOptions {
    fn from(request: UpgradeRequest) -> Self {
        let UpgradeRequest {
            executable,
            arguments,
            environment,
            ready_timeout_ms,
            probation_ms,
            wait: _,
        } = request;
        Self {
            overrides: Overrides {
                executable: executable.map(PathBuf::from),
                arguments: arguments.map(|all| all.into_iter().map(OsString::from).collect()),
                environment: environment
                    .into_iter()
                    .map(|(name, value)| (name.into(), value.map(OsString::from)))
                    .collect(),
                directory: None,
            },
            ready_timeout: ready_timeout_ms.map(Duration::from_millis),
            probation: probation_ms.map(Duration::from_millis),
        }
    }
}

/// An upgrade that was asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) options: UpgradeOptions,
    /// Who asked, for people.
    pub(crate) asked_by: String,
    /// Who is told the verdict.
    pub(crate) asker: Option<Asker>,
    /// The executable, if it is not to be looked up by its path.
    pub(crate) executable: Option<OwnedFd>,
    /// The process that wants to be the successor, if none is to be started.
    pub(crate) taker: Option<Taker>,
}

/// Who waits for a verdict.
#[derive(Debug)]
pub(crate) enum Asker {
    /// The application.
    Ticket(Ticket),
    /// A client of the control socket.
    Client(ClientId),
}
