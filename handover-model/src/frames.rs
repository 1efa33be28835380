//! Frames and what is on its way, as numbers.

use std::collections::HashMap;

use handover_proto::{Slot, ToPredecessor, ToSuccessor, Transmit, decode};

use crate::process::LINE;

/// What a frame means to an invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(u16);

impl Kind {
    pub(crate) const COMMIT: Self = Self(1);
    pub(crate) const UPGRADE: Self = Self(2);
    pub(crate) const STOP: Self = Self(4);
    pub(crate) const ABORT: Self = Self(8);
    pub(crate) const RESUMED: Self = Self(16);
    pub(crate) const SERVING: Self = Self(32);
    pub(crate) const HEALTHY: Self = Self(64);
    pub(crate) const DESCRIPTORS: Self = Self(128);
    pub(crate) const ROLLBACK: Self = Self(256);
    pub(crate) const PING: Self = Self(512);
}

/// All frames that were ever sent.
#[derive(Default)]
pub(crate) struct Frames {
    known: Vec<Frame>,
    numbers: HashMap<Transmit, u16>,
}

struct Frame {
    bytes: Vec<u8>,
    descriptors: usize,
    kind: u16,
    lines: Vec<u8>,
}

impl Frames {
    pub(crate) fn number(&mut self, transmit: Transmit) -> u16 {
        if let Some(number) = self.numbers.get(&transmit) {
            return *number;
        }
        let number = u16::try_from(self.known.len()).expect("few frames differ");
        let (kind, lines) = meaning(&transmit.frame);
        let descriptors = transmit.slots.iter().filter(|slot| **slot != Slot::Stderr).count();
        self.known.push(Frame { bytes: transmit.frame.clone(), descriptors, kind, lines });
        self.numbers.insert(transmit, number);
        number
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn bytes(&self, frame: u16) -> (&[u8], usize) {
        let frame = &self.known[usize::from(frame)];
        (&frame.bytes, frame.descriptors)
    }

    pub(crate) fn is(&self, frame: u16, kind: Kind) -> bool {
        self.known[usize::from(frame)].kind & kind.0 != 0
    }

    pub(crate) fn any(&self, queue: &Queue, kind: Kind) -> bool {
        queue.iter().any(|frame| self.is(frame, kind))
    }

    /// The channels whose ends it carries.
    pub(crate) fn lines(&self, frame: u16) -> &[u8] {
        &self.known[usize::from(frame)].lines
    }

    /// What the frames of a queue are called.
    pub(crate) fn names(&self, queue: &Queue) -> Vec<String> {
        let text = |frame| String::from_utf8_lossy(self.bytes(frame).0).into_owned();
        let name = |text: String| text.split('"').nth(3).unwrap_or_default().to_owned();
        queue.iter().map(|frame| name(text(frame))).collect()
    }
}

fn meaning(frame: &[u8]) -> (u16, Vec<u8>) {
    let kind = |kind: Kind| (kind.0, Vec::new());
    // A frame that both directions know, `state` or `stop`, means the same in both.
    match decode::<ToSuccessor>(frame) {
        Ok(ToSuccessor::Commit { upgrade_pending: true }) => {
            (Kind::COMMIT.0 | Kind::UPGRADE.0, Vec::new())
        }
        Ok(ToSuccessor::Commit { .. }) => kind(Kind::COMMIT),
        Ok(ToSuccessor::Upgrade {}) => kind(Kind::UPGRADE),
        Ok(ToSuccessor::Stop { .. }) => kind(Kind::STOP),
        Ok(ToSuccessor::Abort { .. }) => kind(Kind::ABORT),
        Ok(ToSuccessor::Rollback { .. }) => kind(Kind::ROLLBACK),
        Ok(ToSuccessor::Ping {}) => kind(Kind::PING),
        Ok(ToSuccessor::Resumed {}) => kind(Kind::RESUMED),
        Ok(ToSuccessor::Descriptors { items, .. }) => {
            let names = items.iter().map(|item| item.name.as_str());
            let lines = names.filter_map(|name| name.strip_prefix(LINE)?.parse().ok()).collect();
            (Kind::DESCRIPTORS.0, lines)
        }
        Ok(_) => (0, Vec::new()),
        Err(_) => match decode::<ToPredecessor>(frame) {
            Ok(ToPredecessor::Serving {}) => kind(Kind::SERVING),
            Ok(ToPredecessor::Healthy {}) => kind(Kind::HEALTHY),
            Ok(_) | Err(_) => (0, Vec::new()),
        },
    }
}

/// What is on its way in one direction of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Queue {
    frames: [u16; Self::MOST],
    length: u8,
}

impl Queue {
    /// More are never on their way: acks, and one word of each kind, see to that.
    const MOST: usize = 7;

    pub(crate) fn first(&self) -> Option<u16> {
        self.iter().next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.frames[..usize::from(self.length)].iter().copied()
    }

    pub(crate) fn push(&mut self, frame: u16) {
        let place = usize::from(self.length);
        assert!(place < Self::MOST, "more frames on their way than were thought possible");
        self.frames[place] = frame;
        self.length += 1;
    }

    pub(crate) fn pop(&mut self) {
        self.frames.rotate_left(1);
        self.frames[Self::MOST - 1] = 0;
        self.length -= 1;
    }
}
