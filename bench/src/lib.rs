//! What the programs of this folder share: each answers one question, with figures of this shape, which
//! `figures` writes into `docs/comparison.md`.
//!
//! A program goes round by round through all that it compares, so that what else the machine does hits all alike.
//! A ratio is the median of the ratios of the rounds, and not the ratio of two medians.

mod client;
mod figures;
mod peers;
mod plot;
mod program;
mod server;
mod table;

pub use client::{Asked, Hammer, ask};
pub use figures::{Answer, Figure, Point, Subject, Table};
pub use peers::peer;
pub use plot::plot;
pub use program::{Options, available_mib, milliseconds, now, quantile};
pub use server::{Kind, Old, Server, Setup, versions};
