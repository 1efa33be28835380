//! What a service manager has told another process does no harm to this one.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::net::{SocketAddr, TcpListener};

use handover_testkit::process::signal;
use handover_testkit::{Folder, Launch, Load, Pid, Service, Signal, example, soon};

fn address(service: &Service) -> SocketAddr {
    let line = service.wait_line(|line| line.starts_with("claimed "), soon()).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn serving(service: &Service, generation: u64) -> Pid {
    let end = format!(" generation {generation}");
    let line = service.wait_line(|line| line.ends_with(&end), soon()).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Upgrades under load, and stops.
fn works(service: Service, address: SocketAddr) {
    let first = serving(&service, 1);
    let load = Load::http(address).start();
    load.wait_answered_by(|pid| pid == first, soon()).unwrap();
    signal(first, Signal::HUP);
    let second = serving(&service, 2);
    load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    load.stop().assert_nothing_lost();
    signal(second, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

#[test]
fn a_manager_that_is_not_there_is_not_missed() {
    let folder = Folder::create();
    for socket in [folder.join("notify").to_str().unwrap(), "@handover-nobody", "vsock:2:1", ""] {
        let service = Launch::of(example("subject_systemd"))
            .args(["tcp:http=127.0.0.1:0", "store:", "state:count"])
            .env("NOTIFY_SOCKET", socket)
            .env("WATCHDOG_USEC", "1000")
            .env("FDSTORE", "1")
            .start();
        let address = address(&service);
        works(service, address);
    }
}

#[test]
fn sockets_that_were_passed_to_another_process_are_left_alone() {
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = passed.local_addr().unwrap();
    for (pid, count) in [("1", "1"), ("", "1"), ("x", "1"), ("1", "99999999999")] {
        let service = Launch::of(example("subject_systemd"))
            .args(["tcp:http=127.0.0.1:0"])
            .env("LISTEN_PID", pid)
            .env("LISTEN_FDS", count)
            .env("LISTEN_FDNAMES", "http")
            .inherit(passed.try_clone().unwrap())
            .start();
        let address = address(&service);
        assert_ne!(address, theirs);
        works(service, address);
    }
}

#[test]
fn sockets_that_were_passed_are_claimed_by_name_whatever_their_order() {
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (first, http, second) = (bind(), bind(), bind());
    let expected = http.local_addr().unwrap();
    let service = Launch::of(example("subject_systemd"))
        .args(["only:tcp:http"])
        .activate([("other", &first), ("http", &http), ("other", &second)])
        .start();
    let address = address(&service);
    assert_eq!(address, expected);
    works(service, address);
}

#[test]
fn more_than_was_passed_is_not_believed() {
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let expected = http.local_addr().unwrap();
    let program = example("subject_systemd");
    let service = Launch::of("sh")
        .args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""])
        .arg(program)
        .args(["tcp:http", "tcp:unknown=127.0.0.1:0"])
        .activate([("http", &http)])
        .env("LISTEN_FDS", "4")
        .start();
    let address = address(&service);
    assert_eq!(address, expected);
    works(service, address);
}
