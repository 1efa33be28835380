//! The successor's side: `link.rs`, `engine.rs` and `engine/rollback.rs` of `handover`.

use handover_proto::{
    CommittedBy, Line, Name, Received, Successor, SuccessorConfig, SuccessorEvent, Time, Versions,
};

use super::{Ending, Gate, LINE, LISTENER, Link, Output, Stage, Step, SteppingBack};
use crate::mutation::Mutation;

impl Link {
    pub(super) fn new(number: u8) -> Self {
        let config = SuccessorConfig {
            versions: Versions::OURS,
            pid: 100 + u32::from(number),
            software: "model".into(),
        };
        let machine = Successor::new(config, Time::ZERO);
        Self { machine, connected: true, unsent: None }
    }

    pub(super) fn transmit(&mut self, channel: u8, full: bool, outputs: &mut Vec<Output>) {
        while let Some(transmit) = self.unsent.take().or_else(|| self.machine.poll_transmit()) {
            if full && self.connected {
                self.unsent = Some(transmit);
                return;
            }
            if self.connected {
                outputs.push(Output::Send { channel, to_predecessor: true, transmit });
            }
        }
    }
}

impl Step<'_> {
    fn with_link(&mut self, call: impl FnOnce(&mut Successor)) {
        let Some(link) = &mut self.process.link else { return };
        call(&mut link.machine);
        self.link_events();
    }

    pub(super) fn judge(&mut self, call: impl FnOnce(&mut Successor)) {
        self.with_link(call);
    }

    pub(super) fn link_stop(&mut self) {
        self.with_link(|machine| machine.stop(None));
    }

    /// `Engine::ready`.
    pub(super) fn ready(&mut self) {
        let is_alone = self.process.link.as_ref().is_none_or(|link| !link.connected);
        if is_alone && self.is(Mutation::GivesUpAlone) {
            return self.refuse("alone");
        }
        self.process.stage = Stage::Committing;
        if self.is(Mutation::AcceptsAtReady) {
            self.process.gate = Gate::Open;
        }
        let claimed = Name::new(LISTENER).expect("a valid name");
        self.with_link(|machine| machine.ready([claimed], Time::ZERO));
    }

    pub(super) fn refuse(&mut self, reason: &str) {
        self.with_link(|machine| machine.refuse(reason));
        self.process.stage = Stage::Failed;
    }

    pub(super) fn link_frame(&mut self, bytes: &[u8], received: Received) {
        self.with_link(|machine| machine.handle_frame(bytes, received, Time::ZERO));
    }

    pub(super) fn link_closed(&mut self) {
        let is_deaf = self.is(Mutation::IgnoresTheEnd);
        let serves_again = self.is(Mutation::ServesAfterAStop);
        let Some(link) = &mut self.process.link else { return };
        link.connected = false;
        link.unsent = None;
        if !is_deaf {
            link.machine.handle_closed();
        }
        if serves_again && self.process.stepping_back.is_some() {
            self.serve();
            self.process.stop_requested = false;
        }
        self.link_events();
    }

    pub(super) fn link_time(&mut self) {
        let serves = self.is(Mutation::ServesWhenSilent);
        self.with_link(|machine| {
            let deadline = machine.poll_timeout().expect("it has a deadline");
            if serves {
                machine.handle_closed();
            } else {
                machine.handle_timeout(deadline);
            }
        });
    }

    /// `Link::handle_events` and `Engine::handle_link`.
    fn link_events(&mut self) {
        while let Some(event) =
            self.process.link.as_mut().and_then(|link| link.machine.poll_event())
        {
            match event {
                SuccessorEvent::TakeDescriptors { items } => {
                    items.iter().for_each(|item| self.inherit(item.name.as_str()));
                }
                SuccessorEvent::Adopted => self.process.stage = Stage::Claiming,
                SuccessorEvent::Committed(by) => {
                    if let CommittedBy::Predecessor { upgrade_pending, .. } = by
                        && !self.is(Mutation::ForgetsPendingUpgrade)
                    {
                        self.process.signalled |= upgrade_pending;
                    }
                    self.serve();
                }
                SuccessorEvent::Confirmed => self.process.confirmed = true,
                SuccessorEvent::Announced => self.process.is_main = true,
                SuccessorEvent::Upgrade => self.want_upgrade(),
                SuccessorEvent::Stop { .. } if self.is(Mutation::ForgetsStop) => {}
                SuccessorEvent::Stop { .. } => self.process.stop_requested = true,
                SuccessorEvent::RollBack { .. } => self.begin_step_back(),
                SuccessorEvent::Replaced => self.replaced(),
                SuccessorEvent::PredecessorGone => self.predecessor_gone(),
                SuccessorEvent::Failed(_) => self.process.stage = Stage::Failed,
                SuccessorEvent::Welcomed { .. }
                | SuccessorEvent::TakeStderr
                | SuccessorEvent::TakeState { .. }
                | SuccessorEvent::Ignored(_) => {}
            }
        }
        if self.process.stage >= Stage::Serving {
            self.process.link.take_if(|link| !link.connected);
        }
    }

    fn inherit(&mut self, name: &str) {
        match name.strip_prefix(LINE).and_then(|number| number.parse().ok()) {
            Some(channel) => self.process.lines.push((channel, Line::new())),
            None => self.process.gate = Gate::Paused,
        }
    }

    fn serve(&mut self) {
        let gave_back = self.process.stepping_back.take().is_some();
        let has_it = self.process.gate != Gate::Closed;
        self.process.stage = Stage::Serving;
        // What was not inherited it has bound itself, when it initialised.
        if has_it || !gave_back {
            self.process.gate = Gate::Open;
        }
    }

    fn begin_step_back(&mut self) {
        if self.process.gate != Gate::Closed && !self.is(Mutation::AcceptsInARollback) {
            self.process.gate = Gate::Paused;
        }
        self.process.stepping_back = Some(SteppingBack::Stopping);
    }

    /// The application is told, and nobody is on the way to accept.
    pub(super) fn stopped(&mut self) {
        let states = self.setup.states_back;
        self.process.stepping_back = Some(SteppingBack::Waiting);
        if self.is(Mutation::ClosesWhenStopped) {
            self.process.gate = Gate::Closed;
        }
        self.with_link(|machine| {
            machine.stopped(states);
            // One less than announced, as when one cannot be written.
            for _ in 1..states {
                let name = Name::new("sessions").expect("a valid name");
                machine.returned_state(name, 1, 1);
            }
            machine.states_complete();
        });
    }

    fn replaced(&mut self) {
        self.process.stepping_back = None;
        self.process.gate = Gate::Closed;
        if self.process.stage == Stage::Serving {
            self.drain(Ending::RolledBack);
        }
    }

    fn predecessor_gone(&mut self) {
        self.process.is_main = true;
        let gave_back = self.process.stepping_back.take().is_some();
        if gave_back && self.process.stage == Stage::Draining {
            self.process.gate = Gate::Retiring;
        }
    }

    /// Makes a line of the tie to a predecessor that drains.
    pub(super) fn settle_link(&mut self) {
        if !self.process.confirmed || self.process.stepping_back.is_some() {
            return;
        }
        let setup = self.setup;
        let is_settled = |link: &mut Link| link.unsent.is_none() && link.is_known(setup);
        let settled = self.process.link.take_if(is_settled);
        if settled.is_some_and(|link| link.connected) {
            self.process.lines.push((self.process.number, Line::new()));
            self.process.lines.sort_by_key(|(channel, _)| *channel);
        }
    }
}
