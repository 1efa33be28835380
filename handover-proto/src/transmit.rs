//! What a machine wants to be sent.

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
    /// The state of that index, in the order in which states were given to the machine.
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
