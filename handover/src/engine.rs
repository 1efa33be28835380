//! The one step that drives everything: signals, the predecessor, an upgrade, the drain.
//!
//! The engine never waits. It has a descriptor that is readable when there is something to do and
//! a deadline by which to come back; a waiter, blocking or in a runtime, calls [`Shared::step`].

mod shared;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::{CommittedBy, Failure as ProtoFailure};

use crate::attempt::{self, Attempt, Plan};
use crate::clock::Clock;
use crate::config::Config;
use crate::drain::{Drained, InFlight};
use crate::error::{Error, ErrorKind, WhoServes};
use crate::gate::Stance;
use crate::link::{self, Link};
use crate::pidfile::PidFile;
use crate::registry::Registry;
use crate::state::{Providers, State};
use crate::sys::poll::{Poller, Wake};
use crate::sys::signals::{Mode, Signals};
use crate::verdict::{Failure, Phase, Reason, Verdict};

pub(crate) use shared::Shared;
pub use status::Ending;
pub(crate) use status::{Stage, Status, Ticket};

pub(crate) struct Engine {
    config: Arc<Config>,
    clock: Clock,
    poller: Arc<Poller>,
    wake: Arc<Wake>,
    in_flight: Arc<InFlight>,
    signals: Signals,
    stage: Stage,
    pub(crate) generation: u64,
    pub(crate) is_successor: bool,
    pub(crate) registry: Registry,
    pub(crate) early_states: Vec<State>,
    pub(crate) late_states: Vec<State>,
    pub(crate) early: Providers,
    pub(crate) late: Providers,
    link: Option<Link>,
    attempt: Option<Attempt>,
    tickets: Vec<Ticket>,
    upgrade_pending: bool,
    stops: u32,
    stop_requested: bool,
    ending: Option<Ending>,
    drain_deadline: Option<Instant>,
    drained: Option<Drained>,
    pid_file: Option<PidFile>,
    failure: Option<Error>,
    /// What is told once the lock is released.
    verdicts: Vec<(Verdict, Vec<Ticket>)>,
}

impl Engine {
    fn new(
        config: &Arc<Config>,
        clock: Clock,
        poller: &Arc<Poller>,
        wake: &Arc<Wake>,
        in_flight: &Arc<InFlight>,
        signals: Signals,
        link: Option<Link>,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            clock,
            poller: Arc::clone(poller),
            wake: Arc::clone(wake),
            in_flight: Arc::clone(in_flight),
            signals,
            stage: if link.is_some() { Stage::Adopting } else { Stage::Claiming },
            generation: link.as_ref().map_or(1, Link::generation),
            is_successor: link.is_some(),
            registry: Registry::default(),
            early_states: Vec::new(),
            late_states: Vec::new(),
            early: Providers::default(),
            late: Providers::default(),
            link,
            attempt: None,
            tickets: Vec::new(),
            upgrade_pending: false,
            stops: 0,
            stop_requested: false,
            ending: None,
            drain_deadline: None,
            drained: None,
            pid_file: None,
            failure: None,
            verdicts: Vec::new(),
        }
    }

    fn status(&self) -> Status {
        Status {
            stage: self.stage,
            ending: self.ending,
            predecessor_gone: self.link.as_ref().is_none_or(|link| !link.is_connected()),
            drained: self.drained,
        }
    }

    pub(crate) fn who_serves(&self) -> WhoServes {
        match self.stage {
            Stage::Serving => WhoServes::ThisProcess,
            Stage::Draining | Stage::Done if self.ending == Some(Ending::HandedOver) => {
                WhoServes::Successor
            }
            Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Failed
                if self.link.as_ref().is_some_and(Link::is_connected) =>
            {
                WhoServes::Predecessor
            }
            _ => WhoServes::Nobody,
        }
    }

    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.who_serves())
    }

    /// The stance of a socket that is claimed now.
    pub(crate) fn stance(&self) -> Stance {
        match self.stage {
            Stage::Adopting | Stage::Claiming | Stage::Committing => Stance::Paused,
            Stage::Serving => Stance::Open,
            Stage::Draining | Stage::Done | Stage::Failed => Stance::Ended,
        }
    }

    pub(crate) fn upgrade_is_under_way(&self) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::is_under_way)
    }

    pub(crate) fn progress(&mut self, text: String, more: Option<Duration>) {
        if let Some(link) = &mut self.link {
            link.progress(text, more, &self.poller);
        }
    }

    /// The application will not serve.
    pub(crate) fn refuse(&mut self, reason: String) -> Error {
        if let Some(link) = &mut self.link {
            link.refuse(&reason, &self.poller);
        }
        self.stage = Stage::Failed;
        self.error(ErrorKind::Refused { reason })
    }

    /// The application is initialised.
    pub(crate) fn ready(&mut self) -> Result<(), Error> {
        if self.signals.stops() > 0 {
            self.refuse("stopped by a signal".into());
            return Err(self.error(ErrorKind::Stopped));
        }
        if let Some(path) = &self.config.pid_file {
            match PidFile::prepare(path) {
                Ok(file) => self.pid_file = Some(file),
                Err(source) => {
                    let path = path.clone();
                    self.refuse(format!("cannot write the PID file {}: {source}", path.display()));
                    return Err(self.error(ErrorKind::PidFile { path, source }));
                }
            }
        }
        for name in self.registry.unclaimed() {
            tracing::warn!(name, "inherited and not claimed: the predecessor will retire it");
        }
        let claimed = self.registry.settle();
        self.early_states.clear();
        self.stage = Stage::Committing;
        self.signals.set_mode(Mode::Watched);
        match &mut self.link {
            Some(link) => link.ready(claimed),
            None => self.serve(),
        }
        Ok(())
    }

    /// Nobody will step any more.
    pub(crate) fn abandon(&mut self) {
        self.signals.abandon();
    }

    /// Why `ready()` failed.
    pub(crate) fn take_failure(&mut self) -> Error {
        self.failure.take().unwrap_or_else(|| self.error(ErrorKind::PredecessorSilent))
    }

    /// Does what can be done without waiting.
    fn step(&mut self) {
        self.wake.clear();
        let mut effects = Vec::new();
        if let Some(link) = &mut self.link {
            link.step(&self.poller, &mut effects);
        }
        for effect in effects {
            self.handle_link(effect);
        }
        if let Some(link) = &mut self.link {
            link.flush(&self.poller);
        }
        self.take_signals();
        self.step_attempt();
        self.act();
        self.step_drain();
    }

    fn deadline(&self) -> Option<Instant> {
        [
            self.link.as_ref().and_then(Link::deadline),
            self.attempt.as_ref().and_then(Attempt::deadline),
            self.drain_deadline.filter(|_| self.stage == Stage::Draining),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn handle_link(&mut self, effect: link::Effect) {
        match effect {
            link::Effect::Inherited(item, fd) => self.registry.inherit(item, fd),
            link::Effect::State { state, late: false } => self.early_states.push(state),
            link::Effect::State { state, late: true } => self.late_states.push(state),
            link::Effect::Adopted => {
                self.generation = self.link.as_ref().map_or(1, Link::generation);
                self.stage = Stage::Claiming;
            }
            link::Effect::Committed(by) => {
                if let CommittedBy::Predecessor { upgrade_pending, .. } = by {
                    self.upgrade_pending |= upgrade_pending;
                }
                self.serve();
            }
            link::Effect::Upgrade => self.want_upgrade(),
            link::Effect::StopServing(reason) => self.step_back(&reason),
            link::Effect::PredecessorGone => tracing::info!("the predecessor is gone"),
            link::Effect::Failed(failure) => {
                self.failure = Some(self.error(failure_kind(failure)));
                self.stage = Stage::Failed;
            }
        }
    }

    /// This process serves, from here on.
    fn serve(&mut self) {
        self.stage = Stage::Serving;
        for endpoint in self.registry.endpoints() {
            endpoint.open();
        }
        if let Some(file) = self.pid_file.take() {
            file.publish();
        }
        if let Some(link) = &mut self.link {
            // The predecessor waits for the word that this process serves; the rest can wait.
            link.flush(&self.poller);
            link.restore_stderr();
        }
        tracing::info!(generation = self.generation, "serving");
    }

    fn take_signals(&mut self) {
        // Before `ready()` the first stop signal is looked at there, and the second has its
        // default action.
        if self.stage < Stage::Committing {
            self.signals.leave();
            return;
        }
        let (upgrades, stops) = self.signals.take();
        self.stops = self.stops.saturating_add(stops);
        if upgrades > 0 {
            self.want_upgrade();
        }
    }

    /// An upgrade was asked for: it is remembered until somebody has done it. While another one is
    /// under way, the machine passes it on with the commit; if there is none, it is done here.
    fn want_upgrade(&mut self) {
        self.upgrade_pending = true;
        if let Some(attempt) = &mut self.attempt
            && attempt.forward_upgrade(Instant::now())
        {
            tracing::info!("a request for an upgrade is passed on to the successor");
        } else if self.stage >= Stage::Draining {
            tracing::warn!("an upgrade was asked of a process that does not serve any more");
        }
    }

    fn step_attempt(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let mut effects = Vec::new();
        attempt.step(&self.poller, &mut effects);
        for effect in effects {
            match effect {
                attempt::Effect::Serving => self.drain(Ending::HandedOver),
                attempt::Effect::Finished(verdict) => self.conclude(verdict),
            }
        }
        if let Some(mut attempt) = self.attempt.take_if(|attempt| attempt.is_over()) {
            attempt.detach(&self.poller);
        }
    }

    /// Acts on what was asked for, if it can be done now.
    fn act(&mut self) {
        match self.stage {
            Stage::Committing if self.stops > 0 => {
                self.refuse("stopped by a signal".into());
                self.failure = Some(self.error(ErrorKind::Stopped));
            }
            Stage::Serving => {
                self.stop_requested |= self.stops > 0;
                if self.stop_requested {
                    self.stop();
                } else if self.upgrade_pending && self.attempt.is_none() {
                    self.upgrade();
                }
            }
            Stage::Adopting
            | Stage::Claiming
            | Stage::Committing
            | Stage::Draining
            | Stage::Done
            | Stage::Failed => {}
        }
    }

    fn upgrade(&mut self) {
        self.upgrade_pending = false;
        let plan = Plan {
            config: Arc::clone(&self.config),
            early: Arc::clone(&self.early),
            late: Arc::clone(&self.late),
            in_flight: Arc::clone(&self.in_flight),
            wake: Arc::clone(&self.wake),
        };
        let inventory = self.registry.inventory();
        match Attempt::begin(
            plan,
            self.generation.saturating_add(1),
            inventory,
            &self.poller,
            self.clock,
        ) {
            Ok(attempt) => {
                self.attempt = Some(attempt);
                // What the machine has to say already, and the deadline, are looked at before the
                // next wait.
                self.step_attempt();
            }
            Err(failure) => self.conclude(Verdict::Failed(failure)),
        }
    }

    fn conclude(&mut self, verdict: Verdict) {
        match &verdict {
            Verdict::Succeeded(success) => {
                tracing::info!(generation = success.generation, pid = success.pid, "handed over");
                // It went along with the commit.
                self.upgrade_pending = false;
            }
            Verdict::Failed(failure) => {
                let source = std::error::Error::source(failure).map(ToString::to_string);
                tracing::error!(%failure, source, "upgrade failed, this process serves on");
                // The successor may have come as far as putting its own name there.
                if let Some(path) = self.config.pid_file.as_deref()
                    && failure.phase == Phase::Confirm
                {
                    PidFile::restore(path);
                }
            }
        }
        self.verdicts.push((verdict, std::mem::take(&mut self.tickets)));
        // If an upgrade or a stop was asked for meanwhile, it is done now and not at the next
        // occasion.
        self.wake.set();
    }

    fn stop(&mut self) {
        let now = Instant::now();
        let in_a_hurry = self.stops > 1;
        if let Some(attempt) = &mut self.attempt
            && attempt.is_under_way()
        {
            if in_a_hurry {
                attempt.kill();
            } else if attempt.is_before_commit() {
                attempt.abort(Reason::Stopping, now);
            }
            // The successor is on its way out, or about to serve: then there is nothing to stop.
            if !in_a_hurry {
                return;
            }
        }
        for endpoint in self.registry.endpoints() {
            endpoint.retire();
        }
        self.drain(Ending::Stopped);
    }

    /// The predecessor takes back over: what is queued is its own again.
    fn step_back(&mut self, reason: &str) {
        tracing::warn!(reason, "the predecessor takes back over");
        for endpoint in self.registry.endpoints() {
            endpoint.end();
        }
        if let Some(link) = &mut self.link {
            link.stopped(&self.poller);
        }
        self.drain(Ending::RolledBack);
    }

    fn drain(&mut self, ending: Ending) {
        tracing::info!(?ending, in_flight = self.in_flight.active(), "draining");
        self.stage = Stage::Draining;
        self.ending = Some(ending);
        self.in_flight.begin_drain();
        self.registry.forget_inherited();
        self.drain_deadline = Instant::now().checked_add(self.config.drain_timeout);
        // After a handover their verdict follows; else nothing comes of what was asked for.
        if ending != Ending::HandedOver && !self.tickets.is_empty() {
            let verdict = Verdict::Failed(self.not_begun(Reason::NotServing));
            self.verdicts.push((verdict, std::mem::take(&mut self.tickets)));
        }
    }

    fn step_drain(&mut self) {
        if self.stage != Stage::Draining {
            return;
        }
        let late = self.drain_deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if !(late || self.stops > 1 || self.in_flight.is_idle()) {
            return;
        }
        let drained = self.in_flight.drained();
        tracing::info!(finished = drained.finished, cut = drained.cut, "drained");
        self.drained = Some(drained);
        self.stage = Stage::Done;
        self.signals.set_mode(Mode::Finished);
        if self.ending == Some(Ending::Stopped)
            && let Some(path) = &self.config.pid_file
        {
            PidFile::remove(path);
        }
    }

    /// Why an upgrade cannot be asked for now.
    fn refusal(&self) -> Option<Verdict> {
        let reason = if self.stage != Stage::Serving || self.stop_requested {
            Reason::NotServing
        } else if self.upgrade_is_under_way() || self.upgrade_pending {
            Reason::Busy
        } else {
            return None;
        };
        Some(Verdict::Failed(self.not_begun(reason)))
    }

    fn not_begun(&self, reason: Reason) -> Box<Failure> {
        Failure::before_spawn(self.generation.saturating_add(1), reason, Duration::ZERO)
    }
}

fn failure_kind(failure: ProtoFailure) -> ErrorKind {
    match failure {
        ProtoFailure::Aborted { reason } => ErrorKind::Aborted { reason },
        ProtoFailure::Incompatible { ours, theirs } => ErrorKind::PeerIncompatible { ours, theirs },
        ProtoFailure::Misbehaved(violation) => ErrorKind::PeerMisbehaved(violation),
        ProtoFailure::Silent => ErrorKind::PredecessorSilent,
        other => ErrorKind::Refused { reason: other.to_string() },
    }
}
