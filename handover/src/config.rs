//! What `Builder` has made up its mind about.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::control::Policy;
use crate::hooks::Hooks;
use crate::program::Program;
use crate::sys::signals::SignalSet;
use crate::sys::spawn::Parent;
use crate::verdict::OnVerdict;

/// A command of the application's own.
pub(crate) type Command = Arc<dyn Fn(&Value) -> Result<Value, String> + Send + Sync>;

/// Says whether the application is well.
pub(crate) type IsAlive = Box<dyn Fn() -> bool + Send + Sync>;

/// The commands of the application's own, by name.
#[derive(Default)]
pub(crate) struct Commands(pub(crate) BTreeMap<String, Command>);

/// What does not change after the start.
pub(crate) struct Config {
    /// How a successor is started.
    pub(crate) program: Program,
    pub(crate) check: Option<Check>,
    /// Whose child a successor is; if unset, the manager's where one listens.
    pub(crate) parent: Option<Parent>,
    pub(crate) capture_stderr: bool,
    /// What a successor starts with blocked: what this process was started with, and the signals
    /// that its library will handle.
    pub(crate) blocked: SignalSet,
    pub(crate) ready_timeout: Duration,
    pub(crate) commit_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) max_state_bytes: u64,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) on_verdict: Option<OnVerdict>,
    pub(crate) hooks: Arc<Hooks>,
    /// How long successors are on probation, if at all.
    pub(crate) probation: Option<Duration>,
    /// How long a successor on probation may take to answer.
    pub(crate) answer_timeout: Duration,
    pub(crate) max_generations: u32,
    /// Whether the oldest drain is cut short if there are too many.
    pub(crate) cut_oldest: bool,
    /// Where operators speak to this process.
    pub(crate) control: Option<PathBuf>,
    pub(crate) control_policy: Policy,
    pub(crate) commands: Commands,
    /// Whether systemd's fd store is used.
    pub(crate) fd_store: bool,
    /// Whether systemd's watchdog is to be pinged.
    pub(crate) watchdog: Option<IsAlive>,
    /// The version of the application.
    pub(crate) version: Option<String>,
}

/// How an executable is asked whether it would come to serve.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// In place of the service's, without the zeroth.
    pub(crate) arguments: Vec<OsString>,
    pub(crate) timeout: Duration,
    /// What it starts with blocked.
    pub(crate) blocked: SignalSet,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("program", &self.program).finish_non_exhaustive()
    }
}
