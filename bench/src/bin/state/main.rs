//! How long does state take from the old process to the new one?
//!
//!     cargo run --release -p handover-bench --bin state
//!
//! The state lies in memory, as bytes, in pages of 4 KiB that are all there: the sender maps them before the clock
//! starts, the same in all ways. For each size, round by round, so that what else the machine does hits all alike,
//! it goes to another process that waits for it,
//!
//! 1. *handover*: by an upgrade of a service. `provide_state` writes it with `write_all`, in the new process
//!    [`Handover::state`](handover::Handover::state) has it;
//! 2. *handover, late*: the same by `provide_late_state` and `late_state`, between the last connection that the old
//!    process accepts and the first one of the new;
//! 3. *bare memfd*: by the least that does the same: memfd_create(2), write(2), the seals, SCM_RIGHTS over a socket
//!    pair, mmap(2). It is the floor;
//! 4. *pipe*: by write(2) and read(2), into memory of the right size. So shellflip does it, though through
//!    `tokio::fs::File`, which copies once more, and is not counted here;
//! 5. *unix socket*: the same through a stream socket.
//!
//! In a second figure the state is built where the new process will map it, and written nowhere else: *handover* by
//! [`StateWriter::in_place`](handover::StateWriter::in_place), *bare memfd* by ftruncate(2) and mmap(2). To build it is
//! to copy the same bytes: what an application computes to build its own comes on top, of both.
//!
//! Timed is from the moment at which the sender begins with the state (in the library: at which it calls the
//! application's provider) until the receiver has read eight bytes of each of its pages. So mapped pages have been
//! mapped in earnest. The sum of what was read is compared with that of the sender's. Not timed are the start of
//! processes and what comes after, such as giving the memory back; no round begins before that is done.
//!
//! All clocks are CLOCK_MONOTONIC, which processes share. It takes five minutes, and 9 GiB of memory; sizes for which
//! there is not enough are left out.

mod bare;
mod memory;
mod service;

use std::error::Error;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_bench::{Answer, Figure, Options, available_mib, milliseconds};

use bare::Way;
use memory::Source;
use service::{Manner, Subject};

const MIB: u64 = 1 << 20;

/// Each with how many rounds it takes.
const SIZES: [(u64, usize); 7] = [
    (MIB, 31),
    (4 * MIB, 31),
    (16 * MIB, 21),
    (64 * MIB, 11),
    (256 * MIB, 9),
    (1024 * MIB, 5),
    (4096 * MIB, 3),
];

const SIZES_QUICK: [(u64, usize); 5] =
    [(MIB, 9), (4 * MIB, 9), (16 * MIB, 7), (64 * MIB, 5), (256 * MIB, 3)];

/// When no further round begins, but the first ones of each size.
const TIME_MAX: Duration = Duration::from_secs(400);

/// What has to be free besides the state, once with the sender and once on its way.
const SPARE: u64 = 1024 * MIB;

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(about = "How long does state take from the old process to the new one?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is a service that has state.
    #[command(hide = true)]
    Serve { manner: Manner, source: String, bytes: u64 },
    /// Sends state without the library, to what its standard input is.
    #[command(hide = true)]
    Send { way: Way, source: String, bytes: u64 },
    /// Receives it from there.
    #[command(hide = true)]
    Receive { way: Way, bytes: u64 },
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { options, role } = Arguments::parse();
    match role {
        Some(Role::Serve { manner, source, bytes }) => service::serve(manner, source, bytes),
        Some(Role::Send { way, source, bytes }) => bare::send(way, &source, bytes),
        Some(Role::Receive { way, bytes }) => bare::receive(way, bytes),
        None => options.tell(&measure(&options)?),
    }
}

fn measure(options: &Options) -> Result<Answer, Box<dyn Error>> {
    let begun = Instant::now();
    let mut figures = Figures::new();
    let mut notes = Vec::new();
    let sizes = options.pick(&SIZES_QUICK[..], &SIZES[..]);
    let free = available_mib() * MIB;
    let has_room = |bytes: u64| 2 * bytes + SPARE <= free;
    for (bytes, _) in sizes.iter().filter(|(bytes, _)| !has_room(*bytes)) {
        notes.push(format!(
            "{} MiB of state were left out: that takes {} MiB of memory, of which {} were available.",
            bytes / MIB,
            (2 * bytes + SPARE) / MIB,
            free / MIB
        ));
    }
    let sizes: Vec<_> = sizes.iter().filter(|(bytes, _)| has_room(*bytes)).collect();
    let most = sizes.iter().map(|(bytes, _)| *bytes).max().ok_or("there is no memory at all")?;
    let source = Source::fill(most)?;
    for (bytes, rounds) in sizes {
        figures.take(&source, *bytes, *rounds, begun + TIME_MAX)?;
    }
    let Figures { written, built } = figures;
    Ok(Answer { figures: vec![written, built], tables: Vec::new(), notes })
}

struct Figures {
    written: Figure,
    built: Figure,
}

impl Figures {
    fn new() -> Self {
        let figure =
            |name, title| Figure::new(name, title, "ms").axis("MiB of state").floor("bare memfd");
        let written = figure("state", "Time until a state is in the new process");
        let built = figure("state-in-place", "The same, of a state that is built in place");
        Self { written, built }
    }

    /// Forgets what was measured at a size.
    fn forget(&mut self, at: f64) {
        let figures = [&mut self.written, &mut self.built];
        for subject in figures.into_iter().flat_map(|figure| &mut figure.subjects) {
            subject.points.retain(|point| point.at != at);
        }
    }

    /// Measures one size. The first round does not count.
    fn take(
        &mut self,
        source: &Source,
        bytes: u64,
        rounds: usize,
        deadline: Instant,
    ) -> Result<(), Box<dyn Error>> {
        let at = bytes as f64 / MIB as f64;
        let sum = source.sum(bytes);
        let subject = |manner| Subject::start(manner, source, bytes);
        let mut early = subject(Manner::Early)?;
        let mut late = subject(Manner::Late)?;
        let mut in_place = subject(Manner::InPlace)?;
        let bare = |way| bare::run(way, source, bytes, sum);
        for round in 0..=rounds {
            if round > 1 && Instant::now() > deadline {
                break;
            }
            // Memory that nobody has used for long, or ever, is slow to get: what comes first pays for all.
            if round == 1 {
                self.forget(at);
            }
            self.written.add("handover", at, milliseconds(early.upgrade(sum)?));
            self.written.add("handover, late", at, milliseconds(late.upgrade(sum)?));
            self.written.add("bare memfd", at, milliseconds(bare(Way::Memfd)?));
            self.written.add("pipe", at, milliseconds(bare(Way::Pipe)?));
            self.written.add("unix socket", at, milliseconds(bare(Way::Socket)?));
            self.built.add("handover", at, milliseconds(in_place.upgrade(sum)?));
            self.built.add("bare memfd", at, milliseconds(bare(Way::MemfdInPlace)?));
        }
        Ok(())
    }
}
