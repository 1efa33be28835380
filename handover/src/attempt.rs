//! One upgrade, from the predecessor's side: a process, a channel to it, and the machine between.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitStatus;
use std::sync::mpsc::TryRecvError;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use handover_proto::{
    Cause, Inventory, MAX_FRAME_BYTES, Name, Outcome, Preamble, Predecessor, PredecessorConfig,
    PredecessorEvent, Received as In, Slot, Transmit, Versions,
};

use crate::clock::Clock;
use crate::config::Config;
use crate::drain::InFlight;
use crate::gate::Stance;
use crate::program::Program;
use crate::registry::Held;
use crate::state::{Providers, Sealed, Writing, Written, write_all};
use crate::stderr::Relay;
use crate::sys::channel::{Channel, Received};
use crate::sys::file;
use crate::sys::poll::{Interest, Poller, Wake};
use crate::sys::process::{Condition, Process};
use crate::sys::spawn::{self, Command};
use crate::verdict::{Failure, Phase, Reason, SpawnError, Success, Timings, Verdict};

/// What an upgrade needs to know of the process that it is to replace.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) config: Arc<Config>,
    pub(crate) early: Providers,
    pub(crate) late: Providers,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) wake: Arc<Wake>,
}

/// What the engine has to know of an upgrade.
#[derive(Debug)]
pub(crate) enum Effect {
    /// The successor accepts; this process drains.
    Serving,
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
    states: Vec<Sealed>,
    writing: Option<(Helping, Writing)>,
    relay: Option<Relay>,
    /// Why the upgrade was called off, when that is more than the machine knows.
    called_off: Option<Reason>,
    marks: Marks,
    plan: Plan,
    clock: Clock,
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
    timings: Timings,
}

/// How long to leave the kernel alone that has too many descriptors of this user in flight.
const QUOTA_PAUSE: Duration = Duration::from_millis(10);

/// How long a successor on probation may take to answer; there is no probation here.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

impl Attempt {
    /// Starts the successor.
    pub(crate) fn begin(
        plan: Plan,
        generation: u64,
        inventory: Vec<(handover_proto::Item, Held)>,
        poller: &Poller,
        clock: Clock,
    ) -> Result<Self, Box<Failure>> {
        let begun = Instant::now();
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
        let image =
            plan.config.program.image(&format!("{}:{token}", theirs.number())).map_err(|what| {
                fail(Reason::CalledOff { reason: format!("{what} has a NUL byte") })
            })?;
        let spawning = Instant::now();
        let process = Command {
            executable: &image.executable,
            arguments: &image.arguments,
            environment: &image.environment,
            directory: &image.directory,
            inherit: theirs.as_fd(),
            stderr: stderr.as_ref().map(AsFd::as_fd),
            blocked: plan.config.blocked,
            parent: plan.config.parent,
        }
        .spawn()
        .map_err(|error| fail(Reason::Spawn(spawn_error(error, &plan.config.program))))?;
        let spawned = Instant::now();
        tracing::info!(generation, pid = process.pid(), "successor started");

        let (items, held): (Vec<_>, Vec<_>) = inventory.into_iter().unzip();
        let names: Vec<Name> = items.iter().map(|item| item.name.clone()).collect();
        let states =
            u32::try_from(plan.early.lock().map_or(0, |early| early.len())).unwrap_or(u32::MAX);
        let config = PredecessorConfig {
            versions: Versions::OURS,
            pid: std::process::id(),
            generation,
            ready_timeout: plan.config.ready_timeout,
            commit_timeout: plan.config.commit_timeout,
            probation: None,
            answer_timeout: ANSWER_TIMEOUT,
        };
        let inventory = Inventory { items, states, stderr: plan.config.capture_stderr };
        let attempt = Self {
            machine: Predecessor::new(config, inventory, clock.time(spawned)),
            generation,
            process,
            exit: None,
            channel: Some(ours),
            buffer: vec![0; MAX_FRAME_BYTES + 1],
            unsent: None,
            full: false,
            retry: None,
            items: names.into_iter().zip(held).collect(),
            claimed: HashSet::new(),
            stopping: false,
            states: Vec::new(),
            writing: None,
            relay,
            called_off: None,
            marks: Marks {
                begun,
                entered: spawned,
                received: spawned,
                timings: Timings { spawn: spawned - spawning, ..Timings::default() },
            },
            plan,
            clock,
        };
        attempt.register(poller).map_err(io("epoll")).map_err(|reason| {
            // Nobody would look after the process. What cannot be ended cannot be helped.
            let _ = attempt.process.end();
            fail(reason)
        })?;
        Ok(attempt)
    }

    /// Whether it is not decided yet.
    pub(crate) fn is_under_way(&self) -> bool {
        self.machine.phase() < handover_proto::Phase::Probation
    }

    /// Whether it is over and the successor is gone: nothing holds on to it.
    pub(crate) fn is_over(&self) -> bool {
        !self.is_under_way() && self.exit.is_some() && self.channel.is_none()
    }

    /// Whether calling it off is possible without ending a successor that may serve already.
    pub(crate) fn is_before_commit(&self) -> bool {
        self.machine.phase() < handover_proto::Phase::Confirm
    }

    /// The successor's process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
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
        self.receive(poller);
        self.collect_states();
        self.relay.iter_mut().for_each(|relay| relay.step(poller));
        self.look_for_exit(poller);
        self.look_for_stop();
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

    fn receive(&mut self, poller: &Poller) {
        while let Some(channel) = &self.channel {
            let received = channel.receive::<0>(&mut self.buffer);
            let now = self.clock.time(Instant::now());
            match received {
                Ok(Received::Frame { bytes, descriptors, descriptors_truncated: truncated }) => {
                    self.marks.received = self.clock.instant(now);
                    let received = In { descriptors: descriptors.len(), truncated };
                    self.machine.handle_frame(&self.buffer[..bytes], received, now);
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
    fn collect_states(&mut self) {
        loop {
            let Some((helping, writing)) = &self.writing else { return };
            let helping = *helping;
            let now = self.clock.time(Instant::now());
            match writing.next() {
                Ok(Written::State(sealed)) => {
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

    fn look_for_exit(&mut self, poller: &Poller) {
        if self.exit.is_some() {
            return;
        }
        match self.process.condition() {
            Condition::Running => {}
            Condition::Ended(status) => {
                self.exit = Some(status);
                poller.remove(&self.process);
                // What it said before its end comes first.
                self.receive(poller);
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
        match event {
            PredecessorEvent::Greeted { pid, software } => {
                tracing::info!(pid, software, "successor speaks");
                self.write_states(Helping::Early);
            }
            PredecessorEvent::Entered(phase) => self.marks.entered(phase),
            PredecessorEvent::Progress { text } => {
                tracing::info!(generation = self.generation, text, "successor initialises");
            }
            PredecessorEvent::StopAccepting { claimed } => self.stop_accepting(claimed),
            PredecessorEvent::ResumeAccepting => {
                self.stopping = false;
                for endpoint in self.endpoints() {
                    endpoint.gate().turn(Stance::Open);
                }
            }
            PredecessorEvent::Kill => self.kill(),
            // Without probation no state comes back, and nobody asks.
            PredecessorEvent::TakeState { .. }
            | PredecessorEvent::StopAsked { .. }
            | PredecessorEvent::Inquired { .. } => {}
            PredecessorEvent::Serving => {
                self.let_go();
                effects.push(Effect::Serving);
            }
            PredecessorEvent::Finished(outcome) => {
                self.stopping = false;
                self.states.clear();
                self.items.clear();
                if self.exit.is_some() {
                    self.disconnect(poller);
                }
                effects.push(Effect::Finished(self.verdict(outcome)));
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
        let is_claimed = |e: &&Arc<crate::listener::Endpoint>| self.claimed.contains(&e.name);
        let passed = self.endpoints().filter(is_claimed).any(|e| e.gate().is_passed());
        if passed || !self.stopping {
            return;
        }
        self.stopping = false;
        let stopped = Instant::now();
        self.marks.timings.commit = stopped - self.marks.received;
        self.machine.accepting_stopped(self.clock.time(stopped));
        if !self.write_states(Helping::Late) {
            self.machine.late_states_complete(self.clock.time(stopped));
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
            Held::Other(_) => None,
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
            Outcome::RolledBack { cause } => (Phase::Confirm, cause),
        };
        let reason = match cause {
            Cause::CalledOff { .. } | Cause::Exited => self.called_off.take(),
            Cause::TimedOut if self.writing.is_some() => {
                let reason = "this process took too long to write its states".to_owned();
                Some(Reason::CalledOff { reason })
            }
            _ => None,
        };
        Verdict::Failed(Box::new(Failure {
            generation: self.generation,
            pid: Some(pid),
            phase,
            reason: reason.unwrap_or_else(|| cause.into()),
            exit_status: self.exit.flatten(),
            stderr: self.relay.as_ref().map_or_else(Vec::new, Relay::last_lines),
            timings,
        }))
    }
}

impl Drop for Attempt {
    /// Without this process nobody would tell a successor that is not committed that it is not
    /// wanted; left alone, it would go on and serve.
    ///
    /// One that serves takes the end of the channel for the end of this process, which may have
    /// things to do without the library. So that end stays open until the kernel closes it.
    fn drop(&mut self) {
        if self.machine.phase() == handover_proto::Phase::Served && self.exit.is_none() {
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
            P::Probation | P::Served => self.timings.confirm += took,
            // From `Ready` to the end of accepting is timed where it is done; the late states and
            // the way to `Serving` are one stretch.
            P::Confirm => self.timings.confirm = took,
            _ => {}
        }
    }
}

fn spawn_error(error: spawn::Error, program: &Program) -> SpawnError {
    match error {
        spawn::Error::Clone(source) => SpawnError::Process { source },
        spawn::Error::Directory(source) => {
            SpawnError::Directory { path: program.directory().to_owned(), source }
        }
        spawn::Error::Execute(source) => {
            SpawnError::Execute { path: program.executable().to_owned(), source }
        }
    }
}
