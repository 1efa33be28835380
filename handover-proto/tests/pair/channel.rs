//! One direction of the channel.

use std::collections::VecDeque;
use std::time::Duration;

use handover_proto::Time;

use crate::rng::Rng;

/// How many frames fit; few, so that senders meet a full buffer.
const ROOM: usize = 3;

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) frame: Vec<u8>,
    pub(crate) descriptors: usize,
    due: Time,
}

/// What a channel may do that a socketpair never does.
#[derive(Clone, Debug)]
pub(crate) struct Unruly(pub(crate) Rng);

#[derive(Clone, Debug, Default)]
pub(crate) struct Channel {
    packets: VecDeque<Packet>,
    pub(crate) delay: Duration,
    pub(crate) unruly: Option<Unruly>,
}

impl Channel {
    pub(crate) fn has_room(&self) -> bool {
        self.packets.len() < ROOM
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// When the next packet arrives.
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.packets.front().map(|packet| packet.due)
    }

    pub(crate) fn has_arrived(&self, now: Time) -> bool {
        self.next_due().is_some_and(|due| due <= now)
    }

    pub(crate) fn send(&mut self, frame: Vec<u8>, descriptors: usize, now: Time) {
        let packet = Packet { frame, descriptors, due: now + self.delay };
        let Some(Unruly(rng)) = &mut self.unruly else {
            return self.packets.push_back(packet);
        };
        match rng.below(24) {
            0 => {}
            1 => {
                self.packets.push_back(packet.clone());
                self.packets.push_back(packet);
            }
            2 | 3 => {
                let position = rng.below(self.packets.len() + 1);
                self.packets.insert(position, packet);
            }
            _ => self.packets.push_back(packet),
        }
    }

    pub(crate) fn receive(&mut self, now: Time) -> Option<Packet> {
        if self.has_arrived(now) { self.packets.pop_front() } else { None }
    }

    /// What is on its way is gone.
    pub(crate) fn lose(&mut self) {
        self.packets.clear();
    }
}
