//! How long do idle connections take to change hands?
//!
//!     cargo run --release -p handover-bench --bin moving
//!
//! 100, 1000 and 10 000 TCP connections go from one process to another, round by round, so that what else the machine does
//! hits all alike,
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

#![allow(clippy::print_stdout, reason = "the service says what it does")]

mod bare;
mod clients;
mod in_tokio;
mod service;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_bench::{Answer, Figure, Options, Table, milliseconds};
use handover_testkit::process::{Pid, signal};
use handover_testkit::{Launch, Service, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use bare::Way;

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(30);

const WAYS: [Way; 4] = [Way::Batches, Way::Watched, Way::Single, Way::Tokio];

const NAMES: [&str; 4] = ["bare", "bare, watched", "one by one", "bare, in Tokio"];

/// As many as the limit on open files allows on most systems, at both ends.
const MOST: usize = 10_000;

#[derive(Parser)]
#[command(about = "How long do idle connections take to change hands?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// How many connections a child has.
    #[arg(long, hide = true, default_value_t = 0)]
    connections: usize,
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
    let Arguments { options, connections, role } = Arguments::parse();
    match role {
        Some(Role::Serve) => service::serve(connections),
        Some(Role::Give { way: Way::Tokio }) => in_tokio::give(connections),
        Some(Role::Take { way: Way::Tokio }) => in_tokio::take(connections),
        Some(Role::Give { way }) => bare::give(connections, way),
        Some(Role::Connect { address }) => bare::connect(connections, address),
        Some(Role::Take { way }) => bare::take(connections, way),
        None => measure(&options),
    }
}

fn measure(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    let sizes = options.pick(vec![100, 1000], vec![100, 1000, MOST]);
    let rounds = options.pick(3, 10);
    let title = "Connections change hands";
    let mut figure = Figure::new("moving", title, "ms").axis("connections").floor(NAMES[3]);
    for connections in sizes {
        let subject = launch(connections);
        let address = wait(&subject, 0, "listening on ").parse()?;
        let mut serves = wait(&subject, 0, "serving ").parse()?;
        let mut idle = clients::Idle::connect(address, connections)?;
        for _ in 0..rounds {
            let mut add = |name, time: Duration| {
                figure.add(name, connections as f64, milliseconds(time));
            };
            for (way, name) in WAYS.into_iter().zip(NAMES) {
                add(name, bare::run(connections, way)?);
            }
            idle.begin_lines()?;
            add("handover", upgrade(&subject, &mut serves));
            idle.end_lines()?;
        }
    }
    let pauses = pauses(options.pick(1000, MOST))?;
    options.tell(&Answer { figures: vec![figure], tables: vec![pauses], notes: Vec::new() })
}

/// How long clients wait for answers that ask once a second each, through upgrades.
fn pauses(connections: usize) -> Result<Table, Box<dyn std::error::Error>> {
    let subject = launch(connections);
    let address = wait(&subject, 0, "listening on ").parse()?;
    let mut serves = wait(&subject, 0, "serving ").parse()?;
    let asking = clients::Asking::start(address, connections)?;
    // Let all of them begin.
    asking.ask_on(Instant::now() + clients::EVERY * 2);
    asking.take()?;
    let mut rows = Vec::new();
    for (what, upgrades) in [("no upgrade", 0), ("5 upgrades", 5), ("no upgrade", 0)] {
        let begun = Instant::now();
        for _ in 0..upgrades {
            upgrade(&subject, &mut serves);
        }
        asking.ask_on(begun + clients::EVERY * 5);
        rows.push([vec![what.to_owned()], asking.take()?.cells()].concat());
    }
    let title = format!("{connections} connections, each of which asks once a second, for 5 s, ms");
    let head = ["", "answers", "p50", "p99.9", "longest"].map(str::to_owned).into();
    Ok(Table { title, head, rows })
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

fn nanoseconds(text: &str) -> Duration {
    Duration::from_nanos(text.trim().parse().expect("nanoseconds"))
}
