//! The commands that operate a service, against a control socket that plays back what the test says.

mod events;
mod order;
mod service;
mod status;
mod terminal;
mod upgrade;
mod usage;
