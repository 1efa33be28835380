//! The control socket: where operators speak to whoever serves now.
//!
//! The service makes it with [`Builder::control`](crate::Builder::control); a program speaks to it
//! with a [`Client`]. What is said is JSON, one object a line, and these are its types.

mod client;
mod report;

pub use client::{Client, ClientError};
pub use handover_proto::Report;
pub use handover_proto::control::*;

/// A client of the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(pub(crate) u64);
