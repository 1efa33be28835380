//! The end that serves and was asked for an upgrade.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{PINGS_PER_TIMEOUT, bounded, escaped_bytes};
use crate::{
    ABORT_GRACE, Cause, Item, MAX_BATCH_BYTES, MAX_DESCRIPTORS, MAX_EXTENSION, MAX_FDS_PER_FRAME,
    MAX_STATES, MAX_UNSENT_REPORTS, Name, Outcome, Phase, Received, Report, Slot, Time,
    ToPredecessor, ToSuccessor, Transmit, Version, Versions, Violation, decode, encode,
};

/// What a [`Predecessor`] needs to know of its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PredecessorConfig {
    /// The versions to speak, normally [`Versions::OURS`].
    pub versions: Versions,
    /// This process.
    pub pid: u32,
    /// The number that the successor gets.
    pub generation: u64,
    /// How long the successor may take from its start to `Ready`; `Progress` can add to it.
    pub ready_timeout: Duration,
    /// How long the way from `Ready` to `Serving` may take, the late state included.
    pub commit_timeout: Duration,
    /// How long the predecessor stays able to take back over, if at all.
    pub probation: Option<Duration>,
    /// How long a successor on probation may take to answer, before it counts as hung.
    pub answer_timeout: Duration,
}

/// What there is to hand over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inventory {
    /// The listeners and other descriptors.
    pub items: Vec<Item>,
    /// How many early states will be given with [`Predecessor::state`].
    pub states: u32,
    /// Whether the real stderr goes along with `Welcome`.
    pub stderr: bool,
}

/// What the driver of a [`Predecessor`] is to do or to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The library runs in the new process.
    Greeted {
        /// The process, as it sees itself.
        pid: u32,
        /// Which library it is.
        software: String,
    },
    /// A new phase has begun. `Failed` is not entered, but [`Event::Finished`] says it.
    Entered(Phase),
    /// The successor says what it does.
    Progress {
        /// What it says.
        text: String,
    },
    /// Do: stop accepting on what is claimed, keep everything open, then call
    /// [`Predecessor::accepting_stopped`] and, when the late states are given,
    /// [`Predecessor::late_states_complete`]; both are needed for the commit.
    StopAccepting {
        /// What the successor has claimed.
        claimed: Vec<Name>,
    },
    /// Do: keep the one descriptor of this frame, a sealed memfd: a state of a successor that is
    /// rolled back, to go on with.
    TakeState {
        /// Its name.
        name: Name,
        /// The version of its format.
        version: u32,
        /// How long it says to be.
        bytes: u64,
    },
    /// Do: accept again, on everything. What queued meanwhile is still there.
    ResumeAccepting,
    /// Do: end the process, it had its time (SIGKILL), and report its end.
    Kill,
    /// Know: the successor accepts. Without probation [`Event::Finished`] follows at once.
    Serving,
    /// Do: stop, nobody is to serve any more; or, when the handover is over, finish sooner.
    StopAsked {
        /// How long what is in flight may take at most.
        drain: Option<Duration>,
    },
    /// Do: call [`Predecessor::report`] with this number.
    Inquired {
        /// The number.
        number: u32,
    },
    /// Know: it is over. Only `Upgrade`, `Stop` and what concerns a process that drains may still
    /// follow.
    Finished(Outcome),
}

/// The predecessor's side of one handover.
///
/// Made when the successor has been started. Then, in this order:
/// [`state`](Self::state) for each early state; on [`Event::StopAccepting`] first
/// [`accepting_stopped`](Self::accepting_stopped), then [`state`](Self::state) for each late state
/// and [`late_states_complete`](Self::late_states_complete). The rest is input as it comes.
///
/// Report what came through the channel before the end of the process and before the passing of
/// time: a successor that says why it refuses and exits is then known for the former, and one that
/// answered while this process was suspended is not taken for one that was late.
///
/// Keep the channel open until the process of the successor has ended, or until this one does: to
/// the successor its end means that this process is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Predecessor {
    config: PredecessorConfig,
    inventory: Inventory,
    phase: Phase,
    /// When the current phase has taken too long.
    deadline: Time,
    /// Frames with descriptors, which go one at a time.
    queue: VecDeque<(ToSuccessor, Vec<Slot>)>,
    outstanding: Option<u32>,
    next_frame: u32,
    early_states: u32,
    late_states: u32,
    /// How many names the successor may claim: as many as there were items.
    claimable: usize,
    claimed: Vec<Name>,
    upgrade_pending: bool,
    accepting_stopped: bool,
    late_complete: bool,
    connected: bool,
    /// Set once the handover has failed and the successor's end is awaited.
    failing: Option<Failing>,
    /// Why it has failed, or is about to.
    cause: Option<Cause>,
    heartbeat: Heartbeat,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Failing {
    phase: Phase,
    cause: Cause,
    killed: bool,
    /// Whether accepting resumes when the successor is known to be gone, or has stopped.
    resume: bool,
    /// How many states a successor that has stopped may still send.
    states_left: u32,
}

/// Whether a successor on probation answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Heartbeat {
    /// To be asked then.
    AskAt(Time),
    /// It was asked, and has until then.
    AnswerBy(Time),
}

impl Predecessor {
    /// Begins a handover to a process that was just started.
    pub fn new(config: PredecessorConfig, inventory: Inventory, now: Time) -> Self {
        let deadline = now + config.ready_timeout;
        Self {
            claimable: inventory.items.len(),
            config,
            inventory,
            phase: Phase::Hello,
            deadline,
            queue: VecDeque::new(),
            outstanding: None,
            next_frame: 1,
            early_states: 0,
            late_states: 0,
            claimed: Vec::new(),
            upgrade_pending: false,
            accepting_stopped: false,
            late_complete: false,
            connected: true,
            failing: None,
            cause: None,
            heartbeat: Heartbeat::AskAt(now),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Where the handover stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What this was made with.
    pub fn config(&self) -> &PredecessorConfig {
        &self.config
    }

    /// Why the handover has come to nothing, or is about to.
    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// When probation ends, if the successor is on it.
    pub fn probation_end(&self) -> Option<Time> {
        (self.phase == Phase::Probation && self.failing.is_none()).then_some(self.deadline)
    }

    /// Takes a frame that came through the channel, and what came with it.
    pub fn handle_frame(&mut self, frame: &[u8], received: Received, now: Time) {
        if self.phase == Phase::Failed {
            return;
        }
        let message = match read(frame, received) {
            Ok(message) => message,
            Err(violation) => return self.fail(Cause::Misbehaved(violation), now),
        };
        if self.failing.is_some() {
            self.handle_while_failing(message, now);
        } else if let Err(cause) = self.handle_message(message, now) {
            self.fail(cause, now);
        }
    }

    /// Takes the end of the channel: the successor closed it or ended.
    pub fn handle_closed(&mut self, now: Time) {
        self.connected = false;
        self.transmits.clear();
        match self.phase {
            Phase::Failed | Phase::Served => {}
            Phase::Hello
            | Phase::Transfer
            | Phase::Initialise
            | Phase::Commit
            | Phase::Confirm
            | Phase::Probation => self.fail(Cause::Exited, now),
        }
    }

    /// Takes the end of the successor's process.
    pub fn handle_exited(&mut self, now: Time) {
        if matches!(self.phase, Phase::Failed | Phase::Served) {
            return;
        }
        self.fail(Cause::Exited, now);
        self.finish_failing();
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        if let Some(failing) = &mut self.failing {
            if failing.states_left > 0 {
                // It does not serve any more, but is too slow to say what is to be gone on with.
                return self.finish_failing();
            }
            failing.killed = true;
            self.events.push_back(Event::Kill);
            return;
        }
        match self.phase {
            Phase::Probation if now >= self.deadline => self.confirm(now),
            Phase::Probation => self.beat(now),
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Confirm => {
                self.fail(Cause::TimedOut, now)
            }
            Phase::Served | Phase::Failed => {}
        }
    }

    /// Gives a state: an early one before the transfer is over, a late one after
    /// [`accepting_stopped`](Self::accepting_stopped).
    ///
    /// The n-th call names [`Slot::State`]`(n)`, counted from 0. More early states than the
    /// [`Inventory`] announced, or more late ones than [`MAX_STATES`], call the handover off.
    pub fn state(&mut self, name: Name, version: u32, bytes: u64, now: Time) {
        let late = match self.phase {
            Phase::Hello | Phase::Transfer | Phase::Initialise => false,
            Phase::Commit => true,
            Phase::Confirm | Phase::Probation | Phase::Served | Phase::Failed => return,
        };
        if self.failing.is_some() {
            return;
        }
        let (given, most) = if late {
            (&mut self.late_states, MAX_STATES)
        } else {
            (&mut self.early_states, self.inventory.states)
        };
        if *given == most {
            let what = if late { "late states" } else { "early states" };
            return self.abort(format!("more than {most} {what}"), now);
        }
        *given += 1;
        let slot = Slot::State((self.early_states + self.late_states - 1) as usize);
        let frame = self.next_frame();
        self.queue
            .push_back((ToSuccessor::State { frame, name, version, bytes, late }, vec![slot]));
        self.advance(now);
    }

    /// Says that nothing is accepted any more on what was claimed.
    ///
    /// Without it nothing is committed. Has no effect before [`Event::StopAccepting`].
    pub fn accepting_stopped(&mut self, now: Time) {
        if self.phase == Phase::Commit {
            self.accepting_stopped = true;
            self.advance(now);
        }
    }

    /// Says that there are no (more) late states: when they have arrived, commit.
    ///
    /// Has no effect before [`Event::StopAccepting`].
    pub fn late_states_complete(&mut self, now: Time) {
        if self.phase == Phase::Commit {
            self.late_complete = true;
            self.advance(now);
        }
    }

    /// Calls the handover off, if it is not committed.
    ///
    /// From `Commit` on the successor may have accepted: killing it then would lose that. Before
    /// its confirmation there is nothing to call, on probation there is
    /// [`roll_back`](Self::roll_back).
    pub fn abort(&mut self, reason: impl Into<String>, now: Time) {
        if self.phase < Phase::Confirm {
            self.fail(Cause::CalledOff { reason: bounded(reason.into()) }, now);
        }
    }

    /// Takes back over from a successor on probation.
    pub fn roll_back(&mut self, reason: impl Into<String>, now: Time) {
        if self.phase == Phase::Probation {
            self.fail(Cause::RollbackRequested { reason: bounded(reason.into()) }, now);
        }
    }

    /// Ends probation early: the successor serves for good.
    pub fn confirm(&mut self, now: Time) {
        if self.phase == Phase::Probation && self.failing.is_none() {
            self.transmits.retain(|sent| !is_ping(&sent.frame));
            self.succeed(now);
        }
    }

    /// Says how this process is, after [`Event::Inquired`].
    pub fn report(&mut self, number: u32, report: Report, now: Time) {
        if self.phase == Phase::Served
            && self.connected
            && self.transmits.len() < MAX_UNSENT_REPORTS
        {
            self.send(&ToSuccessor::Report { number, report }, vec![], now);
        }
    }

    /// Passes a request for an upgrade on to the one who serves next.
    ///
    /// Returns whether it goes to the successor at once. Until `Commit` it is kept and goes along
    /// with that. In both cases it is this process's to honour if the outcome is not
    /// [`Outcome::Succeeded`], so remember that there was one. Requests that have not left are one.
    pub fn forward_upgrade(&mut self, now: Time) -> bool {
        if self.failing.is_some() || !self.connected {
            return false;
        }
        match self.phase {
            Phase::Confirm | Phase::Probation | Phase::Served => {
                let upgrade = ToSuccessor::Upgrade {};
                if !self.is_unsent(&upgrade) {
                    self.send(&upgrade, vec![], now);
                }
                true
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit => {
                self.upgrade_pending = true;
                false
            }
            Phase::Failed => false,
        }
    }

    /// Passes a stop on to the one who serves next, when it is too late to call the handover off.
    ///
    /// Returns whether it goes to the successor.
    pub fn forward_stop(&mut self, drain: Option<Duration>, now: Time) -> bool {
        if self.failing.is_some() || !self.connected {
            return false;
        }
        match self.phase {
            Phase::Confirm | Phase::Probation | Phase::Served => {
                self.send(&ToSuccessor::Stop { drain_ms: drain.map(millis) }, vec![], now);
                true
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Failed => {
                false
            }
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if ever.
    pub fn poll_timeout(&self) -> Option<Time> {
        match (&self.failing, self.phase) {
            (_, Phase::Served | Phase::Failed) => None,
            (Some(failing), _) if failing.killed => None,
            (None, Phase::Probation) => {
                let (Heartbeat::AskAt(beat) | Heartbeat::AnswerBy(beat)) = self.heartbeat;
                Some(self.deadline.min(beat))
            }
            (Some(_) | None, _) => Some(self.deadline),
        }
    }

    fn handle_message(&mut self, message: ToPredecessor, now: Time) -> Result<(), Cause> {
        let during = self.phase;
        match (message, during) {
            (ToPredecessor::Hello { versions, pid, software }, Phase::Hello) => {
                self.welcome(versions, now)?;
                self.events.push_back(Event::Greeted { pid, software: bounded(software) });
                self.enter(Phase::Transfer);
                self.advance(now);
            }
            (ToPredecessor::Ack { frame }, Phase::Transfer | Phase::Commit) => {
                if self.outstanding != Some(frame) {
                    return Err(Cause::Misbehaved(Violation::UnexpectedAck { frame }));
                }
                self.outstanding = None;
                self.advance(now);
            }
            (ToPredecessor::Progress { text, more_ms }, Phase::Transfer | Phase::Initialise) => {
                if let Some(more) = more_ms {
                    let more = Duration::from_millis(more).min(MAX_EXTENSION);
                    self.deadline = self.deadline.max(now + more);
                }
                self.events.push_back(Event::Progress { text: bounded(text) });
            }
            (ToPredecessor::Claim { names }, Phase::Initialise) => {
                if self.claimed.len() + names.len() > self.claimable {
                    let violation = Violation::TooMany { what: "claims" };
                    return Err(Cause::Misbehaved(violation));
                }
                self.claimed.extend(names);
            }
            (ToPredecessor::Ready {}, Phase::Initialise) => {
                self.deadline = now + self.config.commit_timeout;
                self.enter(Phase::Commit);
                let claimed = std::mem::take(&mut self.claimed);
                self.events.push_back(Event::StopAccepting { claimed });
            }
            (
                ToPredecessor::Refuse { reason },
                Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Confirm,
            ) => return Err(Cause::Refused { reason: bounded(reason) }),
            (ToPredecessor::Serving {}, Phase::Confirm) => {
                self.events.push_back(Event::Serving);
                match self.config.probation {
                    Some(probation) => {
                        self.deadline = now + probation;
                        self.enter(Phase::Probation);
                        self.heartbeat = Heartbeat::AskAt(now);
                        self.beat(now);
                    }
                    None => self.succeed(now),
                }
            }
            (ToPredecessor::Healthy {}, Phase::Probation) => self.confirm(now),
            (ToPredecessor::Unhealthy { reason, requested }, Phase::Probation) => {
                let reason = bounded(reason);
                return Err(if requested {
                    Cause::RollbackRequested { reason }
                } else {
                    Cause::Unhealthy { reason }
                });
            }
            (ToPredecessor::Pong {}, Phase::Probation) => {
                let pause = self.config.answer_timeout / PINGS_PER_TIMEOUT;
                self.heartbeat = Heartbeat::AskAt(now + pause);
            }
            // When the successor then exits, nobody is to serve.
            (ToPredecessor::Stop { drain_ms }, Phase::Probation) => {
                self.confirm(now);
                self.stop_asked(drain_ms);
            }
            (ToPredecessor::Stop { drain_ms }, Phase::Served) => self.stop_asked(drain_ms),
            (ToPredecessor::Inquire { number }, Phase::Served) => {
                self.events.push_back(Event::Inquired { number });
            }
            // Crossed with our own decision that all is well; nothing can come of it any more.
            (
                ToPredecessor::Healthy {}
                | ToPredecessor::Unhealthy { .. }
                | ToPredecessor::Pong {},
                Phase::Served,
            ) => {}
            (
                message @ (ToPredecessor::Hello { .. }
                | ToPredecessor::Ack { .. }
                | ToPredecessor::Progress { .. }
                | ToPredecessor::Claim { .. }
                | ToPredecessor::Ready {}
                | ToPredecessor::Refuse { .. }
                | ToPredecessor::Serving {}
                | ToPredecessor::Healthy {}
                | ToPredecessor::Unhealthy { .. }
                | ToPredecessor::Pong {}
                | ToPredecessor::Stopped { .. }
                | ToPredecessor::State { .. }
                | ToPredecessor::StatesComplete {}
                | ToPredecessor::Stop { .. }
                | ToPredecessor::Inquire { .. }),
                _,
            ) => {
                let message = crate::Message::name(&message);
                let violation = Violation::OutOfOrder { message, during: during.as_str() };
                return Err(Cause::Misbehaved(violation));
            }
        }
        Ok(())
    }

    /// Of a successor that must go, it matters that it has stopped accepting, and what it leaves.
    fn handle_while_failing(&mut self, message: ToPredecessor, now: Time) {
        let commit_timeout = self.config.commit_timeout;
        let Some(failing) = &mut self.failing else { return };
        match message {
            ToPredecessor::Stopped { states } if failing.resume && failing.states_left == 0 => {
                // It has stopped by itself: it is not killed any more, and drains.
                failing.killed = false;
                failing.states_left = states.min(MAX_STATES);
                self.deadline = now + commit_timeout;
                if states == 0 {
                    self.finish_failing();
                }
            }
            ToPredecessor::State { frame, name, version, bytes } if failing.states_left > 0 => {
                self.events.push_back(Event::TakeState { name, version, bytes });
                self.send(&ToSuccessor::Ack { frame }, vec![], now);
            }
            ToPredecessor::StatesComplete {} if failing.states_left > 0 => self.finish_failing(),
            // The successor has crossed our decision with the one to stop the service.
            ToPredecessor::Stop { drain_ms } => self.stop_asked(drain_ms),
            ToPredecessor::Hello { .. }
            | ToPredecessor::Ack { .. }
            | ToPredecessor::Progress { .. }
            | ToPredecessor::Claim { .. }
            | ToPredecessor::Ready {}
            | ToPredecessor::Refuse { .. }
            | ToPredecessor::Serving {}
            | ToPredecessor::Healthy {}
            | ToPredecessor::Unhealthy { .. }
            | ToPredecessor::Pong {}
            | ToPredecessor::Stopped { .. }
            | ToPredecessor::State { .. }
            | ToPredecessor::StatesComplete {}
            | ToPredecessor::Inquire { .. } => {}
        }
    }

    fn stop_asked(&mut self, drain_ms: Option<u64>) {
        self.events.push_back(Event::StopAsked { drain: drain_ms.map(Duration::from_millis) });
    }

    /// Asks a successor on probation whether it is there, or gives it up.
    fn beat(&mut self, now: Time) {
        match self.heartbeat {
            Heartbeat::AskAt(at) if now >= at => {
                self.heartbeat = Heartbeat::AnswerBy(now + self.config.answer_timeout);
                self.send(&ToSuccessor::Ping {}, vec![], now);
            }
            Heartbeat::AnswerBy(at) if now >= at => self.fail(Cause::Unresponsive, now),
            Heartbeat::AskAt(_) | Heartbeat::AnswerBy(_) => {}
        }
    }

    fn welcome(&mut self, theirs: Versions, now: Time) -> Result<(), Cause> {
        let ours = self.config.versions;
        let Some(version) = ours.agree(theirs) else {
            return Err(Cause::Incompatible { ours, theirs });
        };
        let descriptors = u32::try_from(self.inventory.items.len()).unwrap_or(u32::MAX);
        let called_off = |what| Cause::CalledOff { reason: format!("too many {what}") };
        if descriptors > MAX_DESCRIPTORS {
            return Err(called_off("descriptors"));
        }
        if self.inventory.states > MAX_STATES {
            return Err(called_off("states"));
        }
        let slots = if self.inventory.stderr { vec![Slot::Stderr] } else { vec![] };
        let welcome = self.welcome_message(version, descriptors);
        self.send(&welcome, slots, now);
        self.queue_descriptors();
        Ok(())
    }

    fn welcome_message(&self, version: Version, descriptors: u32) -> ToSuccessor {
        ToSuccessor::Welcome {
            version,
            generation: self.config.generation,
            pid: self.config.pid,
            descriptors,
            states: self.inventory.states,
            stderr: self.inventory.stderr,
            ready_timeout_ms: millis(self.config.ready_timeout),
            commit_timeout_ms: millis(self.config.commit_timeout),
            probation_ms: self.config.probation.map(millis),
        }
    }

    /// Divides the items into frames, ahead of the states that may have been given already.
    fn queue_descriptors(&mut self) {
        let states = std::mem::take(&mut self.queue);
        let (mut items, mut slots, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (index, item) in std::mem::take(&mut self.inventory.items).into_iter().enumerate() {
            let size = escaped_bytes(item.name.as_str())
                + item.address.as_deref().map_or(0, escaped_bytes);
            if items.len() == MAX_FDS_PER_FRAME
                || (!items.is_empty() && bytes + size > MAX_BATCH_BYTES)
            {
                self.queue_batch(&mut items, &mut slots);
                bytes = 0;
            }
            bytes += size;
            items.push(item);
            slots.push(Slot::Item(index));
        }
        if !items.is_empty() {
            self.queue_batch(&mut items, &mut slots);
        }
        self.queue.extend(states);
    }

    fn queue_batch(&mut self, items: &mut Vec<Item>, slots: &mut Vec<Slot>) {
        let frame = self.next_frame();
        let items = std::mem::take(items);
        self.queue.push_back((ToSuccessor::Descriptors { frame, items }, std::mem::take(slots)));
    }

    /// Sends what may be sent: the next frame with descriptors once the last one is acked, and
    /// when there are none left, what comes after them.
    fn advance(&mut self, now: Time) {
        if self.failing.is_some()
            || self.outstanding.is_some()
            || !matches!(self.phase, Phase::Transfer | Phase::Commit)
        {
            return;
        }
        if let Some((message, slots)) = self.queue.pop_front() {
            if let ToSuccessor::Descriptors { frame, .. } | ToSuccessor::State { frame, .. } =
                message
            {
                self.outstanding = Some(frame);
            }
            self.send(&message, slots, now);
        } else if self.phase == Phase::Commit {
            if self.accepting_stopped && self.late_complete {
                let upgrade_pending = std::mem::take(&mut self.upgrade_pending);
                self.enter(Phase::Confirm);
                self.send(&ToSuccessor::Commit { upgrade_pending }, vec![], now);
            }
        } else if self.early_states == self.inventory.states {
            self.enter(Phase::Initialise);
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.events.push_back(Event::Entered(phase));
    }

    fn succeed(&mut self, now: Time) {
        self.enter(Phase::Served);
        self.send(&ToSuccessor::Confirmed {}, vec![], now);
        self.events.push_back(Event::Finished(Outcome::Succeeded));
    }

    /// Begins to end the handover. It is over when the successor is known to be gone.
    fn fail(&mut self, cause: Cause, now: Time) {
        if self.failing.is_some() || matches!(self.phase, Phase::Served | Phase::Failed) {
            return;
        }
        let phase = self.phase;
        // A successor that has not got Commit, or that refuses, accepts nothing: the predecessor
        // resumes at once. One that may have got Commit must have stopped or be dead before that,
        // so that never two serve; it may have accepted, so it is given the time to stop.
        let (resume, grace) = match (phase, &cause) {
            (Phase::Hello | Phase::Transfer | Phase::Initialise, _) => (false, ABORT_GRACE),
            (Phase::Commit, _) | (Phase::Confirm, Cause::Refused { .. }) => {
                self.events.push_back(Event::ResumeAccepting);
                (false, ABORT_GRACE)
            }
            (Phase::Confirm | Phase::Probation, Cause::Exited) => (true, Duration::ZERO),
            (Phase::Confirm | Phase::Probation | Phase::Served | Phase::Failed, _) => {
                (true, ABORT_GRACE)
            }
        };
        let reason = bounded(cause.to_string());
        let farewell = match (&cause, phase) {
            (Cause::Exited, _) => None,
            (_, Phase::Probation) => Some(ToSuccessor::Rollback { reason }),
            (Cause::Incompatible { ours, .. }, _) => {
                Some(ToSuccessor::Abort { reason, versions: Some(*ours) })
            }
            _ => Some(ToSuccessor::Abort { reason, versions: None }),
        };
        // What has not left is of no use to a successor that must go, a late `Commit` least of all.
        self.queue.clear();
        self.transmits.clear();
        self.deadline = now + grace;
        self.cause = Some(cause.clone());
        self.failing = Some(Failing { phase, cause, killed: false, resume, states_left: 0 });
        if let Some(message) = farewell {
            self.send(&message, vec![], now);
        }
    }

    fn finish_failing(&mut self) {
        let Some(Failing { phase, cause, resume, .. }) = self.failing.take() else { return };
        if resume {
            self.events.push_back(Event::ResumeAccepting);
        }
        self.phase = Phase::Failed;
        self.events.push_back(Event::Finished(match phase {
            Phase::Probation => Outcome::RolledBack { cause },
            _ => Outcome::Failed { phase, cause },
        }));
    }

    fn next_frame(&mut self) -> u32 {
        let frame = self.next_frame;
        self.next_frame += 1;
        frame
    }

    fn is_unsent(&self, message: &ToSuccessor) -> bool {
        encode(message).is_ok_and(|frame| self.transmits.iter().any(|sent| sent.frame == frame))
    }

    fn send(&mut self, message: &ToSuccessor, slots: Vec<Slot>, now: Time) {
        match encode(message) {
            Ok(frame) => self.transmits.push_back(Transmit { frame, slots }),
            // Only an address can be too long, which no kernel has bound. It must not end a service.
            Err(violation) => {
                self.fail(Cause::CalledOff { reason: violation.to_string() }, now);
            }
        }
    }
}

/// Reads a frame and checks that it came with the descriptors that belong to it.
fn read(frame: &[u8], received: Received) -> Result<ToPredecessor, Violation> {
    if received.truncated {
        return Err(Violation::Truncated);
    }
    let message = decode(frame)?;
    let expected = usize::from(matches!(message, ToPredecessor::State { .. }));
    if received.descriptors != expected {
        let received = received.descriptors;
        return Err(Violation::DescriptorCount { expected, received });
    }
    Ok(message)
}

fn is_ping(frame: &[u8]) -> bool {
    encode(&ToSuccessor::Ping {}).is_ok_and(|ping| ping == frame)
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
