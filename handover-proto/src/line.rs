//! A channel after its handover: between a process that drains and whoever serves.

use std::collections::VecDeque;
use std::time::Duration;

use crate::predecessor::millis;
use crate::{Received, Report, ToPredecessor, ToSuccessor, Violation, decode, encode};

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
    /// Know: how it is.
    Report(Report),
    /// Know: it broke the protocol.
    Ignored(Violation),
}

/// The end of a line that whoever serves has. Other processes had it before, and others will.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    /// The number of the last inquiry.
    inquiries: u32,
    transmits: VecDeque<Vec<u8>>,
    events: VecDeque<LineEvent>,
}

impl Line {
    /// Begins.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks how the other process is. What could not be sent is not asked twice.
    pub fn inquire(&mut self) {
        if self.transmits.is_empty() {
            self.inquiries = self.inquiries.wrapping_add(1);
            self.send(&ToPredecessor::Inquire { number: self.inquiries });
        }
    }

    /// Has the other process finish within this time.
    pub fn stop(&mut self, drain: Option<Duration>) {
        self.send(&ToPredecessor::Stop { drain_ms: drain.map(millis) });
    }

    /// Takes a frame that came through the channel, and what came with it.
    pub fn handle_frame(&mut self, frame: &[u8], received: Received) {
        let message = match decode::<ToSuccessor>(frame) {
            _ if received.truncated => Err(Violation::Truncated),
            Ok(_) if received.descriptors > 0 => {
                let received = received.descriptors;
                Err(Violation::DescriptorCount { expected: 0, received })
            }
            message => message,
        };
        let event = match message {
            Ok(ToSuccessor::Upgrade {}) => LineEvent::Upgrade,
            Ok(ToSuccessor::Stop { drain_ms }) => {
                LineEvent::Stop { drain: drain_ms.map(Duration::from_millis) }
            }
            // To an older question, perhaps: it is as good.
            Ok(ToSuccessor::Report { number: _, report }) => LineEvent::Report(report),
            // Crossed with the end of the handover.
            Ok(ToSuccessor::Ping {} | ToSuccessor::Confirmed {} | ToSuccessor::Ack { .. }) => {
                return;
            }
            Ok(
                message @ (ToSuccessor::Welcome { .. }
                | ToSuccessor::Descriptors { .. }
                | ToSuccessor::State { .. }
                | ToSuccessor::Commit { .. }
                | ToSuccessor::Rollback { .. }
                | ToSuccessor::Abort { .. }),
            ) => {
                let message = crate::Message::name(&message);
                LineEvent::Ignored(Violation::OutOfOrder { message, during: "a drain" })
            }
            Err(violation) => LineEvent::Ignored(violation),
        };
        self.events.push_back(event);
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.transmits.pop_front()
    }

    /// The next thing to do or to know.
    pub fn poll_event(&mut self) -> Option<LineEvent> {
        self.events.pop_front()
    }

    fn send(&mut self, message: &ToPredecessor) {
        // Neither message can be too long.
        if let Ok(frame) = encode(message) {
            self.transmits.push_back(frame);
        }
    }
}
