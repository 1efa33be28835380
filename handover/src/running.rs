//! A process that serves, and how it ends.

use std::future::Future;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use handover_proto::Name;

use crate::builder::Started;
use crate::control::StatusReport;
use crate::drain::{Drained, Guard};
use crate::engine::{Ending, Shared, Stage, Status, Ticket};
use crate::error::{ClaimError, ClaimErrorKind, Error, ErrorKind};
use crate::events::Events;
use crate::handover::{claim, descriptor, take};
use crate::listener::{Bind, Claim};
use crate::live::{Arrivals, Departures};
use crate::registry::Descriptor;
use crate::request::UpgradeOptions;
use crate::state::State;
#[cfg(all(feature = "systemd-notify", feature = "systemd-sockets"))]
use crate::state::StateError;
use crate::sys::poll::wait_readable;
#[cfg(all(feature = "systemd-notify", feature = "systemd-sockets"))]
use crate::systemd::Saved;
use crate::verdict::Verdict;
use crate::watch::Seat;

/// A process that serves, in a program without a runtime.
///
/// [`wait`](Self::wait) has to be called, in any thread: it is there that signals are acted upon
/// and upgrades are made.
#[derive(Debug)]
#[must_use = "signals and upgrades are handled in `wait`"]
pub struct Running {
    handle: Handle,
    started: Started,
}

impl Running {
    pub(crate) fn new(shared: Arc<Shared>, started: Started) -> Self {
        Self { handle: Handle { shared }, started }
    }

    /// A handle to this process for other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until this process must not accept any more: a successor does, or a stop was asked
    /// for.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to wait, which it does for want of memory only.
    pub fn wait(self) -> Result<Draining, Error> {
        self.handle.drive(|stage| stage >= Stage::Draining)?;
        Ok(Draining { handle: self.handle, started: self.started })
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn into_parts(self) -> (Handle, Started) {
        (self.handle, self.started)
    }
}

/// A process that does not accept any more and finishes what it has accepted.
#[derive(Debug)]
#[must_use = "what is in flight is lost if the process exits before `drain` returns"]
pub struct Draining {
    handle: Handle,
    started: Started,
}

impl Draining {
    /// A handle to this process for other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Why this process does not accept any more.
    pub fn ending(&self) -> Ending {
        self.handle.shared.status.look(|status| status.ending).unwrap_or(Ending::Stopped)
    }

    /// Waits until nothing is in flight, for the drain timeout, or for a second stop signal. Then
    /// the process is to exit; what is in flight is cut by that.
    ///
    /// # Errors
    ///
    /// If the kernel refuses to wait, which it does for want of memory only.
    pub fn drain(self) -> Result<Drained, Error> {
        self.handle.drive(|stage| stage >= Stage::Done)?;
        drop(self.started);
        Ok(self.handle.shared.status.look(|status| status.drained).unwrap_or_default())
    }
}

/// A handle to a process that serves; cheap to clone, for any thread or task.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// The number of this generation. The first one is 1.
    pub fn generation(&self) -> u64 {
        self.shared.lock().generation
    }

    /// Whether this process was started to replace a predecessor.
    pub fn is_successor(&self) -> bool {
        self.shared.lock().is_successor
    }

    /// Counts something as in flight: a drain waits for it.
    pub fn guard(&self) -> Guard {
        self.shared.in_flight.guard()
    }

    /// How much is in flight.
    pub fn in_flight(&self) -> u64 {
        self.shared.in_flight.active()
    }

    /// Takes the state of that name which the predecessor wrote after it had stopped accepting, or
    /// which a successor that was rolled back has sent back. There is none if whoever was to write
    /// it died before.
    pub fn late_state(&self, name: &str) -> Option<State> {
        take(&mut self.shared.lock().late_states, name)
    }

    /// Writes the state of that name, as [`Handover::provide_state`](crate::Handover::provide_state) does
    /// for a successor, and keeps it in systemd's fd store in the place of the one before. A process that
    /// is started after a crash gets it from [`Handover::state`](crate::Handover::state).
    ///
    /// To be called when the state has changed and its loss would hurt: what has changed since is lost in
    /// a crash. The provider runs in this thread, so in Tokio this is for `spawn_blocking`. It must not
    /// be called from a provider.
    ///
    /// # Errors
    ///
    /// If there is no such provider, or it fails; what was saved before stays.
    #[cfg(all(feature = "systemd-notify", feature = "systemd-sockets"))]
    pub fn save_state(&self, name: &str) -> Result<Saved, StateError> {
        let (provider, store, max_bytes) = self.shared.lock().to_save(name);
        let provider = provider.ok_or_else(|| format!("no state is provided as \"{name}\""))?;
        match store {
            Some(store) => store.save(&provider, &self.shared.in_flight, max_bytes),
            None => Ok(Saved::Nowhere),
        }
    }

    /// Claims or binds a socket, as [`Handover::listen`](crate::Handover::listen) does; it accepts
    /// at once, and is handed over like any other from here on.
    ///
    /// # Errors
    ///
    /// As there, and if an upgrade is under way: its successor would not know of the listener.
    pub fn listen<S: Claim>(&self, name: &str, bind: impl Into<Bind>) -> Result<S, ClaimError> {
        claim(&self.shared, Some(name), bind.into())
    }

    /// Claims or makes a descriptor, as [`Handover::descriptor`](crate::Handover::descriptor) does.
    ///
    /// # Errors
    ///
    /// As there, and if an upgrade is under way: its successor would not know of the descriptor.
    pub fn descriptor(
        &self,
        name: &str,
        make: impl FnOnce() -> std::io::Result<OwnedFd>,
    ) -> Result<Descriptor, ClaimError> {
        descriptor(&self.shared, name, make)
    }

    /// Takes the connections of that name that older generations give, if their state is of one of these
    /// versions; see [`live`](crate::live). To be called early: they wait for it.
    ///
    /// # Errors
    ///
    /// If the name is invalid, or taken already.
    pub fn arrivals(
        &self,
        name: &str,
        versions: RangeInclusive<u32>,
    ) -> Result<Arrivals, ClaimError> {
        let fail = |kind| self.claim_error(name, kind);
        let parsed = Name::new(name).map_err(|error| fail(ClaimErrorKind::Name(error)))?;
        if !self.shared.desk.subscribe(&parsed, versions) {
            return Err(fail(ClaimErrorKind::NameTaken));
        }
        Ok(Arrivals::new(&self.shared.desk, parsed))
    }

    /// The way out for connections of that name, with a state of that version; see
    /// [`live`](crate::live).
    ///
    /// # Errors
    ///
    /// If the name is invalid.
    pub fn departures(&self, name: &str, version: u32) -> Result<Departures, ClaimError> {
        let parsed = Name::new(name).map_err(ClaimErrorKind::Name);
        let parsed = parsed.map_err(|kind| self.claim_error(name, kind))?;
        Ok(Departures::new(&self.shared.desk, parsed, version))
    }

    fn claim_error(&self, name: &str, kind: ClaimErrorKind) -> ClaimError {
        ClaimError::new(name, kind, self.shared.lock().who_serves())
    }

    /// Asks for an upgrade, as the upgrade signal does, and gives its verdict.
    ///
    /// If one is under way, or this process is on probation, that is the verdict.
    pub fn upgrade(&self) -> Upgrade {
        self.upgrade_with(UpgradeOptions::default())
    }

    /// The same, for a successor that is started in another way.
    pub fn upgrade_with(&self, options: UpgradeOptions) -> Upgrade {
        Upgrade { ticket: self.shared.request_upgrade(options), seat: Seat::default() }
    }

    /// On probation: says that all is well, so that the predecessor lets go. Has no effect
    /// otherwise.
    pub fn confirm(&self) {
        self.shared.lock().confirm();
        self.shared.wake.set();
    }

    /// On probation: says that this process should not serve. The predecessor takes back over, and
    /// this process drains and ends as [`Ending::RolledBack`]. Has no effect otherwise.
    pub fn unhealthy(&self, reason: &str) {
        self.shared.lock().unhealthy(reason);
        self.shared.wake.set();
    }

    /// What runs: this process and, as far as is known here, all other generations that are alive.
    pub fn status(&self) -> StatusReport {
        self.shared.lock().status_report()
    }

    /// What happens from here on: upgrades, step by step, and what becomes of this process.
    pub fn events(&self) -> Events {
        self.shared.hub.subscribe()
    }

    /// Asks for a stop, as the stop signal does: a graceful one, and an immediate one when it is
    /// asked for again.
    pub fn stop(&self) {
        self.shared.request_stop();
    }

    /// Why this process does not accept any more; none as long as it does.
    pub fn ending(&self) -> Option<Ending> {
        self.shared.status.look(|status| status.ending)
    }

    /// How long its drain may still take; none before the drain.
    pub fn drain_left(&self) -> Option<Duration> {
        let deadline = self.shared.status.look(|status| status.drain_deadline);
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Comes when this process must not accept any more.
    pub fn draining(&self) -> Until {
        Until::new(&self.shared, |status| status.stage >= Stage::Draining)
    }

    /// Comes when the predecessor cannot take back over any more: probation is over. At once where
    /// there is no predecessor.
    pub fn confirmed(&self) -> Until {
        Until::new(&self.shared, |status| status.confirmed)
    }

    /// Comes when no older generation runs any more; at once where there was none.
    pub fn predecessor_gone(&self) -> Until {
        Until::new(&self.shared, |status| status.predecessor_gone)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Drives the engine in this thread up to a stage.
    fn drive(&self, arrived: impl Fn(Stage) -> bool) -> Result<(), Error> {
        loop {
            let (stage, deadline) = self.shared.step();
            if arrived(stage) {
                return Ok(());
            }
            if let Err(source) = wait_readable(&[self.shared.fd()], deadline) {
                return Err(self.shared.lock().error(ErrorKind::Io { doing: "to wait", source }));
            }
        }
    }
}

/// The verdict of an upgrade that was asked for: a future, and for threads [`wait`](Self::wait).
#[derive(Debug)]
#[must_use = "the verdict says whether the upgrade succeeded"]
pub struct Upgrade {
    ticket: Ticket,
    seat: Seat,
}

impl Upgrade {
    /// Waits for the verdict. Not to be called in the thread that is to call [`Running::wait`].
    pub fn wait(self) -> Arc<Verdict> {
        loop {
            if let Some(verdict) = self.ticket.wait(None, Option::clone) {
                return verdict;
            }
        }
    }
}

impl Future for Upgrade {
    type Output = Arc<Verdict>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Arc<Verdict>> {
        let Self { ticket, seat } = &mut *self;
        ticket.poll(seat, cx, Option::clone)
    }
}

impl Drop for Upgrade {
    fn drop(&mut self) {
        self.ticket.leave(&mut self.seat);
    }
}

/// Something that comes once: a future, and for threads [`wait`](Self::wait).
#[derive(Debug)]
#[must_use = "it does nothing unless it is awaited"]
pub struct Until {
    shared: Arc<Shared>,
    is: fn(&Status) -> bool,
    seat: Seat,
}

impl Clone for Until {
    fn clone(&self) -> Self {
        Self::new(&self.shared, self.is)
    }
}

impl Until {
    fn new(shared: &Arc<Shared>, is: fn(&Status) -> bool) -> Self {
        Self { shared: Arc::clone(shared), is, seat: Seat::default() }
    }

    /// Whether it has come.
    pub fn has_come(&self) -> bool {
        self.shared.status.look(self.is)
    }

    /// Waits for it. Not to be called in the thread that is to call [`Running::wait`].
    pub fn wait(&self) {
        self.shared.status.wait(None, |status| (self.is)(status).then_some(()));
    }

    /// Waits for it, but not for longer; returns whether it has come.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        self.shared.status.wait(deadline, |status| (self.is)(status).then_some(())).is_some()
    }
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shared, is, seat } = &mut *self;
        shared.status.poll(seat, cx, |status| is(status).then_some(()))
    }
}

impl Drop for Until {
    fn drop(&mut self) {
        self.shared.status.leave(&mut self.seat);
    }
}
