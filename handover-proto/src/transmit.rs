//! What goes through the channel, as the drivers see it.

use std::collections::VecDeque;
use std::mem::Discriminant;

use crate::{Message, Violation, encode};

/// A frame to be sent, with descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transmit {
    /// The bytes.
    pub frame: Vec<u8>,
    /// The descriptors that go with it, in order.
    pub slots: Vec<Slot>,
}

/// A descriptor, by where the driver finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The real stderr.
    Stderr,
    /// The item of that index in the [`Inventory`](crate::Inventory).
    Item(usize),
    /// The state of that index, in the order of the calls of
    /// [`Predecessor::state`](crate::Predecessor::state) or
    /// [`Successor::returned_state`](crate::Successor::returned_state).
    State(usize),
}

/// How many descriptors came with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Received {
    /// How many there are.
    pub descriptors: usize,
    /// Whether the kernel dropped some (`MSG_CTRUNC`).
    pub truncated: bool,
}

impl Received {
    /// Checks that it is what the frame says.
    pub(crate) fn check(self, expected: usize) -> Result<(), Violation> {
        if self.truncated {
            Err(Violation::Truncated)
        } else if self.descriptors != expected {
            Err(Violation::DescriptorCount { expected, received: self.descriptors })
        } else {
            Ok(())
        }
    }
}

/// What has not left yet, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outbox<M> {
    transmits: VecDeque<(Discriminant<M>, Transmit)>,
}

impl<M: Message> Outbox<M> {
    pub(crate) fn new() -> Self {
        Self { transmits: VecDeque::new() }
    }

    /// Appends a message.
    pub(crate) fn push(&mut self, message: &M, slots: Vec<Slot>) -> Result<(), Violation> {
        let transmit = Transmit { frame: encode(message)?, slots };
        self.transmits.push_back((std::mem::discriminant(message), transmit));
        Ok(())
    }

    /// Puts a message without descriptors in the place of the one of its kind that has not left, if
    /// there is one: the last word counts, and however often it is said, one frame waits.
    pub(crate) fn replace(&mut self, message: &M) -> Result<(), Violation> {
        let kind = std::mem::discriminant(message);
        match self.transmits.iter_mut().find(|(unsent, _)| *unsent == kind) {
            Some((_, unsent)) => unsent.frame = encode(message)?,
            None => self.push(message, Vec::new())?,
        }
        Ok(())
    }

    /// Appends a message, of whose kind no more than this are to wait: the oldest is dropped.
    pub(crate) fn push_of(&mut self, most: usize, message: &M) -> Result<(), Violation> {
        let kind = std::mem::discriminant(message);
        let of_kind = |(unsent, _): &(Discriminant<M>, Transmit)| *unsent == kind;
        if self.transmits.iter().filter(|unsent| of_kind(unsent)).count() >= most
            && let Some(oldest) = self.transmits.iter().position(of_kind)
        {
            self.transmits.remove(oldest);
        }
        self.push(message, Vec::new())
    }

    pub(crate) fn pop(&mut self) -> Option<Transmit> {
        self.transmits.pop_front().map(|(_, transmit)| transmit)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.transmits.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.transmits.clear();
    }
}
