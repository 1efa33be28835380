//! The control socket: where operators speak to whoever serves now.
//!
//! The service makes it with [`Builder::control`](crate::Builder::control); a program speaks to it
//! with a [`Client`]. What is said is JSON, one object a line, and these are its types.

mod client;
#[allow(dead_code, reason = "the engine takes it up next")]
mod connection;
#[allow(dead_code, reason = "the engine takes it up next")]
mod output;
#[allow(dead_code, reason = "the engine takes it up next")]
mod permission;
#[allow(dead_code, reason = "the engine takes it up next")]
mod request;
#[allow(dead_code, reason = "the engine takes it up next")]
mod server;

pub use client::{Client, ClientError};
pub use connection::{CONTROL_REQUEST_TIMEOUT, CONTROL_WRITE_TIMEOUT};
pub use handover_proto::Report;
pub use handover_proto::control::*;
pub use output::MAX_CONTROL_BACKLOG_BYTES;
pub use server::MAX_CONTROL_CLIENTS;

#[allow(unused_imports, reason = "the engine takes it up next")]
pub(crate) use permission::{Peer, Policy, bind_how, permit};
#[allow(unused_imports, reason = "the engine takes it up next")]
pub(crate) use request::Asked;
#[allow(unused_imports, reason = "the engine takes it up next")]
pub(crate) use server::{ClientId, Incoming, Server};
