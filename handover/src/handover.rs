//! The time between the start of a process and its readiness.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handover_proto::Name;

use crate::builder::{Builder, Started};
use crate::engine::{Engine, Shared, Stage};
use crate::error::{ClaimError, ClaimErrorKind, Error};
#[cfg(feature = "systemd-sockets")]
use crate::listener::FromSystemd;
use crate::listener::{AddressError, Bind, Claim};
use crate::registry::{Descriptor, RESERVED_PREFIX};
use crate::running::Running;
use crate::state::{Provider, Providers, State, StateError, StateWriter, WriteState};
use crate::sys::poll::wait_readable;

/// A started process that does not serve yet: it claims listeners, reads state, initialises.
///
/// In a successor the predecessor serves all this time, and whatever goes wrong here changes
/// nothing for its clients: drop this and exit. [`ready`](Self::ready) commits.
#[derive(Debug)]
pub struct Handover {
    shared: Arc<Shared>,
    started: Started,
}

impl Handover {
    /// Says how this service wants to be upgraded; [`Builder::start`] comes next.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(shared: Arc<Shared>, started: Started) -> Self {
        Self { shared, started }
    }

    /// The number of this generation. The first one is 1.
    pub fn generation(&self) -> u64 {
        self.shared.lock().generation
    }

    /// Whether this process was started to replace a predecessor.
    pub fn is_successor(&self) -> bool {
        self.shared.lock().is_successor
    }

    /// Whether this process has found in systemd's fd store what one before it has left, which did not
    /// hand over: it crashed, or was restarted ([`Builder::fd_store`]). Sockets are claimed and states
    /// taken as in a successor; [`State::age`](crate::State::age) says how old they are.
    pub fn is_recovery(&self) -> bool {
        self.shared.lock().is_recovery
    }

    /// Claims the socket of that name from the predecessor, or from systemd, or binds it.
    ///
    /// The type that is wanted says what is bound: [`TcpListener`](crate::TcpListener),
    /// [`UdpSocket`](crate::UdpSocket), `handover::tokio::TcpListener` and so on. A socket that was
    /// handed over keeps its queue, its port (also when port 0 was asked for) and its options. If
    /// the name has another address now, it is bound anew, and the predecessor retires the old
    /// socket without losing what it had queued.
    ///
    /// Nothing is accepted from it before [`ready`](Self::ready) has returned.
    ///
    /// # Errors
    ///
    /// If the name is in use in this process, or the address is none or belongs to somebody else.
    pub fn listen<S: Claim>(&self, name: &str, bind: impl Into<Bind>) -> Result<S, ClaimError> {
        claim(&self.shared, Some(name), bind.into())
    }

    /// Claims all sockets of that name and type that systemd has passed, in the order of the unit's
    /// lines: `FileDescriptorName=` is the same for all `ListenStream=` of a unit. Where it has passed
    /// none, that is the one that [`listen`](Self::listen) binds. Those that are handed over are all
    /// claimed likewise.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    #[cfg(feature = "systemd-sockets")]
    pub fn listen_all<S: Claim>(
        &self,
        name: &str,
        bind: impl Into<Bind>,
    ) -> Result<Vec<S>, ClaimError> {
        let bind = bind.into();
        let is_passed = || self.shared.lock().registry.has_activated(name, S::KIND);
        if bind.from == FromSystemd::Never || !is_passed() {
            return Ok(vec![claim(&self.shared, Some(name), bind)?]);
        }
        let mut sockets = Vec::new();
        while is_passed() {
            sockets.push(claim(&self.shared, Some(name), Bind::passed_by_systemd())?);
        }
        Ok(sockets)
    }

    /// The same for a socket whose name is the address that is asked for: as text, with `udp:`,
    /// `datagram:` or `seqpacket:` before it for those types.
    ///
    /// # Errors
    ///
    /// As [`listen`](Self::listen).
    pub fn listen_on<S: Claim>(&self, bind: impl Into<Bind>) -> Result<S, ClaimError> {
        claim(&self.shared, None, bind.into())
    }

    /// Claims the descriptor of that name from the predecessor, or makes it: a file, a pipe, a
    /// connected socket.
    ///
    /// # Errors
    ///
    /// If the name is in use in this process, or what makes it fails.
    pub fn descriptor(
        &self,
        name: &str,
        make: impl FnOnce() -> std::io::Result<OwnedFd>,
    ) -> Result<Descriptor, ClaimError> {
        descriptor(&self.shared, name, make)
    }

    /// Declares that an inherited name will be claimed only after `ready()`, or by a later
    /// generation. Returns whether there is such a name.
    ///
    /// It stays open until then: connections to a listener queue in the kernel.
    pub fn claim_later(&self, name: &str) -> bool {
        self.shared.lock().registry.keep_for_later(name)
    }

    /// Takes the state of that name which the predecessor wrote while this process started, or which a
    /// process before a crash has saved.
    pub fn state(&self, name: &str) -> Option<State> {
        take(&mut self.shared.lock().early_states, name)
    }

    /// Has a state written for each successor while it starts. This process serves meanwhile, so it
    /// is a snapshot: what changes afterwards is for a late state.
    ///
    /// `write` runs in a thread of its own. If it fails or panics, the upgrade fails.
    ///
    /// # Errors
    ///
    /// If the name is none or has a state already.
    pub fn provide_state(
        &self,
        name: &str,
        version: u32,
        write: impl FnMut(&mut StateWriter) -> Result<(), StateError> + Send + 'static,
    ) -> Result<(), ClaimError> {
        let engine = self.shared.lock();
        provide(&engine, &engine.early, name, version, Box::new(write))
    }

    /// Has a state written when a successor is ready and this process has stopped accepting.
    ///
    /// Nobody accepts meanwhile: the kernel queues. Keep it short, and put what is large into an
    /// early state. `write` can wait for the last requests with [`StateWriter::wait_idle`]. It must
    /// leave the application able to go on: if the handover fails now, this process serves again.
    ///
    /// # Errors
    ///
    /// If the name is none or has a late state already.
    pub fn provide_late_state(
        &self,
        name: &str,
        version: u32,
        write: impl FnMut(&mut StateWriter) -> Result<(), StateError> + Send + 'static,
    ) -> Result<(), ClaimError> {
        let engine = self.shared.lock();
        provide(&engine, &engine.late, name, version, Box::new(write))
    }

    /// Says what initialisation does, and asks for more time if need be, counted from now: of the
    /// predecessor, or in the first generation of systemd, whose `TimeoutStartSec=` it is then. Costs
    /// nothing where there is neither.
    pub fn progress(&self, text: impl Into<String>, more: Option<Duration>) {
        self.shared.lock().progress(text.into(), more);
    }

    /// Refuses to serve: a state that cannot be read, a configuration that is wrong. The
    /// predecessor serves on, and the reason is in its verdict. Exit with the error.
    pub fn refuse(self, reason: impl Into<String>) -> Error {
        self.shared.lock().refuse(reason.into())
    }

    /// Says that this process is initialised, waits for the predecessor's commit, and serves.
    ///
    /// From the moment when this returns the listeners accept. Without a predecessor that is at
    /// once. If the predecessor dies before it has committed, this process serves all the same.
    ///
    /// # Errors
    ///
    /// If the predecessor calls the handover off, if the PID file cannot be written, or if a stop
    /// signal came meanwhile. Exit: the predecessor serves on, if there is one.
    pub fn ready(self) -> Result<Running, Error> {
        self.shared.lock().ready()?;
        loop {
            let (stage, deadline) = self.shared.step();
            if stage != Stage::Committing {
                return self.outcome(stage);
            }
            if let Err(source) = wait_readable(&[self.shared.fd()], deadline) {
                let kind = crate::ErrorKind::Io { doing: "to wait", source };
                return Err(self.shared.lock().error(kind));
            }
        }
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What came of `ready()`, once it is no longer awaited.
    pub(crate) fn outcome(self, stage: Stage) -> Result<Running, Error> {
        match stage {
            Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Failed => {
                Err(self.shared.lock().take_failure())
            }
            Stage::Serving | Stage::Draining | Stage::Done => {
                Ok(Running::new(self.shared, self.started))
            }
        }
    }
}

pub(crate) fn claim<S: Claim>(
    shared: &Arc<Shared>,
    name: Option<&str>,
    bind: Bind,
) -> Result<S, ClaimError> {
    let mut engine = shared.lock();
    let (stance, who_serves) = (engine.stance(), engine.who_serves());
    let shown = match (name, &bind.address) {
        (Some(name), _) => name.to_owned(),
        (None, Ok(address)) => S::KIND.default_name(address),
        (None, Err(AddressError::Unparsable { text })) => text.clone(),
        (
            None,
            Err(
                AddressError::UnixPathTooLong { .. }
                | AddressError::NotBound
                | AddressError::NoneGiven,
            ),
        ) => "?".to_owned(),
    };
    let fail = |kind| ClaimError::new(&shown, kind, who_serves);
    check_name(name.unwrap_or_default()).map_err(fail)?;
    if engine.upgrade_is_under_way() {
        return Err(fail(ClaimErrorKind::UpgradeUnderWay));
    }
    let endpoint =
        engine.registry.claim(name, S::KIND, bind, stance, &shared.in_flight).map_err(fail)?;
    engine.check_room_in_store().map_err(fail)?;
    engine.fill_store();
    drop(engine);
    S::from_endpoint(endpoint)
        .map_err(|source| fail(ClaimErrorKind::Io { doing: "to have the socket watched", source }))
}

pub(crate) fn descriptor(
    shared: &Shared,
    name: &str,
    make: impl FnOnce() -> std::io::Result<OwnedFd>,
) -> Result<Descriptor, ClaimError> {
    let fail = |engine: &Engine, kind| ClaimError::new(name, kind, engine.who_serves());
    let begin = || {
        let engine = shared.lock();
        if engine.upgrade_is_under_way() {
            return Err(fail(&engine, ClaimErrorKind::UpgradeUnderWay));
        }
        Ok(engine)
    };
    let mut engine = begin()?;
    check_name(name).map_err(|kind| fail(&engine, kind))?;
    let inherited = engine.registry.take_descriptor(name);
    if let Some(inherited) = inherited.map_err(|kind| fail(&engine, kind))? {
        return Ok(inherited);
    }
    drop(engine);
    // Not under the lock: it may take its time, and may ask this library something.
    let made = make();
    let mut engine = begin()?;
    let io = |source| ClaimErrorKind::Io { doing: "a descriptor", source };
    let added = made.map_err(io).and_then(|fd| engine.registry.add_descriptor(name, fd));
    added.map_err(|kind| fail(&engine, kind))
}

/// Whether the application may use that name.
fn check_name(name: &str) -> Result<(), ClaimErrorKind> {
    if name.starts_with(RESERVED_PREFIX) { Err(ClaimErrorKind::NameReserved) } else { Ok(()) }
}

/// Takes a state out of those that arrived.
pub(crate) fn take(states: &mut Vec<State>, name: &str) -> Option<State> {
    let index = states.iter().position(|state| state.name() == name)?;
    Some(states.swap_remove(index))
}

fn provide(
    engine: &Engine,
    providers: &Providers,
    name: &str,
    version: u32,
    write: Box<WriteState>,
) -> Result<(), ClaimError> {
    let fail = |kind| ClaimError::new(name, kind, engine.who_serves());
    let name = Name::new(name).map_err(|error| fail(ClaimErrorKind::Name(error)))?;
    let mut providers = providers.lock().unwrap_or_else(PoisonError::into_inner);
    if providers.iter().any(|provider| provider.name == name) {
        return Err(fail(ClaimErrorKind::NameTaken));
    }
    providers.push(Arc::new(Provider { name, version, write: Mutex::new(write) }));
    Ok(())
}
