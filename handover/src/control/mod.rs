//! The control socket: where operators speak to whoever serves now.
//!
//! The service makes it with [`Builder::control`](crate::Builder::control); a program speaks to it
//! with a [`Client`]. What is said is JSON, one object a line, and these are its types.

mod client;
mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod output;
mod permission;
mod report;
mod request;
mod server;
mod takeover;

pub use client::{Client, ClientError};
pub use connection::{CONTROL_REQUEST_TIMEOUT, CONTROL_WRITE_TIMEOUT};
pub use handover_proto::Report;
pub use handover_proto::control::*;
pub use output::MAX_CONTROL_BACKLOG_BYTES;
pub use server::MAX_CONTROL_CLIENTS;
pub use takeover::{TakeOverError, TakeOverFailure};

pub(crate) use permission::{Peer, Policy, bind_how, permit};
pub(crate) use request::Asked;
pub(crate) use server::{ClientId, Incoming, Server};
pub(crate) use takeover::{Takeover, take_over};
