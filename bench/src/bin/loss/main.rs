//! What do the clients lose, and how long do they wait?
//!
//!     cargo run --release -p handover-bench --bin loss
//!
//! `handover verify` puts servers under load that answer the same, upgrades them again and again, and accounts for
//! every request: new connections at a fixed rate, and ten that are kept and ask every 100 ms. One server after the
//! other, in rounds. Told are
//!
//! - the requests that were lost, and how many of them were cut off in the midst of an answer;
//! - the kept connections that were closed without a word while nobody asked, which a client finds out with its
//!   next request, and not every client may send that again;
//! - how long answers took to their last byte, for those under way from the asking for an upgrade until half a second
//!   after another generation answered (*inside*), and for all others.
//!
//! At 100 and 1000 new connections a second, and at the highest rate at which the floor still answers nearly all in
//! 10 ms, which is found first: the load and the server share the cores. And at 1000 with a heap of 4 GiB in the process
//! that is replaced, where a server can have one, from a fresh process each time.

#![allow(clippy::print_stderr, reason = "it takes minutes: a word on how far it is")]

use std::collections::BTreeMap;
use std::error::Error;
use std::process::{Command, Stdio};

use clap::Parser;
use handover_bench::{Answer, Figure, Kind, Options, Server, Setup, Table, quantile};
use serde::Deserialize;

/// A rate is too high if one of a thousand answers takes longer.
const SLOW_US: u64 = 10_000;

const HEAP_MIB: u64 = 4096;

#[derive(Parser)]
#[command(about = "What do the clients lose, and how long do they wait?")]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// What `handover verify --json` says, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Report {
    upgrades_done: u64,
    requests: u64,
    lost: u64,
    lost_by_kind: BTreeMap<String, u64>,
    idle_closed: u64,
    latency_us_upgrade: Quantiles,
    latency_us_rest: Quantiles,
}

#[derive(Debug, Deserialize)]
struct Quantiles {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// How a server is loaded.
#[derive(Clone, Copy)]
struct Load {
    rate: u32,
    upgrades: u32,
    every_ms: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { options } = Arguments::parse();
    let mut answer = Answer::default();
    answer.notes.extend(Kind::ALL.into_iter().filter_map(Kind::missing));
    let mut lost = Figure::new("loss", "Requests lost in a thousand upgrades", "requests");
    let highest = if options.quick { None } else { Some(highest_rate()?) };
    let rates = options.pick(vec![1000], vec![100, 1000]).into_iter().chain(highest);
    for rate in rates {
        let load = Load { rate, upgrades: options.pick(3, 10), every_ms: 1000 };
        let mut runs: BTreeMap<usize, Vec<Report>> = BTreeMap::new();
        for round in 0..options.pick(1, 2) {
            eprintln!("{rate} connections a second, round {round}");
            for (number, kind) in present().enumerate() {
                let server = Server::start(kind, Setup { listeners: 1, heap_mib: 0 })?;
                runs.entry(number).or_default().push(verify(&server, load)?);
            }
        }
        for (number, kind) in present().enumerate() {
            for run in &runs[&number] {
                let share = run.lost as f64 / run.upgrades_done.max(1) as f64;
                lost.add(kind.name(), 0.0, share * 1000.0);
            }
        }
        let title = format!("{rate} new connections a second");
        answer.tables.push(table(title, present(), &runs));
    }
    if handover_bench::available_mib() < HEAP_MIB + 2048 {
        answer.notes.push("No heap of 4 GiB: there is not enough memory.".to_owned());
    } else if !options.quick {
        let load = Load { rate: 1000, upgrades: 1, every_ms: 1500 };
        let mut runs: BTreeMap<usize, Vec<Report>> = BTreeMap::new();
        for round in 0..5 {
            eprintln!("a heap of {HEAP_MIB} MiB, round {round}");
            for (number, kind) in present().filter(|kind| kind.has_heap()).enumerate() {
                let server = Server::start(kind, Setup { listeners: 1, heap_mib: HEAP_MIB })?;
                runs.entry(number).or_default().push(verify(&server, load)?);
            }
        }
        let title = "1000 new connections a second, and a heap of 4 GiB".to_owned();
        answer.tables.push(table(title, present().filter(|kind| kind.has_heap()), &runs));
    }
    // Of all loads together: the mean, which is what bars show of one sample.
    for subject in &mut lost.subjects {
        for point in &mut subject.points {
            let mean = point.samples.iter().sum::<f64>() / point.samples.len() as f64;
            point.samples = vec![mean];
        }
    }
    answer.figures.push(lost);
    options.tell(&answer)
}

fn present() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.missing().is_none())
}

/// The highest of some rates that the floor still bears.
fn highest_rate() -> Result<u32, Box<dyn Error>> {
    let server = Server::start(Kind::Bare, Setup { listeners: 1, heap_mib: 0 })?;
    let mut highest = 1000;
    for rate in [2000, 3000, 4000, 6000, 8000, 10_000, 12_000] {
        let report = verify(&server, Load { rate, upgrades: 1, every_ms: 2000 })?;
        if report.lost > 0 || report.latency_us_rest.p999 > SLOW_US {
            break;
        }
        highest = rate;
    }
    Ok(highest)
}

fn verify(server: &Server, load: Load) -> Result<Report, Box<dyn Error>> {
    let program = std::env::current_exe()?.with_file_name("handover");
    let output = Command::new(program)
        .args(["verify", "--json", "--url", &format!("http://{}/", server.address())])
        .args(["--upgrade", &server.upgrade_command()])
        .args(["--rate", &load.rate.to_string(), "--upgrades", &load.upgrades.to_string()])
        .args(["--every", &format!("{}ms", load.every_ms)])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|error| {
        format!("verify: {error}: {text}{}", String::from_utf8_lossy(&output.stderr)).into()
    })
}

fn table(
    title: String,
    kinds: impl Iterator<Item = Kind>,
    runs: &BTreeMap<usize, Vec<Report>>,
) -> Table {
    let head = [
        "",
        "upgrades",
        "requests",
        "lost",
        "of these cut",
        "idle closed",
        "p50 / p99 / p99.9 / max inside, ms",
        "outside, ms",
        "p99.9 inside, of outside",
    ];
    let rows = kinds.enumerate().map(|(number, kind)| {
        let runs = &runs[&number];
        let sum = |of: fn(&Report) -> u64| runs.iter().map(of).sum::<u64>().to_string();
        let inside = of_all(runs, |run| &run.latency_us_upgrade);
        let outside = of_all(runs, |run| &run.latency_us_rest);
        let shown = |quantiles: [f64; 4]| quantiles.map(|ms| format!("{ms:.2}")).join(" / ");
        vec![
            kind.name().to_owned(),
            sum(|run| run.upgrades_done),
            sum(|run| run.requests),
            sum(|run| run.lost),
            sum(|run| run.lost_by_kind.get("cut").copied().unwrap_or_default()),
            sum(|run| run.idle_closed),
            shown(inside),
            shown(outside),
            format!("{:.2}×", inside[2] / outside[2]),
        ]
    });
    Table { title, head: head.map(str::to_owned).into(), rows: rows.collect() }
}

/// The medians of the runs, in milliseconds; of two the larger.
fn of_all(runs: &[Report], of: fn(&Report) -> &Quantiles) -> [f64; 4] {
    let quantiles: [fn(&Quantiles) -> u64; 4] =
        [|all| all.p50, |all| all.p99, |all| all.p999, |all| all.max];
    quantiles.map(|which| {
        let samples: Vec<f64> = runs.iter().map(|run| which(of(run)) as f64 / 1e3).collect();
        quantile(&samples, 0.5)
    })
}
