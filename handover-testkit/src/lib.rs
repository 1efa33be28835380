//! Starts, loads, kills and counts real processes, for the tests and benches of `handover`.
//!
//! Nothing here knows the library under test: a [`Service`] is any executable, a [`Load`] is any
//! client, and the facts about processes come from the kernel.
//!
//! | to | use |
//! |---|---|
//! | own a directory | [`Folder`] |
//! | start a service, read what it prints, end every generation of it | [`Launch`], [`Service`] |
//! | ask the kernel about one process, or signal it | [`process`] |
//! | send requests and learn what became of each | [`Load`], [`Outcome`] |
//! | hold connections open across a handover | [`KeepAlive`] |
//! | have something that cannot be started | [`executables`] |
//! | have a systemd of one's own, in a version of one's choice | [`Systemd`] |
//! | try a fuzz target, in a bounded way | [`feed`] |
//! | find what Cargo built | [`example`], [`binary`] |
//! | leave a test out, and have it known | [`skip!`], [`skipped`] |
//!
//! Every wait takes the [`Instant`](std::time::Instant) at which it gives up, usually [`soon`], and
//! waits on an event: a line, an end of file, a pidfd. Where only `/proc` can tell, [`recheck`]
//! looks again until it does.
//!
//! This crate panics where a test cannot go on (an executable that is missing, a directory that
//! cannot be made), and returns what a test may want to look at.
//!
//! Linux only: it stands on pidfds and `/proc`.

#![cfg(target_os = "linux")]

mod built;
mod confine;
mod deadline;
pub mod executables;
mod folder;
mod guard;
mod inputs;
mod keep_alive;
mod lines;
mod load;
mod outcome;
pub mod process;
mod request;
mod response;
mod service;
mod skip;
mod spawn;
mod sweep;
mod systemd;
mod target;

pub use built::{binary, example};
pub use deadline::{recheck, soon};
pub use folder::Folder;
pub use inputs::feed;
pub use keep_alive::{End, Ending, KeepAlive, KeepAliveOutcome, KeepAliveSetup};
pub use lines::{Line, NoSuchLine, Stream};
pub use load::{Load, LoadSetup};
pub use outcome::{Lost, Outcome, Unanswered};
pub use process::{Pid, Signal};
pub use request::Fault;
pub use service::{Finished, Launch, Resource, Service, StillAlive};
pub use skip::{can_make_network_namespace, is_root, skipped, skipped_test};
pub use spawn::{adopt_orphans, while_nothing_spawns};
pub use systemd::{Ran, Systemd, SystemdVersion};
pub use target::Target;
