//! The end that was started to replace a predecessor.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::limits::{bounded, escaped_bytes};
use crate::predecessor::millis;
use crate::{
    Item, MAX_BATCH_BYTES, MAX_DESCRIPTORS, MAX_FDS_PER_FRAME, MAX_STATES, Message, Name, Received,
    SILENCE_TIMEOUT, Slot, Time, ToPredecessor, ToSuccessor, Transmit, Versions, Violation, decode,
    encode,
};

/// What a [`Successor`] says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SuccessorConfig {
    /// The versions to speak, normally [`Versions::OURS`].
    pub versions: Versions,
    /// This process.
    pub pid: u32,
    /// Which library this is, for the predecessor's log.
    pub software: String,
}

/// What made the successor the one who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CommittedBy {
    /// The predecessor has stopped accepting and drains.
    Predecessor {
        /// Whether an upgrade was asked for meanwhile: do it.
        upgrade_pending: bool,
        /// How long the predecessor can take back over, if at all.
        probation: Option<Duration>,
    },
    /// The predecessor is gone.
    Orphaned,
}

/// Why the successor must not serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// The predecessor called the handover off.
    Aborted {
        /// Why.
        reason: String,
    },
    /// There is no version of the protocol that both speak.
    Incompatible {
        /// What this end speaks.
        ours: Versions,
        /// What the predecessor speaks.
        theirs: Versions,
    },
    /// The predecessor broke the protocol.
    Misbehaved(Violation),
    /// The predecessor is there but says nothing.
    Silent,
    /// The application refused.
    Refused,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted { reason } => write!(f, "the predecessor called it off: {reason}"),
            Self::Incompatible { ours, theirs } => {
                write!(f, "the predecessor speaks protocol version {theirs}, this process {ours}")
            }
            Self::Misbehaved(violation) => {
                write!(f, "the predecessor broke the protocol with {violation}")
            }
            Self::Silent => write!(f, "the predecessor is silent"),
            Self::Refused => write!(f, "this process refused"),
        }
    }
}

/// What the driver of a [`Successor`] is to do or to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Know: the predecessor's answer.
    Welcomed {
        /// The number of this generation.
        generation: u64,
        /// The predecessor, as it sees itself.
        predecessor: u32,
    },
    /// Do: the one descriptor of this frame is the real stderr.
    TakeStderr,
    /// Do: keep the descriptors of this frame, one for each item.
    TakeDescriptors {
        /// What they are.
        items: Vec<Item>,
    },
    /// Do: keep the one descriptor of this frame, a sealed memfd.
    TakeState {
        /// Its name.
        name: Name,
        /// The version of its format.
        version: u32,
        /// How long it says to be.
        bytes: u64,
        /// Whether it was written after the predecessor stopped accepting.
        late: bool,
    },
    /// Know: everything has arrived that will arrive before the commit. Initialise.
    Adopted,
    /// Do: accept. The handover is done. Comes again, as [`CommittedBy::Orphaned`], if the
    /// predecessor dies after [`Event::RollBack`] and before [`Successor::stopped`].
    Committed(CommittedBy),
    /// Know: the predecessor cannot take back over any more, and the channel is a
    /// [`Line`](crate::Line). Follows [`Event::Committed`], also where there is no probation.
    Confirmed,
    /// Do: an upgrade was asked of the draining predecessor.
    Upgrade,
    /// Do: stop. It was asked of the predecessor too late for it.
    Stop {
        /// How long what is in flight may take at most.
        drain: Option<Duration>,
    },
    /// Do: stop accepting, call [`Successor::stopped`], drain and exit.
    RollBack {
        /// Why.
        reason: String,
    },
    /// Know: this process serves, and the predecessor sent what it should not.
    Ignored(Violation),
    /// Know: the predecessor is gone, no old code runs.
    PredecessorGone,
    /// Know: this process must not serve.
    Failed(Failure),
}

/// The successor's side of one handover.
///
/// Made first thing in the new process. After [`Event::Adopted`] the application initialises and
/// calls [`progress`](Self::progress) as often as it likes, then [`ready`](Self::ready) or
/// [`refuse`](Self::refuse). It accepts after [`Event::Committed`] and not before.
///
/// The descriptors of a frame belong to the events that the call of
/// [`handle_frame`](Self::handle_frame) produced, in order: carry those out before the next frame,
/// and before sending, for the acks say that it was done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Successor {
    config: SuccessorConfig,
    phase: Phase,
    /// Frames that have not arrived, by what `Welcome` said.
    descriptors_left: u32,
    states_left: u32,
    late_states_left: u32,
    /// How long the next frame of the transfer may take to come.
    transfer_timeout: Duration,
    commit_timeout: Duration,
    /// When the predecessor has been silent for too long.
    deadline: Option<Time>,
    connected: bool,
    /// How long the predecessor can take back over after the commit.
    probation: Option<Duration>,
    /// Whether it cannot any more.
    confirmed: bool,
    /// Whether the application has said how probation goes; its first word counts.
    judged: bool,
    /// The frame with a state that goes back and is not acked, and those that follow.
    outstanding: Option<u32>,
    returned: VecDeque<(ToPredecessor, Vec<Slot>)>,
    returned_states: u32,
    /// How many the predecessor was told of.
    announced_states: u32,
    /// Progress that has not left; only the latest is kept.
    progress: Option<Progress>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Progress {
    text: String,
    more: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Hello,
    Transfer,
    Initialise,
    /// `Ready` was sent.
    Commit,
    Serving,
    /// `Rollback` has come, `Stopped` was not sent.
    RollingBack,
    /// `Stopped` was sent.
    Stopped,
    Failed,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Hello => "the greeting",
            Self::Transfer => "the transfer",
            Self::Initialise => "initialisation",
            Self::Commit => "the commit",
            Self::Serving => "service",
            Self::RollingBack => "a rollback",
            Self::Stopped => "the drain after a rollback",
            Self::Failed => "a failed handover",
        }
    }
}

impl Successor {
    /// Begins, by saying `Hello`.
    pub fn new(config: SuccessorConfig, now: Time) -> Self {
        let hello = ToPredecessor::Hello {
            versions: config.versions,
            pid: config.pid,
            software: bounded(config.software.clone()),
        };
        let mut successor = Self {
            config,
            phase: Phase::Hello,
            descriptors_left: 0,
            states_left: 0,
            late_states_left: MAX_STATES,
            transfer_timeout: SILENCE_TIMEOUT,
            commit_timeout: SILENCE_TIMEOUT,
            deadline: Some(now + SILENCE_TIMEOUT),
            connected: true,
            probation: None,
            confirmed: false,
            judged: false,
            outstanding: None,
            returned: VecDeque::new(),
            returned_states: 0,
            announced_states: 0,
            progress: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        };
        successor.send(&hello);
        successor
    }

    /// Takes a frame that came through the channel, and what came with it.
    pub fn handle_frame(&mut self, frame: &[u8], received: Received, now: Time) {
        if self.phase == Phase::Failed || !self.connected {
            return;
        }
        let result = match decode(frame) {
            _ if received.truncated => Err(Violation::Truncated),
            Ok(message) => self.handle_message(message, received.descriptors, now),
            Err(violation) => Err(violation),
        };
        match (result, self.phase) {
            (Ok(()), _) => {}
            // Who serves goes on serving, whatever a process that is on its way out may say.
            (Err(violation), Phase::Serving | Phase::RollingBack | Phase::Stopped) => {
                self.events.push_back(Event::Ignored(violation));
            }
            (Err(violation), _) => {
                self.give_up(violation.to_string(), Failure::Misbehaved(violation));
            }
        }
    }

    /// Takes the end of the channel: the predecessor is gone.
    pub fn handle_closed(&mut self) {
        if !self.connected {
            return;
        }
        self.connected = false;
        self.deadline = None;
        self.transmits.clear();
        self.progress = None;
        match self.phase {
            Phase::Failed => return,
            Phase::Hello | Phase::Transfer => {
                // What has arrived is what there is.
                self.phase = Phase::Initialise;
                self.events.push_back(Event::Adopted);
            }
            // The predecessor takes over when it has heard `Stopped`, which was not said.
            Phase::Commit | Phase::RollingBack => {
                self.phase = Phase::Serving;
                self.events.push_back(Event::Committed(CommittedBy::Orphaned));
                self.confirm();
            }
            Phase::Serving => self.confirm(),
            Phase::Initialise | Phase::Stopped => {}
        }
        self.events.push_back(Event::PredecessorGone);
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::Serving => self.confirm(),
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit => {
                self.give_up("the predecessor is silent".into(), Failure::Silent);
            }
            Phase::RollingBack | Phase::Stopped | Phase::Failed => self.deadline = None,
        }
    }

    /// Says what initialisation does, and asks for more time if need be.
    ///
    /// What could not be sent yet is replaced; the longest time asked for is kept.
    pub fn progress(&mut self, text: impl Into<String>, more: Option<Duration>) {
        if self.phase == Phase::Initialise && self.connected {
            let unsent = self.progress.take().and_then(|unsent| unsent.more);
            self.progress = Some(Progress { text: bounded(text.into()), more: more.max(unsent) });
        }
    }

    /// Says that initialisation is done and which inherited names are taken over.
    ///
    /// Answered by [`Event::Committed`] or [`Event::Failed`].
    pub fn ready(&mut self, claimed: impl IntoIterator<Item = Name>, now: Time) {
        if self.phase != Phase::Initialise {
            return;
        }
        if !self.connected {
            self.phase = Phase::Serving;
            self.events.push_back(Event::Committed(CommittedBy::Orphaned));
            self.confirm();
            return;
        }
        self.send_progress();
        let (mut names, mut bytes) = (Vec::new(), 0);
        for name in claimed {
            let size = escaped_bytes(name.as_str());
            if names.len() == MAX_FDS_PER_FRAME || bytes + size > MAX_BATCH_BYTES {
                self.send(&ToPredecessor::Claim { names: std::mem::take(&mut names) });
                bytes = 0;
            }
            bytes += size;
            names.push(name);
        }
        if !names.is_empty() {
            self.send(&ToPredecessor::Claim { names });
        }
        self.send(&ToPredecessor::Ready {});
        self.phase = Phase::Commit;
        // Twice the time that the predecessor gives itself: it is the one to call it off.
        self.deadline = Some(now + self.commit_timeout.saturating_mul(2));
    }

    /// Refuses to serve; the predecessor goes on.
    pub fn refuse(&mut self, reason: impl Into<String>) {
        if matches!(self.phase, Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit)
        {
            self.give_up(reason.into(), Failure::Refused);
        }
    }

    /// Whether the predecessor can take back over.
    pub fn is_on_probation(&self) -> bool {
        matches!(self.phase, Phase::Serving) && !self.confirmed
    }

    /// On probation: says that all is well. The first word counts, this or
    /// [`unhealthy`](Self::unhealthy) or [`request_rollback`](Self::request_rollback).
    pub fn healthy(&mut self) {
        self.judge(&ToPredecessor::Healthy {});
    }

    /// On probation: asks the predecessor to take back over. Answered by [`Event::RollBack`],
    /// unless probation is over.
    pub fn unhealthy(&mut self, reason: impl Into<String>) {
        let reason = bounded(reason.into());
        self.judge(&ToPredecessor::Unhealthy { reason, requested: false });
    }

    /// The same, because somebody asked for it.
    pub fn request_rollback(&mut self, reason: impl Into<String>) {
        let reason = bounded(reason.into());
        self.judge(&ToPredecessor::Unhealthy { reason, requested: true });
    }

    fn judge(&mut self, word: &ToPredecessor) {
        if self.is_on_probation() && !self.judged {
            self.judged = true;
            self.send(word);
        }
    }

    /// Says that the service is to stop: the predecessor must not take back over when this process
    /// exits, and is to finish as well.
    ///
    /// If a rollback has crossed this, the predecessor takes back over and stops then.
    pub fn stop(&mut self, drain: Option<Duration>) {
        if matches!(self.phase, Phase::Serving | Phase::RollingBack | Phase::Stopped) {
            self.judged = true;
            self.send(&ToPredecessor::Stop { drain_ms: drain.map(millis) });
        }
    }

    /// After [`Event::RollBack`]: says that nothing is accepted any more, and how many states will
    /// be sent back at most, by [`returned_state`](Self::returned_state) and then
    /// [`states_complete`](Self::states_complete).
    pub fn stopped(&mut self, states: u32) {
        if self.phase == Phase::RollingBack {
            self.phase = Phase::Stopped;
            self.announced_states = states.min(MAX_STATES);
            self.send(&ToPredecessor::Stopped { states: self.announced_states });
        }
    }

    /// Sends a state back. The n-th call names [`Slot::State`]`(n)`, counted from 0.
    pub fn returned_state(&mut self, name: Name, version: u32, bytes: u64) {
        if self.phase == Phase::Stopped && self.returned_states < self.announced_states {
            let slot = Slot::State(self.returned_states as usize);
            self.returned_states += 1;
            let frame = self.returned_states;
            let state = ToPredecessor::State { frame, name, version, bytes };
            self.returned.push_back((state, vec![slot]));
            self.return_next();
        }
    }

    /// Says that no more states are sent back.
    pub fn states_complete(&mut self) {
        if self.phase == Phase::Stopped && self.announced_states > 0 {
            self.announced_states = 0;
            self.returned.push_back((ToPredecessor::StatesComplete {}, vec![]));
            self.return_next();
        }
    }

    /// Sends the next state once the last one is acked.
    fn return_next(&mut self) {
        if self.outstanding.is_none()
            && let Some((message, slots)) = self.returned.pop_front()
        {
            if let ToPredecessor::State { frame, .. } = message {
                self.outstanding = Some(frame);
            }
            self.send_with(&message, slots);
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if self.transmits.is_empty() {
            self.send_progress();
        }
        self.transmits.pop_front()
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if ever.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.deadline
    }

    fn handle_message(
        &mut self,
        message: ToSuccessor,
        descriptors: usize,
        now: Time,
    ) -> Result<(), Violation> {
        let expected = match &message {
            ToSuccessor::Welcome { stderr, .. } => usize::from(*stderr),
            ToSuccessor::Descriptors { items, .. } => items.len(),
            ToSuccessor::State { .. } => 1,
            ToSuccessor::Commit { .. }
            | ToSuccessor::Upgrade {}
            | ToSuccessor::Stop { .. }
            | ToSuccessor::Ping {}
            | ToSuccessor::Confirmed {}
            | ToSuccessor::Ack { .. }
            | ToSuccessor::Report { .. }
            | ToSuccessor::Rollback { .. }
            | ToSuccessor::Abort { .. } => 0,
        };
        if expected != descriptors {
            return Err(Violation::DescriptorCount { expected, received: descriptors });
        }
        if descriptors > MAX_FDS_PER_FRAME {
            return Err(Violation::TooMany { what: "descriptors in a frame" });
        }
        let during = self.phase;
        match (message, during) {
            (
                ToSuccessor::Welcome {
                    version,
                    generation,
                    pid,
                    descriptors,
                    states,
                    stderr,
                    ready_timeout_ms,
                    commit_timeout_ms,
                    probation_ms,
                },
                Phase::Hello,
            ) => {
                if version > self.config.versions.newest || version < self.config.versions.oldest {
                    let why = format!("version {version} was not offered");
                    return Err(Violation::Malformed { message: Some("welcome".into()), why });
                }
                if descriptors > MAX_DESCRIPTORS {
                    return Err(Violation::TooMany { what: "descriptors" });
                }
                if states > MAX_STATES {
                    return Err(Violation::TooMany { what: "states" });
                }
                self.phase = Phase::Transfer;
                self.descriptors_left = descriptors;
                self.states_left = states;
                self.transfer_timeout =
                    SILENCE_TIMEOUT.max(Duration::from_millis(ready_timeout_ms));
                self.commit_timeout = Duration::from_millis(commit_timeout_ms);
                self.probation = probation_ms.map(Duration::from_millis);
                self.events.push_back(Event::Welcomed { generation, predecessor: pid });
                if stderr {
                    self.events.push_back(Event::TakeStderr);
                }
                self.await_transfer(now);
            }
            (ToSuccessor::Descriptors { frame, items }, Phase::Transfer) => {
                let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
                self.descriptors_left = self
                    .descriptors_left
                    .checked_sub(count)
                    .ok_or(Violation::TooMany { what: "descriptors" })?;
                self.events.push_back(Event::TakeDescriptors { items });
                self.send(&ToPredecessor::Ack { frame });
                self.await_transfer(now);
            }
            (ToSuccessor::State { frame, name, version, bytes, late: false }, Phase::Transfer) => {
                self.states_left =
                    self.states_left.checked_sub(1).ok_or(Violation::TooMany { what: "states" })?;
                self.events.push_back(Event::TakeState { name, version, bytes, late: false });
                self.send(&ToPredecessor::Ack { frame });
                self.await_transfer(now);
            }
            (ToSuccessor::State { frame, name, version, bytes, late: true }, Phase::Commit) => {
                self.late_states_left = self
                    .late_states_left
                    .checked_sub(1)
                    .ok_or(Violation::TooMany { what: "late states" })?;
                self.events.push_back(Event::TakeState { name, version, bytes, late: true });
                self.send(&ToPredecessor::Ack { frame });
            }
            (ToSuccessor::Commit { upgrade_pending }, Phase::Commit) => {
                self.phase = Phase::Serving;
                let probation = self.probation;
                // A predecessor that could still take back over would have said so by then.
                let wait = self.commit_timeout.saturating_mul(2);
                self.deadline = Some(now + probation.unwrap_or_default().saturating_add(wait));
                let by = CommittedBy::Predecessor { upgrade_pending, probation };
                self.events.push_back(Event::Committed(by));
                self.send(&ToPredecessor::Serving {});
            }
            (ToSuccessor::Upgrade {}, Phase::Serving) => self.events.push_back(Event::Upgrade),
            (ToSuccessor::Stop { drain_ms }, Phase::Serving) => {
                let drain = drain_ms.map(Duration::from_millis);
                self.events.push_back(Event::Stop { drain });
            }
            (ToSuccessor::Ping {}, Phase::Serving) => self.send(&ToPredecessor::Pong {}),
            (ToSuccessor::Confirmed {}, Phase::Serving) => self.confirm(),
            (ToSuccessor::Ack { frame }, Phase::Stopped) if self.outstanding == Some(frame) => {
                self.outstanding = None;
                self.return_next();
            }
            // Crossed with what this process had to say; a process that goes has nothing to answer.
            (
                ToSuccessor::Ping {} | ToSuccessor::Upgrade {} | ToSuccessor::Stop { .. },
                Phase::RollingBack | Phase::Stopped,
            ) => {}
            // An answer to who had this end of the channel before.
            (ToSuccessor::Report { .. }, Phase::Serving) => {}
            // Also without probation: the commit itself may not have come to its end over there.
            (
                ToSuccessor::Rollback { reason } | ToSuccessor::Abort { reason, .. },
                Phase::Serving,
            ) => {
                self.phase = Phase::RollingBack;
                self.deadline = None;
                self.events.push_back(Event::RollBack { reason: bounded(reason) });
            }
            (
                ToSuccessor::Abort { reason, versions },
                Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit,
            ) => {
                let ours = self.config.versions;
                self.fail(match versions {
                    Some(theirs) if ours.agree(theirs).is_none() => {
                        Failure::Incompatible { ours, theirs }
                    }
                    _ => Failure::Aborted { reason: bounded(reason) },
                });
            }
            (
                message @ (ToSuccessor::Welcome { .. }
                | ToSuccessor::Descriptors { .. }
                | ToSuccessor::State { .. }
                | ToSuccessor::Commit { .. }
                | ToSuccessor::Upgrade {}
                | ToSuccessor::Stop { .. }
                | ToSuccessor::Ping {}
                | ToSuccessor::Confirmed {}
                | ToSuccessor::Ack { .. }
                | ToSuccessor::Report { .. }
                | ToSuccessor::Rollback { .. }
                | ToSuccessor::Abort { .. }),
                _,
            ) => {
                return Err(Violation::OutOfOrder {
                    message: message.name(),
                    during: during.as_str(),
                });
            }
        }
        Ok(())
    }

    /// Goes on to initialisation when everything is there, else gives the next frame its time.
    fn await_transfer(&mut self, now: Time) {
        if self.descriptors_left == 0 && self.states_left == 0 {
            self.phase = Phase::Initialise;
            self.deadline = None;
            self.events.push_back(Event::Adopted);
        } else {
            self.deadline = Some(now + self.transfer_timeout);
        }
    }

    fn send_progress(&mut self) {
        if let Some(Progress { text, more }) = self.progress.take() {
            let more_ms = more.map(millis);
            self.send(&ToPredecessor::Progress { text, more_ms });
        }
    }

    /// Tells the predecessor why, and fails.
    fn give_up(&mut self, reason: String, failure: Failure) {
        self.send(&ToPredecessor::Refuse { reason: bounded(reason) });
        self.fail(failure);
    }

    fn fail(&mut self, failure: Failure) {
        self.phase = Phase::Failed;
        self.progress = None;
        self.deadline = None;
        self.events.push_back(Event::Failed(failure));
    }

    /// The predecessor cannot take back over any more.
    fn confirm(&mut self) {
        self.deadline = None;
        if !std::mem::replace(&mut self.confirmed, true) {
            self.events.push_back(Event::Confirmed);
        }
    }

    fn send(&mut self, message: &ToPredecessor) {
        self.send_with(message, Vec::new());
    }

    fn send_with(&mut self, message: &ToPredecessor, slots: Vec<Slot>) {
        if !self.connected {
            return;
        }
        match encode(message) {
            Ok(frame) => self.transmits.push_back(Transmit { frame, slots }),
            // The limits on names and texts leave no message that is too long, but a mistake in
            // them must not end a service.
            Err(violation) => self.fail(Failure::Misbehaved(violation)),
        }
    }
}
