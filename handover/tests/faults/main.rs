//! Whatever becomes of any message of a handover, the right one serves, and only what a killed
//! process had accepted is lost.
//!
//! The messages are those of a handover that went well, recorded by the same proxy: a new one is
//! attacked without being named here. In the tables, `P` is the predecessor and `S` the successor,
//! and a number is that of the requests that were lost.

#![allow(clippy::unwrap_used)]

mod cell;
#[path = "../common/mod.rs"]
mod common;
mod expected;
mod matrix;
mod proxy;
mod starvation;

use cell::Course;
use proxy::Fault::{self, *};
use proxy::Side::{Predecessor, Successor};

/// The message does not arrive as it was sent.
const MESSAGE: [Fault; 8] =
    [Stalled, Dropped, Delayed, Overdue, Truncated, Stripped, Repeated, Garbled];

/// A process ends at the message. The sender does before or after it has left.
const DEATH: [Fault; 3] = [SenderKilled, SenderKilledAfter, ReceiverKilled];

/// A process does nothing for a moment at the message, or for longer than any timeout.
const SLEEP: [Fault; 4] =
    [Frozen(Predecessor), Frozen(Successor), FrozenLong(Predecessor), FrozenLong(Successor)];

#[test]
fn message_that_goes_wrong_leaves_one_that_serves() {
    matrix::run(Course::Plain, &MESSAGE);
}

#[test]
fn message_that_goes_wrong_leaves_one_that_serves_with_probation() {
    matrix::run(Course::Probation, &MESSAGE);
}

#[test]
fn message_of_a_rollback_that_goes_wrong_leaves_one_that_serves() {
    matrix::run(Course::RolledBack, &MESSAGE);
}

#[test]
fn process_killed_at_a_message_costs_only_what_it_had_accepted() {
    matrix::run(Course::Plain, &DEATH);
}

#[test]
fn process_killed_at_a_message_costs_only_what_it_had_accepted_with_probation() {
    matrix::run(Course::Probation, &DEATH);
}

#[test]
fn process_killed_at_a_message_of_a_rollback_costs_only_what_it_had_accepted() {
    matrix::run(Course::RolledBack, &DEATH);
}

#[test]
fn process_suspended_at_a_message_costs_nothing_once_one_serves() {
    matrix::run(Course::Plain, &SLEEP);
}

#[test]
fn process_suspended_at_a_message_costs_nothing_once_one_serves_with_probation() {
    matrix::run(Course::Probation, &SLEEP);
}

#[test]
fn process_suspended_at_a_message_of_a_rollback_costs_nothing_once_one_serves() {
    matrix::run(Course::RolledBack, &SLEEP);
}
