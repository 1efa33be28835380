//! Does it cost anything to accept through the library?
//!
//!     cargo run --release -p handover-bench --bin accept
//!
//! A server of one thread accepts so many connections, answers each with one byte, closes it, and exits. It is held
//! against one without the library that does the same:
//!
//! - blocking: [`handover::TcpListener`] against [`std::net::TcpListener`], which is the floor, and whose accept nobody
//!   can end; and against *std, can be ended*, which does what takes the fewest system calls for that: accept4(2) of a
//!   listener that does not block and, if there was nothing, poll(2) of it and of another descriptor;
//! - in Tokio, on a runtime of one thread: `handover::tokio::TcpListener` against [`tokio::net::TcpListener`], the
//!   floor, and against the stream that ecdysis makes of one. That is a program of its own, see `bench/peers`.
//!
//! All of them accept close-on-exec, leave TCP_NODELAY and other options as they are, take the client's address from
//! accept4(2), write with the same call, and close by dropping the connection before they accept the next one. No
//! upgrade happens, as in the life of a service between two of them.
//!
//! The client has a process and, where there are two, a processor of its own, and the server another one. It has so
//! many connections at a time: it makes one, and then waits for the oldest one's byte and resets it, so that nothing
//! stays behind in the kernel. With one at a time the server finds its queue empty after each accept, and sleeps; with
//! many it finds the next one there whenever it is the slower of the two.
//!
//! Round by round each server is started anew, so that what else the machine does hits all alike. *Time* is from the first
//! connection accepted to the last, *processor time* is what the server's process used meanwhile, in itself and in the
//! kernel. Both are divided by the number of connections. Where the client is the slower one, time is its time, and
//! processor time tells more.
//!
//! *Instructions* are those in user space: the server runs in Callgrind, of Valgrind, once for few connections and
//! once for many, and the difference is divided by that of the numbers. The kernel's are not seen. It is the one figure
//! that nothing else on the machine touches; there is one sample.
//!
//! It takes about two minutes.

mod clients;
mod instructions;
mod servers;

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover_bench::{Answer, Figure, Options};
use handover_testkit::{Finished, Launch};

use clients::Processors;
use servers::Server;

/// How many connections there are at a time, with how many are accepted.
const PLACES: [(usize, u64); 2] = [(1, 4_000), (16, 20_000)];

const ROUNDS: usize = 13;

const ROUNDS_QUICK: usize = 3;

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(about = "Does it cost anything to accept through the library?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is to the one that people start.
#[derive(Subcommand)]
enum Role {
    /// Is a server that accepts so many.
    #[command(hide = true)]
    Accept {
        server: Server,
        connections: u64,
        /// Looks at no clock, and says nothing of the time.
        #[arg(long)]
        untimed: bool,
    },
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { options, role } = Arguments::parse();
    match role {
        Some(Role::Accept { server, connections, untimed }) => {
            servers::accept(server, connections, !untimed)
        }
        None => options.tell(&measure(&options)?),
    }
}

/// The servers that are held against one another.
struct Group {
    name: &'static str,
    title: &'static str,
    floor: &'static str,
    servers: Vec<(&'static str, Program)>,
}

/// How a server is started.
enum Program {
    /// By this program.
    Own(Server),
    /// By another.
    Peer(PathBuf),
}

impl Program {
    fn command(&self, connections: u64) -> Result<Vec<String>, Box<dyn Error>> {
        let connections = connections.to_string();
        Ok(match self {
            Self::Own(server) => {
                let own = std::env::current_exe()?;
                vec![own.display().to_string(), "accept".into(), server.word(), connections]
            }
            Self::Peer(path) => vec![path.display().to_string(), connections],
        })
    }
}

fn measure(options: &Options) -> Result<Answer, Box<dyn Error>> {
    let mut notes = Vec::new();
    let groups = groups(&mut notes);
    let processors = Processors::choose();
    notes.extend(processors.note());
    let mut figures: Vec<_> = groups.iter().map(Figures::new).collect();
    for _ in 0..options.pick(ROUNDS_QUICK, ROUNDS) {
        for (group, figures) in groups.iter().zip(&mut figures) {
            figures.round(group, &processors)?;
        }
    }
    match instructions::version() {
        Some(version) => {
            let counts = instructions::count(&groups, options)?;
            for (figures, counts) in figures.iter_mut().zip(counts) {
                figures.instructions = Some(counts);
            }
            notes.push(format!("Instructions were counted by {version}."));
        }
        None => notes.push("No instructions were counted: there is no Valgrind.".into()),
    }
    let figures = figures.into_iter().flat_map(Figures::into_vec).collect();
    Ok(Answer { figures, tables: Vec::new(), notes })
}

fn groups(notes: &mut Vec<String>) -> [Group; 2] {
    let blocking = Group {
        name: "blocking",
        title: "accepted by a thread",
        floor: "std",
        servers: vec![
            ("handover", Program::Own(Server::Handover)),
            ("std", Program::Own(Server::Std)),
            ("std, can be ended", Program::Own(Server::StdEndable)),
        ],
    };
    let mut tokio = Group {
        name: "tokio",
        title: "accepted in Tokio",
        floor: "tokio",
        servers: vec![
            ("handover", Program::Own(Server::HandoverTokio)),
            ("tokio", Program::Own(Server::Tokio)),
        ],
    };
    match ecdysis() {
        Some(path) => tokio.servers.push(("ecdysis", Program::Peer(path))),
        None => notes.push(
            "ecdysis was left out: `cargo build --release -p ecdysis-accept` in bench/peers builds it."
                .into(),
        ),
    }
    [blocking, tokio]
}

fn ecdysis() -> Option<PathBuf> {
    let peers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers");
    Some(peers.join("target/release/ecdysis-accept")).filter(|path| path.is_file())
}

/// What is measured of a group.
struct Figures {
    time: Figure,
    processor: Figure,
    instructions: Option<Figure>,
}

impl Figures {
    fn new(group: &Group) -> Self {
        let time = figure(group, "accept", "Time of a connection", "µs");
        let processor = figure(group, "accept-processor", "Processor time of a connection", "µs");
        Self { time, processor, instructions: None }
    }

    fn round(&mut self, group: &Group, processors: &Processors) -> Result<(), Box<dyn Error>> {
        for (at_a_time, connections) in PLACES {
            for (name, program) in &group.servers {
                let command = program.command(connections)?;
                let finished = serve(&command, connections, at_a_time, processors)?;
                let [time, processor] = times(&finished)?;
                let each = |time: Duration| time.as_secs_f64() * 1e6 / (connections - 1) as f64;
                self.time.add(name, at_a_time as f64, each(time));
                self.processor.add(name, at_a_time as f64, each(processor));
            }
        }
        Ok(())
    }

    fn into_vec(self) -> Vec<Figure> {
        [self.time, self.processor].into_iter().chain(self.instructions).collect()
    }
}

fn figure(group: &Group, name: &str, what: &str, unit: &str) -> Figure {
    Figure::new(&format!("{name}-{}", group.name), &format!("{what} {}", group.title), unit)
        .axis("connections at a time")
        .floor(group.floor)
}

/// Starts a server, connects to it until it ends, and returns what it has printed.
fn serve(
    command: &[String],
    connections: u64,
    at_a_time: usize,
    processors: &Processors,
) -> Result<Finished, Box<dyn Error>> {
    let service = processors.start(Launch::of(&command[0]).args(&command[1..]))?;
    let deadline = || Instant::now() + TIMEOUT;
    let listens = service.wait_line(|line| line.starts_with("listening "), deadline());
    let listens = listens.map_err(|error| error.to_string())?;
    let address = listens["listening ".len()..].parse()?;
    let connected = clients::connect(address, connections, at_a_time);
    let finished = service.finish(deadline()).map_err(|error| error.to_string())?;
    match connected {
        Ok(()) if finished.status.success() => Ok(finished),
        Ok(()) => Err(format!("{command:?} failed: {}", finished.stderr()).into()),
        Err(error) => Err(format!("{command:?}: {error}; {}", finished.stderr()).into()),
    }
}

/// The time of all connections, and that on a processor.
fn times(finished: &Finished) -> Result<[Duration; 2], Box<dyn Error>> {
    let stdout = finished.stdout();
    let took = stdout.lines().find_map(|line| line.strip_prefix("took "));
    let (time, processor) = took.and_then(|took| took.split_once(' ')).ok_or("no times")?;
    let nanoseconds = |text: &str| text.parse().map(Duration::from_nanos);
    Ok([nanoseconds(time)?, nanoseconds(processor)?])
}
