//! Each example does what it says: it serves, is upgraded under load, and stops.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use handover_testkit::process::signal;
use handover_testkit::{KeepAlive, Launch, Load, LoadSetup, Service, Signal, example, soon};

/// As many as may drain beside the one that serves.
const UPGRADES: usize = 3;

fn start(name: &str) -> (Service, SocketAddr) {
    let service = Launch::of(example(name)).arg("127.0.0.1:0").start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = line["listening on ".len()..].parse().unwrap();
    (service, address)
}

/// Upgrades under load and stops; with connections that live on if it echoes.
fn serves_through_upgrades(name: &str, load: fn(SocketAddr) -> LoadSetup, echoes: bool) {
    let (service, address) = start(name);
    let load = load(address).rate(400).start();
    let mut pid = load.wait_answered_by(|_| true, soon()).unwrap();
    let mut kept = Vec::new();
    for _ in 0..UPGRADES {
        if echoes {
            let connections = KeepAlive::echo(address).connections(4).start();
            connections.wait_open(soon()).unwrap();
            kept.push((pid, connections));
        }
        let old = pid;
        signal(old, Signal::HUP);
        pid = load.wait_answered_by(|pid| pid != old, soon()).unwrap();
    }

    for (pid, connections) in kept {
        connections.wait_pings(8, soon()).unwrap();
        let outcome = connections.stop();
        assert_eq!(outcome.ends, []);
        assert_eq!(outcome.answered_by.into_keys().collect::<Vec<_>>(), [pid]);
    }
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.len(), UPGRADES + 1, "{outcome}");
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

#[test]
fn http_serves_through_upgrades() {
    serves_through_upgrades("http", Load::http, false);
}

#[test]
fn echo_serves_through_upgrades() {
    serves_through_upgrades("echo", Load::echo, true);
}

#[test]
fn echo_blocking_serves_through_upgrades() {
    serves_through_upgrades("echo_blocking", Load::echo, true);
}

#[test]
fn state_counts_every_command_once_through_upgrades() {
    const CLIENTS: u64 = 4;
    const COMMANDS: u64 = 150;
    let (service, address) = start("state");
    assert_eq!(command(address, "set colour green").1, "");

    let counted = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let adds = move || {
                    (0..COMMANDS).map(|_| command(address, "add").1.parse().unwrap()).collect()
                };
                scope.spawn::<_, Vec<u64>>(adds)
            })
            .collect();
        let mut pid = service.pid();
        for _ in 0..UPGRADES {
            signal(pid, Signal::HUP);
            // Asking until the answer is another's is a load of its own.
            pid = (0..).map(|_| command(address, "get").0).find(|other| *other != pid).unwrap();
        }
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });

    // No number was given out twice, and none is missing.
    let mut numbers = counted;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=CLIENTS * COMMANDS).collect::<Vec<_>>());
    let (pid, total) = command(address, "get");
    assert_eq!(total, (CLIENTS * COMMANDS).to_string());
    assert_eq!(command(address, "get colour").1, "green");
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

/// Sends one command; returns who answered, and what.
fn command(address: SocketAddr, command: &str) -> (u32, String) {
    let mut connection = TcpStream::connect(address).unwrap();
    writeln!(connection, "{command}").unwrap();
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).unwrap();
    let (pid, answer) = line.trim_end_matches('\n').split_once(' ').expect("PID ANSWER");
    (pid.parse().unwrap(), answer.to_owned())
}
