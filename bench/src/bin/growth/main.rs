//! Does an upgrade become slower with what has piled up?
//!
//!     cargo run --release -p handover-bench --bin growth
//!
//! A service is upgraded by its control socket, and timed is from the request to the verdict that it succeeded;
//! and how long it takes to be told its status. Meanwhile there are
//!
//! - *generations*: so many older ones that still drain, since each has a connection that does not end;
//! - *control clients*: so many that follow its events. Each is told of what happens, so that this cannot cost nothing.
//!
//! Listeners grow in `latency`, state in `state` and connections in `moving`.

#![allow(clippy::print_stdout, reason = "the service says what it does")]

use std::error::Error;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use handover::control::{Answer as Told, Client, Request, UpgradeRequest, VerdictOutcome};
use handover::{Handover, TcpListener};
use handover_bench::{Answer, Figure, Options, milliseconds};
use handover_testkit::{Folder, Launch, Service};

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longer than this program takes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Parser)]
#[command(about = "Does an upgrade become slower with what has piled up?")]
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
    Serve { control: PathBuf },
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { options, role } = Arguments::parse();
    match role {
        Some(Role::Serve { control }) => serve(&control),
        None => measure(&options),
    }
}

fn serve(control: &Path) -> Result<(), Box<dyn Error>> {
    let handover = Handover::builder()
        .control(control)
        .drain_timeout(DRAIN_TIMEOUT)
        .max_generations(1000)
        .start()?;
    let listener: TcpListener = handover.listen("service", "127.0.0.1:0")?;
    println!("listening on {}", listener.local_addr()?);
    let running = handover.ready()?;
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = std::io::Write::write_all(&mut connection, b"!");
                // Until its client ends it.
                let _ = connection.read(&mut [0]);
            });
        }
    });
    running.wait()?.drain()?;
    Ok(())
}

/// A service under test.
struct Subject {
    _service: Service,
    folder: Folder,
    address: SocketAddr,
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let rounds = options.pick(10, 50);
    let figure = |name, title, axis| Figure::new(name, title, "ms").axis(axis);
    let (generations, clients) = ("generations that drain", "control clients");
    let mut by_generations = figure("growth-generations", "An upgrade, and a status", generations);
    let mut by_clients = figure("growth-clients", "An upgrade, and a status", clients);
    for count in options.pick(vec![1, 4, 16], vec![1, 2, 4, 8, 16, 32, 64]) {
        let subject = Subject::start()?;
        let mut held: Vec<TcpStream> = Vec::new();
        for _ in 0..count {
            held.push(subject.connect()?);
            subject.upgrade()?;
        }
        for _ in 0..rounds {
            by_generations.add("an upgrade", count.into(), subject.upgrade()?);
            by_generations.add("a status", count.into(), subject.status(count)?);
        }
    }
    for count in options.pick(vec![1, 10, 50], vec![1, 2, 5, 10, 20, 50]) {
        let subject = Subject::start()?;
        for _ in 0..rounds {
            // They end with the process that they speak to.
            let followers = (0..count).map(|_| subject.follow()).collect::<Result<Vec<_>, _>>()?;
            by_clients.add("a status", count.into(), subject.status(0)?);
            let upgrade = subject.upgrade()?;
            by_clients.add("an upgrade", count.into(), upgrade);
            drop(followers);
        }
    }
    let figures = vec![by_generations, by_clients];
    options.tell(&Answer { figures, ..Answer::default() })
}

impl Subject {
    fn start() -> Result<Self, Box<dyn Error>> {
        let folder = Folder::create();
        let program = std::env::current_exe()?;
        let service = Launch::of(program).arg("serve").arg(folder.join("control")).start();
        let listening = |line: &str| line.starts_with("listening on ");
        let line = service.wait_line(listening, Instant::now() + TIMEOUT)?;
        let address = line["listening on ".len()..].parse()?;
        let subject = Self { _service: service, folder, address };
        subject.connect()?;
        Ok(subject)
    }

    /// Returns a connection that has been accepted.
    fn connect(&self) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.read_exact(&mut [0])?;
        Ok(stream)
    }

    fn client(&self) -> Result<Client, Box<dyn Error>> {
        Ok(Client::connect(self.folder.join("control"))?)
    }

    /// Upgrades, and returns how long that took, in milliseconds.
    fn upgrade(&self) -> Result<f64, Box<dyn Error>> {
        let mut client = self.client()?;
        let request = UpgradeRequest { wait: true, ..UpgradeRequest::default() };
        let begun = Instant::now();
        client.send(&Request::Upgrade(request))?;
        loop {
            match client.next_answer_within(Some(TIMEOUT))? {
                Some(Told::Verdict(told)) if told.outcome == VerdictOutcome::Succeeded => break,
                Some(Told::Verdict(told)) => return Err(format!("{told:?}").into()),
                Some(_) => {}
                None => return Err("no verdict".into()),
            }
        }
        Ok(milliseconds(begun.elapsed()))
    }

    /// Asks for the status, and returns how long that took, in milliseconds. It has to tell of as many that drain.
    fn status(&self, draining: u32) -> Result<f64, Box<dyn Error>> {
        let begun = Instant::now();
        let mut client = self.client()?;
        client.send(&Request::Status {})?;
        match client.next_answer_within(Some(TIMEOUT))? {
            Some(Told::Status(status)) if status.generations.len() > draining as usize => {
                Ok(milliseconds(begun.elapsed()))
            }
            other => Err(format!("{draining} drain, but {other:?}").into()),
        }
    }

    /// Returns a client that is told what happens; it is heard before any request that comes later.
    fn follow(&self) -> Result<Client, Box<dyn Error>> {
        let mut client = self.client()?;
        client.send(&Request::Events {})?;
        Ok(client)
    }
}
