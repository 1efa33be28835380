//! The end that was started to replace a predecessor.

use std::time::Duration;

use handover_proto::*;

use crate::script::{self, Step};

/// How many frames can wait at most, if the socket takes none: each that carries something is acked, the
/// claims are as many as there are names, and of what else is said there is one of a kind.
const MAX_UNSENT: usize = MAX_DESCRIPTORS as usize + 2 * MAX_STATES as usize + 100;

/// Feeds a successor.
///
/// Calls: `p` progress, `y` ready, `f` refuse, `h` healthy, `u` unhealthy, `b` ask for a rollback,
/// `s` stop, `t` stopped, with two states to come, `g` give one, `e` no more of them, `c` the channel is
/// closed.
///
/// It accepts after `ready` and once, unless it was rolled back and its predecessor has died; never once
/// it has failed, or was replaced. What serves does not fail. It acks no more than was announced.
pub fn successor(data: &[u8]) {
    run(data);
}

fn run(data: &[u8]) -> Rig {
    let (_, steps) = script::read(data);
    let mut rig = Rig::new();
    for step in steps {
        rig.perform(step);
        rig.look();
    }
    let was_waiting = rig.is_ready && rig.commits == 0 && !rig.is_over;
    rig.machine.handle_closed();
    rig.is_closed = true;
    rig.look();
    assert!(!was_waiting || rig.commits == 1, "nobody serves");
    rig
}

struct Rig {
    machine: Successor,
    now: Time,
    is_full: bool,
    is_closed: bool,
    is_ready: bool,
    is_adopted: bool,
    /// How often it was told to accept, and how often to step back.
    commits: u32,
    rollbacks: u32,
    confirmations: u32,
    /// It must not serve, or not any more.
    is_over: bool,
    /// How many frames may be acked, by what was announced.
    announced: u64,
    acks: u64,
}

impl Rig {
    fn new() -> Self {
        let software = "x".repeat(2 * MAX_TEXT_BYTES);
        let config = SuccessorConfig { versions: Versions::OURS, pid: 200, software };
        Self {
            machine: Successor::new(config, Time::ZERO),
            now: Time::ZERO,
            is_full: false,
            is_closed: false,
            is_ready: false,
            is_adopted: false,
            commits: 0,
            rollbacks: 0,
            confirmations: 0,
            is_over: false,
            announced: u64::from(MAX_STATES),
            acks: 0,
        }
    }

    fn perform(&mut self, step: Step<'_>) {
        let machine = &mut self.machine;
        let name = |text: &str| Name::new(text).expect("a name");
        match step {
            Step::Frame { bytes, descriptors, truncated } => {
                let message = decode::<ToSuccessor>(bytes);
                if let Ok(ToSuccessor::Welcome { descriptors, states, .. }) = &message {
                    // Only the first one counts, and later ones are refused.
                    self.announced += u64::from(*descriptors) + u64::from(*states);
                }
                let says = message.as_ref().map_or(0, descriptors_of);
                let received = Received { descriptors: descriptors.unwrap_or(says), truncated };
                machine.handle_frame(bytes, received, self.now);
            }
            Step::Wait(time) => {
                self.now = self.now + time;
                machine.handle_timeout(self.now);
            }
            Step::Full(full) => self.is_full = full,
            Step::Call(b'p') => {
                machine.progress("\u{1}".repeat(2 * MAX_TEXT_BYTES), Some(Duration::MAX));
            }
            Step::Call(b'y') => {
                self.is_ready |= self.is_adopted;
                machine
                    .ready((0..200).map(|n| name(&format!("{n}{}", "\"".repeat(200)))), self.now);
            }
            Step::Call(b'f') => machine.refuse("\0".repeat(2 * MAX_TEXT_BYTES)),
            Step::Call(b'h') => machine.healthy(),
            Step::Call(b'u') => machine.unhealthy("\0".repeat(2 * MAX_TEXT_BYTES)),
            Step::Call(b'b') => machine.request_rollback("asked"),
            Step::Call(b's') => machine.stop(Some(Duration::MAX)),
            Step::Call(b't') => machine.stopped(2),
            Step::Call(b'g') => machine.returned_state(name("state"), 1, 10),
            Step::Call(b'e') => machine.states_complete(),
            Step::Call(b'c') => {
                machine.handle_closed();
                self.is_closed = true;
            }
            Step::Call(_) => {}
        }
    }

    /// Looks at all that it wants done and said.
    fn look(&mut self) {
        let mut events = 0;
        while let Some(event) = self.machine.poll_event() {
            self.event(&event);
            events += 1;
        }
        assert!(events <= 4, "{events} events");
        if self.is_full {
            let mut ahead = self.machine.clone();
            let unsent = std::iter::from_fn(|| ahead.poll_transmit()).count();
            assert!(unsent <= MAX_UNSENT, "{unsent} frames wait");
            return;
        }
        while let Some(transmit) = self.machine.poll_transmit() {
            assert!(!self.is_closed, "it speaks to nobody");
            self.sent(&transmit);
        }
    }

    fn event(&mut self, event: &SuccessorEvent) {
        match event {
            SuccessorEvent::Adopted => {
                assert!(!std::mem::replace(&mut self.is_adopted, true));
            }
            SuccessorEvent::Committed(by) => {
                assert!(self.is_ready && !self.is_over);
                let again = *by == CommittedBy::Orphaned && self.is_closed;
                assert!(self.commits == 0 || (again && self.commits == self.rollbacks));
                self.commits += 1;
            }
            SuccessorEvent::RollBack { reason } => {
                assert!(reason.len() <= MAX_TEXT_BYTES);
                assert!(self.commits == 1 && self.rollbacks == 0 && !self.is_over);
                self.rollbacks += 1;
            }
            SuccessorEvent::Confirmed => {
                assert_eq!(self.confirmations, 0);
                self.confirmations += 1;
            }
            SuccessorEvent::Replaced => {
                assert!(self.rollbacks == 1 && !self.is_over);
                self.is_over = true;
            }
            SuccessorEvent::Failed(_) => {
                assert!(self.commits == 0, "who serves does not fail");
                assert!(!std::mem::replace(&mut self.is_over, true), "a second failure");
            }
            SuccessorEvent::TakeDescriptors { items } => {
                assert!((1..=MAX_FDS_PER_FRAME).contains(&items.len()));
            }
            SuccessorEvent::Ignored(_) => assert!(self.commits > 0),
            SuccessorEvent::Welcomed { .. }
            | SuccessorEvent::TakeStderr
            | SuccessorEvent::TakeState { .. }
            | SuccessorEvent::Announced
            | SuccessorEvent::Upgrade
            | SuccessorEvent::Stop { .. }
            | SuccessorEvent::PredecessorGone => {}
        }
    }

    fn sent(&mut self, transmit: &Transmit) {
        assert!(transmit.frame.len() <= MAX_FRAME_BYTES);
        let message: ToPredecessor = decode(&transmit.frame).expect("what is sent can be read");
        let slots = usize::from(matches!(message, ToPredecessor::State { .. }));
        assert_eq!(transmit.slots.len(), slots, "{message:?}");
        match message {
            ToPredecessor::Ready {} => assert!(self.is_ready),
            ToPredecessor::Serving {} => assert!(self.commits > 0),
            ToPredecessor::Stopped { .. } => assert!(self.rollbacks > 0),
            ToPredecessor::Ack { .. } => {
                self.acks += 1;
                assert!(self.acks <= self.announced, "more frames than were announced");
            }
            ToPredecessor::Hello { .. }
            | ToPredecessor::Progress { .. }
            | ToPredecessor::Claim { .. }
            | ToPredecessor::Refuse { .. }
            | ToPredecessor::Healthy {}
            | ToPredecessor::Unhealthy { .. }
            | ToPredecessor::Pong {}
            | ToPredecessor::State { .. }
            | ToPredecessor::StatesComplete {}
            | ToPredecessor::Stop { .. }
            | ToPredecessor::Inquire { .. } => {}
        }
    }
}

fn descriptors_of(message: &ToSuccessor) -> usize {
    match message {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else what is made of the corpus would never get as far.
    #[test]
    fn corpus_leads_to_service_and_out_of_it_again() {
        // How often it serves, steps back, is confirmed, and whether it must not serve.
        for (text, expected) in [
            (include_str!("../corpus/successor/plain"), (1, 0, 1, false)),
            (include_str!("../corpus/successor/rollback"), (1, 1, 0, true)),
            (include_str!("../corpus/successor/crossed"), (2, 1, 1, false)),
            (include_str!("../corpus/successor/aborted"), (0, 0, 0, true)),
            (include_str!("../corpus/successor/empty"), (0, 0, 0, true)),
        ] {
            let rig = run(text.as_bytes());
            let found = (rig.commits, rig.rollbacks, rig.confirmations, rig.is_over);
            assert_eq!(found, expected, "{text}");
        }
    }
}
