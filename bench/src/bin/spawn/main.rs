//! Does a service with a heap of 4 GiB upgrade as fast as one with none?
//!
//!     cargo run --release -p handover-bench --bin spawn
//!
//! Three services run at once, with heaps of 0, 1 and 4 GiB in pages of 4 KiB, all touched. Round
//! by round, so that what else the machine does hits all alike, each of them in turn
//!
//! 1. is upgraded by SIGHUP, and says what the library says of the time that took. The heap is
//!    that of the predecessor; the successor fills its own once the predecessor is gone, which is
//!    not timed;
//! 2. then starts, from the filled process, a small program by `std::process::Command` as it is,
//!    which is posix_spawn(3), and by the same with a `pre_exec` that does nothing, which is
//!    fork(2) and exec.
//!
//! *In the call* is the time until the call that starts the process returns: in both ways that is
//! when the program is executed. *To its first word* is the time from before the call until the
//! new process reads the clock as the first thing in main, or, in an upgrade, until the library's
//! first message from there has arrived. *In total* is from the request to the successor's word
//! that it accepts. All clocks are CLOCK_MONOTONIC, which processes share.
//!
//! The floor is posix_spawn with the same heap. It takes about a minute, and 7 GiB of memory.

#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod memory;
mod service;
mod table;

use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_testkit::process::{Pid, signal};
use handover_testkit::{Launch, Service, Signal};

use table::Samples;

const GIB: u64 = 1 << 30;

const HEAPS: [u64; 3] = [0, GIB, 4 * GIB];

/// All heaps, and some air.
const NEEDED_BYTES: u64 = 7 * GIB;

/// No round begins after this.
const TIME_MAX: Duration = Duration::from_secs(35);

const ROUNDS_MAX: usize = 20;

const ROUNDS_QUICK: usize = 3;

/// How long a service may take to fill its heap.
const FILL_TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Parser)]
#[command(about = "Does a service with a heap of 4 GiB upgrade as fast as one with none?")]
struct Arguments {
    /// Take three rounds only.
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is a service with a heap.
    #[command(hide = true)]
    Serve { heap_bytes: u64 },
    /// Says when it began.
    #[command(hide = true)]
    First { nanoseconds: Option<u64> },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let began = service::now();
    if std::env::args().nth(1).as_deref() == Some("first") {
        println!("{}", began.as_nanos());
        return Ok(());
    }
    let Arguments { quick, role } = Arguments::parse();
    match role {
        Some(Role::Serve { heap_bytes }) => service::serve(heap_bytes),
        Some(Role::First { .. }) => Ok(()),
        None => {
            measure(quick);
            Ok(())
        }
    }
}

fn measure(quick: bool) {
    let available = available_bytes();
    if available < NEEDED_BYTES {
        println!("SKIPPED: 7 GiB of free memory are needed, there are {}", available / GIB);
        return;
    }
    let mut samples = Samples::default();
    let mut services: Vec<_> = HEAPS.into_iter().map(Loaded::start).collect();
    let begun = Instant::now();
    let rounds = if quick { ROUNDS_QUICK } else { ROUNDS_MAX };
    let mut done = 0;
    while done < rounds && begun.elapsed() < TIME_MAX {
        for service in &mut services {
            service.round(&mut samples);
        }
        done += 1;
    }
    println!("{done} rounds in {:.0?}", begun.elapsed());
    print!("{samples}");
}

/// A service and its heap.
struct Loaded {
    service: Service,
    heap_bytes: u64,
    pid: Pid,
}

impl Loaded {
    fn start(heap_bytes: u64) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let service = Launch::of(program).args(["serve", &heap_bytes.to_string()]).start();
        let mut loaded = Self { pid: service.pid(), service, heap_bytes };
        loaded.wait_measured(0);
        loaded
    }

    /// Upgrades it, and takes down what both generations print.
    fn round(&mut self, samples: &mut Samples) {
        let printed = self.service.line_count();
        signal(self.pid, Signal::HUP);
        self.wait_measured(printed);
        for line in &self.service.lines()[printed..] {
            samples.take(self.heap_bytes, &line.text);
        }
    }

    fn wait_measured(&mut self, printed: usize) {
        let deadline = Instant::now() + FILL_TIMEOUT;
        let measured = |line: &str| line.starts_with("measured ");
        let line = self.service.wait_line_after(printed, measured, deadline);
        let line = line.unwrap_or_else(|error| panic!("{error}"));
        self.pid = line["measured ".len()..].parse().expect("a pid");
    }
}

fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}
