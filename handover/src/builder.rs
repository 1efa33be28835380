//! How a service wants to be upgraded.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::{Check, Commands, Config, IsAlive};
use crate::control::Policy;
use crate::engine::{Shared, Stage};
use crate::error::{Error, ErrorKind, WhoServes};
use crate::handover::Handover;
use crate::hooks::{Commit, Confirm, Hooks, Rollback};
use crate::program::{CHANNEL, Invalid, Origin, Overrides, Program, validate_arguments};
use crate::sys::file::make_room_for_descriptors;
use crate::sys::poll::wait_readable;
use crate::sys::signals::{self, SignalSet, Signals, has_other_threads, unblock};
use crate::sys::spawn::Parent;
use crate::systemd::{Environment, Passed};
use crate::verdict::{OnVerdict, Verdict};

/// How long the check of an executable may take, unless set otherwise.
pub const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a successor may take to become ready, unless set otherwise.
pub const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the way from a successor's `ready()` to its acceptance may take, late states included,
/// unless set otherwise.
pub const DEFAULT_COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a drain may take, unless set otherwise.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// How large one state may grow, unless set otherwise: 16 GiB.
pub const DEFAULT_MAX_STATE_BYTES: u64 = 16 << 30;

/// How long a successor on probation may take to answer, unless set otherwise.
pub const DEFAULT_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How many generations may be alive at once, the one that serves included, unless set otherwise.
pub const DEFAULT_MAX_GENERATIONS: u32 = 4;

/// A signal, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(pub i32);

impl Signal {
    /// SIGHUP: upgrades, unless set otherwise.
    pub const HANGUP: Self = Self(signals::SIGHUP);
    /// SIGINT: stops, unless set otherwise.
    pub const INTERRUPT: Self = Self(signals::SIGINT);
    /// SIGQUIT.
    pub const QUIT: Self = Self(signals::SIGQUIT);
    /// SIGTERM: stops, unless set otherwise.
    pub const TERMINATE: Self = Self(signals::SIGTERM);
    /// SIGUSR1.
    pub const USER_1: Self = Self(signals::SIGUSR1);
    /// SIGUSR2.
    pub const USER_2: Self = Self(signals::SIGUSR2);
}

/// Whose child a successor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SuccessorParent {
    /// The predecessor's: its exit status is known to the verdict.
    #[default]
    Predecessor,
    /// The parent of the predecessor's, a service manager that must own the successor
    /// (`CLONE_PARENT`, clone(2)). Its exit status is then the manager's to know.
    Supervisor,
}

/// How a service wants to be upgraded. Made by [`Handover::builder`].
#[must_use = "nothing happens before `start` is called"]
pub struct Builder {
    upgrade_signals: Vec<Signal>,
    stop_signals: Vec<Signal>,
    ready_timeout: Duration,
    commit_timeout: Duration,
    drain_timeout: Duration,
    max_state_bytes: u64,
    pid_file: Option<PathBuf>,
    overrides: Overrides,
    check: Option<Vec<OsString>>,
    check_timeout: Duration,
    parent: Option<SuccessorParent>,
    capture_stderr: bool,
    on_verdict: Option<OnVerdict>,
    hooks: Hooks,
    probation: Option<Duration>,
    answer_timeout: Duration,
    max_generations: u32,
    too_many: TooMany,
    version: Option<String>,
    control: Option<PathBuf>,
    control_group: Option<u32>,
    commands: Commands,
    take_over: Option<PathBuf>,
    fd_store: bool,
    watchdog: Option<IsAlive>,
}

/// The variable that names the control socket of a service to take over.
const TAKE_OVER: &str = "HANDOVER_TAKE_OVER";

/// What becomes of an upgrade when as many generations are alive as there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TooMany {
    /// It is refused, or waits if it was asked for by a signal or by somebody who would rather wait.
    #[default]
    Refuse,
    /// The oldest generation is told to end at once: what it still has in flight is cut.
    CutOldest,
}

/// Signals, the environment and the child processes are the whole process's: one at a time.
static STARTED: AtomicBool = AtomicBool::new(false);

/// That the library is started, until it is dropped. Handles and tasks may keep the engine for
/// longer, but nobody steps it then.
#[derive(Debug)]
pub(crate) struct Started {
    shared: Option<Arc<Shared>>,
}

impl Drop for Started {
    fn drop(&mut self) {
        // First: who starts the library next replaces what is left of this one.
        if let Some(shared) = self.shared.take() {
            shared.abandon();
        }
        STARTED.store(false, Ordering::SeqCst);
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            upgrade_signals: vec![Signal::HANGUP],
            stop_signals: vec![Signal::TERMINATE, Signal::INTERRUPT],
            ready_timeout: DEFAULT_READY_TIMEOUT,
            commit_timeout: DEFAULT_COMMIT_TIMEOUT,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
            max_state_bytes: DEFAULT_MAX_STATE_BYTES,
            pid_file: None,
            overrides: Overrides::default(),
            check: None,
            check_timeout: DEFAULT_CHECK_TIMEOUT,
            parent: None,
            capture_stderr: true,
            on_verdict: None,
            hooks: Hooks::default(),
            probation: None,
            answer_timeout: DEFAULT_ANSWER_TIMEOUT,
            max_generations: DEFAULT_MAX_GENERATIONS,
            too_many: TooMany::default(),
            version: None,
            control: None,
            control_group: None,
            commands: Commands::default(),
            take_over: None,
            fd_store: false,
            watchdog: None,
        }
    }
}

impl Builder {
    /// The signals that ask for an upgrade. SIGHUP unless set; none if empty.
    pub fn upgrade_signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.upgrade_signals = signals.into_iter().collect();
        self
    }

    /// The signals that ask for a stop: the first one for a graceful one, the second for an
    /// immediate one. SIGTERM and SIGINT unless set.
    pub fn stop_signals(mut self, signals: impl IntoIterator<Item = Signal>) -> Self {
        self.stop_signals = signals.into_iter().collect();
        self
    }

    /// How long a successor may take from its start to its `ready()`. [`DEFAULT_READY_TIMEOUT`]
    /// unless set; the successor can ask for more with [`Handover::progress`].
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// How long the way from a successor's `ready()` to its acceptance may take, late states
    /// included. Nobody accepts meanwhile, the kernel queues. [`DEFAULT_COMMIT_TIMEOUT`] unless
    /// set.
    pub fn commit_timeout(mut self, timeout: Duration) -> Self {
        self.commit_timeout = timeout;
        self
    }

    /// How long what is in flight may take to finish, after a handover or on a stop. On a stop that
    /// includes what listeners have queued: one that nobody accepts from makes a stop last as long.
    /// [`DEFAULT_DRAIN_TIMEOUT`] unless set.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// How large one state may grow. [`DEFAULT_MAX_STATE_BYTES`] unless set.
    pub fn max_state_bytes(mut self, bytes: u64) -> Self {
        self.max_state_bytes = bytes;
        self
    }

    /// A file that always names the process that serves: replaced in one step when a generation
    /// begins to serve, removed on a stop. None unless set.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.pid_file = Some(path.into());
        self
    }

    /// The executable of successors, instead of the path that this process was started by. A
    /// relative one is resolved against the directory that this process was started in.
    ///
    /// To be set where a script starts the service by `exec`, and successors are to go through the
    /// script, too: a process cannot know of it.
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.executable = Some(path.into());
        self
    }

    /// The arguments of successors, without the zeroth, instead of this process's.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.overrides.arguments = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// Sets a variable for successors, over this process's environment as it will be then.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.overrides.environment.insert(name.into(), Some(value.into()));
        self
    }

    /// Removes a variable from the environment of successors.
    pub fn environment_remove(mut self, name: impl Into<OsString>) -> Self {
        self.overrides.environment.insert(name.into(), None);
        self
    }

    /// The working directory of successors, instead of the one that this process was started in.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.overrides.directory = Some(path.into());
        self
    }

    /// Has an executable say whether it would come to serve, before a successor is started from it:
    /// it is run with these arguments, the zeroth excluded, in place of the successor's. None unless
    /// set.
    ///
    /// It has the environment and the working directory of a successor, an empty stdin, and nothing
    /// of a handover. It is to look at its configuration, say what is wrong with it, and exit: with
    /// zero if a successor may be started. Otherwise, or after [`check_timeout`](Self::check_timeout),
    /// the upgrade fails, and its verdict has the exit status and the last lines of what was written
    /// to stdout and stderr. These are written to this process's stderr as well.
    ///
    /// What is checked is what is started, even if another file is put in its place meanwhile. The
    /// one exception is a script: it is executed by its path, so if that leads to another one by
    /// then, the upgrade fails. What is not kept is the configuration: it is read again.
    ///
    /// While it is checked no listener can be claimed, as during the rest of an upgrade.
    pub fn check<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.check = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// How long a [`check`](Self::check) may take; it is killed then, with all that it has started.
    /// [`DEFAULT_CHECK_TIMEOUT`] unless set.
    pub fn check_timeout(mut self, timeout: Duration) -> Self {
        self.check_timeout = timeout;
        self
    }

    /// Whose child a successor is. Unless set, the supervisor's where systemd listens
    /// (`NOTIFY_SOCKET`), and this process's elsewhere.
    pub fn successor_parent(mut self, parent: SuccessorParent) -> Self {
        self.parent = Some(parent);
        self
    }

    /// Whether what a successor writes to stderr before it serves is remembered, to be shown with
    /// the verdict of an upgrade that fails. It is written to this process's stderr all the same.
    /// On unless set.
    ///
    /// Until it serves, the stderr of the successor is a pipe to this process. A process that the
    /// successor starts before its `ready()`, and that lives on, keeps that pipe and should be
    /// given a stderr of its own.
    pub fn capture_stderr(mut self, capture: bool) -> Self {
        self.capture_stderr = capture;
        self
    }

    /// Calls this with the verdict of each upgrade, whoever asked for it. It runs in the waiter and
    /// should return soon: nothing else is done meanwhile, so waiting for another upgrade here would
    /// be for ever.
    pub fn on_verdict(mut self, tell: impl Fn(&Verdict) + Send + Sync + 'static) -> Self {
        self.on_verdict = Some(Box::new(tell));
        self
    }

    /// How long a successor is on probation once it serves; not at all unless set.
    ///
    /// In that time this process accepts nothing, but keeps its listeners and its state. If the
    /// successor exits, crashes, does not answer or says that it is
    /// [unhealthy](crate::Handle::unhealthy), or if an operator says so, this process accepts again,
    /// and the verdict is [`Verdict::RolledBack`]. What the kernel has queued meanwhile is served;
    /// what a successor that crashed had accepted is lost with it. Probation ends early when the
    /// successor [confirms](crate::Handle::confirm).
    pub fn probation(mut self, probation: Duration) -> Self {
        self.probation = Some(probation);
        self
    }

    /// How long a successor on probation may take to answer this process, before it counts as hung
    /// and is rolled back. The library answers in the waiter: in a program without a runtime that is
    /// [`Running::wait`](crate::Running::wait), else a task, so a runtime whose threads are all
    /// blocked does not answer. [`DEFAULT_ANSWER_TIMEOUT`] unless set.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// Called in the predecessor when a successor is ready and this process has stopped accepting
    /// for it, before late states are written and before the successor serves: the place to stop
    /// timers, consumers and whatever else only one process may do.
    ///
    /// Hooks run in a thread of their own, one at a time and in the order of what has happened, and
    /// the handover waits for them, within the commit timeout.
    pub fn on_commit(mut self, hook: impl FnMut(&Commit) + Send + 'static) -> Self {
        self.hooks.set_commit(Box::new(hook));
        self
    }

    /// Called when a commit is taken back, in both processes: in the successor before it says that it
    /// has stopped, to stop what it does; in the predecessor before it accepts again, to go on with
    /// what it did before. States that the successor sent back are there by then
    /// ([`Handle::late_state`](crate::Handle::late_state)).
    ///
    /// A successor has a second for it before it is killed; a predecessor accepts after the commit
    /// timeout at the latest.
    pub fn on_rollback(mut self, hook: impl FnMut(&Rollback) + Send + 'static) -> Self {
        self.hooks.set_rollback(Box::new(hook));
        self
    }

    /// Called when a commit cannot be taken back any more, in both processes. Nothing waits for it
    /// but the next hook and the end of a drain.
    pub fn on_confirm(mut self, hook: impl FnMut(&Confirm) + Send + 'static) -> Self {
        self.hooks.set_confirm(Box::new(hook));
        self
    }

    /// How many generations may be alive at once, the one that serves included: those that drain
    /// hold memory and connections. At least 2. [`DEFAULT_MAX_GENERATIONS`] unless set.
    pub fn max_generations(mut self, generations: u32) -> Self {
        self.max_generations = generations.max(2);
        self
    }

    /// What becomes of an upgrade when there are as many as that.
    pub fn when_too_many(mut self, what: TooMany) -> Self {
        self.too_many = what;
        self
    }

    /// The path of the control socket: a Unix stream socket by which operators ask this service for
    /// upgrades and the like, by `handover upgrade --socket PATH` for one. There is none unless set.
    ///
    /// Only this process's user and root may connect. The socket is handed over with everything else,
    /// so it is always there; a stale one is replaced. See [`control`](crate::control).
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.control = Some(path.into());
        self
    }

    /// Lets the members of a group, by its number, use the control socket as well. Whoever may use it
    /// may run any program as the user of this service.
    pub fn control_group(mut self, group: u32) -> Self {
        self.control_group = Some(group);
        self
    }

    /// A command of the application's own for the control socket. A client asks for it by
    /// `{"request":NAME}`; what else the object has are the arguments, and what the command returns
    /// is the answer. It runs in a thread of its own.
    ///
    /// A name that the library has for itself has no effect: see
    /// [`Request::NAMES`](crate::control::Request::NAMES).
    pub fn command<E: fmt::Display>(
        mut self,
        name: impl Into<String>,
        run: impl Fn(&serde_json::Value) -> Result<serde_json::Value, E> + Send + Sync + 'static,
    ) -> Self {
        let run = move |arguments: &_| run(arguments).map_err(|error| error.to_string());
        self.commands.0.insert(name.into(), Arc::new(run));
        self
    }

    /// Becomes the successor of the service whose control socket is at this path, if one runs there,
    /// although that has not started this process. The variable `HANDOVER_TAKE_OVER` does the same,
    /// and comes first.
    ///
    /// For supervisors that insist on starting processes themselves, blue and green units, and other
    /// containers that share the folder of the socket. The service must allow this process's user to
    /// use its control socket. It is to be able to kill this process, too, or one that hangs on
    /// probation has to be ended by somebody else.
    ///
    /// If the service is busy or on probation, [`start`](Self::start) fails. The exit status and stderr
    /// of this process are not known to the service.
    pub fn take_over(mut self, path: impl Into<PathBuf>) -> Self {
        self.take_over = Some(path.into());
        self
    }

    /// Keeps all sockets that this service binds, and the states that it
    /// [saves](crate::Handle::save_state), in systemd's file descriptor store. Not unless called; does
    /// nothing where there is no systemd.
    ///
    /// A process that systemd starts after a crash, after its watchdog has ended one, or by `systemctl
    /// restart` finds them there: clients that connect meanwhile wait in the kernel's queue, and are
    /// served. It knows by [`Handover::is_recovery`](crate::Handover::is_recovery). On a stop, what the
    /// sockets have queued is left there.
    ///
    /// The unit has to say `FileDescriptorStoreMax=`, one for each socket and three for each
    /// state
    /// (systemd 254 or newer). If that is too few, [`Handover::ready`](crate::Handover::ready) fails. A
    /// stop that is not part of a restart empties the store, unless the unit says
    /// `FileDescriptorStorePreserve=yes`.
    #[cfg(all(feature = "systemd-notify", feature = "systemd-sockets"))]
    pub fn fd_store(mut self) -> Self {
        self.fd_store = true;
        self
    }

    /// Asked before each sign of life that systemd's watchdog gets (`WatchdogSec=`); there is none while
    /// this says no, or hangs, and after that time systemd ends the service, and starts it again if
    /// `Restart=` says so. Always yes unless set.
    ///
    /// It is called in the waiter, three times in `WatchdogSec=`, and should return at once. A waiter
    /// that hangs gives no sign of life either: in Tokio, a runtime whose threads are all blocked.
    #[cfg(feature = "systemd-notify")]
    pub fn watchdog(mut self, is_alive: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.watchdog = Some(Box::new(is_alive));
        self
    }

    /// The version of the application, to be shown with its generation.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Starts: installs the signal handlers and, in a successor, takes over what the predecessor
    /// hands over.
    ///
    /// To be called first thing in main: before the working directory changes, and before other
    /// threads are started, those of a runtime included. A successor begins with the signals blocked
    /// that the library handles, and they are let through in the calling thread only: processes that
    /// a thread from before starts would have them blocked. A variable is taken out of the
    /// environment, too, which C code in another thread may be reading. If that variable lies, or
    /// was meant for another process, it has no effect.
    ///
    /// # Errors
    ///
    /// A successor gets an error if the predecessor calls the handover off, cannot be understood,
    /// or is silent for a minute; it is to exit then. Otherwise the kernel has refused something.
    pub fn start(self) -> Result<Handover, Error> {
        let fail = |kind| Error::new(kind, WhoServes::Nobody);
        let io = |doing| move |source| fail(ErrorKind::Io { doing, source });
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::AlreadyStarted, WhoServes::Unchanged));
        }
        let has_other_threads = has_other_threads();
        if !has_other_threads {
            // Without it everything goes on, and now and then somebody waits.
            let _ = make_room_for_descriptors(std::io::stderr());
        }
        let mut started = Started { shared: None };
        self.validate().map_err(|error| fail(error.into()))?;
        let variable = crate::sys::environment::take(CHANNEL);
        // Not for what this process starts: each has a channel of its own.
        let take_over = crate::sys::environment::take(TAKE_OVER);
        let take_over = take_over.map(PathBuf::from).or(self.take_over);
        let origin = if variable.is_some() { Origin::Predecessor } else { Origin::Unknown };
        let manager = Environment::read(variable.is_some());
        let passed = Passed::take();
        let program = Program::of_this_process(origin, &self.overrides)
            .map_err(io("the working directory"))?;
        if origin == Origin::Predecessor {
            program.name_this_process();
        }

        let upgrade: Vec<i32> = self.upgrade_signals.iter().map(|signal| signal.0).collect();
        let stop: Vec<i32> = self.stop_signals.iter().map(|signal| signal.0).collect();
        let (mut blocked, mut blocked_in_check) = (SignalSet::blocked(), SignalSet::blocked());
        let handled: Vec<i32> = upgrade.iter().chain(&stop).copied().collect();
        for signal in &handled {
            blocked.insert(*signal);
            // A predecessor has blocked them for us.
            blocked_in_check.remove(*signal);
        }
        let signals = Signals::install(&upgrade, &stop)
            .map_err(|source| fail(ErrorKind::Signal { source }))?;
        // A predecessor has blocked them for the time before the handlers stood.
        unblock(&handled);
        if variable.is_some() && has_other_threads {
            tracing::warn!(
                "there were threads before handover was started: what they start will have the \
                 stop signals blocked"
            );
        }

        let config = Config {
            program,
            check: self.check.map(|arguments| Check {
                arguments,
                timeout: self.check_timeout,
                blocked: blocked_in_check,
            }),
            parent: self.parent.map(|parent| match parent {
                SuccessorParent::Predecessor => Parent::Us,
                SuccessorParent::Supervisor => Parent::Ours,
            }),
            capture_stderr: self.capture_stderr,
            blocked,
            ready_timeout: self.ready_timeout,
            commit_timeout: self.commit_timeout,
            drain_timeout: self.drain_timeout,
            max_state_bytes: self.max_state_bytes,
            pid_file: self.pid_file,
            on_verdict: self.on_verdict,
            hooks: Arc::new(self.hooks),
            probation: self.probation,
            answer_timeout: self.answer_timeout,
            max_generations: self.max_generations,
            cut_oldest: self.too_many == TooMany::CutOldest,
            version: self.version,
            control: self.control,
            control_policy: Policy { group: self.control_group },
            commands: self.commands,
            fd_store: self.fd_store,
            watchdog: self.watchdog,
        };
        let shared = Arc::new(
            Shared::new(config, signals, variable, take_over.as_deref(), manager, passed).map_err(
                |kind| {
                    let taken_over = matches!(kind, ErrorKind::TakeOver(_));
                    let who = if taken_over { WhoServes::Unchanged } else { WhoServes::Nobody };
                    Error::new(kind, who)
                },
            )?,
        );
        started.shared = Some(Arc::clone(&shared));
        loop {
            let (stage, deadline) = shared.step();
            match stage {
                Stage::Adopting => {
                    wait_readable(&[shared.fd()], deadline).map_err(io("to wait"))?;
                }
                Stage::Failed => return Err(shared.lock().take_failure()),
                Stage::Claiming
                | Stage::Committing
                | Stage::Serving
                | Stage::Draining
                | Stage::Done => {
                    shared.lock().open_control()?;
                    return Ok(Handover::new(shared, started));
                }
            }
        }
    }

    /// Finds out now what would fail every upgrade.
    fn validate(&self) -> Result<(), Invalid> {
        self.overrides.validate()?;
        validate_arguments(self.check.iter().flatten(), "an argument for the check")
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("upgrade_signals", &self.upgrade_signals)
            .field("stop_signals", &self.stop_signals)
            .field("ready_timeout", &self.ready_timeout)
            .field("drain_timeout", &self.drain_timeout)
            .finish_non_exhaustive()
    }
}
