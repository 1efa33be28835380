//! A thousand upgrades in a row leave what ten have left.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use common::Stage;
use handover_testkit::process::{self, Signal};
use handover_testkit::{Launch, Pid, Service, example, executables, recheck, soon};

const UPGRADES: u64 = 1000;

/// How many upgrades come before the first look: by then everything has its size.
const WARM_UP: u64 = 10;

/// What may differ in the memory of two processes that do the same.
const RSS_TOLERANCE_BYTES: u64 = 1 << 20;

/// How far the highest fd may be off: which numbers are free at which moment is a matter of chance.
const FD_TOLERANCE: i32 = 4;

/// What must not grow.
#[derive(Debug)]
struct Footprint {
    fds: BTreeMap<i32, String>,
    environment_bytes: usize,
    rss_bytes: u64,
}

#[test]
fn thousand_upgrades_leave_nothing_behind() {
    let service = Launch::of(example("state")).arg("127.0.0.1:0").start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address: SocketAddr = line["listening on ".len()..].parse().unwrap();

    let mut server = service.pid();
    let mut early = None;
    for upgrade in 1..=UPGRADES {
        assert_eq!(add(address), (server, upgrade));
        process::signal(server, Signal::HUP);
        server = other(address, server);
        if upgrade == WARM_UP {
            early = Some(footprint(&service, server));
        }
    }

    assert_eq!(add(address), (server, UPGRADES + 1));
    let (early, last) = (early.unwrap(), footprint(&service, server));
    assert_eq!(last.fds.len(), early.fds.len(), "{last:#?} after {early:#?}");
    let growth = highest(&last) - highest(&early);
    assert!(growth <= FD_TOLERANCE, "{last:#?} after {early:#?}");
    assert_eq!(last.environment_bytes, early.environment_bytes);
    let limit = early.rss_bytes + RSS_TOLERANCE_BYTES;
    assert!(last.rss_bytes <= limit, "{} bytes after {}", last.rss_bytes, early.rss_bytes);
}

#[test]
fn hundred_failed_upgrades_leave_nothing_behind() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    let missing = executables::missing(&stage.folder);
    let fail = |round: usize| {
        let script = ["start exit 3 early", "ready exit 3 late", "start raw garbage"][round % 3];
        stage.script(script);
        let verdict = stage.ask().verdict();
        assert!(verdict.starts_with("verdict failed"), "{verdict}");
        stage.folder.link("current", &missing);
        let verdict = stage.ask().verdict();
        assert!(verdict.contains("cannot execute"), "{verdict}");
        stage.folder.link("current", example("subject"));
    };
    // Connections of the load come and go; what stays is what is left when it is gone.
    let lasting = || {
        let fds = process::fds(server);
        fds.into_values().filter(|name| !name.starts_with("socket:")).collect::<Vec<_>>()
    };
    let threads = || std::fs::read_dir(format!("/proc/{server}/task")).unwrap().count();
    (0..6).for_each(fail);
    let before = lasting();
    (0..50).for_each(fail);
    let same = recheck(soon(), || (lasting() == before).then_some(()));
    assert!(same.is_some(), "{:?} after {before:?}", lasting());
    assert!(recheck(soon(), || (threads() <= 4).then_some(())).is_some(), "{}", threads());
    stage.assert_unharmed(server);
}

fn highest(footprint: &Footprint) -> i32 {
    *footprint.fds.keys().next_back().unwrap()
}

/// Waits until the process is alone, and returns what it has.
fn footprint(service: &Service, server: Pid) -> Footprint {
    let alone = recheck(soon(), || (service.alive() == [server]).then_some(()));
    assert!(alone.is_some(), "{:?} are alive, not only {server}", service.alive());
    assert_eq!(process::children(server), Vec::<Pid>::new());
    // The end of the predecessor has reached it when the channel is closed.
    let closed = || {
        let fds = process::fds(server);
        let sockets = fds.values().filter(|name| name.starts_with("socket:")).count();
        (sockets == 1).then_some(fds)
    };
    let fds = recheck(soon(), closed);
    let fds = fds.unwrap_or_else(|| panic!("the channel is open: {:?}", process::fds(server)));
    let environment_bytes = process::environ(server).iter().map(|(n, v)| n.len() + v.len()).sum();
    Footprint { fds, environment_bytes, rss_bytes: process::rss_bytes(server) }
}

/// Asks until another process answers, and returns which.
fn other(address: SocketAddr, than: Pid) -> Pid {
    let other = recheck(soon(), || Some(ask(address, "get").0).filter(|pid| *pid != than));
    other.expect("a successor serves")
}

fn add(address: SocketAddr) -> (Pid, u64) {
    ask(address, "add")
}

/// Sends a command; returns who has answered, and the counter.
fn ask(address: SocketAddr, command: &str) -> (Pid, u64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(format!("{command}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (pid, counter) = answer.trim_end().split_once(' ').unwrap();
    (pid.parse().unwrap(), counter.parse().unwrap())
}
