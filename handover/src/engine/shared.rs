//! The engine under its lock, and what can be had without.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Engine, Stage, Status, Ticket};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::take_over;
use crate::drain::InFlight;
use crate::error::ErrorKind;
use crate::events::Hub;
use crate::link::Link;
use crate::live::desk::Desk;
use crate::request::UpgradeOptions;
use crate::sys::poll::{Interest, Poller, Wake};
use crate::sys::signals::Signals;
use crate::systemd::{Environment, Passed, Supervision};
use crate::verdict::Verdict;
use crate::watch::Watch;

/// The engine and what can be had without its lock.
pub(crate) struct Shared {
    engine: Mutex<Engine>,
    config: Arc<Config>,
    poller: Arc<Poller>,
    pub(crate) wake: Arc<Wake>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) status: Watch<Status>,
    pub(crate) hub: Hub,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        signals: Signals,
        variable: Option<OsString>,
        predecessor: Option<&Path>,
        manager: Environment,
        passed: Passed,
    ) -> Result<Self, ErrorKind> {
        let io = |source| ErrorKind::Io { doing: "epoll or eventfd", source };
        let config = Arc::new(config);
        let poller = Arc::new(Poller::new().map_err(io)?);
        let wake = Arc::new(Wake::new().map_err(io)?);
        let in_flight = Arc::new(InFlight::new(Arc::clone(&wake)));
        let desk = Arc::new(Desk::new(&wake, &in_flight));
        let clock = Clock::start();
        poller.add(&signals, Interest::Read).map_err(io)?;
        poller.add(&*wake, Interest::Read).map_err(io)?;
        let started = variable.map(|variable| Link::adopt(&variable, &poller, clock));
        let started = started.transpose().map_err(io)?.flatten();
        // One that takes over is the main process of a unit of its own.
        let is_successor = started.is_some();
        let link = match (started, predecessor) {
            (None, Some(path)) => match take_over(path).map_err(ErrorKind::TakeOver)? {
                Some(takeover) => Some(Link::take_over(takeover, &poller, clock).map_err(io)?),
                None => {
                    tracing::info!(path = %path.display(), "no service to take over");
                    None
                }
            },
            (started, _) => started,
        };
        let generation = link.as_ref().map_or(1, Link::generation);
        let uses_store = config.fd_store;
        let supervision = Supervision::new(manager, is_successor, uses_store, generation, &wake);
        let mut engine =
            Engine::new(&config, clock, &poller, &desk, &in_flight, signals, link, supervision);
        engine.take_passed(passed);
        let status = Watch::new(engine.status());
        Ok(Self {
            engine: Mutex::new(engine),
            config,
            poller,
            wake,
            in_flight,
            desk,
            status,
            hub: Hub::new(),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to wait on for the next step.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    /// Does what can be done without waiting; returns where this process stands and by when to come
    /// back.
    pub(crate) fn step(&self) -> (Stage, Option<Instant>) {
        let (status, deadline, verdicts, events, ping) = {
            let mut engine = self.lock();
            engine.step();
            let verdicts = std::mem::take(&mut engine.verdicts);
            let ping = engine.supervision.ping_due(Instant::now());
            let told = std::mem::take(&mut engine.told);
            (engine.status(), engine.deadline(), verdicts, told, ping)
        };
        let stage = status.stage;
        if let Some((notifier, sign)) = ping
            && self.is_alive()
        {
            // If systemd is busy the next one will do.
            notifier.hint(&sign);
        }
        self.config.hooks.tell_rest(&self.wake);
        events.into_iter().for_each(|event| self.hub.publish(event));
        // The verdict comes before the word that this process is done: who waits for that may exit.
        for (verdict, tickets) in verdicts {
            self.tell_verdict(verdict, tickets);
        }
        self.tell_status(status);
        if stage >= Stage::Done {
            self.hub.close();
        }
        (stage, deadline)
    }

    /// Asks for an upgrade.
    pub(crate) fn request_upgrade(&self, options: UpgradeOptions) -> Ticket {
        let ticket = Ticket::new(Watch::new(None));
        let asked = self.lock().ask(options, Arc::clone(&ticket));
        if let Err(failure) = asked {
            ticket.update(|told| *told = Some(Arc::new(Verdict::Failed(failure))));
        }
        self.wake.set();
        ticket
    }

    /// Asks for a graceful stop; a second time for an immediate one.
    pub(crate) fn request_stop(&self) {
        self.lock().stops += 1;
        self.wake.set();
    }

    /// Nobody will call [`step`](Self::step) any more: nobody is to wait for what comes of it.
    pub(crate) fn abandon(&self) {
        let verdicts = {
            let mut engine = self.lock();
            engine.abandon();
            std::mem::take(&mut engine.verdicts)
        };
        for (verdict, tickets) in verdicts {
            self.tell_verdict(verdict, tickets);
        }
        self.hub.close();
    }

    /// Whether the application lets the watchdog know that it is well. Not asked under the lock.
    fn is_alive(&self) -> bool {
        let Some(is_alive) = &self.config.watchdog else { return true };
        let asked = catch_unwind(AssertUnwindSafe(is_alive));
        asked.unwrap_or_else(|_| {
            tracing::error!("what the watchdog asks has panicked");
            false
        })
    }

    fn tell_verdict(&self, verdict: Verdict, tickets: Vec<Ticket>) {
        if let Some(on_verdict) = &self.config.on_verdict {
            // The waiter is to survive a panic of the application's code, as signals are acted upon
            // there and others wait for this verdict as well.
            let told = catch_unwind(AssertUnwindSafe(|| on_verdict(&verdict)));
            if told.is_err() {
                tracing::error!("on_verdict panicked");
            }
        }
        let verdict = Arc::new(verdict);
        for ticket in tickets {
            ticket.update(|told| *told = Some(Arc::clone(&verdict)));
        }
    }

    fn tell_status(&self, status: Status) {
        // Another thread may have come further in the meantime; nothing ever goes back.
        let news = self.status.look(|old| {
            old.stage < status.stage
                || (!old.predecessor_gone && status.predecessor_gone)
                || (!old.confirmed && status.confirmed)
                || is_earlier(status.drain_deadline, old.drain_deadline)
        });
        if news {
            self.status.update(|old| {
                let predecessor_gone = old.predecessor_gone || status.predecessor_gone;
                let confirmed = old.confirmed || status.confirmed;
                let drain_deadline = if is_earlier(status.drain_deadline, old.drain_deadline) {
                    status.drain_deadline
                } else {
                    old.drain_deadline
                };
                if old.stage <= status.stage {
                    *old = status;
                }
                old.predecessor_gone = predecessor_gone;
                old.confirmed = confirmed;
                old.drain_deadline = drain_deadline;
            });
        }
    }
}

/// Whether a deadline is earlier than another one, where none is never.
fn is_earlier(deadline: Option<Instant>, other: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| other.is_none_or(|other| deadline < other))
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("status", &self.status).finish_non_exhaustive()
    }
}
