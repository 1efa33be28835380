//! The commands that operate a service, against real services under load.

#![allow(clippy::unwrap_used)]

mod access;
mod clients;
mod death;
mod events;
mod failures;
mod generations;
mod http;
mod options;
mod probation;
mod refusals;
mod stage;
