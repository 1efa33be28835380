//! Connections that change hands.

use std::net::SocketAddr;

use handover_testkit::process::signal;
use handover_testkit::{KeepAlive, Launch, Load, Service, Signal, example, soon};

fn start(arguments: &[&str]) -> (Service, SocketAddr) {
    let launch = Launch::of(example("echo")).arg("127.0.0.1:0").arg("--live").args(arguments);
    let service = launch.start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = line["listening on ".len()..].parse().unwrap();
    (service, address)
}

#[test]
fn a_thousand_echoes_live_through_fifty_upgrades() {
    const CONNECTIONS: usize = 1000;
    const UPGRADES: usize = 50;
    let (service, address) = start(&[]);
    let kept = KeepAlive::echo(address)
        .connections(CONNECTIONS)
        .every(std::time::Duration::from_millis(500))
        .start();
    kept.wait_open(soon()).unwrap();
    let load = Load::echo(address).rate(50).start();
    let mut pid = load.wait_answered_by(|_| true, soon()).unwrap();
    for _ in 0..UPGRADES {
        let old = pid;
        signal(old, Signal::HUP);
        pid = load.wait_answered_by(|pid| pid != old, soon()).unwrap();
        assert!(handover_testkit::process::exited(old, soon()), "all have moved");
    }
    kept.wait_pings(2 * CONNECTIONS, soon()).unwrap();
    let outcome = kept.stop();
    assert_eq!(outcome.ends, []);
    assert!(outcome.answered_by.contains_key(&pid));
    load.stop().assert_nothing_lost();
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}
