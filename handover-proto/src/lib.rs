//! The protocol by which one generation of a service hands over to the next, without I/O.
//!
//! This crate does not open a descriptor, read a clock, start a thread or allocate without a bound.
//! It is two state machines and the messages between them. Whoever drives a machine feeds it what
//! happened and carries out what it asks for:
//!
//! ```text
//!   frames, end of file, exit  ──► handle_*  ┐              ┌─► poll_transmit  frames to send
//!   what the program decided   ──► commands  ├─► machine ───┼─► poll_event     what to do or know
//!   the time, as an argument   ──► handle_timeout           └─► poll_timeout   when to come back
//! ```
//!
//! After every `handle_*` or command, drain `poll_event` and `poll_transmit`, then wait for the next
//! input or for `poll_timeout`. The same machines are driven by the blocking waiter, by the Tokio
//! waiter, and by tests on virtual time.
//!
//! - [`Predecessor`] is the end that serves and was asked for an upgrade.
//! - [`Successor`] is the end that was started to replace it.
//! - [`Line`] is what the successor's end becomes when the handover is over, and what is passed on to
//!   whoever serves next, for as long as the predecessor drains.
//! - [`moving`] is how connections change hands.
//! - [`ToSuccessor`] and [`ToPredecessor`] are the messages; [`decode`] refuses what does not fit.
//!
//! The wire format, the state diagrams, and who serves after a crash at each step are written down
//! in `docs/protocol.md`.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

pub mod control;
mod frame;
mod limits;
mod line;
mod message;
pub mod moving;
mod name;
mod outcome;
mod predecessor;
mod report;
mod successor;
mod time;
mod transmit;
mod version;

pub use frame::{Preamble, Violation, decode, encode};
pub use limits::*;
pub use line::{Line, LineEvent};
pub use message::{Item, Message, ToPredecessor, ToSuccessor};
pub use name::{InvalidName, Name};
pub use outcome::{Cause, Outcome, Phase};
pub use predecessor::{Event as PredecessorEvent, Inventory, Predecessor, PredecessorConfig};
pub use report::Report;
pub use successor::{CommittedBy, Event as SuccessorEvent, Failure, Successor, SuccessorConfig};
pub use time::Time;
pub use transmit::{Received, Slot, Transmit};
pub use version::{VERSION, Version, Versions};
