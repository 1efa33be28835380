//! The one step that drives everything: signals, the predecessor, an upgrade, the drain.
//!
//! The engine never waits. It has a descriptor that is readable when there is something to do and
//! a deadline by which to come back; a waiter, blocking or in a runtime, calls [`Shared::step`].

mod operator;
mod rollback;
mod shared;
mod status;
mod stopping;
mod supervised;
mod upgrades;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::control::Event;
use handover_proto::{CommittedBy, Failure as ProtoFailure};

use crate::attempt::Attempt;
use crate::clock::Clock;
use crate::config::Config;
use crate::drain::{Drained, InFlight};
use crate::error::{Error, ErrorKind, WhoServes};
use crate::gate::Stance;
use crate::hooks::{Confirm, News, Telling};
use crate::lines::{self, Lines};
use crate::link::{self, Link};
use crate::live::desk::Desk;
use crate::live::exchange::Exchange;
use crate::pidfile::PidFile;
use crate::preflight::Preflight;
use crate::previous::{Own, Previous};
use crate::registry::Registry;
use crate::request::Wanted;
use crate::state::{Providers, State};
use crate::sys::poll::{Poller, Wake};
use crate::sys::signals::{Mode, Signals};
use crate::systemd::{Store, Supervision};
use crate::verdict::Verdict;

use operator::Operators;
use rollback::{Resuming, SteppingBack};
pub(crate) use shared::Shared;
pub use status::Ending;
pub(crate) use status::{Stage, Status, Ticket};
pub(crate) use upgrades::Taker;

pub(crate) struct Engine {
    config: Arc<Config>,
    clock: Clock,
    poller: Arc<Poller>,
    wake: Arc<Wake>,
    in_flight: Arc<InFlight>,
    signals: Signals,
    pub(crate) supervision: Supervision,
    /// What came from systemd's fd store has come from a generation that crashed, or was restarted.
    pub(crate) is_recovery: bool,
    stage: Stage,
    /// When this process began to serve, or to drain.
    since: Instant,
    pub(crate) generation: u64,
    pub(crate) is_successor: bool,
    pub(crate) registry: Registry,
    pub(crate) early_states: Vec<State>,
    pub(crate) late_states: Vec<State>,
    pub(crate) early: Providers,
    pub(crate) late: Providers,
    /// The tie to the predecessor, until it is a line.
    link: Option<Link>,
    /// Whether the predecessor cannot take back over any more.
    confirmed: bool,
    /// The ties to all that are older and drain.
    lines: Lines,
    /// The ways of connections that change hands.
    exchange: Exchange,
    /// What a rollback goes back to.
    previous: Option<Previous>,
    preflight: Option<Preflight>,
    attempt: Option<Attempt>,
    /// Successors that were rolled back and drain.
    departing: Vec<Attempt>,
    /// What the attempt is for.
    current: Option<Wanted>,
    /// What was asked for and has its turn later.
    queue: VecDeque<Wanted>,
    /// An upgrade was asked for by a signal, once or more often.
    signalled: bool,
    /// The last number that a successor had that served.
    last_generation: u64,
    /// It was said that there are too many generations for another.
    told_too_many: bool,
    resuming: Option<Resuming>,
    /// The application is told that a commit cannot be taken back.
    confirming: Option<Telling>,
    stepping_back: Option<SteppingBack>,
    operators: Operators,
    /// What this process is, for a successor that goes back to it.
    own: Option<Own>,
    /// When the probation of this process ends, as far as it knows.
    probation_end: Option<Instant>,
    /// The successor has been told of the stop that it is to honour.
    stop_passed_on: bool,
    stops: u32,
    stop_requested: bool,
    /// How long the drain may take, if less than usual.
    drain_limit: Option<Duration>,
    ending: Option<Ending>,
    drain_deadline: Option<Instant>,
    drained: Option<Drained>,
    pid_file: Option<PidFile>,
    failure: Option<Error>,
    /// What is told once the lock is released.
    verdicts: Vec<(Verdict, Vec<Ticket>)>,
    /// What has happened and operators were not told of.
    events: Vec<Event>,
    /// What has happened and the application is not told of.
    told: Vec<Event>,
}

impl Engine {
    #[expect(clippy::too_many_arguments, reason = "all that an engine is made of")]
    fn new(
        config: &Arc<Config>,
        clock: Clock,
        poller: &Arc<Poller>,
        desk: &Arc<Desk>,
        in_flight: &Arc<InFlight>,
        signals: Signals,
        link: Option<Link>,
        supervision: Supervision,
    ) -> Self {
        let generation = link.as_ref().map_or(1, Link::generation);
        Self {
            config: Arc::clone(config),
            clock,
            poller: Arc::clone(poller),
            wake: Arc::clone(desk.wake()),
            exchange: Exchange::new(desk),
            in_flight: Arc::clone(in_flight),
            signals,
            supervision,
            is_recovery: false,
            stage: if link.is_some() { Stage::Adopting } else { Stage::Claiming },
            since: Instant::now(),
            generation,
            is_successor: link.is_some(),
            registry: Registry::default(),
            early_states: Vec::new(),
            late_states: Vec::new(),
            early: Providers::default(),
            late: Providers::default(),
            confirmed: link.is_none(),
            link,
            lines: Lines::default(),
            previous: None,
            preflight: None,
            attempt: None,
            departing: Vec::new(),
            current: None,
            queue: VecDeque::new(),
            signalled: false,
            last_generation: generation,
            told_too_many: false,
            resuming: None,
            confirming: None,
            stepping_back: None,
            operators: Operators::default(),
            own: Own::of_this_process(config.program.executable()),
            probation_end: None,
            stop_passed_on: false,
            stops: 0,
            stop_requested: false,
            drain_limit: None,
            ending: None,
            drain_deadline: None,
            drained: None,
            pid_file: None,
            failure: None,
            verdicts: Vec::new(),
            events: Vec::new(),
            told: Vec::new(),
        }
    }

    fn status(&self) -> Status {
        Status {
            stage: self.stage,
            ending: self.ending,
            predecessor_gone: self.link.is_none() && self.lines.is_empty(),
            confirmed: self.stage >= Stage::Serving && self.confirmed,
            drained: self.drained,
            drain_deadline: self.drain_deadline,
        }
    }

    pub(crate) fn who_serves(&self) -> WhoServes {
        match self.stage {
            Stage::Serving if self.stands_by() => WhoServes::Successor,
            Stage::Serving if self.stepping_back.is_some() => WhoServes::Predecessor,
            Stage::Serving => WhoServes::ThisProcess,
            Stage::Draining | Stage::Done if self.ending == Some(Ending::HandedOver) => {
                WhoServes::Successor
            }
            Stage::Draining | Stage::Done if self.ending == Some(Ending::RolledBack) => {
                WhoServes::Predecessor
            }
            Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Failed
                if self.link.as_ref().is_some_and(Link::is_connected) =>
            {
                WhoServes::Predecessor
            }
            _ => WhoServes::Nobody,
        }
    }

    /// Whether a successor on probation serves in this process's place.
    fn stands_by(&self) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::is_on_probation)
    }

    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.who_serves())
    }

    /// The stance of a socket that is claimed now.
    pub(crate) fn stance(&self) -> Stance {
        match self.stage {
            Stage::Adopting | Stage::Claiming | Stage::Committing => Stance::Paused,
            // The predecessor is about to accept.
            Stage::Serving if self.stepping_back.is_some() => Stance::Paused,
            Stage::Serving => Stance::Open,
            Stage::Draining | Stage::Done | Stage::Failed => Stance::Ended,
        }
    }

    pub(crate) fn upgrade_is_under_way(&self) -> bool {
        self.preflight.is_some()
            || self.attempt.as_ref().is_some_and(Attempt::is_under_way)
            || self.resuming.is_some()
    }

    pub(crate) fn progress(&mut self, text: String, more: Option<Duration>) {
        self.supervision.initialising(&text, more);
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
        self.check_store()?;
        for name in self.registry.unclaimed() {
            if self.is_recovery {
                tracing::warn!(name, "kept by systemd and not claimed: it is closed");
            } else {
                tracing::warn!(name, "inherited and not claimed: the predecessor will retire it");
            }
        }
        for name in self.registry.unclaimed_activated() {
            tracing::warn!(name, "passed by systemd and not claimed: nobody accepts from it");
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
        self.preflight = None;
        self.give_up_current();
        self.give_up_queue();
        // Nothing that is asked for from here on would ever be done.
        self.stop_requested = true;
        self.signals.abandon();
    }

    /// Why `ready()` failed.
    pub(crate) fn take_failure(&mut self) -> Error {
        self.failure.take().unwrap_or_else(|| self.error(ErrorKind::PredecessorSilent))
    }

    /// Does what can be done without waiting: hears what there is, decides, and does it. In this
    /// order, so that what a decision gives an upgrade to say is said before the next wait.
    fn step(&mut self) {
        self.wake.clear();
        self.step_link();
        self.step_lines();
        self.take_signals();
        self.step_operators();
        self.act();
        self.step_preflight();
        self.step_attempt();
        self.step_departing();
        self.step_exchange();
        self.step_resuming();
        self.step_back();
        self.step_drain();
        self.flush_operators();
        self.step_supervision();
    }

    fn deadline(&self) -> Option<Instant> {
        [
            self.link.as_ref().and_then(Link::deadline),
            self.preflight.as_ref().and_then(Preflight::deadline),
            self.attempt.as_ref().and_then(Attempt::deadline),
            self.resuming.as_ref().and_then(Resuming::deadline),
            self.exchange.deadline(),
            self.operators.deadline(),
            self.supervision.deadline(),
            self.drain_deadline.filter(|_| self.stage == Stage::Draining),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn step_link(&mut self) {
        let Some(link) = &mut self.link else { return };
        let mut effects = Vec::new();
        link.step(&self.poller, &mut effects);
        for effect in effects {
            self.handle_link(effect);
        }
        if let Some(link) = &mut self.link {
            link.flush(&self.poller);
        }
        // Before `ready()` a link that is cut says that nobody else is there to serve.
        if self.stage >= Stage::Serving && self.link.as_ref().is_some_and(|l| !l.is_connected()) {
            self.link = None;
        }
    }

    fn handle_link(&mut self, effect: link::Effect) {
        match effect {
            link::Effect::Inherited(item, fd) => self.inherit(item, fd),
            link::Effect::State { state, late: false } => self.inherit_state(state),
            link::Effect::State { state, late: true } => self.late_states.push(state),
            link::Effect::Adopted => {
                self.generation = self.link.as_ref().map_or(1, Link::generation);
                self.last_generation = self.generation;
                self.supervision.numbered(self.generation);
                self.stage = Stage::Claiming;
                // Without this memory the predecessor is better kept: once it has let go, nobody
                // can take over from a process that ends for want of it.
                self.lines.reserve();
                self.exchange.reserve();
            }
            link::Effect::Committed(by) => {
                if let CommittedBy::Predecessor { upgrade_pending, probation } = by {
                    self.signalled |= upgrade_pending;
                    if let Some(probation) = probation {
                        tracing::info!(?probation, "on probation");
                        self.probation_end = Instant::now().checked_add(probation);
                    }
                }
                self.serve();
            }
            link::Effect::Confirmed => self.confirmed(),
            link::Effect::Announced => self.announced(),
            link::Effect::Upgrade => self.want_upgrade(),
            link::Effect::Stop(drain) => self.want_stop(drain),
            link::Effect::StopServing(reason) => self.begin_step_back(reason),
            link::Effect::Replaced => self.replaced(),
            link::Effect::PredecessorGone => self.predecessor_gone(),
            link::Effect::Failed(failure) => {
                self.failure = Some(self.error(failure_kind(failure)));
                self.stage = Stage::Failed;
            }
        }
    }

    fn inherit(&mut self, item: handover_proto::Item, fd: std::os::fd::OwnedFd) {
        let Some(fd) = self.lines.inherit(&item, fd, &self.poller) else { return };
        let Some(fd) = self.exchange.inherit(&item, fd) else { return };
        let Some(fd) = Previous::inherit(&mut self.previous, &item, fd) else { return };
        let Some(fd) = self.supervision.inherit(&item, fd) else { return };
        self.supervision.stored_before(Store::names_of([&item], []));
        self.registry.inherit(item, fd);
    }

    fn inherit_state(&mut self, state: State) {
        self.supervision.stored_before(Store::names_of([], [state.name_as()]));
        self.early_states.retain(|older| older.name() != state.name());
        self.early_states.push(state);
    }

    /// The predecessor cannot take back over: what is left of it is like what is left of others.
    fn confirmed(&mut self) {
        self.probation_end = None;
        let generation = self.generation;
        tracing::info!(generation, "confirmed");
        self.events.push(Event::Confirmed { generation });
        self.tell_confirmed(generation, WhoServes::ThisProcess);
        self.confirmed = true;
        self.supervision.confirmed(Instant::now());
        self.operators.confirmed(generation);
        // What was asked for meanwhile can be done.
        self.wake.set();
    }

    /// Makes a line of the tie to a predecessor that drains.
    ///
    /// Not before that has said that it knows that this process serves: it could call the handover off
    /// after all, and a line would not know that.
    fn settle_link(&mut self) {
        if !self.confirmed || self.stepping_back.is_some() {
            return;
        }
        if let Some(link) = self.link.take_if(|link| link.is_flushed() && link.is_known()) {
            let generation = link.predecessor();
            if let Some(channel) = link.into_line(&self.poller) {
                self.lines.add(generation, channel, &self.poller);
            }
        }
    }

    fn tell_confirmed(&mut self, generation: u64, who_serves: WhoServes) {
        let confirm = News::Confirm(Confirm { generation, who_serves });
        // Nobody waits for it but a drain: the process is not to exit before it is done.
        self.confirming = Some(self.config.hooks.tell(confirm, &self.wake));
    }

    fn step_lines(&mut self) {
        self.lines.set_reading(match self.stage {
            // What is asked of one that is about to be replaced would be forgotten with it.
            Stage::Serving => !self.stands_by() && self.stepping_back.is_none(),
            Stage::Draining => self.ending == Some(Ending::Stopped),
            Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Done | Stage::Failed => {
                false
            }
        });
        let mut effects = Vec::new();
        self.lines.step(&self.poller, &mut effects);
        for effect in effects {
            match effect {
                lines::Effect::Upgrade => self.want_upgrade(),
                lines::Effect::Stop(drain) => self.want_stop(drain),
                lines::Effect::Announced => self.announced(),
                lines::Effect::Gone { generation } => {
                    tracing::info!(generation, "an older generation has ended");
                    self.events.push(Event::Gone { generation });
                    self.told_too_many = false;
                }
            }
        }
    }

    /// Has connections change hands. While a successor is on probation they stay, and what older
    /// generations give comes here.
    fn step_exchange(&mut self) {
        let is_taking = self.stage == Stage::Serving && self.confirmed;
        let is_over = self.stage > Stage::Serving;
        self.exchange.step(is_taking, is_over, &self.poller);
    }

    /// This process serves, from here on.
    fn serve(&mut self) {
        self.stage = Stage::Serving;
        self.since = Instant::now();
        self.serve_after_all();
        for endpoint in self.registry.endpoints() {
            endpoint.open();
        }
        self.permit_operators();
        if let Some(file) = self.pid_file.take() {
            file.publish();
        }
        if let Some(link) = &mut self.link {
            // The predecessor waits for the word that this process serves; the rest can wait.
            link.flush(&self.poller);
            link.restore_stderr();
        }
        self.serve_supervised();
        let (generation, pid) = (self.generation, std::process::id());
        tracing::info!(generation, "serving");
        self.events.push(Event::Serving { generation, pid });
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
                } else {
                    self.begin_next();
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
