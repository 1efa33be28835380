//! The end that serves and was asked for an upgrade.

mod ending;
mod event;
mod probation;
mod transfer;

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::bounded;
use crate::time::millis;
use crate::transmit::Outbox;
use crate::{
    Cause, MAX_EXTENSION, MAX_UNSENT_REPORTS, Message, Name, Phase, Received, Report, Slot, Time,
    ToPredecessor, ToSuccessor, Transmit, Violation, decode,
};

use ending::Failing;
use probation::Heartbeat;

pub use event::{Event, Inventory, PredecessorConfig};

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
    /// A stop was passed on that ends probation, or keeps it from beginning.
    stop_forwarded: bool,
    /// Set once the handover has failed and the successor's end is awaited.
    failing: Option<Failing>,
    /// Why it has failed, also when it is over.
    cause: Option<Cause>,
    /// Whether this process took back over from a successor that may have served.
    took_back: bool,
    heartbeat: Heartbeat,
    outbox: Outbox<ToSuccessor>,
    events: VecDeque<Event>,
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
            stop_forwarded: false,
            failing: None,
            cause: None,
            took_back: false,
            heartbeat: Heartbeat::AskAt(now),
            outbox: Outbox::new(),
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
    ///
    /// It can end later, for the last `Ping` is to be answered.
    pub fn probation_end(&self) -> Option<Time> {
        (self.phase == Phase::Probation && self.failing.is_none()).then_some(self.deadline)
    }

    /// Takes a frame that came through the channel, and what came with it.
    ///
    /// A descriptor belongs to the [`Event::TakeState`] that the call produces, or to nobody.
    pub fn handle_frame(&mut self, frame: &[u8], received: Received, now: Time) {
        let message = match read(frame, received) {
            Ok(message) => message,
            Err(violation) => return self.handle_violation(violation, now),
        };
        if self.failing.is_some() || self.phase == Phase::Failed {
            self.handle_while_failing(message, now);
        } else if let Err(cause) = self.handle_message(message, now) {
            self.fail(cause, now);
        }
    }

    /// Takes the end of the channel: the successor closed it or ended.
    pub fn handle_closed(&mut self, now: Time) {
        self.connected = false;
        self.outbox.clear();
        match self.phase {
            Phase::Failed | Phase::Served => {}
            Phase::Hello
            | Phase::Transfer
            | Phase::Initialise
            | Phase::Commit
            | Phase::Confirm
            | Phase::Probation => {
                self.fail(Cause::Exited, now);
                self.end_states(now);
            }
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
        if self.failing.is_some() {
            return self.lose_patience(now);
        }
        match self.phase {
            Phase::Probation => self.watch(now),
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Confirm => {
                self.fail(Cause::TimedOut, now)
            }
            Phase::Served | Phase::Failed => {}
        }
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
            self.succeed(now);
        }
    }

    /// Says that the service manager takes the successor for the main process of the service.
    ///
    /// Has no effect before the outcome is [`Outcome::Succeeded`](crate::Outcome::Succeeded).
    pub fn announced(&mut self, now: Time) {
        if self.phase == Phase::Served && self.connected {
            self.send(&ToSuccessor::Announced {}, vec![], now);
        }
    }

    /// Says how this process is, after [`Event::Inquired`].
    pub fn report(&mut self, number: u32, report: Report, now: Time) {
        if self.phase == Phase::Served && self.connected {
            let report = ToSuccessor::Report { number, report: report.bounded() };
            let sent = self.outbox.push_of(MAX_UNSENT_REPORTS, &report);
            self.sent(sent, now);
        }
    }

    /// Passes a request for an upgrade on to the one who serves next.
    ///
    /// Returns whether it goes to the successor at once. Until `Commit` it is kept and goes along
    /// with that. In both cases it is this process's to honour if the outcome is not
    /// [`Outcome::Succeeded`](crate::Outcome::Succeeded), so remember that there was one. Requests that have not left are one.
    pub fn forward_upgrade(&mut self, now: Time) -> bool {
        if self.failing.is_some() || !self.connected {
            return false;
        }
        match self.phase {
            Phase::Confirm | Phase::Probation | Phase::Served => {
                self.send_latest(&ToSuccessor::Upgrade {}, now);
                true
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit => {
                self.upgrade_pending = true;
                false
            }
            Phase::Failed => false,
        }
    }

    /// Passes a stop on to the one who serves, when it is too late to call the handover off.
    ///
    /// Returns whether it goes to the successor. The service is to stop, so there is no probation
    /// from here: this process does not take back over when the successor exits. Until the outcome
    /// is [`Outcome::Succeeded`](crate::Outcome::Succeeded) the stop is also this process's to
    /// honour. The last word counts.
    pub fn forward_stop(&mut self, drain: Option<Duration>, now: Time) -> bool {
        if self.failing.is_some() || !self.connected {
            return false;
        }
        match self.phase {
            Phase::Confirm | Phase::Probation | Phase::Served => {
                self.stop_forwarded = true;
                self.confirm(now);
                self.send_latest(&ToSuccessor::Stop { drain_ms: drain.map(millis) }, now);
                true
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Failed => {
                false
            }
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbox.pop()
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if ever.
    pub fn poll_timeout(&self) -> Option<Time> {
        match (&self.failing, self.phase) {
            (_, Phase::Served | Phase::Failed) => None,
            (Some(failing), _) => failing.deadline(),
            (None, Phase::Probation) => Some(self.heartbeat.deadline(self.deadline)),
            (
                None,
                Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Confirm,
            ) => Some(self.deadline),
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
                    Some(probation) if !self.stop_forwarded => self.begin_probation(probation, now),
                    Some(_) | None => self.succeed(now),
                }
            }
            (ToPredecessor::Healthy {}, Phase::Probation) => self.succeed(now),
            (ToPredecessor::Unhealthy { reason, requested }, Phase::Probation) => {
                let reason = bounded(reason);
                return Err(if requested {
                    Cause::RollbackRequested { reason }
                } else {
                    Cause::Unhealthy { reason }
                });
            }
            (ToPredecessor::Pong {}, Phase::Probation) => self.answered(now),
            // When the successor then exits, nobody is to serve.
            (ToPredecessor::Stop { drain_ms }, Phase::Probation) => {
                self.succeed(now);
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
                let message = message.name();
                let violation = Violation::OutOfOrder { message, during: during.as_str() };
                return Err(Cause::Misbehaved(violation));
            }
        }
        Ok(())
    }

    fn stop_asked(&mut self, drain_ms: Option<u64>) {
        self.events.push_back(Event::StopAsked { drain: drain_ms.map(Duration::from_millis) });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.events.push_back(Event::Entered(phase));
    }

    fn send(&mut self, message: &ToSuccessor, slots: Vec<Slot>, now: Time) {
        let sent = self.outbox.push(message, slots);
        self.sent(sent, now);
    }

    /// Sends what replaces the same that has not left.
    fn send_latest(&mut self, message: &ToSuccessor, now: Time) {
        let sent = self.outbox.replace(message);
        self.sent(sent, now);
    }

    fn sent(&mut self, sent: Result<(), Violation>, now: Time) {
        // Only an address can be too long, which no kernel has bound. It must not end a service.
        if let Err(violation) = sent {
            self.fail(Cause::CalledOff { reason: violation.to_string() }, now);
        }
    }
}

/// Reads a frame and checks that it came with the descriptors that belong to it.
fn read(frame: &[u8], received: Received) -> Result<ToPredecessor, Violation> {
    if received.truncated {
        return Err(Violation::Truncated);
    }
    let message = decode(frame)?;
    let expected = match &message {
        ToPredecessor::State { .. } => 1,
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
        | ToPredecessor::StatesComplete {}
        | ToPredecessor::Stop { .. }
        | ToPredecessor::Inquire { .. } => 0,
    };
    received.check(expected)?;
    Ok(message)
}
