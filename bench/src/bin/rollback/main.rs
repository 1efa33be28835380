//! How long does nobody accept when a successor on probation crashes?
//!
//!     cargo run --release -p handover-bench --bin rollback
//!
//! Round by round, a service is upgraded and its successor, on probation, calls abort(3) while a
//! client connects again and again. A process with nothing in it does the same beside it. Timed is,
//! always from just before the call,
//!
//! 1. *bare, to its pidfd*: until this program is told by a pidfd that the bare process has ended,
//!    which is the floor: nobody can know before;
//! 2. *handover, to its pidfd*: the same of the successor, which has threads and memory to be
//!    taken down;
//! 3. *handover, to an accept*: until the predecessor has accepted the first connection.
//!
//! All clocks are CLOCK_MONOTONIC, which processes share. It takes some seconds.

#![allow(clippy::print_stdout, reason = "the service says what it does")]

mod service;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_bench::{Answer, Figure, Options, milliseconds, now};
use handover_testkit::process::{Pid, exited, signal};
use handover_testkit::{Launch, Resource, Service, Signal};

use service::DIE;

/// The floor.
const BARE: &str = "a bare process, to its pidfd";

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(about = "How long does nobody accept when a successor on probation crashes?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is a service.
    #[command(hide = true)]
    Serve,
    /// Is a process that ends.
    #[command(hide = true)]
    Bare,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Arguments { options, role } = Arguments::parse();
    match role {
        Some(Role::Serve) => service::serve(),
        Some(Role::Bare) => service::die_bare(),
        None => options.tell(&measure(options.pick(10, 50))),
    }
}

fn measure(rounds: usize) -> Answer {
    let subject = launch("serve");
    let address = wait(&subject, 0, "listening on ").parse().expect("an address");
    wait(&subject, 0, "serving ");
    let title = "From the crash of a successor on probation";
    let mut figure = Figure::new("rollback", title, "ms").floor(BARE);
    let mut add = |name, time: Duration| figure.add(name, 0.0, milliseconds(time));
    for _ in 0..rounds {
        add(BARE, bare());
        let (to_pidfd, to_accept) = crash(&subject, address);
        add("handover, to its pidfd", to_pidfd);
        add("handover, to an accept by the predecessor", to_accept);
    }
    Answer { figures: vec![figure], ..Answer::default() }
}

/// Ends a bare process, and returns how long that took to be known.
fn bare() -> Duration {
    let process = launch("bare");
    let end = watch(process.pid());
    let begun = nanoseconds(&wait(&process, 0, "dying "));
    end.join().expect("it does not panic") - begun
}

/// Upgrades, has the successor crash, and returns how long that took to be known, and to have the
/// predecessor accept.
fn crash(subject: &Service, address: SocketAddr) -> (Duration, Duration) {
    let (old, printed) = (subject.pid(), subject.line_count());
    signal(old, Signal::HUP);
    let new: Pid = wait(subject, printed, "serving ").parse().expect("a pid");
    let end = watch(new);
    assert!(ask(address, "who").is_some_and(|(pid, _)| pid == new), "the successor serves");
    ask(address, DIE);
    let accepted = loop {
        match ask(address, "who") {
            Some((pid, accepted)) if pid == old => break accepted,
            // It was accepted by the successor.
            Some(_) | None => {}
        }
    };
    let begun = nanoseconds(&wait(subject, printed, "dying "));
    let known = end.join().expect("it does not panic");
    wait(subject, printed, "rolled back");
    (known - begun, accepted - begun)
}

/// Tells when a process has ended.
fn watch(pid: Pid) -> thread::JoinHandle<Duration> {
    thread::spawn(move || {
        assert!(exited(pid, Instant::now() + TIMEOUT));
        now()
    })
}

/// Asks whoever accepts, and returns who that is and when it has accepted.
fn ask(address: SocketAddr, what: &str) -> Option<(Pid, Duration)> {
    let mut stream = TcpStream::connect(address).ok()?;
    writeln!(stream, "{what}").ok()?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).ok()?;
    let (pid, accepted) = answer.trim_end().split_once(' ')?;
    Some((pid.parse().ok()?, nanoseconds(accepted)))
}

fn launch(role: &str) -> Service {
    let program = std::env::current_exe().expect("this program has a path");
    Launch::of(program).arg(role).limit(Resource::Core, 0, 0).start()
}

/// Waits for a line that begins like this, and returns the rest of it.
fn wait(service: &Service, skip: usize, start: &str) -> String {
    let deadline = Instant::now() + TIMEOUT;
    let line = service.wait_line_after(skip, |line| line.starts_with(start), deadline);
    line.unwrap_or_else(|error| panic!("{error}"))[start.len()..].to_owned()
}

fn nanoseconds(text: &str) -> Duration {
    Duration::from_nanos(text.parse().expect("nanoseconds"))
}
