//! The one step that drives everything: signals, the predecessor, an upgrade, the drain.
//!
//! The engine never waits. It has a descriptor that is readable when there is something to do and
//! a deadline by which to come back; a waiter, blocking or in a runtime, calls [`Shared::step`].

mod operator;
mod rollback;
mod shared;
mod status;
mod upgrades;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::control::Event;
use handover_proto::{CommittedBy, Failure as ProtoFailure};

use crate::attempt::{Attempt, Plan};
use crate::clock::Clock;
use crate::config::Config;
use crate::drain::{Drained, InFlight};
use crate::error::{Error, ErrorKind, WhoServes};
use crate::gate::Stance;
use crate::hooks::{Confirm, News, Telling};
use crate::lines::{self, Lines};
use crate::link::{self, Link};
use crate::pidfile::PidFile;
use crate::preflight::Preflight;
use crate::previous::{Own, Previous};
use crate::registry::Registry;
use crate::request::Wanted;
use crate::state::{Providers, State};
use crate::sys::poll::{Poller, Wake};
use crate::sys::signals::{Mode, Signals};
use crate::verdict::{Failure, Reason, Verdict};

use operator::Operators;
use rollback::{Resuming, SteppingBack};
pub(crate) use shared::Shared;
pub use status::Ending;
pub(crate) use status::{Stage, Status, Ticket};
pub(crate) use upgrades::Taker;

/// How long a process that is done waits for operators to take what they are told last.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Engine {
    config: Arc<Config>,
    clock: Clock,
    poller: Arc<Poller>,
    wake: Arc<Wake>,
    in_flight: Arc<InFlight>,
    signals: Signals,
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
    fn new(
        config: &Arc<Config>,
        clock: Clock,
        poller: &Arc<Poller>,
        wake: &Arc<Wake>,
        in_flight: &Arc<InFlight>,
        signals: Signals,
        link: Option<Link>,
    ) -> Self {
        let generation = link.as_ref().map_or(1, Link::generation);
        Self {
            config: Arc::clone(config),
            clock,
            poller: Arc::clone(poller),
            wake: Arc::clone(wake),
            in_flight: Arc::clone(in_flight),
            signals,
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
        self.step_resuming();
        self.step_back();
        self.step_drain();
        self.flush_operators();
    }

    fn deadline(&self) -> Option<Instant> {
        [
            self.link.as_ref().and_then(Link::deadline),
            self.preflight.as_ref().and_then(Preflight::deadline),
            self.attempt.as_ref().and_then(Attempt::deadline),
            self.resuming.as_ref().and_then(Resuming::deadline),
            self.operators.deadline(),
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
            link::Effect::State { state, late: false } => self.early_states.push(state),
            link::Effect::State { state, late: true } => self.late_states.push(state),
            link::Effect::Adopted => {
                self.generation = self.link.as_ref().map_or(1, Link::generation);
                self.last_generation = self.generation;
                self.stage = Stage::Claiming;
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
        let Some(fd) = Previous::inherit(&mut self.previous, &item, fd) else { return };
        self.registry.inherit(item, fd);
    }

    /// The predecessor cannot take back over: what is left of it is like what is left of others.
    fn confirmed(&mut self) {
        self.probation_end = None;
        let generation = self.generation;
        tracing::info!(generation, "confirmed");
        self.events.push(Event::Confirmed { generation });
        self.tell_confirmed(generation, WhoServes::ThisProcess);
        self.confirmed = true;
        self.operators.confirmed(generation);
        // What was asked for meanwhile can be done.
        self.wake.set();
    }

    /// Makes a line of the tie to a predecessor that drains.
    ///
    /// When there is a use for it and not at once: a predecessor that does not know yet that this
    /// process serves could call the handover off after all, and a line would not know that.
    fn settle_link(&mut self) {
        if !self.confirmed || self.stepping_back.is_some() {
            return;
        }
        if let Some(link) = self.link.take_if(|link| link.is_flushed()) {
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
            Stage::Serving => !self.stands_by(),
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
                lines::Effect::Gone { generation } => {
                    tracing::info!(generation, "an older generation has ended");
                    self.events.push(Event::Gone { generation });
                    self.told_too_many = false;
                }
            }
        }
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

    /// A stop was asked for, with a drain that is limited to that time.
    fn want_stop(&mut self, drain: Option<Duration>) {
        if let Some(drain) = drain {
            let limit = self.drain_limit.map_or(drain, |limit| limit.min(drain));
            self.drain_limit = Some(limit);
        }
        self.stop_requested = true;
        if drain.is_some_and(|drain| drain.is_zero()) {
            self.stops = self.stops.max(2);
        }
        // It may have come after the decision.
        self.wake.set();
        if self.stage == Stage::Draining {
            self.set_drain_deadline();
            if self.ending == Some(Ending::Stopped)
                && let Some(drain) = drain
            {
                self.stop_elders(drain);
            }
        }
    }

    fn stop(&mut self) {
        let now = Instant::now();
        let in_a_hurry = self.stops > 1;
        if let Some(preflight) = &mut self.preflight {
            preflight.abort(Reason::Stopping);
            // Killed, it is gone in a moment.
            if !in_a_hurry {
                return;
            }
        }
        if let Some(attempt) = &mut self.attempt
            && attempt.is_under_way()
        {
            if attempt.probation_end().is_some() {
                // It is this process that is to go, and the successor serves.
                return attempt.confirm(now);
            }
            if attempt.is_before_commit() {
                attempt.abort(Reason::Stopping, now);
            } else if !std::mem::replace(&mut self.stop_passed_on, true) {
                attempt.forward_stop(self.drain_limit, now);
            }
            // The successor is on its way out, or about to serve: then there is nothing to stop.
            if !in_a_hurry {
                return;
            }
            attempt.kill();
            if !attempt.is_before_commit() {
                // It may name the successor, which is no more: to be removed it has to name us.
                self.restore_pid_file();
            }
        }
        if self.resuming.is_some() {
            if !in_a_hurry {
                return;
            }
            self.end_resuming();
        }
        let drain = self.drain_timeout();
        if !std::mem::replace(&mut self.stop_passed_on, true)
            && let Some(link) = &mut self.link
        {
            link.stop(Some(drain), &self.poller);
        }
        if self.stepping_back.is_some() && !in_a_hurry {
            // The predecessor serves in a moment, and then it stops.
            return;
        }
        self.stepping_back = None;
        self.lines.stop(drain, &self.poller);
        if in_a_hurry {
            self.stop_elders(Duration::ZERO);
        }
        for endpoint in self.registry.endpoints() {
            endpoint.retire();
        }
        self.drain(Ending::Stopped);
    }

    /// Gives all that are older that long to finish, the predecessor included.
    fn stop_elders(&mut self, drain: Duration) {
        if let Some(link) = &mut self.link {
            link.stop(Some(drain), &self.poller);
        }
        self.lines.stop(drain, &self.poller);
    }

    fn drain_timeout(&self) -> Duration {
        let usual = self.config.drain_timeout;
        self.drain_limit.map_or(usual, |limit| limit.min(usual))
    }

    fn set_drain_deadline(&mut self) {
        let deadline = Instant::now().checked_add(self.drain_timeout());
        self.drain_deadline = match (self.drain_deadline, deadline) {
            (Some(before), Some(now)) => Some(before.min(now)),
            (before, now) => before.or(now),
        };
    }

    fn drain(&mut self, ending: Ending) {
        let in_flight = self.in_flight.active();
        tracing::info!(?ending, in_flight, "draining");
        self.stage = Stage::Draining;
        self.since = Instant::now();
        self.ending = Some(ending);
        self.in_flight.begin_drain();
        self.registry.forget_inherited();
        self.previous = None;
        self.set_drain_deadline();
        self.events.push(Event::Draining {
            generation: self.generation,
            ending: ending.to_string(),
            in_flight,
            timeout_ms: u64::try_from(self.drain_timeout().as_millis()).unwrap_or(u64::MAX),
        });
        self.give_up_queue();
        let timeout = self.drain_timeout();
        self.operators.draining(ending, in_flight, timeout);
    }

    fn step_drain(&mut self) {
        if self.stage != Stage::Draining {
            return;
        }
        let in_a_hurry = self.stops > 1;
        if in_a_hurry && self.ending == Some(Ending::Stopped) {
            self.stop_elders(Duration::ZERO);
        }
        let now = Instant::now();
        let late = self.drain_deadline.is_some_and(|deadline| now >= deadline);
        let told = self.confirming.as_ref().is_none_or(Telling::is_done);
        let is_idle = self.stepping_back.is_none() && told && self.in_flight.is_idle();
        if !(late || in_a_hurry || is_idle) {
            return;
        }
        if self.drained.is_none() {
            let drained = self.in_flight.drained();
            let (finished, cut) = (drained.finished, drained.cut);
            tracing::info!(finished, cut, "drained");
            self.drained = Some(drained);
            self.events.push(Event::Drained { generation: self.generation, finished, cut });
            // Whoever asked for something is told the end of it.
            self.answer_status();
            self.flush_operators();
            self.drain_deadline = now.checked_add(FAREWELL_TIMEOUT);
            if !self.operators.is_flushed() && !in_a_hurry {
                return;
            }
        } else if !(late || in_a_hurry || self.operators.is_flushed()) {
            return;
        }
        self.stage = Stage::Done;
        self.give_up_current();
        self.signals.set_mode(Mode::Finished);
        self.operators.close();
        if self.ending == Some(Ending::Stopped)
            && let Some(path) = &self.config.pid_file
        {
            PidFile::remove(path);
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            config: Arc::clone(&self.config),
            options: self.current.as_ref().map(|w| w.options.clone()).unwrap_or_default(),
            own_generation: self.generation,
            early: Arc::clone(&self.early),
            late: Arc::clone(&self.late),
            in_flight: Arc::clone(&self.in_flight),
            wake: Arc::clone(&self.wake),
        }
    }

    fn next_generation(&self) -> u64 {
        self.last_generation.saturating_add(1)
    }

    fn not_begun(&self, reason: Reason) -> Box<Failure> {
        Failure::before_spawn(self.next_generation(), reason, Duration::ZERO)
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
