//! Servers while nothing happens.

use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use handover_bench::ask;
use handover_testkit::process::{Pid, exited, signal};
use handover_testkit::{Launch, Service, Signal, recheck};

use crate::process::{Facts, Work, is_asleep};
use crate::sheet::{Row, Sheet};
use crate::{NONE, Peer};

/// As in a machine with so many cores.
const WORKER_THREADS: &str = "2";

const UPGRADES: usize = 10;

/// For how long nothing happens.
const IDLE: Duration = Duration::from_secs(3);

/// How long one thing may take before this program gives up.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) const MEMORY: Row = ("Resident memory", "KiB");

/// What is measured of a process.
struct Rows {
    resident: Row,
    private_dirty: Row,
    threads: Row,
    descriptors: Row,
    wakeups: Row,
    processor: Row,
}

const BEFORE: Rows = Rows {
    resident: MEMORY,
    private_dirty: ("Private dirty memory", "KiB"),
    threads: ("Threads", ""),
    descriptors: ("Open descriptors", ""),
    wakeups: ("Wakeups in 3 s without work", ""),
    processor: ("Processor time in 3 s without work", "µs"),
};

const AFTER: Rows = Rows {
    resident: ("Resident memory after 10 upgrades", "KiB"),
    private_dirty: ("Private dirty memory after 10 upgrades", "KiB"),
    threads: ("Threads after 10 upgrades", ""),
    descriptors: ("Open descriptors after 10 upgrades", ""),
    wakeups: ("Wakeups in 3 s without work after 10 upgrades", ""),
    processor: ("Processor time in 3 s without work after 10 upgrades", "µs"),
};

/// A server, and which of its processes serves.
struct Running {
    name: &'static str,
    service: Service,
    serves: Pid,
}

/// Looks at each of them, before upgrades and after.
pub(crate) fn round(peers: &[Peer], sheet: &mut Sheet) -> Result<(), Box<dyn Error>> {
    let mut all = peers.iter().map(Running::start).collect::<Result<Vec<_>, _>>()?;
    look_at(&all, &BEFORE, sheet)?;
    all.retain(|running| running.name != NONE);
    for running in &mut all {
        for _ in 0..UPGRADES {
            running.upgrade()?;
        }
    }
    look_at(&all, &AFTER, sheet)
}

/// Looks at all of them at once: they have nothing to do.
fn look_at(all: &[Running], rows: &Rows, sheet: &mut Sheet) -> Result<(), Box<dyn Error>> {
    for Running { name, serves, .. } in all {
        let asleep = recheck(Instant::now() + TIMEOUT, || is_asleep(*serves).then_some(()));
        asleep.ok_or_else(|| format!("{name} does not come to rest"))?;
        let facts = Facts::of(*serves)?;
        sheet.add(rows.resident, name, facts.resident_kib as f64);
        sheet.add(rows.private_dirty, name, facts.private_dirty_kib as f64);
        sheet.add(rows.threads, name, facts.threads as f64);
        sheet.add(rows.descriptors, name, facts.descriptors as f64);
    }
    let works =
        || all.iter().map(|running| Work::of(running.serves)).collect::<Result<Vec<_>, _>>();
    let before = works()?;
    thread::sleep(IDLE);
    let after = works()?;
    for ((running, before), after) in all.iter().zip(before).zip(after) {
        let wakeups = after.wakeups.saturating_sub(before.wakeups);
        let processor = after.processor.saturating_sub(before.processor);
        sheet.add(rows.wakeups, running.name, wakeups as f64);
        sheet.add(rows.processor, running.name, processor.as_secs_f64() * 1e6);
    }
    Ok(())
}

impl Running {
    fn start(peer: &Peer) -> Result<Self, Box<dyn Error>> {
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let launch = Launch::of(&peer.executable).env("TOKIO_WORKER_THREADS", WORKER_THREADS);
        let port = address.port().to_string();
        let service = launch.args([&port, "1", "0", "small"]).try_start()?;
        let mut running = Self { name: peer.name, serves: service.pid(), service };
        running.serves = running.wait_serving(0)?;
        // A process that has never answered has less than one that has.
        ask(address)?;
        Ok(running)
    }

    /// Upgrades it, and waits until the old process is gone.
    fn upgrade(&mut self) -> Result<(), Box<dyn Error>> {
        let (old, printed) = (self.serves, self.service.line_count());
        signal(old, Signal::HUP);
        self.serves = self.wait_serving(printed)?;
        if !exited(old, Instant::now() + TIMEOUT) {
            return Err(format!("{}: the old process does not end", self.name).into());
        }
        Ok(())
    }

    fn wait_serving(&self, skip: usize) -> Result<Pid, Box<dyn Error>> {
        const START: &str = "serving ";
        let deadline = Instant::now() + TIMEOUT;
        let line = self.service.wait_line_after(skip, |line| line.starts_with(START), deadline);
        let line = line.map_err(|error| format!("{}: {error}", self.name))?;
        Ok(line[START.len()..].parse()?)
    }
}
