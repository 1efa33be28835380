//! What does the library add to a service that has it?
//!
//!     cargo build --release --manifest-path bench/peers/Cargo.toml
//!     cargo run --release -p handover-bench --bin footprint
//!
//! The servers of `bench/peers` do the same but for upgrades: *none* has none, and is what the others are held against;
//! *bare* is the least that upgrades. Ours is written as its documentation recommends, and so with axum in place of
//! hyper alone: what is added is what both add. All have one listener, and two threads in Tokio's runtime.
//!
//! Round by round all of them are started, and asked once. When all their threads sleep, the kernel is asked what each
//! of them has; and again three seconds later, in which nothing has happened. Then each is upgraded ten times, one
//! upgrade after the other, and the last successor is looked at in the same way.
//!
//! - *Resident memory* and *private dirty memory* are from `/proc/PID/smaps_rollup`. The former contains what is mapped
//!   of the executable, the latter is what the process has for itself alone.
//! - *Wakeups* are voluntary context switches of all threads (`/proc/PID/task/*/status`), *processor time* is that of all
//!   threads (`/proc/PID/task/*/schedstat`).
//! - *Dependencies* are what `cargo tree` lists without those for building and tests, in one version or another.
//! - *Compile time* is that of a release build for which all that *none* needs is already built, in a folder of its own,
//!   from sources that are there. Where a peer wants more features of a common dependency, that is built once more, and
//!   counts. One sample, and only if there is no hurry.
//! - *The executable* is a copy of what was built so that strip(1) has gone over.
//!
//! It takes three minutes.

mod build;
mod idle;
mod process;
mod sheet;

use std::error::Error;
use std::path::PathBuf;

use clap::Parser;
use handover_bench::{Answer, Options, peer};

use sheet::Sheet;

/// The one that the others are held against, and they.
const NAMES: [&str; 5] = [NONE, "handover", "bare", "ecdysis", "shellflip"];

const NONE: &str = "none";

const ROUNDS: usize = 5;

const ROUNDS_QUICK: usize = 2;

#[derive(Parser)]
#[command(about = "What does the library add to a service that has it?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// One of the servers.
struct Peer {
    name: &'static str,
    executable: PathBuf,
}

impl Peer {
    /// The name of its package, and of its executable.
    fn package(&self) -> String {
        format!("serve-{}", self.name)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { options } = Arguments::parse();
    options.tell(&measure(&options)?)
}

fn measure(options: &Options) -> Result<Answer, Box<dyn Error>> {
    let mut notes = Vec::new();
    let peers = present(&mut notes)?;
    let mut sheet = Sheet::default();
    let rounds = options.pick(ROUNDS_QUICK, ROUNDS);
    for _ in 0..rounds {
        idle::round(&peers, &mut sheet)?;
    }
    notes.push(format!(
        "Memory, threads, descriptors, wakeups and processor time are medians of {rounds} rounds. In brackets is what \
         there is more than in {NONE}."
    ));
    build::crates(&peers, &mut sheet, &mut notes)?;
    let built =
        if options.quick { None } else { Some(build::alone(&peers, &mut sheet, &mut notes)) };
    if let Some(Err(error)) = &built {
        notes.push(format!("They could not be built each on its own: {error}."));
    }
    if !matches!(built, Some(Ok(()))) {
        build::sizes(&peers, &mut sheet, &mut notes);
        notes.push(
            "Executables are those of one build of all, with all features that one of them wants."
                .into(),
        );
    }
    notes.push("What handover adds is the library, and axum in place of hyper alone.".into());
    let figures = vec![
        sheet.added(idle::MEMORY, "footprint-memory", "Resident memory added"),
        sheet.added(build::SIZE, "footprint-size", "Size of the executable added"),
        sheet.added(build::CRATES, "footprint-crates", "Dependencies added"),
    ];
    let tables = vec![sheet.table("What servers have and need, without upgrades and with them")];
    Ok(Answer { figures: figures.into_iter().flatten().collect(), tables, notes })
}

fn present(notes: &mut Vec<String>) -> Result<Vec<Peer>, Box<dyn Error>> {
    let mut peers = Vec::new();
    for name in NAMES {
        match peer(&format!("serve-{name}")) {
            Some(executable) => peers.push(Peer { name, executable }),
            None => notes.push(format!(
                "{name} was left out: `cargo build --release --manifest-path bench/peers/Cargo.toml` builds it."
            )),
        }
    }
    if peers.first().is_none_or(|peer| peer.name != NONE) {
        return Err("bench/peers has not been built".into());
    }
    Ok(peers)
}
