//! The end that was started to replace a predecessor.

mod event;
mod probation;
mod returning;

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{bounded, escaped_bytes};
use crate::time::millis;
use crate::transmit::Outbox;
use crate::{
    MAX_BATCH_BYTES, MAX_DESCRIPTORS, MAX_FDS_PER_FRAME, MAX_STATES, Message, Name, Received,
    SILENCE_TIMEOUT, Slot, Time, ToPredecessor, ToSuccessor, Transmit, Violation, decode,
};

use returning::Returning;

pub use event::{CommittedBy, Event, Failure, SuccessorConfig};

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
    /// Whether the predecessor has heard that this process serves, or is gone. Before, it may call this
    /// process off for want of the word.
    known: bool,
    /// Whether the application has said how probation goes; its first word counts.
    judged: bool,
    /// Whether the service is to stop, so that this process does not serve again.
    stopping: bool,
    /// What goes back after a rollback.
    returning: Returning,
    /// Progress that has not left; only the latest is kept.
    progress: Option<Progress>,
    outbox: Outbox<ToPredecessor>,
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
    /// `Stopped` was sent, `Resumed` has not come.
    Stopped,
    /// The predecessor serves again.
    Replaced,
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
            Self::Stopped => "the end of a rollback",
            Self::Replaced => "the drain after a rollback",
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
            known: false,
            judged: false,
            stopping: false,
            returning: Returning::default(),
            progress: None,
            outbox: Outbox::new(),
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
        let result = read(frame, received).and_then(|message| self.handle_message(message, now));
        let Err(violation) = result else { return };
        match self.phase {
            // Who serves goes on serving, whatever a process that is on its way out may say.
            Phase::Serving | Phase::RollingBack | Phase::Stopped | Phase::Replaced => {
                self.events.push_back(Event::Ignored(violation));
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Failed => {
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
        self.outbox.clear();
        self.returning = Returning::default();
        self.progress = None;
        match self.phase {
            Phase::Failed => return,
            Phase::Hello | Phase::Transfer => {
                // What has arrived is what there is.
                self.phase = Phase::Initialise;
                self.events.push_back(Event::Adopted);
            }
            // It says `Resumed` when it takes back over, so it has not done that.
            Phase::Commit | Phase::RollingBack | Phase::Stopped => self.serve_alone(),
            Phase::Serving => {
                self.known = true;
                self.confirmed();
            }
            Phase::Initialise | Phase::Replaced => {}
        }
        self.events.push_back(Event::PredecessorGone);
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.give_up("the predecessor is silent".into(), Failure::Silent);
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
            return self.serve_alone();
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

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if self.outbox.is_empty() {
            self.send_progress();
        }
        self.outbox.pop()
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if ever.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.deadline
    }

    fn handle_message(&mut self, message: ToSuccessor, now: Time) -> Result<(), Violation> {
        let during = self.phase;
        match (message, during) {
            (
                ToSuccessor::Welcome {
                    version,
                    generation,
                    pid,
                    predecessor,
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
                self.events.push_back(Event::Welcomed { generation, predecessor, pid });
                if stderr {
                    self.events.push_back(Event::TakeStderr);
                }
                self.await_transfer(now);
            }
            (ToSuccessor::Descriptors { frame, items }, Phase::Transfer) => {
                // Of frames that count for nothing there could be any number, each to be acked.
                if items.is_empty() {
                    let why = "no descriptors in it".to_owned();
                    return Err(Violation::Malformed { message: Some("descriptors".into()), why });
                }
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
                self.deadline = None;
                let probation = self.probation;
                let by = CommittedBy::Predecessor { upgrade_pending, probation };
                self.events.push_back(Event::Committed(by));
                if probation.is_none() {
                    self.confirmed();
                }
                self.send(&ToPredecessor::Serving {});
            }
            (ToSuccessor::Upgrade {}, Phase::Serving) => self.events.push_back(Event::Upgrade),
            (ToSuccessor::Stop { drain_ms }, Phase::Serving) => {
                self.judged = true;
                self.stopping = true;
                let drain = drain_ms.map(Duration::from_millis);
                self.events.push_back(Event::Stop { drain });
            }
            // After the other word there is nothing to watch for; an answer does no harm.
            (
                ToSuccessor::Ping {},
                Phase::Serving | Phase::RollingBack | Phase::Stopped | Phase::Replaced,
            ) => self.send_latest(&ToPredecessor::Pong {}),
            (ToSuccessor::Confirmed {}, Phase::Serving) if !self.known => {
                self.known = true;
                self.confirmed();
            }
            (ToSuccessor::Announced {}, Phase::Serving) if self.confirmed => {
                self.events.push_back(Event::Announced);
            }
            // To somebody who had this end of the channel before.
            (ToSuccessor::Report { .. }, Phase::Serving) => {}
            (ToSuccessor::Rollback { reason }, Phase::Serving) if !self.confirmed => {
                self.step_back(reason);
            }
            // Without probation the predecessor may not know yet that this process serves.
            (ToSuccessor::Abort { reason, versions: _ }, Phase::Serving) if !self.known => {
                self.step_back(reason);
            }
            (ToSuccessor::Ack { frame }, Phase::Stopped) => self.acked(frame)?,
            (ToSuccessor::Resumed {}, Phase::Stopped) => {
                self.phase = Phase::Replaced;
                self.returning = Returning::default();
                self.events.push_back(Event::Replaced);
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
                    Some(_) | None => Failure::Aborted { reason: bounded(reason) },
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
                | ToSuccessor::Announced {}
                | ToSuccessor::Ack { .. }
                | ToSuccessor::Report { .. }
                | ToSuccessor::Rollback { .. }
                | ToSuccessor::Resumed {}
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

    /// The predecessor is gone: this process serves, or serves again.
    fn serve_alone(&mut self) {
        self.phase = Phase::Serving;
        if !self.stopping {
            self.events.push_back(Event::Committed(CommittedBy::Orphaned));
        }
        self.known = true;
        self.confirmed();
    }

    fn step_back(&mut self, reason: String) {
        self.phase = Phase::RollingBack;
        self.events.push_back(Event::RollBack { reason: bounded(reason) });
    }

    fn send(&mut self, message: &ToPredecessor) {
        self.send_with(message, Vec::new());
    }

    fn send_with(&mut self, message: &ToPredecessor, slots: Vec<Slot>) {
        if self.connected {
            let sent = self.outbox.push(message, slots);
            self.sent(sent);
        }
    }

    /// Sends what replaces the same that has not left.
    fn send_latest(&mut self, message: &ToPredecessor) {
        if self.connected {
            let sent = self.outbox.replace(message);
            self.sent(sent);
        }
    }

    fn sent(&mut self, sent: Result<(), Violation>) {
        // The limits on names and texts leave no message that is too long, but a mistake in them
        // must not end a service.
        if let Err(violation) = sent {
            self.fail(Failure::Misbehaved(violation));
        }
    }
}

/// Reads a frame and checks that it came with the descriptors that belong to it.
fn read(frame: &[u8], received: Received) -> Result<ToSuccessor, Violation> {
    if received.truncated {
        return Err(Violation::Truncated);
    }
    let message = decode(frame)?;
    let expected = match &message {
        ToSuccessor::Welcome { stderr, .. } => usize::from(*stderr),
        ToSuccessor::Descriptors { items, .. } => items.len(),
        ToSuccessor::State { .. } => 1,
        ToSuccessor::Commit { .. }
        | ToSuccessor::Upgrade {}
        | ToSuccessor::Stop { .. }
        | ToSuccessor::Ping {}
        | ToSuccessor::Confirmed {}
        | ToSuccessor::Announced {}
        | ToSuccessor::Ack { .. }
        | ToSuccessor::Report { .. }
        | ToSuccessor::Rollback { .. }
        | ToSuccessor::Resumed {}
        | ToSuccessor::Abort { .. } => 0,
    };
    received.check(expected)?;
    if expected > MAX_FDS_PER_FRAME {
        return Err(Violation::TooMany { what: "descriptors in a frame" });
    }
    Ok(message)
}
