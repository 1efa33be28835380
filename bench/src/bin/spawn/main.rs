//! How long does it take to start the successor of a process with a large heap, and whom does that stall?
//!
//!     cargo build --release --manifest-path bench/peers/Cargo.toml
//!     cargo run --release -p handover-bench --bin spawn
//!
//! Heaps are of 0 to 8 GiB, once in pages of 4 KiB and once in huge pages, and all of it has been written to. There is
//! one such process at a time. What is compared with what goes round by round, so that what else the machine does hits
//! all alike.
//!
//! *Small processes.* A process with that heap starts this program again and again, which says when its main began,
//! and exits:
//!
//! 1. *handover*: as its successor, by an upgrade that fails since the successor has ended. So one process can do it
//!    many times. Before, the library opens and examines the executable, and makes a channel to it and a pipe for its
//!    stderr;
//! 2. *clone + exec*: by the least that does it, clone(2) with `CLONE_VM | CLONE_VFORK` and execve(2), with all
//!    arguments laid out before. It is the floor;
//! 3. *posix_spawn*: by [`std::process::Command`] as it is;
//! 4. *fork + exec*: by the same with a `pre_exec` that does nothing, as everybody does it who has to run code of
//!    their own between the two.
//!
//! *In the call* is the time in the call that starts the process, which returns in all ways when the program is
//! executed; of the library it is what it says in its verdict ([`Timings::spawn`](handover::Timings)). *In main* is
//! from before it is asked for until the new process reads the clock first thing in main. One thread asks for it, and
//! another one does it, since in the library there are two. Of three starts in a row the least time counts: whoever
//! waits in such a call may get the processor only when the new process leaves it, a millisecond later, and that is for
//! the kernel to decide.
//!
//! *Servers.* Those of `bench/peers`, each started anew for each sample, get a SIGHUP. Timed is until their successor
//! says that its main began; *bare* is the floor, see there. Two threads of the old process write here and there in the
//! heap, for a third of the time each, and look at the clock in between: *stalled* is the longest time that one of
//! them could not go on, of those that began within half a second from the signal. The old process is there for all of
//! that time, since a client has sent it half a request. *No upgrade* is the same in the half second before the signal,
//! of the first server of each round: nobody is to be blamed for what is below that. With no heap there is 1 MiB of it,
//! since the threads need something to write to. Stalls of less than half a millisecond are not looked at, and count as
//! that. ecdysis forks; so does shellflip if it has a coordination socket, which it has not here.
//!
//! All clocks are CLOCK_MONOTONIC, which processes share. It takes under six minutes, and 9 GiB of memory; heaps for
//! which there is not enough are left out.

mod clone;
mod figures;
mod memory;
mod servers;
mod start;

use std::error::Error;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_bench::{Answer, Options, available_mib, now};

use figures::Figures;
use memory::Pages;
use servers::Server;

/// Heaps in GiB. Where there is none, pages make no difference.
const HEAPS: [(u64, Pages); 7] = [
    (0, Pages::Small),
    (1, Pages::Small),
    (4, Pages::Small),
    (8, Pages::Small),
    (1, Pages::Huge),
    (4, Pages::Huge),
    (8, Pages::Huge),
];

const HEAPS_QUICK: [(u64, Pages); 3] = [(0, Pages::Small), (1, Pages::Small), (1, Pages::Huge)];

/// What has to be free besides the heap.
const SPARE_MIB: u64 = 1024;

/// No round of one heap begins later than this after the first one, unless there are too few.
const TIME: Duration = Duration::from_secs(20);

const TIME_QUICK: Duration = Duration::from_secs(11);

/// There are so many at least.
const ROUNDS_MIN: usize = 3;

/// What a millisecond in the call is.
const SCHEDULED: &str = "A call that starts a process returns when its thread gets a processor: at once, or when the new \
    process leaves the one that both are on, which takes most of a millisecond and holds up nobody else.";

#[derive(Parser)]
#[command(about = "How long does it take to start a successor, and whom does that stall?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is a process with a heap that starts others.
    #[command(hide = true)]
    Start { gib: u64, pages: Pages, milliseconds: u64 },
    /// Says when it began.
    #[command(hide = true, name = start::BEGAN)]
    Began,
}

fn main() -> Result<(), Box<dyn Error>> {
    let began = now();
    if std::env::args().nth(1).as_deref() == Some(start::BEGAN) {
        println!("{} {}", start::BEGAN, began.as_nanos());
        return Ok(());
    }
    let Arguments { options, role } = Arguments::parse();
    match role {
        Some(Role::Start { gib, pages, milliseconds }) => {
            start::serve(gib, pages, Duration::from_millis(milliseconds))
        }
        Some(Role::Began) => Ok(()),
        None => options.tell(&measure(&options)?),
    }
}

fn measure(options: &Options) -> Result<Answer, Box<dyn Error>> {
    let mut notes = vec![SCHEDULED.to_owned()];
    let servers = servers::present(&mut notes);
    let mut figures = Figures::new();
    for (gib, pages) in options.pick(&HEAPS_QUICK[..], &HEAPS[..]) {
        let (needed, free) = (gib * 1024 + SPARE_MIB, available_mib());
        if free < needed {
            notes.push(format!(
                "{gib} GiB in {pages} were left out: that takes {needed} MiB of memory, of which {free} were available."
            ));
            continue;
        }
        let note = take(&mut figures, &servers, *gib, *pages, options)?;
        notes.push(note);
    }
    Ok(Answer { figures: figures.into_vec(), tables: Vec::new(), notes })
}

/// Measures one heap.
fn take(
    figures: &mut Figures,
    servers: &[Server],
    gib: u64,
    pages: Pages,
    options: &Options,
) -> Result<String, Box<dyn Error>> {
    let time = options.pick(TIME_QUICK, TIME);
    let started = start::run(gib, pages, time / 6)?;
    for sample in &started.samples {
        figures.add_small(gib, pages, sample);
    }
    let (begun, mut rounds, mut huge) = (Instant::now(), 0, started.huge_share);
    while !servers.is_empty() && (rounds < ROUNDS_MIN || begun.elapsed() < time) {
        for (place, server) in servers.iter().enumerate() {
            let upgraded = server.upgrade(gib, pages)?;
            huge = huge.min(upgraded.huge_share);
            figures.add_server(gib, pages, server.name, &upgraded, place == 0);
        }
        rounds += 1;
    }
    let of_huge = match pages {
        Pages::Huge => format!(", of which {:.0} % were huge at the least", huge * 100.0),
        Pages::Small => String::new(),
    };
    let starts = started.samples.len() / start::Way::ALL.len();
    Ok(format!(
        "{gib} GiB in {pages}{of_huge}: {starts} rounds of small processes, {rounds} of servers."
    ))
}
