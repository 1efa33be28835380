//! Servers that accept so many connections, and exit.

use std::error::Error;
use std::io::{ErrorKind, Write as _};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use handover::Handover;
use handover_bench::now;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::{Builder, Runtime};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Server {
    Handover,
    HandoverTokio,
    Std,
    StdEndable,
    Tokio,
}

impl Server {
    /// The word for it on a command line.
    pub(crate) fn word(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

const ADDRESS: &str = "127.0.0.1:0";

const ANSWER: &[u8] = b"x";

/// Is a server.
pub(crate) fn accept(server: Server, connections: u64, timed: bool) -> Result<(), Box<dyn Error>> {
    let meter = Meter { left: connections, timed, first: None };
    match server {
        Server::Handover => handover(meter),
        Server::HandoverTokio => runtime()?.block_on(handover_in_tokio(meter)),
        Server::Std => in_thread(|| std(meter)),
        Server::StdEndable => in_thread(|| std_endable(meter)),
        Server::Tokio => runtime()?.block_on(in_tokio(meter)),
    }
}

fn handover(mut meter: Meter) -> Result<(), Box<dyn Error>> {
    let handover = Handover::builder().start()?;
    let listener: handover::TcpListener = handover.listen("clients", ADDRESS)?;
    println!("listening {}", listener.local_addr()?);
    let running = handover.ready()?;
    let handle = running.handle();
    let accepting = thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection?;
            meter.accepted();
            connection.write_all(ANSWER)?;
            drop(connection);
            if meter.is_done() {
                break;
            }
        }
        drop(listener);
        handle.stop();
        Ok::<_, std::io::Error>(())
    });
    running.wait()?.drain()?;
    accepting.join().map_err(|_| "the thread panicked")?.map_err(Into::into)
}

/// Accepts in a thread beside the main one, as a server with the library does: libc is faster where there is one only.
fn in_thread(
    accept: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<(), Box<dyn Error>> {
    thread::spawn(accept).join().map_err(|_| "the thread panicked")?.map_err(Into::into)
}

fn std(mut meter: Meter) -> std::io::Result<()> {
    let listener = TcpListener::bind(ADDRESS)?;
    println!("listening {}", listener.local_addr()?);
    while !meter.is_done() {
        let mut connection = listener.accept()?.0;
        meter.accepted();
        connection.write_all(ANSWER)?;
    }
    Ok(())
}

fn std_endable(mut meter: Meter) -> std::io::Result<()> {
    let listener = TcpListener::bind(ADDRESS)?;
    listener.set_nonblocking(true)?;
    let end = eventfd(0, EventfdFlags::CLOEXEC)?;
    println!("listening {}", listener.local_addr()?);
    while !meter.is_done() {
        let mut connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let watched = [listener.as_fd(), end.as_fd()];
                poll(&mut watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)), None)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        meter.accepted();
        connection.write_all(ANSWER)?;
    }
    Ok(())
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

async fn handover_in_tokio(mut meter: Meter) -> Result<(), Box<dyn Error>> {
    let handover = Handover::builder().start()?;
    let listener: handover::tokio::TcpListener = handover.listen("clients", ADDRESS)?;
    println!("listening {}", listener.local_addr()?);
    let running = handover::tokio::ready(handover).await?;
    while !meter.is_done() {
        let (mut connection, _) = listener.accept().await?.ok_or("it has ended")?;
        meter.accepted();
        connection.write_all(ANSWER).await?;
    }
    drop(listener);
    running.handle().stop();
    running.drain().await?;
    Ok(())
}

async fn in_tokio(mut meter: Meter) -> Result<(), Box<dyn Error>> {
    let listener = tokio::net::TcpListener::bind(ADDRESS).await?;
    println!("listening {}", listener.local_addr()?);
    while !meter.is_done() {
        let (mut connection, _) = listener.accept().await?;
        meter.accepted();
        connection.write_all(ANSWER).await?;
    }
    Ok(())
}

/// Counts connections, and tells how long they took.
struct Meter {
    left: u64,
    /// Whether it looks at any clock.
    timed: bool,
    first: Option<Times>,
}

impl Meter {
    /// To be called when one has been accepted, before anything else.
    fn accepted(&mut self) {
        self.left -= 1;
        if !self.timed {
            return;
        }
        match &self.first {
            None => self.first = Some(Times::now()),
            Some(first) if self.left == 0 => {
                let last = Times::now();
                let time = last.time - first.time;
                let processor = last.processor - first.processor;
                println!("took {} {}", time.as_nanos(), processor.as_nanos());
            }
            Some(_) => {}
        }
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }
}

struct Times {
    time: Duration,
    /// Of this process.
    processor: Duration,
}

impl Times {
    fn now() -> Self {
        let processor = clock_gettime(ClockId::ProcessCPUTime).try_into();
        Self { time: now(), processor: processor.expect("it is not negative") }
    }
}
