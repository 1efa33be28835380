//! Handshakes of TCP that are half done, which the kernel tells in a table of all connections (proc_pid_net(5)).
//!
//! The table may be long, and thousands of listeners may retire at once: one reading serves all of them.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often to read, at most. The kernel tells nobody when a handshake is done.
const READ_AGAIN: Duration = Duration::from_millis(2);

/// How many times as long as a reading takes to wait for the next one.
const READINGS_APART: u32 = 4;

/// A handshake that waits for its last packet: both addresses, as the kernel writes them.
pub(crate) type Handshake = String;

/// What is known of the handshakes with a listener.
#[derive(Debug)]
pub(crate) enum Handshakes {
    /// Those that are half done, among them those of other listeners of the port.
    HalfDone(HashSet<Handshake>),
    /// The kernel does not say.
    Unknown,
    /// It was read too short a time ago to be read again before then.
    Later(Instant),
}

/// What the table said.
#[derive(Debug)]
struct Reading {
    begun: Instant,
    took: Duration,
    /// By the port of the listener; `None` if there is no such table.
    half_done: Option<HashMap<u16, HashSet<Handshake>>>,
}

#[derive(Debug)]
struct Table {
    path: &'static str,
    last: Mutex<Option<Reading>>,
}

static V4: Table = Table { path: "/proc/self/net/tcp", last: Mutex::new(None) };

static V6: Table = Table { path: "/proc/self/net/tcp6", last: Mutex::new(None) };

/// The handshakes with a listener of that address, at some moment after `since`.
pub(crate) fn with(listener: SocketAddr, since: Instant) -> Handshakes {
    // A listener for IPv6 may take IPv4 as well.
    let tables: &[&Table] = match listener {
        SocketAddr::V4(_) => &[&V4],
        SocketAddr::V6(_) => &[&V6, &V4],
    };
    let mut all: Option<HashSet<Handshake>> = None;
    for table in tables {
        match table.half_done(listener.port(), since) {
            Handshakes::HalfDone(found) => all.get_or_insert_default().extend(found),
            // There is one without IPv6, if the kernel is.
            Handshakes::Unknown => {}
            later @ Handshakes::Later(_) => return later,
        }
    }
    all.map_or(Handshakes::Unknown, Handshakes::HalfDone)
}

impl Table {
    fn half_done(&self, port: u16, since: Instant) -> Handshakes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = match &*last {
            Some(reading) if reading.begun >= since => reading,
            Some(reading) if Instant::now() < reading.next() => {
                return Handshakes::Later(reading.next());
            }
            Some(_) | None => last.insert(Reading::of(self.path)),
        };
        match &reading.half_done {
            Some(by_port) => Handshakes::HalfDone(by_port.get(&port).cloned().unwrap_or_default()),
            None => Handshakes::Unknown,
        }
    }
}

impl Reading {
    fn of(path: &str) -> Self {
        let begun = Instant::now();
        let half_done = std::fs::read_to_string(path).ok().map(|table| half_done(&table));
        Self { begun, took: begun.elapsed(), half_done }
    }

    /// When to read again at the earliest.
    fn next(&self) -> Instant {
        self.begun + READ_AGAIN.max((READINGS_APART + 1) * self.took)
    }
}

fn half_done(table: &str) -> HashMap<u16, HashSet<Handshake>> {
    const SYN_RECEIVED: &str = "03";
    let mut by_port: HashMap<u16, HashSet<Handshake>> = HashMap::new();
    // Most lines are told by one look.
    for line in table.lines().filter(|line| line.contains(" 03 ")) {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(SYN_RECEIVED)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let port = local.rsplit_once(':').map(|(_, port)| u16::from_str_radix(port, 16));
        if let Some(Ok(port)) = port {
            by_port.entry(port).or_default().insert(format!("{local} {remote}"));
        }
    }
    by_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_told_by_the_port_of_their_listener() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
                        0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n\
                        1: 0100007F:1F90 0100007F:C350 03 00000000:00000000 01:00000064\n\
                        2: 0100007F:1F90 0100007F:C351 01 00000000:00000000 03 03 03\n\
                        3: 0100007F:1F91 0100007F:C352 03 00000000:00000000 01:00000064\n";
        let found = half_done(table);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&8080], ["0100007F:1F90 0100007F:C350".to_owned()].into());
        assert_eq!(found[&8081], ["0100007F:1F91 0100007F:C352".to_owned()].into());
    }

    #[test]
    fn one_reading_serves_all_who_asked_before_it_and_no_one_reads_at_once_again() {
        let table = Table { path: "/proc/self/net/tcp", last: Mutex::new(None) };
        let begun = || table.last.lock().unwrap().as_ref().unwrap().begun;
        let asked = Instant::now();
        assert!(matches!(table.half_done(1, asked), Handshakes::HalfDone(_)));
        let first = begun();
        assert!(matches!(table.half_done(2, asked), Handshakes::HalfDone(_)));
        assert_eq!(begun(), first);

        // Later ones want to know what has become of them meanwhile.
        let next = table.last.lock().unwrap().as_ref().unwrap().next();
        table.last.lock().unwrap().as_mut().unwrap().took = Duration::from_secs(3600);
        assert!(matches!(table.half_done(1, next), Handshakes::Later(_)));
        assert_eq!(begun(), first);
        table.last.lock().unwrap().as_mut().unwrap().took = Duration::ZERO;
        while matches!(table.half_done(1, first + Duration::from_nanos(1)), Handshakes::Later(_)) {}
        assert!(begun() > first);
    }

    #[test]
    fn a_kernel_that_does_not_say_is_no_reason_to_fail() {
        let table = Table { path: "/proc/self/net/no-such-table", last: Mutex::new(None) };
        assert!(matches!(table.half_done(1, Instant::now()), Handshakes::Unknown));
    }
}
