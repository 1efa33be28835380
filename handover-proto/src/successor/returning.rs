//! What a successor that is rolled back gives to the predecessor: its states, one by one.

use std::collections::VecDeque;

use crate::{MAX_STATES, Name, Slot, ToPredecessor, Violation};

use super::{Phase, Successor};

/// States on their way back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Returning {
    /// How many may still be given; none when they are complete.
    left: u32,
    given: u32,
    queue: VecDeque<(ToPredecessor, Vec<Slot>)>,
    outstanding: Option<u32>,
}

impl Successor {
    /// After [`Event::RollBack`](super::Event::RollBack): says that nothing is accepted any more,
    /// and how many states are going to be sent back at most.
    ///
    /// They are given with [`returned_state`](Self::returned_state). If they become fewer,
    /// [`states_complete`](Self::states_complete) ends them; until then the predecessor waits, for
    /// its commit timeout. More than [`MAX_STATES`] are not taken.
    pub fn stopped(&mut self, states: u32) {
        if self.phase == Phase::RollingBack {
            self.phase = Phase::Stopped;
            self.returning.left = states.min(MAX_STATES);
            self.send(&ToPredecessor::Stopped { states: self.returning.left });
        }
    }

    /// Sends a state back. The n-th call names [`Slot::State`]`(n)`, counted from 0.
    pub fn returned_state(&mut self, name: Name, version: u32, bytes: u64) {
        if self.phase == Phase::Stopped && self.returning.left > 0 {
            let slot = Slot::State(self.returning.given as usize);
            self.returning.left -= 1;
            self.returning.given += 1;
            let frame = self.returning.given;
            let state = ToPredecessor::State { frame, name, version, bytes };
            self.returning.queue.push_back((state, vec![slot]));
            self.return_next();
        }
    }

    /// Says that no more states are sent back, if there are fewer than announced: the predecessor
    /// goes on with what there is.
    pub fn states_complete(&mut self) {
        if self.phase == Phase::Stopped && self.returning.left > 0 {
            self.returning.left = 0;
            self.returning.queue.push_back((ToPredecessor::StatesComplete {}, vec![]));
            self.return_next();
        }
    }

    /// Whether the predecessor waits for states that have not arrived: do not exit yet.
    pub fn is_returning_states(&self) -> bool {
        self.phase == Phase::Stopped
            && (self.returning.left > 0 || self.returning.outstanding.is_some())
    }

    pub(super) fn acked(&mut self, frame: u32) -> Result<(), Violation> {
        if self.returning.outstanding != Some(frame) {
            return Err(Violation::UnexpectedAck { frame });
        }
        self.returning.outstanding = None;
        self.return_next();
        Ok(())
    }

    /// Sends the next state once the last one is acked.
    fn return_next(&mut self) {
        if self.returning.outstanding.is_none()
            && let Some((message, slots)) = self.returning.queue.pop_front()
        {
            if let ToPredecessor::State { frame, .. } = message {
                self.returning.outstanding = Some(frame);
            }
            self.send_with(&message, slots);
        }
    }
}
