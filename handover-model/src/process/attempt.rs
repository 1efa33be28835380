//! The predecessor's side: `attempt.rs`, `engine/upgrades.rs` and `engine/rollback.rs` of `handover`.

use std::time::Duration;

use handover_proto::{
    Inventory, Item, Name, Outcome, Phase, Predecessor, PredecessorConfig, PredecessorEvent,
    Received, Report, Time, Transmit, Versions,
};

use super::{Attempt, Ending, Gate, LINE, LISTENER, Output, Resuming, Stage, Step};
use crate::mutation::Mutation;
use crate::world::Setup;

/// All timeouts that can be chosen are zero, so that what has passed and what has not are two
/// instants: the origin, and this one, at which probation is over.
const PROBATION: Duration = Duration::from_millis(100);

impl Attempt {
    fn begin(child: u8, parent: u8, lines: impl Iterator<Item = u8>, setup: &Setup) -> Self {
        let item = |text: String| Item::new(Name::new(text).expect("a valid name"));
        let names = std::iter::once(LISTENER.to_owned());
        let items = names.chain(lines.map(|line| format!("{LINE}{line}"))).map(item).collect();
        let config = PredecessorConfig {
            versions: Versions::OURS,
            pid: 100 + u32::from(parent),
            own_generation: u64::from(parent) + 1,
            generation: u64::from(child) + 1,
            ready_timeout: Duration::ZERO,
            commit_timeout: Duration::ZERO,
            probation: setup.probation.then_some(PROBATION),
            answer_timeout: Duration::ZERO,
        };
        let inventory = Inventory { items, states: setup.early_states, stderr: false };
        Self {
            child,
            machine: Predecessor::new(config, inventory, Time::ZERO),
            connected: true,
            unsent: None,
            exited: false,
            stopping: false,
            told_commit: false,
            to_resume: false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.machine.phase() >= Phase::Served && self.exited && !self.connected && !self.to_resume
    }

    /// Deadlines that can pass: whether in time, or (on probation) so late that it is over.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = bool> {
        let any = self.machine.poll_timeout().is_some();
        let late = any && self.machine.probation_end().is_some();
        [any.then_some(false), late.then_some(true)].into_iter().flatten()
    }

    pub(super) fn has_to_send(&mut self) -> bool {
        let is_held = self.to_resume && self.machine.phase() == Phase::Failed;
        self.connected
            && (self.unsent.is_some() || (!is_held && self.machine.poll_transmit().is_some()))
    }

    pub(super) fn transmit(
        &mut self,
        full: bool,
        mutation: Option<Mutation>,
        outputs: &mut Vec<Output>,
    ) {
        loop {
            let is_held = self.to_resume && self.machine.phase() == Phase::Failed;
            if is_held && self.unsent.is_none() {
                return;
            }
            let Some(transmit) = self.unsent.take().or_else(|| self.machine.poll_transmit()) else {
                return;
            };
            if full && self.connected {
                self.unsent = Some(transmit);
                return;
            }
            if self.connected && !mutation.is_some_and(|mutation| mutation.loses(&transmit)) {
                let (channel, to_predecessor) = (self.child, false);
                outputs.push(Output::Send { channel, to_predecessor, transmit });
            }
        }
    }
}

impl Step<'_> {
    /// Calls the machine of the upgrade under way, if there is one that has a channel.
    pub(super) fn with_attempt(&mut self, call: impl FnOnce(&mut Predecessor, Time)) {
        let Some(attempt) = &mut self.process.attempt else { return };
        let child = attempt.child;
        if attempt.connected {
            call(&mut attempt.machine, Time::ZERO);
        }
        self.attempt_events(child);
    }

    pub(super) fn forward_stop(&mut self) {
        if self.is(Mutation::KeepsStopToItself) {
            return;
        }
        self.with_attempt(|machine, now| {
            machine.forward_stop(None, now);
        });
    }

    pub(super) fn begins(&mut self, child: u8) {
        self.settle_link();
        self.process.signalled = false;
        let lines = self.process.lines.iter().map(|(line, _)| *line);
        self.process.attempt = Some(Attempt::begin(child, self.process.number, lines, self.setup));
    }

    fn attempt_of(&mut self, child: u8) -> &mut Attempt {
        self.process.attempts_mut().find(|attempt| attempt.child == child).expect("it has begun")
    }

    pub(super) fn attempt_frame(&mut self, child: u8, bytes: &[u8], received: Received) {
        if self.setup.mutation.is_some_and(|mutation| mutation.overhears(bytes)) {
            return;
        }
        let pings = self.is(Mutation::PingsAtOnce) && bytes == br#"{"type":"pong"}"#;
        let attempt = self.attempt_of(child);
        attempt.machine.handle_frame(bytes, received, Time::ZERO);
        if pings && attempt.machine.probation_end().is_some() {
            attempt.machine.handle_timeout(Time::ZERO);
        }
        self.attempt_events(child);
    }

    pub(super) fn attempt_closed(&mut self, child: u8) {
        let attempt = self.attempt_of(child);
        attempt.connected = false;
        attempt.unsent = None;
        attempt.machine.handle_closed(Time::ZERO);
        self.attempt_events(child);
    }

    pub(super) fn attempt_exited(&mut self, child: u8) {
        let misses = self.is(Mutation::MissesTheEnd);
        let attempt = self.attempt_of(child);
        attempt.exited = true;
        if !misses {
            attempt.machine.handle_exited(Time::ZERO);
        }
        self.attempt_events(child);
    }

    pub(super) fn attempt_time(&mut self, child: u8, late: bool) {
        let attempt = self.attempt_of(child);
        let deadline = attempt.machine.poll_timeout().expect("it has a deadline");
        let now = if late { Time::from_origin(PROBATION).max(deadline) } else { deadline };
        attempt.machine.handle_timeout(now);
        self.attempt_events(child);
    }

    /// `Attempt::handle_events`, and what `Engine::step_attempt` does with the effects.
    fn attempt_events(&mut self, child: u8) {
        let (early, current) = (self.setup.early_states, self.process.attempt.as_ref());
        let is_current = current.is_some_and(|attempt| attempt.child == child);
        while let Some(event) = self.attempt_of(child).machine.poll_event() {
            match event {
                PredecessorEvent::Greeted { .. } => {
                    let machine = &mut self.attempt_of(child).machine;
                    (0..early).for_each(|_| machine.state(name("cache"), 1, 1, Time::ZERO));
                }
                PredecessorEvent::StopAccepting { .. } => self.stop_accepting(child),
                PredecessorEvent::ResumeAccepting => self.resume_accepting(child, is_current),
                PredecessorEvent::Kill if self.is(Mutation::DoesNotKill) => {}
                PredecessorEvent::Kill if self.setup.unkillable => {
                    self.attempt_of(child).machine.handle_exited(Time::ZERO);
                }
                PredecessorEvent::Kill => self.outputs.push(Output::Kill(child)),
                PredecessorEvent::StopAsked { .. } => self.process.stop_requested = true,
                PredecessorEvent::Inquired { number } => {
                    let report = Report::default();
                    self.attempt_of(child).machine.report(number, report, Time::ZERO);
                }
                PredecessorEvent::Finished(outcome) => self.finished(child, outcome),
                PredecessorEvent::Entered(Phase::Confirm) => self.entered_confirm(child),
                PredecessorEvent::Entered(_)
                | PredecessorEvent::Progress { .. }
                | PredecessorEvent::TakeState { .. }
                | PredecessorEvent::Serving => {}
            }
        }
        self.resume_too_soon(child);
    }

    fn stop_accepting(&mut self, child: u8) {
        if !self.is(Mutation::KeepsAccepting) && !self.is(Mutation::CommitsBeforeItStopped) {
            self.process.gate = Gate::Paused;
        }
        if self.is(Mutation::ClosesAtCommit) {
            self.process.gate = Gate::Closed;
        }
        self.attempt_of(child).stopping = true;
        if self.is(Mutation::CommitsBeforeItStopped) {
            let machine = &mut self.attempt_of(child).machine;
            machine.accepting_stopped(Time::ZERO);
            machine.late_states_complete(Time::ZERO);
        }
    }

    /// `Attempt::look_for_stop` and `look_for_told`, once nobody is on the way to accept and the
    /// application has been told.
    pub(super) fn accepting_stopped(&mut self) {
        let late = self.setup.late_states;
        let Some(attempt) = &mut self.process.attempt else { return };
        let child = attempt.child;
        attempt.stopping = false;
        attempt.told_commit = true;
        if self.setup.mutation == Some(Mutation::CommitsBeforeItStopped) {
            self.process.gate = Gate::Paused;
        }
        attempt.machine.accepting_stopped(Time::ZERO);
        (0..late).for_each(|_| attempt.machine.state(name("sessions"), 1, 1, Time::ZERO));
        attempt.machine.late_states_complete(Time::ZERO);
        self.attempt_events(child);
    }

    fn entered_confirm(&mut self, child: u8) {
        if self.is(Mutation::ClosesTheChannel) {
            let attempt = self.attempt_of(child);
            while attempt.machine.poll_transmit().is_some() {}
            attempt.connected = false;
        }
        if self.is(Mutation::SucceedsAtCommit) {
            self.finished(child, Outcome::Succeeded);
        }
    }

    fn resume_accepting(&mut self, child: u8, is_current: bool) {
        let attempt = self.attempt_of(child);
        attempt.stopping = false;
        attempt.to_resume = true;
        let told_commit = std::mem::take(&mut attempt.told_commit);
        if self.is(Mutation::NeverResumes) {
            self.attempt_of(child).to_resume = false;
        } else if is_current && told_commit {
            self.process.resuming = Some(Resuming { verdict: None });
        } else if is_current {
            self.resume();
        }
    }

    /// Mutations of when the machine says that accepting resumes.
    fn resume_too_soon(&mut self, child: u8) {
        let attempt = self.attempt_of(child);
        let (phase, fails) = (attempt.machine.phase(), attempt.machine.cause().is_some());
        let in_probation = self.is(Mutation::ResumesWithTheRollback) && phase == Phase::Probation;
        let in_confirm = self.is(Mutation::ResumesInConfirm) && phase == Phase::Confirm;
        if fails && (in_probation || in_confirm) {
            self.process.gate = Gate::Open;
        }
    }

    fn resume(&mut self) {
        if self.process.gate == Gate::Paused {
            self.process.gate = Gate::Open;
        }
        self.process.attempt.iter_mut().for_each(|attempt| attempt.to_resume = false);
        self.process.stop_passed_on = false;
    }

    pub(super) fn end_resuming(&mut self) {
        let verdict = self.process.resuming.take().and_then(|resuming| resuming.verdict);
        self.resume();
        if let Some((child, outcome)) = verdict {
            self.conclude(child, outcome);
        }
    }

    fn finished(&mut self, child: u8, outcome: Outcome) {
        let attempt = self.attempt_of(child);
        attempt.stopping = false;
        if attempt.exited {
            attempt.connected = false;
            attempt.unsent = None;
        }
        if outcome == Outcome::Succeeded {
            self.process.gate = Gate::Closed;
            if self.process.stage == Stage::Serving {
                self.drain(Ending::HandedOver);
            }
            // The service manager answers at once.
            if self.setup.supervised && self.process.is_main {
                self.process.is_main = false;
                self.attempt_of(child).machine.announced(Time::ZERO);
            }
        }
        match &mut self.process.resuming {
            Some(resuming) => resuming.verdict = Some((child, outcome)),
            None => self.conclude(child, outcome),
        }
    }

    fn conclude(&mut self, child: u8, mut outcome: Outcome) {
        if outcome == Outcome::Succeeded {
            self.process.signalled = false;
        }
        if self.is(Mutation::SuccessOfAFailure) {
            outcome = Outcome::Succeeded;
        }
        if self.is(Mutation::ForgetsTheVerdict) && outcome != Outcome::Succeeded {
            return;
        }
        if self.is(Mutation::SaysItTwice) {
            self.outputs.push(Output::Verdict { child, outcome: outcome.clone() });
        }
        self.outputs.push(Output::Verdict { child, outcome });
    }

    /// An operator asks for the generation before, on probation.
    pub(super) fn asked_rollback(&mut self) {
        if self.process.stands_by() {
            self.with_attempt(|machine, now| machine.roll_back("asked", now));
        } else {
            self.judge(|machine| machine.request_rollback("asked"));
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

/// What waits to be sent, for whoever asks whether it is what it should be.
pub(crate) fn text(transmit: &Transmit) -> &str {
    std::str::from_utf8(&transmit.frame).unwrap_or_default()
}
