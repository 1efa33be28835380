//! What is handed over: items and states, in frames that are acked one by one.

use crate::limits::escaped_bytes;
use crate::time::millis;
use crate::{
    Cause, Item, MAX_BATCH_BYTES, MAX_DESCRIPTORS, MAX_FDS_PER_FRAME, MAX_STATES, Name, Phase,
    Slot, Time, ToSuccessor, Version, Versions,
};

use super::Predecessor;

impl Predecessor {
    /// Gives a state: an early one before the transfer is over, a late one after
    /// [`accepting_stopped`](Self::accepting_stopped).
    ///
    /// The n-th call names [`Slot::State`]`(n)`, counted from 0. More early states than the
    /// [`Inventory`](crate::Inventory) announced, or more late ones than [`MAX_STATES`], call the handover off.
    pub fn state(&mut self, name: Name, version: u32, bytes: u64, now: Time) {
        let late = match self.phase {
            Phase::Hello | Phase::Transfer | Phase::Initialise => false,
            Phase::Commit => true,
            Phase::Confirm | Phase::Probation | Phase::Served | Phase::Failed => return,
        };
        if self.failing.is_some() {
            return;
        }
        let (given, most) = if late {
            (&mut self.late_states, MAX_STATES)
        } else {
            (&mut self.early_states, self.inventory.states)
        };
        if *given == most {
            let what = if late { "late states" } else { "early states" };
            return self.abort(format!("more than {most} {what}"), now);
        }
        *given += 1;
        let slot = Slot::State((self.early_states + self.late_states - 1) as usize);
        let frame = self.next_frame();
        self.queue
            .push_back((ToSuccessor::State { frame, name, version, bytes, late }, vec![slot]));
        self.advance(now);
    }

    pub(super) fn welcome(&mut self, theirs: Versions, now: Time) -> Result<(), Cause> {
        let ours = self.config.versions;
        let Some(version) = ours.agree(theirs) else {
            return Err(Cause::Incompatible { ours, theirs });
        };
        let descriptors = u32::try_from(self.inventory.items.len()).unwrap_or(u32::MAX);
        let called_off = |what| Cause::CalledOff { reason: format!("too many {what}") };
        if descriptors > MAX_DESCRIPTORS {
            return Err(called_off("descriptors"));
        }
        if self.inventory.states > MAX_STATES {
            return Err(called_off("states"));
        }
        let slots = if self.inventory.stderr { vec![Slot::Stderr] } else { vec![] };
        let welcome = self.welcome_message(version, descriptors);
        self.send(&welcome, slots, now);
        self.queue_descriptors();
        Ok(())
    }

    fn welcome_message(&self, version: Version, descriptors: u32) -> ToSuccessor {
        ToSuccessor::Welcome {
            version,
            generation: self.config.generation,
            pid: self.config.pid,
            predecessor: self.config.own_generation,
            descriptors,
            states: self.inventory.states,
            stderr: self.inventory.stderr,
            ready_timeout_ms: millis(self.config.ready_timeout),
            commit_timeout_ms: millis(self.config.commit_timeout),
            probation_ms: self.config.probation.map(millis),
        }
    }

    /// Divides the items into frames, ahead of the states that may have been given already.
    fn queue_descriptors(&mut self) {
        let states = std::mem::take(&mut self.queue);
        let (mut items, mut slots, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (index, item) in std::mem::take(&mut self.inventory.items).into_iter().enumerate() {
            let size = escaped_bytes(item.name.as_str())
                + item.address.as_deref().map_or(0, escaped_bytes);
            if items.len() == MAX_FDS_PER_FRAME
                || (!items.is_empty() && bytes + size > MAX_BATCH_BYTES)
            {
                self.queue_batch(&mut items, &mut slots);
                bytes = 0;
            }
            bytes += size;
            items.push(item);
            slots.push(Slot::Item(index));
        }
        if !items.is_empty() {
            self.queue_batch(&mut items, &mut slots);
        }
        self.queue.extend(states);
    }

    fn queue_batch(&mut self, items: &mut Vec<Item>, slots: &mut Vec<Slot>) {
        let frame = self.next_frame();
        let items = std::mem::take(items);
        self.queue.push_back((ToSuccessor::Descriptors { frame, items }, std::mem::take(slots)));
    }

    /// Sends what may be sent: the next frame with descriptors once the last one is acked, and
    /// when there are none left, what comes after them.
    pub(super) fn advance(&mut self, now: Time) {
        if self.failing.is_some()
            || self.outstanding.is_some()
            || !matches!(self.phase, Phase::Transfer | Phase::Commit)
        {
            return;
        }
        if let Some((message, slots)) = self.queue.pop_front() {
            if let ToSuccessor::Descriptors { frame, .. } | ToSuccessor::State { frame, .. } =
                message
            {
                self.outstanding = Some(frame);
            }
            self.send(&message, slots, now);
        } else if self.phase == Phase::Commit {
            if self.accepting_stopped && self.late_complete {
                let upgrade_pending = std::mem::take(&mut self.upgrade_pending);
                self.enter(Phase::Confirm);
                self.send(&ToSuccessor::Commit { upgrade_pending }, vec![], now);
            }
        } else if self.early_states == self.inventory.states {
            self.enter(Phase::Initialise);
        }
    }

    fn next_frame(&mut self) -> u32 {
        let frame = self.next_frame;
        self.next_frame += 1;
        frame
    }
}
