//! One generation: the machines of `handover-proto` as they ship, and the glue around them.
//!
//! The glue stands for what `handover` does between the machines: `attempt.rs` (the predecessor's
//! side), `link.rs` and `lines.rs` (the successor's), and of the engine `engine.rs` (what is done on
//! which effect), `engine/upgrades.rs`, `engine/rollback.rs` and `engine/stopping.rs`. Methods have the
//! names that they have there. What is left out is everything that has no say in who serves: the
//! preflight, systemd's notifications, connections that change hands, PID files, hooks (but for the
//! time that they take: [`Input::Does`] comes when it comes).

mod attempt;
mod link;

pub(crate) use attempt::text;
use handover_proto::{Line, LineEvent, Outcome, Phase, Predecessor, Received, Successor, Transmit};

use crate::mutation::Mutation;
use crate::world::Setup;

pub(crate) const LISTENER: &str = "listener";
/// What the names of lines begin with; the number of the channel follows.
pub(crate) const LINE: &str = "handover:line:";

/// What a process is doing, as in `engine/status.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    Adopting,
    Claiming,
    Committing,
    Serving,
    Draining,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ending {
    HandedOver,
    Stopped,
    RolledBack,
}

/// The listener, as this process has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Gate {
    /// It has no descriptor of it: it has closed it, or never got it.
    Closed,
    /// It has the descriptor and does not accept.
    Paused,
    /// It accepts.
    Open,
    /// The service stops: what is queued is accepted, and nothing joins the queue.
    Retiring,
}

/// What happens to a process, or what it does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    /// A frame of that channel; which one it is the world knows.
    Frame {
        channel: u8,
        frame: u16,
    },
    Closed(u8),
    /// The process of that attempt has ended.
    Exited(u8),
    /// A deadline has passed, of the machine at this channel.
    Time {
        channel: u8,
        late: bool,
    },
    /// The application, or a thread, is done with what it was asked for.
    Does,
    /// What did not fit the channel leaves.
    Sends,
    /// An upgrade that was asked for begins, with a process of that number.
    Begins(u8),
    Asked(Ask),
}

/// What an operator asks of a process, or its application decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ask {
    Upgrade,
    Stop,
    Rollback,
    Confirm,
    Status,
    Refuse,
}

/// What a step of a process does to others, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Send { channel: u8, to_predecessor: bool, transmit: Transmit },
    Kill(u8),
    Verdict { child: u8, outcome: Outcome },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    /// Its number, which is also that of the channel that it was started with.
    pub(crate) number: u8,
    pub(crate) stage: Stage,
    pub(crate) ending: Option<Ending>,
    pub(crate) gate: Gate,
    pub(crate) confirmed: bool,
    /// The service manager, if there is one, takes it for the main process.
    pub(crate) is_main: bool,
    pub(crate) link: Option<Link>,
    pub(crate) stepping_back: Option<SteppingBack>,
    /// By the number of the channel.
    pub(crate) lines: Vec<(u8, Line)>,
    pub(crate) has_inquired: bool,
    pub(crate) attempt: Option<Attempt>,
    pub(crate) departing: Vec<Attempt>,
    pub(crate) signalled: bool,
    pub(crate) stop_requested: bool,
    pub(crate) stop_passed_on: bool,
    pub(crate) resuming: Option<Resuming>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    pub(crate) machine: Successor,
    pub(crate) connected: bool,
    pub(crate) unsent: Option<Transmit>,
}

impl Link {
    /// Whether the predecessor knows that this process serves, or is gone.
    fn is_known(&self, setup: &Setup) -> bool {
        !self.connected
            || self.machine.is_known()
            || setup.mutation == Some(Mutation::BuildsOnWhatNobodyHasHeard)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SteppingBack {
    /// Accepting has to end, the application is told.
    Stopping,
    Waiting,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resuming {
    pub(crate) verdict: Option<(u8, Outcome)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub(crate) child: u8,
    pub(crate) machine: Predecessor,
    pub(crate) connected: bool,
    pub(crate) unsent: Option<Transmit>,
    /// The end of the process is known.
    pub(crate) exited: bool,
    /// Accepting is being stopped.
    pub(crate) stopping: bool,
    pub(crate) told_commit: bool,
    pub(crate) to_resume: bool,
}

impl Process {
    /// The first generation, which serves.
    pub(crate) fn first() -> Self {
        Self {
            number: 0,
            stage: Stage::Serving,
            ending: None,
            gate: Gate::Open,
            confirmed: true,
            is_main: true,
            link: None,
            stepping_back: None,
            lines: Vec::new(),
            has_inquired: false,
            attempt: None,
            departing: Vec::new(),
            signalled: false,
            stop_requested: false,
            stop_passed_on: false,
            resuming: None,
        }
    }

    /// One that was started by another.
    pub(crate) fn started(number: u8) -> Self {
        let mut process = Self::first();
        process.number = number;
        process.stage = Stage::Adopting;
        process.gate = Gate::Closed;
        process.confirmed = false;
        process.is_main = false;
        process.link = Some(Link::new(number));
        process
    }

    /// Performs one step. With `full`, the channels take nothing for now.
    pub(crate) fn step(
        &mut self,
        input: Input,
        frame: Option<(&[u8], Received)>,
        full: bool,
        setup: &Setup,
    ) -> Vec<Output> {
        let mut step = Step { process: self, setup, outputs: Vec::new() };
        step.take(input, frame);
        step.act();
        step.process.put_away_attempt();
        step.transmit(full);
        step.outputs
    }

    /// Whether it is the one who serves, as far as it knows: nobody else is, it has not given its
    /// place away by `commit`, and is not about to by a rollback.
    pub(crate) fn believes_it_serves(&self) -> bool {
        self.stage == Stage::Serving
            && self.stepping_back.is_none()
            && self.attempt.as_ref().is_none_or(|attempt| {
                attempt.machine.phase() < Phase::Confirm || attempt.machine.phase() == Phase::Failed
            })
    }

    /// Whether a connection could be accepted by it now.
    pub(crate) fn accepts(&self) -> bool {
        matches!(self.gate, Gate::Open | Gate::Retiring)
    }

    /// Whether a successor on probation serves in its place.
    fn stands_by(&self) -> bool {
        self.attempt.as_ref().is_some_and(|attempt| attempt.machine.phase() == Phase::Probation)
    }

    /// Whether what comes through lines is for this process to read.
    pub(crate) fn is_reading(&self, setup: &Setup) -> bool {
        let steps_back =
            self.stepping_back.is_some() && setup.mutation != Some(Mutation::ReadsLinesInARollback);
        match self.stage {
            Stage::Serving => !self.stands_by() && !steps_back,
            Stage::Draining => self.ending == Some(Ending::Stopped),
            Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Failed => false,
        }
    }

    /// Whether an upgrade that was asked for can begin.
    pub(crate) fn may_begin(&self, setup: &Setup) -> bool {
        self.stage == Stage::Serving
            && self.signalled
            && (self.is_main || !setup.supervised)
            && !self.stop_requested
            && self.attempt.is_none()
            && self.resuming.is_none()
            && self.confirmed
            && self.link.as_ref().is_none_or(|link| link.is_known(setup))
            && self.stepping_back.is_none()
    }

    /// Whether something is to be done by the application or a thread.
    pub(crate) fn has_to_do(&self) -> bool {
        self.stage == Stage::Claiming
            || self.attempt.as_ref().is_some_and(|attempt| attempt.stopping)
            || self.resuming.is_some()
            || self.stepping_back == Some(SteppingBack::Stopping)
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_to_send(&self) -> bool {
        let mut ahead = self.clone();
        let link = ahead.link.as_mut().is_some_and(|link| {
            link.connected && (link.unsent.is_some() || link.machine.poll_transmit().is_some())
        });
        link || ahead.attempts_mut().any(|attempt| attempt.has_to_send())
            || ahead.lines.iter_mut().any(|(_, line)| line.poll_transmit().is_some())
    }

    /// Whether it can exit: it has drained, has said what it had to say, and nobody waits for it; or it
    /// has failed.
    pub(crate) fn may_exit(&self, setup: &Setup) -> bool {
        if self.has_to_send() {
            return false;
        }
        match self.stage {
            Stage::Failed => true,
            Stage::Draining => {
                let is_last = self.ending != Some(Ending::Stopped)
                    || !(setup.supervised && self.is_main)
                    || (self.link.is_none() && self.lines.is_empty() && self.departing.is_empty());
                self.stepping_back.is_none() && is_last
            }
            Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Serving => false,
        }
    }

    pub(crate) fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.attempt.iter().chain(&self.departing)
    }

    fn attempts_mut(&mut self) -> impl Iterator<Item = &mut Attempt> {
        self.attempt.iter_mut().chain(&mut self.departing)
    }

    /// Whether it has the successor's end of that channel.
    pub(crate) fn holds_line(&self, channel: u8) -> bool {
        (channel == self.number && self.link.as_ref().is_some_and(|link| link.connected))
            || self.lines.iter().any(|(line, _)| *line == channel)
    }

    fn put_away_attempt(&mut self) {
        self.departing.retain(|attempt| !attempt.is_over());
        if self.resuming.is_some() {
            return;
        }
        self.attempt.take_if(|attempt| attempt.is_over());
        let failed = |attempt: &mut Attempt| attempt.machine.phase() == Phase::Failed;
        self.departing.extend(self.attempt.take_if(failed));
    }
}

/// A step that is being performed.
struct Step<'a> {
    process: &'a mut Process,
    setup: &'a Setup,
    outputs: Vec<Output>,
}

impl Step<'_> {
    fn is(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
    }

    fn take(&mut self, input: Input, frame: Option<(&[u8], Received)>) {
        let number = self.process.number;
        match input {
            Input::Frame { channel, .. } => {
                let (bytes, received) = frame.expect("a frame comes with its bytes");
                if channel == number && self.process.link.is_some() {
                    self.link_frame(bytes, received);
                } else if self.process.attempts().any(|attempt| attempt.child == channel) {
                    self.attempt_frame(channel, bytes, received);
                } else {
                    self.line_frame(channel, bytes, received);
                }
            }
            Input::Closed(channel) if channel == number && self.process.link.is_some() => {
                self.link_closed();
            }
            Input::Closed(channel) => {
                if self.process.attempts().any(|attempt| attempt.child == channel) {
                    self.attempt_closed(channel);
                } else {
                    self.process.lines.retain(|(line, _)| *line != channel);
                    self.process.is_main |= channel == number;
                }
            }
            Input::Exited(child) => self.attempt_exited(child),
            Input::Time { channel, .. } if channel == number => self.link_time(),
            Input::Time { channel, late } => self.attempt_time(channel, late),
            Input::Does => self.does(),
            Input::Sends => {}
            Input::Begins(child) => self.begins(child),
            Input::Asked(ask) => self.asked(ask),
        }
    }

    fn line_frame(&mut self, channel: u8, bytes: &[u8], received: Received) {
        let line = self.process.lines.iter_mut().find(|(line, _)| *line == channel);
        let (_, line) = line.expect("it has the line that it reads");
        line.handle_frame(bytes, received);
        let events: Vec<_> = std::iter::from_fn(|| line.poll_event()).collect();
        for event in events {
            match event {
                LineEvent::Upgrade if self.is(Mutation::LineForgetsUpgrade) => {}
                LineEvent::Upgrade => self.want_upgrade(),
                LineEvent::Stop { .. } => self.process.stop_requested = true,
                LineEvent::Announced => self.process.is_main = true,
                LineEvent::Report(_) | LineEvent::Ignored(_) => {}
            }
        }
    }

    /// The application, or a thread, is done.
    fn does(&mut self) {
        if self.process.stage == Stage::Claiming {
            self.ready();
        } else if self.process.attempt.as_ref().is_some_and(|attempt| attempt.stopping) {
            self.accepting_stopped();
        } else if self.process.resuming.is_some() {
            self.end_resuming();
        } else if self.process.stepping_back == Some(SteppingBack::Stopping) {
            self.stopped();
        }
    }

    fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Upgrade => self.want_upgrade(),
            Ask::Stop if self.process.stage < Stage::Serving => self.refuse("stopped by a signal"),
            Ask::Stop => self.process.stop_requested = true,
            Ask::Rollback => self.asked_rollback(),
            Ask::Confirm => {
                self.judge(|machine| machine.healthy());
                self.with_attempt(|machine, now| machine.confirm(now));
            }
            Ask::Status => {
                self.settle_link();
                self.process.has_inquired = true;
                self.process.lines.iter_mut().for_each(|(_, line)| line.inquire());
            }
            Ask::Refuse => self.refuse("will not"),
        }
    }

    fn want_upgrade(&mut self) {
        self.process.signalled = true;
        self.with_attempt(|machine, now| {
            machine.forward_upgrade(now);
        });
    }

    fn act(&mut self) {
        if self.process.stage == Stage::Serving && self.process.stop_requested {
            self.stop();
        }
    }

    /// `Engine::stop`.
    fn stop(&mut self) {
        let is_main = self.setup.supervised && self.process.is_main;
        if let Some(attempt) = &self.process.attempt
            && attempt.machine.phase() < Phase::Served
        {
            if attempt.machine.probation_end().is_some() {
                if !is_main {
                    return self.with_attempt(|machine, now| machine.confirm(now));
                }
                self.process.stop_passed_on = true;
                return self.forward_stop();
            }
            if attempt.machine.phase() < Phase::Confirm {
                return self.with_attempt(|machine, now| machine.abort("stopping", now));
            }
            if !std::mem::replace(&mut self.process.stop_passed_on, true) {
                self.forward_stop();
            }
            return;
        }
        if self.process.resuming.is_some() {
            return;
        }
        if !std::mem::replace(&mut self.process.stop_passed_on, true) {
            self.link_stop();
        }
        if self.process.stepping_back.is_some() {
            return;
        }
        self.process.lines.iter_mut().for_each(|(_, line)| line.stop(None));
        if self.process.gate != Gate::Closed {
            self.process.gate = Gate::Retiring;
        }
        self.drain(Ending::Stopped);
    }

    fn drain(&mut self, ending: Ending) {
        self.process.stage = Stage::Draining;
        self.process.ending = Some(ending);
    }

    /// Sends what there is to send, or keeps the first of it as what did not fit.
    fn transmit(&mut self, full: bool) {
        let number = self.process.number;
        if let Some(link) = &mut self.process.link {
            link.transmit(number, full, &mut self.outputs);
        }
        let mutation = self.setup.mutation;
        for attempt in self.process.attempts_mut() {
            attempt.transmit(full, mutation, &mut self.outputs);
        }
        for (channel, line) in &mut self.process.lines {
            while !full && let Some(frame) = line.poll_transmit() {
                let transmit = Transmit { frame, slots: Vec::new() };
                self.outputs.push(Output::Send {
                    channel: *channel,
                    to_predecessor: true,
                    transmit,
                });
            }
        }
    }
}

impl Process {
    /// Whether a word waits to be sent.
    pub(crate) fn is_to_say(&self, word: &str) -> bool {
        let mut ahead = self.clone();
        let mut frames = Vec::new();
        if let Some(link) = &mut ahead.link {
            frames.extend(link.unsent.take());
            frames.extend(std::iter::from_fn(|| link.machine.poll_transmit()));
        }
        for attempt in ahead.attempts_mut() {
            frames.extend(attempt.unsent.take());
            frames.extend(std::iter::from_fn(|| attempt.machine.poll_transmit()));
        }
        let lines = ahead.lines.iter_mut();
        let lines = lines.filter_map(|(_, line)| line.poll_transmit());
        let lines: Vec<_> = lines.map(|frame| Transmit { frame, slots: Vec::new() }).collect();
        frames.iter().chain(&lines).any(|transmit| text(transmit).contains(word))
    }
}
