//! `axum::serve` on our listeners.

use std::net::SocketAddr;

use handover_testkit::process::{Pid, signal};
use handover_testkit::{Folder, Launch, Load, Service, Signal, Target, example, soon};

const UPGRADES: u64 = 5;

#[test]
fn http_over_tcp_survives_upgrades() {
    for runtime in ["current", "multi"] {
        survives("axum", runtime, |address, _| address.into());
    }
}

#[test]
fn http_over_a_unix_socket_survives_upgrades() {
    for runtime in ["current", "multi"] {
        survives("axum", runtime, |_, folder| folder.join("stream").into());
    }
}

fn survives(how: &str, runtime: &str, target: impl Fn(SocketAddr, &Folder) -> Target) {
    let (service, address, folder) = start(how, runtime);
    let load = Load::http(target(address, &folder)).rate(500).start();
    let mut pid: Pid = load.wait_answered_by(|_| true, soon()).unwrap();
    for _ in 0..UPGRADES {
        let old = pid;
        signal(old, Signal::HUP);
        pid = load.wait_answered_by(|pid| pid != old, soon()).unwrap();
    }
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.len() as u64, UPGRADES + 1, "{outcome}");
    for generation in 1..=UPGRADES {
        let ended = format!("ended {generation}");
        service.wait_line(|line| line == ended, soon()).unwrap();
    }
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

fn start(how: &str, runtime: &str) -> (Service, SocketAddr, Folder) {
    let folder = Folder::create();
    let launch = Launch::of(example("subject_tokio")).arg(folder.path()).args([runtime, how]);
    let service = launch.start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = line.split(' ').nth(2).unwrap().parse().unwrap();
    service.wait_line(|line| line == "serving 1", soon()).unwrap();
    (service, address, folder)
}

#[test]
fn with_graceful_shutdown_a_server_ends_at_the_handover_and_at_a_stop() {
    let (service, address, folder) = start("axum-graceful", "multi");
    let load = Load::http(address).rate(20).start();
    load.wait_answers(1, soon()).unwrap();
    service.signal(Signal::HUP);
    service.wait_line(|line| line == "ended 1", soon()).unwrap();
    let new = load.wait_answered_by(|pid| pid != service.pid(), soon()).unwrap();
    drop(load);
    signal(new, Signal::TERM);
    service.wait_line(|line| line == "ended 2", soon()).unwrap();
    service.wait_all_gone(soon()).unwrap();
    assert!(!folder.join("stream").exists());
}
