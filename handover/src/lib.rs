//! A network service replaces itself with a new version of itself, and nobody notices.
//!
//! No refused connection, no reset, no dropped request, no forgotten state; a new version that does
//! not start, crashes or hangs changes nothing, and one that turns out to be bad while it serves can
//! be rolled back. The running process, the *predecessor*, starts
//! the new one, its *successor*, hands it its listeners and state, goes on serving while the
//! successor initialises, and steps aside when that says it is ready:
//!
//! ```text
//!  predecessor                                             successor
//!   │ SIGHUP, Handle::upgrade, control socket                .
//!   ├── starts it ─────────────────────────────────────────► Builder::start
//!   ├── listeners, descriptors, early state ───────────────► Handover::listen, state, ...
//!   │ (serves)                                               │ initialises
//!   │ ◄─────────────────────────────────────────────────────── Handover::ready
//!   │ stops accepting                                        │
//!   ├── commit, late state ────────────────────────────────► Running: serves
//!   │ drains what it had accepted, exits                     │
//! ```
//!
//! # What it does not do
//!
//! - It does not move connections unasked: those that were accepted are served to their end by the process
//!   that accepted them, within the drain timeout, unless the application gives them away ([`live`]).
//! - It does not watch over the service. On [probation](Builder::probation) its predecessor takes back
//!   over from a successor that crashes or hangs. After it, or without it after the commit, a crash is an
//!   outage, unless there is a supervisor.
//! - It does not start the service: a supervisor does. systemd is spoken to; others that insist on
//!   starting processes can have one [take over](Builder::take_over).
//! - It runs on Linux, 5.4 or newer, so far.
//! - Two generations that read one UDP socket would take each other's datagrams: only the one that
//!   serves reads, and protocols with state of their own, such as QUIC, lose theirs at the commit
//!   unless it is handed over.
//!
//! # How to use it
//!
//! Call [`Builder::start`] first thing in main, claim with [`Handover::listen`] what was bound
//! before, initialise, and call [`Handover::ready`] or, in Tokio, `handover::tokio::ready`. Accept
//! until there is nothing more, [drain](Running::wait), exit. The [`guide`] has one short program
//! for each way of using it.
//!
//! ```no_run
//! use std::io::Write;
//!
//! use handover::{Handover, TcpListener};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let handover = Handover::builder().start()?;
//! let listener: TcpListener = handover.listen("greetings", "127.0.0.1:7000")?;
//! let running = handover.ready()?;
//!
//! std::thread::spawn(move || {
//!     for mut connection in listener.incoming().flatten() {
//!         let _ = connection.write_all(b"hello\n");
//!     }
//! });
//! running.wait()?.drain()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Signals
//!
//! SIGHUP asks for an upgrade, SIGTERM and SIGINT for a stop: the first one for a graceful one, the
//! second for an immediate one ([`Builder::upgrade_signals`], [`Builder::stop_signals`]). They are
//! the library's until the process exits. One that comes while a successor starts is kept until its
//! handlers stand; a second stop signal before `ready()` has its default action, as nobody can act
//! on it otherwise. Applications may listen for the same signals as well.
//!
//! # Who serves after a failure
//!
//! Every error knows ([`Error::who_serves`], [`ClaimError::who_serves`]), and a [`Verdict`] that is not
//! a success means that this process does: it has never stopped ([`Verdict::Failed`]), or serves again
//! ([`Verdict::RolledBack`]). Whatever happens to a successor before the commit, the predecessor goes
//! on. On probation it takes back over, and what a successor that crashed had accepted is lost. If the
//! predecessor dies, before the commit or on probation, its successor serves alone.
//!
//! # Operating
//!
//! With [`Builder::control`] the service is operated over a socket: upgrades that are followed to their
//! verdict, status, rollback, stop, events, and [commands](Builder::command) of the application's own;
//! by the command `handover`, or by anything that writes JSON ([`control`]). What is not accepting
//! connections and only one process may do, is stopped and begun again in the hooks
//! [`on_commit`](Builder::on_commit) and [`on_rollback`](Builder::on_rollback): see the chapter
//! `guide::probation`.
//!
//! # Under systemd
//!
//! In a unit of `Type=notify` or `Type=notify-reload`, with the default `NotifyAccess=main`, systemd is told
//! who the main process is, when it is ready, what it is about (`systemctl status`), that an upgrade is
//! a reload, and that a long start or stop is alive; the watchdog is pinged. Successors are children of systemd's
//! own. [`Handover::listen`] finds the sockets of `.socket` units by their `FileDescriptorName=`
//! ([`FromSystemd`]). With [`Builder::fd_store`] sockets, and states that are [saved](Handle::save_state),
//! outlive a crash. Where systemd is not, nothing of this does anything. Which unit to write is told in
//! `docs/operations.md`.
//!
//! # Features
//!
//! - `tokio` (default): listeners, datagram sockets and the waiter for Tokio, in `handover::tokio`.
//! - `systemd` (default): `systemd-notify`, to tell systemd how the service is, and `systemd-sockets`, to
//!   get listeners from it; each can be had alone.
//! - `axum`: `axum::serve` on those listeners.
//! - `http`: HTTP served through a drain, and connections that change hands, in `handover::http`.
//! - `serde`: states as JSON, [`StateWriter::json`](StateWriter) and [`State::json`](State).
//!
//! # Logs
//!
//! Steps of a normal handover are `tracing` events of level `info`; `warn` and `error` mean that
//! somebody should look.

#![warn(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod attempt;
mod builder;
mod clock;
mod config;
pub mod control;
mod drain;
mod engine;
mod error;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gate;
#[cfg(doc)]
pub mod guide;
mod handover;
mod hooks;
#[cfg(feature = "http")]
pub mod http;
mod lines;
mod link;
mod listener;
pub mod live;
mod pidfile;
mod preflight;
mod previous;
mod program;
mod registry;
mod request;
mod running;
mod state;
mod stderr;
mod sys;
mod systemd;
#[cfg(feature = "tokio")]
pub mod tokio;
mod verdict;
mod watch;

pub use builder::{
    Builder, DEFAULT_ANSWER_TIMEOUT, DEFAULT_CHECK_TIMEOUT, DEFAULT_COMMIT_TIMEOUT,
    DEFAULT_DRAIN_TIMEOUT, DEFAULT_MAX_GENERATIONS, DEFAULT_MAX_STATE_BYTES, DEFAULT_READY_TIMEOUT,
    Signal, SuccessorParent, TooMany,
};
pub use drain::{Drained, Guard};
pub use engine::Ending;
pub use error::{ClaimError, ClaimErrorKind, Error, ErrorKind, WhoServes};
pub use events::{Events, EventsIntoIter, MAX_QUEUED_EVENTS};
pub use handover::Handover;
pub use handover_proto::{InvalidName, Version, Versions, Violation};
pub use hooks::{Commit, Confirm, Rollback};
pub use listener::{
    Address, AddressError, Bind, Claim, Connection, DEFAULT_BACKLOG, FromSystemd,
    MAX_UNIX_PATH_BYTES, SeqpacketStream, TcpListener, UdpSocket, UnixDatagram, UnixListener,
    UnixSeqpacketListener,
};
pub use preflight::Unfit;
pub use registry::Descriptor;
pub use request::UpgradeOptions;
pub use running::{Draining, Handle, Running, Until, Upgrade};
pub use state::{InPlace, State, StateError, StateWriter};
pub use systemd::Saved;
pub use verdict::{CheckFailure, Failure, Phase, Reason, SpawnError, Success, Timings, Verdict};

/// The README's code compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
