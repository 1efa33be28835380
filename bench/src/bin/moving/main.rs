//! How long do 10,000 idle connections take to change hands?
//!
//!     cargo run --release -p handover-bench --bin moving
//!
//! Round by round, so that what else the machine does hits all alike, as many TCP connections go from one
//! process to another
//!
//! 1. *bare*: by a loop that has nothing to do but that: sendmsg(2) with SCM_RIGHTS of as many at a time as the
//!    library sends, a word back for each message, close(2). It is the floor of whoever does not lose a
//!    connection if one of the two dies;
//! 2. *bare, watched*: the same where both watch the connections with epoll(7), as whoever waits for
//!    something to come on them has to;
//! 3. *one by one*: as the first, one connection a message;
//! 4. *bare, in Tokio*: as the first, where each connection is a stream of Tokio's with a task that waits for something
//!    to come, before and after. What a service with Tokio takes at least;
//! 5. *handover*: by an upgrade of a service that echoes lines, with Tokio. Each connection has sent half a line,
//!    and has a state of 64 bytes; both go along, and are looked at afterwards. Timed is from the moment at
//!    which the old process stops accepting until the last one is the application's in the new one.
//!
//! Then as many connections each ask once a second, through some upgrades and without one. Told is how long the
//! answers took; the longest one is the pause.
//!
//! All clocks are CLOCK_MONOTONIC, which processes share. It takes about a minute.

#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod bare;
mod clients;
mod in_tokio;
mod service;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_testkit::process::{Pid, signal};
use handover_testkit::{Launch, Service, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use bare::Way;

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(30);

const WAYS: [Way; 4] = [Way::Batches, Way::Watched, Way::Single, Way::Tokio];

#[derive(Parser)]
#[command(about = "How long do 10,000 idle connections take to change hands?")]
struct Arguments {
    /// How many connections.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// How many rounds.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is a service.
    #[command(hide = true)]
    Serve,
    /// Gives connections, with a bare loop.
    #[command(hide = true)]
    Give { way: Way },
    /// Is the clients of that.
    #[command(hide = true)]
    Connect { address: SocketAddr },
    /// Takes them.
    #[command(hide = true)]
    Take { way: Way },
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { connections, rounds, role } = Arguments::parse();
    match role {
        Some(Role::Serve) => service::serve(connections),
        Some(Role::Give { way: Way::Tokio }) => in_tokio::give(connections),
        Some(Role::Take { way: Way::Tokio }) => in_tokio::take(connections),
        Some(Role::Give { way }) => bare::give(connections, way),
        Some(Role::Connect { address }) => bare::connect(connections, address),
        Some(Role::Take { way }) => bare::take(connections, way),
        None => measure(connections, rounds),
    }
}

fn measure(connections: usize, rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let mut times = [const { Vec::new() }; 5];
    let subject = launch(connections);
    let address = wait(&subject, 0, "listening on ").parse()?;
    let mut serves = wait(&subject, 0, "serving ").parse()?;
    let mut idle = clients::Idle::connect(address, connections)?;
    for _ in 0..rounds {
        for (way, times) in WAYS.into_iter().zip(&mut times) {
            times.push(bare::run(connections, way)?);
        }
        idle.begin_lines()?;
        times[4].push(upgrade(&subject, &mut serves));
        idle.end_lines()?;
    }
    drop(idle);
    println!("{connections} connections, {rounds} rounds");
    println!(
        "{:<16} {:>11} {:>11} {:>11} {:>9} {:>9}",
        "", "p50", "min", "max", "of bare", "of Tokio"
    );
    let floors = [0, 3].map(|floor| at(&mut times[floor], 0.5));
    let names = ["bare", "bare, watched", "one by one", "bare, in Tokio", "handover"];
    for (name, times) in names.into_iter().zip(&mut times) {
        let [median, least, most] = [0.5, 0.0, 1.0].map(|share| at(times, share));
        let [bare, tokio] = floors.map(|floor| median / floor);
        println!(
            "{name:<16} {median:>8.2} ms {least:>8.2} ms {most:>8.2} ms {bare:>8.2}x {tokio:>8.2}x"
        );
    }
    let asking = clients::Asking::start(address, connections)?;
    for (what, upgrades) in [("no upgrade", 0), ("5 upgrades", 5), ("no upgrade", 0)] {
        let begun = Instant::now();
        for _ in 0..upgrades {
            upgrade(&subject, &mut serves);
        }
        asking.ask_on(begun + Duration::from_secs(5));
        println!("{what}: {}", asking.take()?);
    }
    Ok(())
}

/// Upgrades, and returns how long the connections took.
fn upgrade(subject: &Service, serves: &mut Pid) -> Duration {
    let printed = subject.line_count();
    signal(*serves, Signal::HUP);
    *serves = wait(subject, printed, "serving ").parse().expect("a pid");
    let [left, first, last] =
        ["leaving ", "first ", "last "].map(|what| nanoseconds(&wait(subject, printed, what)));
    wait(subject, printed, "gone");
    last - left.min(first)
}

fn launch(connections: usize) -> Service {
    let program = std::env::current_exe().expect("this program has a path");
    let connections = connections.to_string();
    Launch::of(program).arg("--connections").arg(connections).arg("serve").start()
}

/// Waits for a line that begins like this, and returns the rest of it.
fn wait(service: &Service, skip: usize, start: &str) -> String {
    let deadline = Instant::now() + TIMEOUT;
    let line = service.wait_line_after(skip, |line| line.starts_with(start), deadline);
    line.unwrap_or_else(|error| panic!("{error}"))[start.len()..].to_owned()
}

/// The time on the clock that all processes share.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    time.try_into().expect("the machine has been up for a positive time")
}

fn nanoseconds(text: &str) -> Duration {
    Duration::from_nanos(text.trim().parse().expect("nanoseconds"))
}

/// The time that this share of all stays below, in milliseconds.
fn at(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let index = (times.len().saturating_sub(1) as f64 * share).round() as usize;
    times[index].as_secs_f64() * 1e3
}
