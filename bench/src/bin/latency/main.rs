//! How long does an upgrade take, as the clients see it?
//!
//!     cargo run --release -p handover-bench --bin latency
//!
//! Servers that answer the same are upgraded, round by round one after the other, with 1, 100, 1000 and 10 000 listeners,
//! while one client asks without a pause, each time on a new connection to the first listener. The answers
//! tell the generations apart. Timed is, from the moment at which the server is told to upgrade (its signal is sent),
//!
//! 1. until a new generation has first answered. A server that hands over late has a large number here, and nobody
//!    waits for it: the old one answers meanwhile;
//! 2. the longest time that one of the answers took, from connecting to the last byte, in 0.6 s from then on: the pause that
//!    a client sees. That is as long for all, and as long as the slowest of them takes to be done; *no upgrade* is the same
//!    of a server that is not told to upgrade, since a busy machine has pauses of its own;
//! 3. for how long both generations accept: from the first answer of the new one until the last connection was begun that
//!    the old one has answered. 0 if they do not;
//! 4. until the old process (or worker) has gone; no client holds a connection.
//!
//! The servers are those of `bench/peers/`, with Tokio and hyper all of them, and nginx and HAProxy as Debian has
//! them. The floor is `bare`, which spawns, sends the listeners, waits for a word, and does nothing else.

#![allow(clippy::print_stderr, reason = "it takes minutes: a word on how far it is")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;
use handover_bench::{
    Answer, Asked, Figure, Hammer, Kind, Options, Server, Setup, milliseconds, now, versions,
};

/// How long an upgrade may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asked for so long before.
const MARGIN: Duration = Duration::from_millis(100);

/// Looked at for so long, and until the old process has gone.
const WINDOW: Duration = Duration::from_millis(600);

/// The subject that is not upgraded.
const NO_UPGRADE: &str = "no upgrade";

#[derive(Parser)]
#[command(about = "How long does an upgrade take, as the clients see it?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Only with as many listeners.
    #[arg(long)]
    listeners: Option<u32>,
}

/// What one upgrade was like, in milliseconds.
struct Upgrade {
    first: f64,
    longest: f64,
    both: f64,
    whole: f64,
    unanswered: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { options, listeners } = Arguments::parse();
    let mut sizes =
        options.pick(vec![(1, 5), (1000, 3)], vec![(1, 21), (100, 11), (1000, 7), (10_000, 5)]);
    if let Some(listeners) = listeners {
        sizes.retain(|(size, _)| *size == listeners);
    }
    let figure = |name, title| Figure::new(name, title, "ms").axis("listeners").floor("bare");
    let mut figures = [
        figure("latency-first", "From the signal to the first answer of the new generation"),
        figure("latency-longest", "The longest answer meanwhile"),
        figure("latency-both", "Both generations accept"),
        figure("latency-whole", "From the signal to the end of the old process"),
    ];
    let mut notes: Vec<String> = Kind::ALL.into_iter().filter_map(Kind::missing).collect();
    let mut lost: BTreeMap<(&str, u32), usize> = BTreeMap::new();
    for (listeners, rounds) in sizes {
        eprintln!("{listeners} listeners, {rounds} rounds");
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.missing().is_none());
        let mut servers = Vec::new();
        for kind in kinds {
            match Server::start(kind, Setup { listeners, heap_mib: 0 }) {
                Ok(server) => servers.push((kind, server)),
                Err(error) => notes.push(format!(
                    "{} does not start with {listeners} listeners; the last that it says is `{error}`.",
                    kind.name()
                )),
            }
        }
        for _ in 0..rounds {
            servers.retain_mut(|(kind, server)| match upgrade(server) {
                Ok(upgrade) => {
                    let Upgrade { first, longest, both, whole, unanswered } = upgrade;
                    for (figure, sample) in figures.iter_mut().zip([first, longest, both, whole]) {
                        figure.add(kind.name(), listeners.into(), sample);
                    }
                    *lost.entry((kind.name(), listeners)).or_default() += unanswered;
                    true
                }
                Err(error) => {
                    notes.push(format!(
                        "{} was not upgraded with {listeners} listeners, and is left out from then on: {error}",
                        kind.name()
                    ));
                    false
                }
            });
            if let Some((_, server)) = servers.first() {
                figures[1].add(NO_UPGRADE, listeners.into(), without_upgrade(server));
            }
            // Nobody is the first each time.
            let turn = servers.len().min(1);
            servers.rotate_left(turn);
        }
    }
    let lost = lost.into_iter().filter(|(_, lost)| *lost > 0);
    notes.extend(lost.map(|((name, listeners), lost)| {
        format!(
            "Not answered by {name} with {listeners} listeners, in all upgrades: {lost} requests."
        )
    }));
    notes.push(format!("{}.", versions().join("; ")));
    options.tell(&Answer { figures: figures.into(), tables: Vec::new(), notes })
}

fn upgrade(server: &mut Server) -> Result<Upgrade, Box<dyn Error>> {
    let before = server.ask()?;
    let old = server.prepare()?;
    let (heard, news) = std::sync::mpsc::channel();
    let client = Hammer::start(server.address(), move |answer| {
        // Nobody listens any more once the new one has answered.
        let _ = heard.send(answer);
    });
    std::thread::sleep(MARGIN);
    let told = now();
    server.upgrade(&old)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match news.recv_timeout(left) {
            Ok(answer) if answer != before => break,
            Ok(_) => {}
            Err(_) => return Err("no other generation has answered".into()),
        }
    }
    let is_gone = old.is_gone(deadline);
    let gone = now();
    std::thread::sleep((told + WINDOW).saturating_sub(gone));
    let asked = client.stop();
    if !is_gone {
        return Err("the old one does not end".into());
    }
    let of_new = |asked: &&Asked| asked.answer.is_some_and(|answer| answer != before);
    let of_old = |asked: &&Asked| asked.answer == Some(before);
    let first = asked.iter().find(of_new).ok_or("no other generation has answered")?.to;
    let last_of_old = asked.iter().filter(of_old).map(|asked| asked.from).max().unwrap_or(first);
    Ok(Upgrade {
        first: milliseconds(first.saturating_sub(told)),
        longest: longest(&asked, told),
        both: milliseconds(last_of_old.saturating_sub(first)),
        whole: milliseconds(gone - told),
        unanswered: asked.iter().filter(|asked| asked.answer.is_none()).count(),
    })
}

/// The longest answer of a server in as long a time without an upgrade.
fn without_upgrade(server: &Server) -> f64 {
    let client = Hammer::start(server.address(), |_| {});
    std::thread::sleep(MARGIN);
    let begun = now();
    std::thread::sleep(WINDOW);
    longest(&client.stop(), begun)
}

/// The longest of the answers that came, or were under way, in the window from then on, in milliseconds.
fn longest(asked: &[Asked], from: Duration) -> f64 {
    let inside = asked.iter().filter(|asked| asked.to > from && asked.from < from + WINDOW);
    milliseconds(inside.map(|asked| asked.to - asked.from).max().unwrap_or_default())
}
