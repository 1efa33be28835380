//! What the two drivers and programs do when it is their turn.

use std::time::Duration;

use handover_proto::*;

use crate::pair::{Pair, Said};
use crate::process::{Life, NewTask, OldTask, name};

impl Pair {
    pub(crate) fn old_sends(&mut self) -> String {
        let Transmit { frame, slots } = self.old.machine.poll_transmit().expect("seen before");
        let message: ToSuccessor = decode(&frame).expect("what is sent can be read");
        self.say(true, &frame, slots.len());
        let mut frames = self.script.old.accent.put_on(message.name(), frame);
        if !self.new_is_gone() {
            let last = frames.pop().expect("one at least");
            frames.into_iter().for_each(|frame| self.to_new.send(frame, 0, self.now));
            self.to_new.send(last, slots.len(), self.now);
        }
        format!("predecessor sends {}", message.name())
    }

    pub(crate) fn new_sends(&mut self) -> String {
        let Transmit { frame, slots } = self.new.machine.poll_transmit().expect("seen before");
        let message: ToPredecessor = decode(&frame).expect("what is sent can be read");
        self.say(false, &frame, slots.len());
        let mut frames = self.script.new.accent.put_on(message.name(), frame);
        if self.old.life != Life::Dead && !self.new.closed {
            let last = frames.pop().expect("one at least");
            frames.into_iter().for_each(|frame| self.to_old.send(frame, 0, self.now));
            self.to_old.send(last, slots.len(), self.now);
        }
        format!("successor sends {}", message.name())
    }

    fn say(&mut self, by_old: bool, frame: &[u8], descriptors: usize) {
        let frame = String::from_utf8(frame.to_vec()).expect("JSON");
        self.said.push(Said { by_old, frame, descriptors });
    }

    pub(crate) fn old_receives(&mut self) -> String {
        let packet = self.to_old.receive(self.now).expect("seen before");
        let received = Received { descriptors: packet.descriptors, truncated: false };
        self.old.machine.handle_frame(&packet.frame, received, self.now);
        format!("predecessor receives {}", name_of::<ToPredecessor>(&packet.frame))
    }

    pub(crate) fn new_receives(&mut self) -> String {
        let packet = self.to_new.receive(self.now).expect("seen before");
        let received = Received { descriptors: packet.descriptors, truncated: false };
        self.new.got_commit |= matches!(decode(&packet.frame), Ok(ToSuccessor::Commit { .. }));
        self.new.machine.handle_frame(&packet.frame, received, self.now);
        format!("successor receives {}", name_of::<ToSuccessor>(&packet.frame))
    }

    pub(crate) fn old_does(&mut self) -> String {
        let task = self.old.tasks.pop_front().expect("seen before");
        let (machine, now) = (&mut self.old.machine, self.now);
        match task {
            OldTask::GiveState => machine.state(name("cache"), 1, 10, now),
            OldTask::StopAccepting => {
                self.old.accepts = false;
                self.old.paused = true;
                machine.accepting_stopped(now);
            }
            OldTask::GiveLateState => machine.state(name("sessions"), 1, 10, now),
            OldTask::CompleteLateStates => machine.late_states_complete(now),
            OldTask::Stop => {
                self.old.accepts = false;
                self.old.tasks.push_back(OldTask::Exit);
            }
            OldTask::Exit => self.crash_old(),
        }
        format!("predecessor does {task:?}")
    }

    pub(crate) fn new_does(&mut self) -> String {
        let task = self.new.tasks.pop_front().expect("seen before");
        let machine = &mut self.new.machine;
        match task {
            NewTask::Progress => machine.progress("warming", Some(Duration::from_secs(1))),
            NewTask::BeReady => {
                self.new.was_ready = true;
                machine.ready((0..self.script.items).map(|n| name(&format!("{n}"))), self.now);
            }
            NewTask::Refuse => machine.refuse("test"),
            NewTask::StopAccepting => {
                self.new.accepts = false;
                machine.stopped(self.script.states_back);
            }
            NewTask::GiveStateBack => machine.returned_state(name("sessions"), 1, 10),
            NewTask::CompleteStates => machine.states_complete(),
            NewTask::Exit => self.crash_new(),
        }
        format!("successor does {task:?}")
    }

    /// Does what the predecessor's machine asks for.
    pub(crate) fn carry_out_old(&mut self) {
        while let Some(event) = self.old.machine.poll_event() {
            let old = &mut self.old;
            old.events.push(event.clone());
            match event {
                PredecessorEvent::StopAccepting { .. } => {
                    old.tasks.push_back(OldTask::StopAccepting);
                    for _ in 0..self.script.late_states {
                        old.tasks.push_back(OldTask::GiveLateState);
                    }
                    old.tasks.push_back(OldTask::CompleteLateStates);
                }
                PredecessorEvent::ResumeAccepting => {
                    old.tasks.clear();
                    old.accepts = true;
                    if old.stopping {
                        old.tasks.push_back(OldTask::Stop);
                    }
                }
                PredecessorEvent::StopAsked { .. } => {
                    old.stopping = true;
                    if old.outcome.is_some() {
                        old.tasks.push_back(OldTask::Stop);
                    }
                }
                PredecessorEvent::Kill => self.crash_new(),
                PredecessorEvent::Finished(outcome) => self.finish(outcome),
                PredecessorEvent::Greeted { .. }
                | PredecessorEvent::Entered(_)
                | PredecessorEvent::Progress { .. }
                | PredecessorEvent::TakeState { .. }
                | PredecessorEvent::Inquired { .. }
                | PredecessorEvent::Serving => {}
            }
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        let (old, new) = (&mut self.old, &self.new);
        assert_eq!(old.outcome, None, "finished twice, now with {outcome:?}: {:#?}", self.steps);
        match &outcome {
            Outcome::Succeeded => {
                // The successor may have died in this moment; that is known later.
                let serves = new.accepts || new.stopping || new.life == Life::Dead;
                assert!(!old.accepts && serves, "{self:#?}");
                if self.script.exits {
                    old.tasks.push_back(OldTask::Exit);
                }
            }
            Outcome::Failed { .. } | Outcome::RolledBack { .. } => {
                assert!(old.accepts && !(new.accepts && new.life != Life::Dead), "{self:#?}");
            }
        }
        self.old.outcome = Some(outcome);
    }

    /// Does what the successor's machine asks for.
    pub(crate) fn carry_out_new(&mut self) {
        while let Some(event) = self.new.machine.poll_event() {
            let new = &mut self.new;
            match &event {
                SuccessorEvent::Adopted => {
                    for _ in 0..self.script.progress {
                        new.tasks.push_back(NewTask::Progress);
                    }
                    let refuses = self.script.refuses;
                    new.tasks.push_back(if refuses { NewTask::Refuse } else { NewTask::BeReady });
                }
                SuccessorEvent::Committed(by) => {
                    let gone = *by == CommittedBy::Orphaned && self.old.life == Life::Dead;
                    assert!(new.was_ready && (new.got_commit || gone), "{:#?}", self.steps);
                    assert!(!new.stopping, "{:#?}", self.steps);
                    new.tasks.clear();
                    new.accepts = true;
                }
                SuccessorEvent::Confirmed => {
                    let before = new.events.contains(&SuccessorEvent::Confirmed);
                    assert!(!before, "confirmed twice: {:#?}", self.steps);
                }
                SuccessorEvent::RollBack { .. } => {
                    let confirmed = new.events.contains(&SuccessorEvent::Confirmed);
                    assert!(!confirmed || self.script.probation.is_none(), "{:#?}", self.steps);
                    new.go(&self.script);
                }
                SuccessorEvent::Replaced => {
                    assert!(!new.accepts, "{:#?}", self.steps);
                }
                SuccessorEvent::Stop { .. } => {
                    new.stopping = true;
                    new.go(&self.script);
                }
                SuccessorEvent::Failed(_) => {
                    assert!(!new.accepts, "{:#?}", self.steps);
                    new.tasks = [NewTask::Exit].into();
                }
                SuccessorEvent::Welcomed { .. }
                | SuccessorEvent::TakeStderr
                | SuccessorEvent::TakeDescriptors { .. }
                | SuccessorEvent::TakeState { .. }
                | SuccessorEvent::Announced
                | SuccessorEvent::Upgrade
                | SuccessorEvent::Ignored(_)
                | SuccessorEvent::PredecessorGone => {}
            }
            new.events.push(event);
        }
    }
}

fn name_of<M: Message>(frame: &[u8]) -> String {
    decode::<M>(frame).map_or_else(|violation| violation.to_string(), |m| m.name().to_owned())
}
