//! A channel after its handover: between a process that drains and whoever serves.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::millis;
use crate::transmit::Outbox;
use crate::{Message, Received, Report, ToPredecessor, ToSuccessor, Violation, decode};

/// What comes through a [`Line`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LineEvent {
    /// Do: an upgrade was asked of the process that drains.
    Upgrade,
    /// Do: a stop was asked of it that is not its own to honour.
    Stop {
        /// How long what is in flight may take at most.
        drain: Option<Duration>,
    },
    /// Know: the service manager takes this process for the main one.
    Announced,
    /// Know: how it is.
    Report(Report),
    /// Know: it broke the protocol.
    Ignored(Violation),
}

/// The end of a line that whoever serves has. Other processes had it before, and others will.
///
/// Whoever had it before may have asked something, and the answer comes here: a report is taken
/// whoever asked for it, and what belongs to the end of the handover is let pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Line {
    /// The number of the last inquiry.
    inquiries: u32,
    connected: bool,
    outbox: Outbox<ToPredecessor>,
    events: VecDeque<LineEvent>,
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    /// Begins.
    pub fn new() -> Self {
        Self { inquiries: 0, connected: true, outbox: Outbox::new(), events: VecDeque::new() }
    }

    /// Asks how the other process is. An inquiry that has not left is not made twice.
    pub fn inquire(&mut self) {
        self.inquiries = self.inquiries.wrapping_add(1);
        self.send(&ToPredecessor::Inquire { number: self.inquiries });
    }

    /// Has the other process finish within this time. The last word counts.
    pub fn stop(&mut self, drain: Option<Duration>) {
        self.send(&ToPredecessor::Stop { drain_ms: drain.map(millis) });
    }

    /// Takes a frame that came through the channel, and what came with it.
    pub fn handle_frame(&mut self, frame: &[u8], received: Received) {
        if !self.connected {
            return;
        }
        let event = match received.check(0).and_then(|()| decode(frame)) {
            Ok(message) => match event(&message) {
                Some(event) => event,
                None => return,
            },
            Err(violation) => LineEvent::Ignored(violation),
        };
        self.events.push_back(event);
    }

    /// Takes the end of the channel: the other process is gone.
    pub fn handle_closed(&mut self) {
        self.connected = false;
        self.outbox.clear();
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.outbox.pop().map(|transmit| transmit.frame)
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<LineEvent> {
        self.events.pop_front()
    }

    fn send(&mut self, message: &ToPredecessor) {
        if self.connected {
            // Fails for what is too long for a frame, and none of these is.
            let _ = self.outbox.replace(message);
        }
    }
}

/// What a message means on a line, if anything.
fn event(message: &ToSuccessor) -> Option<LineEvent> {
    match message {
        ToSuccessor::Upgrade {} => Some(LineEvent::Upgrade),
        ToSuccessor::Stop { drain_ms } => {
            Some(LineEvent::Stop { drain: drain_ms.map(Duration::from_millis) })
        }
        ToSuccessor::Announced {} => Some(LineEvent::Announced),
        ToSuccessor::Report { number: _, report } => {
            Some(LineEvent::Report(report.clone().bounded()))
        }
        // Crossed with the end of the handover.
        ToSuccessor::Ping {} | ToSuccessor::Confirmed {} | ToSuccessor::Ack { .. } => None,
        ToSuccessor::Welcome { .. }
        | ToSuccessor::Descriptors { .. }
        | ToSuccessor::State { .. }
        | ToSuccessor::Commit { .. }
        | ToSuccessor::Rollback { .. }
        | ToSuccessor::Resumed {}
        | ToSuccessor::Abort { .. } => {
            let message = message.name();
            Some(LineEvent::Ignored(Violation::OutOfOrder { message, during: "a drain" }))
        }
    }
}
