//! One upgrade, from the predecessor's side: a process, a channel to it, and the machine between.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use handover_proto::control::Event;
use handover_proto::{
    Cause, Inventory, MAX_FRAME_BYTES, Name, Outcome, Preamble, Predecessor, PredecessorConfig,
    PredecessorEvent, Received as In, Report, Slot, Transmit, Versions,
};

use crate::clock::Clock;
use crate::config::Config;
use crate::drain::InFlight;
use crate::gate::Stance;
use crate::hooks::{Commit, News, Telling};
use crate::preflight::{Executable, spawn_error};
use crate::registry::Held;
use crate::request::UpgradeOptions;
use crate::state::{Providers, Sealed, State, Writing, Written, write_all};
use crate::stderr::Relay;
use crate::sys::channel::{Channel, FRAMES_PER_STEP, Received};
use crate::sys::file;
use crate::sys::poll::{Interest, Poller, Wake};
use crate::sys::process::{Condition, Process};
use crate::sys::spawn::{Command, Group, Parent};
use crate::verdict::{Failure, Phase, Reason, Success, Timings, Verdict};

/// What an upgrade needs to know of the process that it is to replace.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) config: Arc<Config>,
    pub(crate) options: UpgradeOptions,
    /// Whose child the successor is.
    pub(crate) parent: Parent,
    pub(crate) own_generation: u64,
    pub(crate) early: Providers,
    pub(crate) late: Providers,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) wake: Arc<Wake>,
}

/// What the engine has to do or to know of an upgrade.
#[derive(Debug)]
pub(crate) enum Effect {
    /// To be told to whoever listens.
    Event(Event),
    /// The successor may be known by its number from here on.
    Committing,
    /// The successor accepts for good; this process drains.
    Served,
    /// A state of a successor that is rolled back.
    Returned(State),
    /// Do: accept again, by [`Attempt::resume`].
    Resume {
        /// Whether the application was told of a commit.
        told_commit: bool,
        reason: String,
    },
    /// Do: stop, or finish within that time.
    StopAsked(Option<Duration>),
    /// Do: answer by [`Attempt::report`].
    Inquired(u32),
    /// It is decided.
    Finished(Verdict),
}

/// An upgrade under way, or the tie to the successor that came of it.
#[derive(Debug)]
pub(crate) struct Attempt {
    machine: Predecessor,
    generation: u64,
    process: Process,
    exit: Option<Option<ExitStatus>>,
    channel: Option<Channel>,
    /// For the frames that come.
    buffer: Vec<u8>,
    /// What the channel did not take yet.
    unsent: Option<Transmit>,
    /// Whether that is because it is full.
    full: bool,
    /// When to try again although the channel would take it.
    retry: Option<Instant>,
    items: Vec<(Name, Held)>,
    claimed: HashSet<Name>,
    /// Accepting is being stopped.
    stopping: bool,
    /// The application was told that a commit follows.
    told_commit: bool,
    /// Accepting is to be resumed.
    to_resume: bool,
    states: Vec<Sealed>,
    /// The descriptors of the frame that is being looked at.
    received: std::vec::IntoIter<OwnedFd>,
    /// The application is told of the commit.
    telling: Option<Telling>,
    writing: Option<(Helping, Writing)>,
    relay: Option<Relay>,
    /// Why the upgrade was called off, when that is more than the machine knows.
    called_off: Option<Reason>,
    marks: Marks,
    plan: Plan,
    clock: Clock,
    /// The successor was started by this process.
    is_own: bool,
}

/// Which states are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Helping {
    Early,
    Late,
}

/// When what happened.
#[derive(Debug)]
struct Marks {
    begun: Instant,
    entered: Instant,
    /// When the last frame came.
    received: Instant,
    on_probation: bool,
    timings: Timings,
}

/// How long to leave the kernel alone that has too many descriptors of this user in flight.
const QUOTA_PAUSE: Duration = Duration::from_millis(10);

/// How long a service manager may take to reap a successor that has ended, before its status counts as
/// unknown.
const REAP_TIMEOUT: Duration = Duration::from_millis(100);

impl Attempt {
    /// Starts the successor.
    pub(crate) fn begin(
        plan: Plan,
        executable: &Executable,
        generation: u64,
        inventory: Vec<(handover_proto::Item, Held)>,
        poller: &Poller,
        clock: Clock,
    ) -> Result<Self, Box<Failure>> {
        let (begun, preflight) = (executable.begun, executable.begun.elapsed());
        let fail = |reason| Failure::before_spawn(generation, reason, begun.elapsed());
        let io = |doing| move |source| Reason::Io { doing, source };

        let (ours, theirs) = Channel::pair().map_err(io("a channel")).map_err(fail)?;
        let token = file::token().map_err(io("random bytes")).map_err(fail)?;
        let preamble = Preamble { token: token.clone(), generation };
        ours.send(&preamble.encode(), &[]).map_err(io("the first message")).map_err(fail)?;
        let (relay, stderr) = if plan.config.capture_stderr {
            let (reader, writer) = file::pipe().map_err(io("a pipe")).map_err(fail)?;
            (Some(Relay::new(reader)), Some(writer))
        } else {
            (None, None)
        };
        let image = executable
            .program
            .image(&format!("{}:{token}", theirs.number()))
            .map_err(|invalid| fail(Reason::CalledOff { reason: invalid.to_string() }))?;
        let spawning = Instant::now();
        let process = Command {
            executable: &executable.file,
            arguments: &image.arguments,
            environment: &image.environment,
            pid_variables: &image.pid_variables,
            directory: &image.directory,
            inherit: Some(theirs.as_fd()),
            streams: [None, None, stderr.as_ref().map(AsFd::as_fd)],
            blocked: plan.config.blocked,
            parent: plan.parent,
            group: Group::Ours,
        }
        .spawn()
        .map_err(|error| fail(Reason::Spawn(spawn_error(error, executable))))?;
        let spawned = Instant::now();
        tracing::info!(generation, pid = process.pid(), "successor started");

        let marks = Marks {
            begun,
            entered: spawned,
            received: spawned,
            on_probation: false,
            timings: Timings { preflight, spawn: spawned - spawning, ..Timings::default() },
        };
        let mut attempt =
            Self::new(plan, generation, inventory, process, ours, relay, marks, poller, clock)?;
        attempt.is_own = true;
        Ok(attempt)
    }

    /// Hands over to a process that somebody else has started, and that has the other end of the
    /// channel.
    pub(crate) fn adopt(
        plan: Plan,
        generation: u64,
        inventory: Vec<(handover_proto::Item, Held)>,
        process: Process,
        channel: Channel,
        poller: &Poller,
        clock: Clock,
    ) -> Result<Self, Box<Failure>> {
        let begun = Instant::now();
        tracing::info!(generation, pid = process.pid(), "a process takes over");
        let marks = Marks {
            begun,
            entered: begun,
            received: begun,
            on_probation: false,
            timings: Timings::default(),
        };
        Self::new(plan, generation, inventory, process, channel, None, marks, poller, clock)
    }

    #[expect(clippy::too_many_arguments, reason = "all that an attempt is made of")]
    fn new(
        plan: Plan,
        generation: u64,
        inventory: Vec<(handover_proto::Item, Held)>,
        process: Process,
        channel: Channel,
        relay: Option<Relay>,
        marks: Marks,
        poller: &Poller,
        clock: Clock,
    ) -> Result<Self, Box<Failure>> {
        let (items, held): (Vec<_>, Vec<_>) = inventory.into_iter().unzip();
        let names: Vec<Name> = items.iter().map(|item| item.name.clone()).collect();
        let states =
            u32::try_from(plan.early.lock().map_or(0, |early| early.len())).unwrap_or(u32::MAX);
        let probation = plan.options.probation.or(plan.config.probation);
        let config = PredecessorConfig {
            versions: Versions::OURS,
            pid: std::process::id(),
            own_generation: plan.own_generation,
            generation,
            ready_timeout: plan.options.ready_timeout.unwrap_or(plan.config.ready_timeout),
            commit_timeout: plan.config.commit_timeout,
            probation: probation.filter(|probation| !probation.is_zero()),
            answer_timeout: plan.config.answer_timeout,
        };
        let inventory = Inventory { items, states, stderr: relay.is_some() };
        let attempt = Self {
            machine: Predecessor::new(config, inventory, clock.time(marks.entered)),
            generation,
            process,
            exit: None,
            channel: Some(channel),
            buffer: vec![0; MAX_FRAME_BYTES + 1],
            unsent: None,
            full: false,
            retry: None,
            items: names.into_iter().zip(held).collect(),
            claimed: HashSet::new(),
            stopping: false,
            told_commit: false,
            to_resume: false,
            states: Vec::new(),
            received: Vec::new().into_iter(),
            telling: None,
            writing: None,
            relay,
            called_off: None,
            marks,
            plan,
            clock,
            is_own: false,
        };
        attempt.register(poller).map_err(|source| {
            // Nobody would look after the process. What cannot be ended cannot be helped.
            let _ = attempt.process.end();
            let reason = Reason::Io { doing: "epoll", source };
            Failure::before_spawn(generation, reason, attempt.marks.begun.elapsed())
        })?;
        Ok(attempt)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Where it stands, in a word.
    pub(crate) fn phase(&self) -> handover_proto::Phase {
        self.machine.phase()
    }

    /// How long ago it was begun.
    pub(crate) fn age(&self) -> Duration {
        self.marks.begun.elapsed()
    }

    /// When probation ends, if the successor is on it.
    pub(crate) fn probation_end(&self) -> Option<Instant> {
        self.machine.probation_end().map(|time| self.clock.instant(time))
    }

    /// Whether it is not decided yet.
    pub(crate) fn is_under_way(&self) -> bool {
        self.machine.phase() < handover_proto::Phase::Served
    }

    /// Whether the successor serves and this process can still take back over.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.machine.phase() == handover_proto::Phase::Probation
    }

    /// Whether it has come to nothing.
    pub(crate) fn has_failed(&self) -> bool {
        self.machine.phase() == handover_proto::Phase::Failed
    }

    /// Whether it is over and the successor is gone: nothing holds on to it.
    pub(crate) fn is_over(&self) -> bool {
        !self.is_under_way() && self.exit.is_some() && self.channel.is_none() && !self.to_resume
    }

    /// Whether calling it off is possible without ending a successor that may serve already.
    pub(crate) fn is_before_commit(&self) -> bool {
        self.machine.phase() < handover_proto::Phase::Confirm
    }

    /// The successor's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What tells the successor's process from all others, if the kernel does.
    pub(crate) fn process_id(&self) -> Option<u64> {
        self.process.id()
    }

    /// Whether this process has started it, so that it is part of the same service for a manager.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Whether whoever serves in this process's place is there.
    pub(crate) fn is_connected(&self) -> bool {
        self.channel.is_some()
    }

    /// Says that the service manager knows the successor.
    pub(crate) fn announced(&mut self, poller: &Poller) {
        self.machine.announced(self.clock.time(Instant::now()));
        while self.transmit(poller) {}
    }

    /// Calls the upgrade off.
    pub(crate) fn abort(&mut self, reason: Reason, now: Instant) {
        let text = reason.to_string();
        self.called_off.get_or_insert(reason);
        self.machine.abort(text, self.clock.time(now));
    }

    /// Ends the successor at once, when nobody has the time to wait for it to go.
    pub(crate) fn kill(&self) {
        if let Err(error) = self.process.kill() {
            tracing::warn!(pid = self.pid(), %error, "cannot end the successor");
        }
    }

    /// Takes back over from a successor on probation.
    pub(crate) fn roll_back(&mut self, reason: &str, now: Instant) {
        self.machine.roll_back(reason, self.clock.time(now));
    }

    /// Ends probation.
    pub(crate) fn confirm(&mut self, now: Instant) {
        self.machine.confirm(self.clock.time(now));
    }

    /// Says how this process is, after [`Effect::Inquired`].
    pub(crate) fn report(&mut self, number: u32, report: Report, poller: &Poller) {
        self.machine.report(number, report, self.clock.time(Instant::now()));
        while self.transmit(poller) {}
    }

    /// Passes a stop on when it is too late to call the upgrade off; returns whether the successor
    /// gets it.
    pub(crate) fn forward_stop(&mut self, drain: Option<Duration>, now: Instant) -> bool {
        self.channel.is_some() && self.machine.forward_stop(drain, self.clock.time(now))
    }

    /// Accepts again, after [`Effect::Resume`].
    pub(crate) fn resume(&mut self, poller: &Poller) {
        for endpoint in self.endpoints() {
            endpoint.gate().turn(Stance::Open);
        }
        self.to_resume = false;
        while self.transmit(poller) {}
        if !self.is_under_way() {
            self.items.clear();
        }
    }

    /// Passes a request for an upgrade on; returns whether the successor gets it.
    pub(crate) fn forward_upgrade(&mut self, now: Instant) -> bool {
        self.channel.is_some() && self.machine.forward_upgrade(self.clock.time(now))
    }

    /// When to come back if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let machine = self.machine.poll_timeout().map(|time| self.clock.instant(time));
        [machine, self.retry].into_iter().flatten().min()
    }

    /// Does what can be done without waiting.
    pub(crate) fn step(&mut self, poller: &Poller, effects: &mut Vec<Effect>) {
        self.receive(poller, effects);
        self.collect_states(effects);
        self.relay.iter_mut().for_each(|relay| relay.step(poller));
        self.look_for_exit(poller, effects);
        self.look_for_stop();
        self.look_for_told();
        self.machine.handle_timeout(self.clock.time(Instant::now()));
        while self.handle_events(poller, effects) || self.transmit(poller) {}
    }

    /// Takes everything out of the poller that outlives the attempt.
    pub(crate) fn detach(&mut self, poller: &Poller) {
        self.relay.iter_mut().for_each(|relay| relay.detach(poller));
    }

    fn register(&self, poller: &Poller) -> io::Result<()> {
        if let Some(channel) = &self.channel {
            poller.add(channel, Interest::Read)?;
        }
        poller.add(&self.process, Interest::Read)?;
        if let Some(relay) = &self.relay {
            relay.register(poller)?;
        }
        Ok(())
    }

    fn receive(&mut self, poller: &Poller, effects: &mut Vec<Effect>) {
        for _ in 0..FRAMES_PER_STEP {
            let Some(channel) = &self.channel else { return };
            let received = channel.receive::<1>(&mut self.buffer);
            let now = self.clock.time(Instant::now());
            match received {
                Ok(Received::Frame { bytes, descriptors, descriptors_truncated: truncated }) => {
                    self.marks.received = self.clock.instant(now);
                    let came = In { descriptors: descriptors.len(), truncated };
                    self.received = descriptors.into_iter();
                    self.machine.handle_frame(&self.buffer[..bytes], came, now);
                    while self.handle_events(poller, effects) {}
                }
                Ok(Received::Empty) => return,
                Ok(Received::Closed) => {
                    self.disconnect(poller);
                    self.machine.handle_closed(now);
                }
                Err(error) => {
                    tracing::warn!(%error, "the channel to the successor fails");
                    self.disconnect(poller);
                    self.machine.handle_closed(now);
                }
            }
        }
    }

    fn disconnect(&mut self, poller: &Poller) {
        if let Some(channel) = self.channel.take() {
            poller.remove(&channel);
        }
        self.unsent = None;
    }

    /// Takes what the thread that writes states has ready.
    fn collect_states(&mut self, effects: &mut Vec<Effect>) {
        loop {
            let Some((helping, writing)) = &self.writing else { return };
            let helping = *helping;
            let now = self.clock.time(Instant::now());
            match writing.next() {
                Ok(Written::State(sealed)) => {
                    effects.push(Effect::Event(Event::State {
                        generation: self.generation,
                        name: sealed.name.to_string(),
                        bytes: sealed.bytes,
                        late: helping == Helping::Late,
                    }));
                    self.machine.state(sealed.name.clone(), sealed.version, sealed.bytes, now);
                    self.states.push(sealed);
                }
                Ok(Written::Failed { name, error }) => {
                    self.writing = None;
                    let reason = Reason::State { name: name.into(), source: error };
                    return self.abort(reason, Instant::now());
                }
                Ok(Written::Complete) => {
                    self.writing = None;
                    // The thread of the early ones may say so only when the successor, which has
                    // them all, is ready already.
                    if helping == Helping::Late {
                        self.machine.late_states_complete(now);
                    }
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.writing = None;
                    let reason = "the thread that writes states has ended".to_owned();
                    return self.abort(Reason::CalledOff { reason }, Instant::now());
                }
            }
        }
    }

    fn look_for_exit(&mut self, poller: &Poller, effects: &mut Vec<Effect>) {
        if self.exit.is_some() {
            return;
        }
        match self.process.condition() {
            Condition::Running => {}
            Condition::Ended(status) => {
                self.exit = Some(status);
                poller.remove(&self.process);
                // What it said before its end comes first.
                self.receive(poller, effects);
                self.relay.iter_mut().for_each(|relay| relay.step(poller));
                if self.machine.phase() == handover_proto::Phase::Served {
                    tracing::warn!(pid = self.pid(), ?status, "the successor has ended");
                }
                self.machine.handle_exited(self.clock.time(Instant::now()));
            }
        }
    }

    /// Returns whether there was anything.
    fn handle_events(&mut self, poller: &Poller, effects: &mut Vec<Effect>) -> bool {
        let Some(event) = self.machine.poll_event() else { return false };
        let generation = self.generation;
        match event {
            PredecessorEvent::Greeted { pid, software } => {
                tracing::info!(pid, software, "successor speaks");
                effects.push(Effect::Event(Event::Hello { generation, software }));
                self.write_states(Helping::Early);
            }
            PredecessorEvent::Entered(phase) => {
                self.marks.entered(phase);
                if phase == handover_proto::Phase::Initialise {
                    let descriptors = self.items.len() as u64;
                    effects.push(Effect::Event(Event::Initialising { generation, descriptors }));
                }
                if phase == handover_proto::Phase::Confirm {
                    effects.push(Effect::Committing);
                }
            }
            PredecessorEvent::Progress { text } => {
                tracing::info!(generation, text, "successor initialises");
                effects.push(Effect::Event(Event::Progress { generation, text }));
            }
            PredecessorEvent::StopAccepting { claimed } => {
                effects.push(Effect::Event(Event::Ready { generation }));
                self.stop_accepting(claimed);
            }
            PredecessorEvent::TakeState { name, version, bytes } => {
                let Some(fd) = self.received.next() else { return true };
                match State::map(name.clone(), version, bytes, fd) {
                    Ok(state) => effects.push(Effect::Returned(state)),
                    Err(error) => {
                        tracing::error!(%name, %error, "a state that came back cannot be read");
                    }
                }
            }
            PredecessorEvent::ResumeAccepting => {
                self.stopping = false;
                let told_commit = std::mem::take(&mut self.told_commit);
                let reason = self.machine.cause().map(ToString::to_string).unwrap_or_default();
                self.to_resume = true;
                effects.push(Effect::Resume { told_commit, reason });
            }
            PredecessorEvent::Kill => {
                if let Err(error) = self.process.kill() {
                    // It is in another container, perhaps. Somebody has to serve: if it ever goes
                    // on, it finds the word that it must not.
                    let pid = self.pid();
                    tracing::error!(pid, %error, "cannot end the successor, going on without");
                    self.machine.handle_exited(self.clock.time(Instant::now()));
                }
            }
            PredecessorEvent::Serving => {
                let probation = self.machine.config().probation;
                let probation_ms =
                    probation.map(|p| u64::try_from(p.as_millis()).unwrap_or(u64::MAX));
                effects.push(Effect::Event(Event::Committed { generation, probation_ms }));
                if probation.is_some() {
                    tracing::info!(generation, "the successor is on probation");
                }
            }
            PredecessorEvent::StopAsked { drain } => effects.push(Effect::StopAsked(drain)),
            PredecessorEvent::Inquired { number } => effects.push(Effect::Inquired(number)),
            PredecessorEvent::Finished(outcome) => {
                if outcome == Outcome::Succeeded {
                    self.let_go();
                    effects.push(Effect::Served);
                }
                let verdict = self.verdict(outcome);
                self.stopping = false;
                self.states.clear();
                self.telling = None;
                self.writing = None;
                if !self.to_resume {
                    self.items.clear();
                }
                if self.exit.is_some() {
                    self.disconnect(poller);
                }
                effects.push(Effect::Finished(verdict));
            }
        }
        true
    }

    fn stop_accepting(&mut self, claimed: Vec<Name>) {
        self.claimed = claimed.into_iter().collect();
        for endpoint in self.endpoints().filter(|e| self.claimed.contains(&e.name)) {
            endpoint.gate().turn(Stance::Paused);
        }
        self.stopping = true;
        self.look_for_stop();
    }

    /// Goes on once nobody accepts any more: a thread may have seen the gate open and be on its way
    /// to accept(2). What it accepted later would be served beside the successor, and its effect
    /// missed by the late states.
    fn look_for_stop(&mut self) {
        if !self.stopping {
            return;
        }
        let is_claimed = |e: &&Arc<crate::listener::Endpoint>| self.claimed.contains(&e.name);
        if self.endpoints().filter(is_claimed).any(|e| e.gate().is_passed()) {
            return;
        }
        self.stopping = false;
        self.told_commit = true;
        let stopped = Instant::now();
        self.marks.timings.commit = stopped - self.marks.received;
        self.machine.accepting_stopped(self.clock.time(stopped));
        let commit = News::Commit(Commit { generation: self.generation });
        self.telling = Some(self.plan.config.hooks.tell(commit, &self.plan.wake));
        self.look_for_told();
    }

    /// Writes the late states once the application has done what comes before them.
    fn look_for_told(&mut self) {
        let told = self.telling.as_ref().is_some_and(Telling::is_done);
        if !told || self.machine.cause().is_some() {
            return;
        }
        self.telling = None;
        if !self.write_states(Helping::Late) {
            self.machine.late_states_complete(self.clock.time(Instant::now()));
        }
    }

    /// The successor accepts: what it has claimed is its own, the rest is served to its end here.
    fn let_go(&self) {
        for endpoint in self.endpoints() {
            if self.claimed.contains(&endpoint.name) {
                endpoint.end();
            } else {
                tracing::info!(name = %endpoint.name, "not claimed by the successor: retiring");
                endpoint.retire();
            }
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Arc<crate::listener::Endpoint>> {
        self.items.iter().filter_map(|(_, held)| match held {
            Held::Endpoint(endpoint) => Some(endpoint),
            Held::Other(_) | Held::Channel(_) => None,
        })
    }

    /// Has the states written, if there are any; returns whether.
    fn write_states(&mut self, helping: Helping) -> bool {
        let providers = match helping {
            Helping::Early => &self.plan.early,
            Helping::Late => &self.plan.late,
        };
        let providers = providers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if providers.is_empty() {
            return false;
        }
        let in_flight = Arc::clone(&self.plan.in_flight);
        let wake = Arc::clone(&self.plan.wake);
        match write_all(providers, in_flight, self.plan.config.max_state_bytes, wake) {
            Ok(writing) => self.writing = Some((helping, writing)),
            Err(source) => {
                let reason = Reason::Io { doing: "a thread for the states", source };
                self.abort(reason, Instant::now());
            }
        }
        true
    }

    /// Returns whether anything was sent, so that there may be more.
    fn transmit(&mut self, poller: &Poller) -> bool {
        // That this process accepts again, which the successor serves in its place for until then.
        if self.to_resume && self.has_failed() && self.unsent.is_none() {
            return false;
        }
        let was_full = std::mem::take(&mut self.full);
        self.retry = None;
        let Some(transmit) = self.unsent.take().or_else(|| self.machine.poll_transmit()) else {
            return false;
        };
        let Some(channel) = &self.channel else { return true };
        let descriptors: Vec<BorrowedFd<'_>> = transmit
            .slots
            .iter()
            .filter_map(|slot| match slot {
                Slot::Stderr => Some(file::stderr()),
                Slot::Item(index) => self.items.get(*index).map(|(_, held)| held.as_fd()),
                Slot::State(index) => self.states.get(*index).map(|sealed| sealed.fd.as_fd()),
            })
            .collect();
        let sent = match channel.send(&transmit.frame, &descriptors) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.full = true;
                false
            }
            Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                self.retry = Some(Instant::now() + QUOTA_PAUSE);
                false
            }
            // The other end is closed: that will be received. Or the kernel refused the frame for
            // good: without it the handover cannot go on, and the timeout would be a guess.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => true,
            Err(source) => {
                self.called_off = Some(Reason::Io { doing: "a message to the successor", source });
                self.disconnect(poller);
                self.machine.handle_closed(self.clock.time(Instant::now()));
                return true;
            }
        };
        if self.full != was_full {
            let interest = if self.full { Interest::ReadWrite } else { Interest::Read };
            if let Err(error) = poller.modify(channel, interest) {
                tracing::warn!(%error, "the channel to the successor is not watched any more");
            }
        }
        if !sent {
            self.unsent = Some(transmit);
        }
        sent
    }

    fn verdict(&mut self, outcome: Outcome) -> Verdict {
        let pid = self.process.pid();
        let timings = Timings { total: self.marks.begun.elapsed(), ..self.marks.timings };
        let (phase, cause) = match outcome {
            Outcome::Succeeded => {
                let generation = self.generation;
                return Verdict::Succeeded(Success { generation, pid, timings });
            }
            Outcome::Failed { phase, cause } => (phase.into(), cause),
            Outcome::RolledBack { cause } => (Phase::Probation, cause),
        };
        let reason = match cause {
            Cause::CalledOff { .. } | Cause::Exited => self.called_off.take(),
            Cause::TimedOut if self.telling.is_some() => {
                let reason = "this process took too long in on_commit".to_owned();
                Some(Reason::CalledOff { reason })
            }
            Cause::TimedOut if self.writing.is_some() => {
                let reason = "this process took too long to write its states".to_owned();
                Some(Reason::CalledOff { reason })
            }
            _ => None,
        };
        if self.exit == Some(None) {
            // It is the child of our own parent, which reaps it. Only who serves all the time has the
            // time to wait for that.
            let patience = if phase < Phase::Commit { REAP_TIMEOUT } else { Duration::ZERO };
            self.exit = Some(self.process.status_after_reaping(patience));
        }
        let failure = Box::new(Failure {
            generation: self.generation,
            pid: Some(pid),
            phase,
            reason: reason.unwrap_or_else(|| cause.into()),
            exit_status: self.exit.flatten(),
            stderr: self.relay.as_ref().map_or_else(Vec::new, Relay::last_lines),
            timings,
        });
        if phase == Phase::Probation {
            Verdict::RolledBack(failure)
        } else {
            Verdict::Failed(failure)
        }
    }
}

impl Drop for Attempt {
    /// Without this process nobody would tell a successor that is not committed that it is not
    /// wanted; left alone, it would go on and serve.
    ///
    /// One that serves takes the end of the channel for the end of this process, which may have
    /// things to do without the library. So that end stays open until the kernel closes it.
    fn drop(&mut self) {
        let serves = matches!(
            self.machine.phase(),
            handover_proto::Phase::Probation | handover_proto::Phase::Served
        );
        if serves && self.exit.is_none() {
            std::mem::forget(self.channel.take());
        }
        if self.is_under_way() && self.is_before_commit() && self.exit.is_none() {
            self.kill();
        }
    }
}

impl Marks {
    fn entered(&mut self, phase: handover_proto::Phase) {
        use handover_proto::Phase as P;
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.entered, now);
        match phase {
            P::Transfer => self.timings.hello = took,
            P::Initialise => self.timings.transfer = took,
            P::Commit => self.timings.initialise = took,
            P::Probation => {
                self.timings.confirm += took;
                self.on_probation = true;
            }
            P::Served if self.on_probation => self.timings.probation = took,
            P::Served => self.timings.confirm += took,
            // From `Ready` to the end of accepting is timed where it is done; the late states and
            // the way to `Serving` are one stretch.
            P::Confirm => self.timings.confirm = took,
            _ => {}
        }
    }
}
