//! The end that serves and was asked for an upgrade.

use std::time::Duration;

use handover_proto::*;

use crate::script::{self, Step};

/// How many frames can wait at most, if the socket takes none: a state that came back is acked, and of
/// what else is said there is one of a kind, but for the reports.
const MAX_UNSENT: usize = MAX_STATES as usize + MAX_UNSENT_REPORTS + 16;

/// Feeds a predecessor.
///
/// The numbers: items, early states, probation in milliseconds and answer timeout in milliseconds.
/// Calls: `s` accepting stopped, `l` late states complete, `t` state, `a` abort, `r` roll back,
/// `o` confirm, `u` forward an upgrade, `p` forward a stop, `n` announced, `q` report, `c` the channel
/// is closed, `x` the process has ended.
///
/// There is one verdict and one commit. It is committed after `ready`, when this end has stopped; and
/// this end resumes after it has stopped and once, and not if the successor has confirmed to serve. One
/// frame of descriptors is on its way at a time.
pub fn predecessor(data: &[u8]) {
    let outcome = run(data);
    assert!(outcome.is_some(), "a handover ends with the process at the latest");
}

fn run(data: &[u8]) -> Option<Outcome> {
    let (numbers, steps) = script::read(data);
    let mut rig = Rig::new(&numbers);
    for step in steps {
        rig.perform(step);
        rig.look();
    }
    rig.machine.handle_exited(rig.now);
    rig.look();
    assert!(matches!(rig.machine.phase(), Phase::Served | Phase::Failed));
    rig.outcome
}

struct Rig {
    machine: Predecessor,
    now: Time,
    is_full: bool,
    is_closed: bool,
    /// Whether this end has said that it has stopped, while it was asked to.
    has_stopped: bool,
    has_late_states: bool,
    was_asked_to_stop: bool,
    has_committed: bool,
    has_resumed: bool,
    has_killed: bool,
    outcome: Option<Outcome>,
    /// The frame that is to be acked.
    outstanding: Option<u32>,
    states: usize,
}

impl Rig {
    fn new(numbers: &[u64]) -> Self {
        let number = |index: usize| numbers.get(index).copied();
        let bounded = |index, most: u64| number(index).unwrap_or(1).min(most);
        let item = |n| Item::new(Name::new(format!("item-{n}")).expect("a name"));
        let config = PredecessorConfig {
            versions: Versions::OURS,
            pid: 100,
            own_generation: 1,
            generation: 2,
            ready_timeout: Duration::from_secs(60),
            commit_timeout: Duration::from_secs(10),
            probation: number(2).filter(|ms| *ms > 0).map(Duration::from_millis),
            answer_timeout: Duration::from_millis(number(3).unwrap_or(12_000)),
        };
        let inventory = Inventory {
            items: (0..bounded(0, 200)).map(item).collect(),
            states: u32::try_from(bounded(1, u64::from(MAX_STATES) + 1)).expect("a small number"),
            stderr: numbers.len() % 2 == 1,
        };
        Self {
            machine: Predecessor::new(config, inventory, Time::ZERO),
            now: Time::ZERO,
            is_full: false,
            is_closed: false,
            has_stopped: false,
            has_late_states: false,
            was_asked_to_stop: false,
            has_committed: false,
            has_resumed: false,
            has_killed: false,
            outcome: None,
            outstanding: None,
            states: 0,
        }
    }

    fn perform(&mut self, step: Step<'_>) {
        let (machine, now) = (&mut self.machine, self.now);
        let stops = self.was_asked_to_stop && machine.phase() == Phase::Commit;
        match step {
            Step::Frame { bytes, descriptors, truncated } => {
                let message = decode::<ToPredecessor>(bytes);
                let says = usize::from(matches!(message, Ok(ToPredecessor::State { .. })));
                let received = Received { descriptors: descriptors.unwrap_or(says), truncated };
                if let Ok(ToPredecessor::Ack { frame }) = message
                    && self.outstanding == Some(frame)
                {
                    self.outstanding = None;
                }
                machine.handle_frame(bytes, received, now);
            }
            Step::Wait(time) => {
                self.now = now + time;
                machine.handle_timeout(self.now);
            }
            Step::Full(full) => self.is_full = full,
            Step::Call(b's') => {
                machine.accepting_stopped(now);
                self.has_stopped |= stops;
            }
            Step::Call(b'l') => {
                machine.late_states_complete(now);
                self.has_late_states |= stops;
            }
            Step::Call(b't') => {
                machine.state(Name::new("state").expect("a name"), 1, 10, now);
                self.states += 1;
            }
            Step::Call(b'a') => machine.abort("x".repeat(2 * MAX_TEXT_BYTES), now),
            Step::Call(b'r') => machine.roll_back("\u{1}é".repeat(MAX_TEXT_BYTES), now),
            Step::Call(b'o') => machine.confirm(now),
            Step::Call(b'u') => {
                machine.forward_upgrade(now);
            }
            Step::Call(b'p') => {
                machine.forward_stop(Some(Duration::MAX), now);
            }
            Step::Call(b'n') => machine.announced(now),
            Step::Call(b'q') => {
                let version = Some("\0".repeat(2 * MAX_TEXT_BYTES));
                machine.report(u32::MAX, Report { version, ..Report::default() }, now);
            }
            Step::Call(b'c') => {
                machine.handle_closed(now);
                self.is_closed = true;
            }
            Step::Call(b'x') => machine.handle_exited(now),
            Step::Call(_) => {}
        }
    }

    /// Looks at all that it wants done and said.
    fn look(&mut self) {
        let mut events = 0;
        while let Some(event) = self.machine.poll_event() {
            self.event(event);
            events += 1;
        }
        assert!(events <= 8, "{events} events");
        assert_eq!(self.outcome.is_some(), {
            let is_over = matches!(self.machine.phase(), Phase::Served | Phase::Failed);
            assert!(!is_over || self.machine.poll_timeout().is_none());
            is_over
        });
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

    fn event(&mut self, event: PredecessorEvent) {
        match event {
            PredecessorEvent::StopAccepting { .. } => {
                assert!(!std::mem::replace(&mut self.was_asked_to_stop, true));
            }
            PredecessorEvent::ResumeAccepting => {
                assert!(self.was_asked_to_stop, "it has never stopped");
                assert!(!std::mem::replace(&mut self.has_resumed, true));
                assert_ne!(self.outcome, Some(Outcome::Succeeded));
            }
            PredecessorEvent::Kill => assert!(!std::mem::replace(&mut self.has_killed, true)),
            PredecessorEvent::Finished(outcome) => {
                let may = match &outcome {
                    Outcome::Succeeded => self.has_committed && !self.has_resumed,
                    Outcome::Failed { phase, .. } => {
                        *phase < Phase::Probation && self.has_resumed == self.was_asked_to_stop
                    }
                    Outcome::RolledBack { .. } => self.has_committed && self.has_resumed,
                };
                assert!(may, "{outcome:?}");
                assert_eq!(self.outcome.replace(outcome), None, "a second verdict");
            }
            PredecessorEvent::Greeted { software: text, .. }
            | PredecessorEvent::Progress { text } => assert!(text.len() <= MAX_TEXT_BYTES),
            PredecessorEvent::Entered(Phase::Confirm) => {
                // The frame may wait in a socket that is full.
                assert!(self.has_stopped && self.has_late_states, "it has not stopped");
                assert!(!std::mem::replace(&mut self.has_committed, true), "a second commit");
            }
            PredecessorEvent::Entered(_)
            | PredecessorEvent::TakeState { .. }
            | PredecessorEvent::Serving
            | PredecessorEvent::StopAsked { .. }
            | PredecessorEvent::Inquired { .. } => {}
        }
    }

    fn sent(&mut self, transmit: &Transmit) {
        assert!(transmit.frame.len() <= MAX_FRAME_BYTES);
        let message: ToSuccessor = decode(&transmit.frame).expect("what is sent can be read");
        let mut to_be_acked = None;
        let slots = match &message {
            ToSuccessor::Welcome { stderr, .. } => usize::from(*stderr),
            ToSuccessor::Descriptors { frame, items } => {
                to_be_acked = Some(*frame);
                assert!(!items.is_empty());
                items.len()
            }
            ToSuccessor::State { frame, .. } => {
                to_be_acked = Some(*frame);
                1
            }
            ToSuccessor::Commit { .. } => {
                assert!(self.has_committed && self.outstanding.is_none());
                assert!(!self.has_resumed, "the successor accepts, and so does this end");
                0
            }
            ToSuccessor::Upgrade {}
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
        assert_eq!(transmit.slots.len(), slots, "{message:?}");
        assert!(slots <= MAX_FDS_PER_FRAME);
        for slot in &transmit.slots {
            if let Slot::State(index) = slot {
                assert!(*index < self.states);
            }
        }
        if to_be_acked.is_some() {
            assert_eq!(self.outstanding, None, "two frames are on their way");
            self.outstanding = to_be_acked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else what is made of the corpus would never get as far.
    #[test]
    fn corpus_leads_to_every_kind_of_verdict() {
        let outcome = |text: &str| run(text.as_bytes()).expect("it has ended");
        let succeeds = [
            include_str!("../corpus/predecessor/plain"),
            include_str!("../corpus/predecessor/probation"),
        ];
        for text in succeeds {
            assert_eq!(outcome(text), Outcome::Succeeded);
        }
        let cause = Cause::RollbackRequested { reason: "500s".into() };
        let text = include_str!("../corpus/predecessor/rollback");
        assert_eq!(outcome(text), Outcome::RolledBack { cause });
        let cause = Cause::Unresponsive;
        let text = include_str!("../corpus/predecessor/hung");
        assert_eq!(outcome(text), Outcome::RolledBack { cause });
        let text = include_str!("../corpus/predecessor/refused");
        let refused = outcome(text);
        let is_refused = matches!(
            refused,
            Outcome::Failed { phase: Phase::Hello, cause: Cause::Refused { .. } }
        );
        assert!(is_refused, "{refused:?}");
    }
}
