//! Listeners and datagram sockets of every kind go from generation to generation, used meanwhile.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process;
use std::thread;

use handover_testkit::process::{signal, wait_state_stopped};
use handover_testkit::{KeepAlive, Load, Signal, recheck, soon};
use socket2::Type;

use listeners::*;

const UPGRADES: usize = 4;

in_both_runtimes! {
    tcp_of_both_families_and_unix_lose_no_request,
    seqpacket_and_abstract_listeners_lose_no_request,
    udp_loses_no_datagram,
    unix_datagrams_are_all_read,
    datagrams_that_were_queued_during_the_switch_are_read,
    connections_go_on_in_the_generation_that_accepted_them,
}

fn tcp_of_both_families_and_unix_lose_no_request(runtime: &str) {
    let subject = Subject::start(&format!(
        "runtime {runtime}\ntcp v4 127.0.0.1:0\ntcp v6 [::1]:0\nunix path ./s\n"
    ));
    let loads = [
        Load::echo(subject.address("v4")).start(),
        Load::echo(subject.address("v6")).start(),
        Load::echo(subject.folder.join("s")).start(),
    ];
    loads.iter().for_each(|load| load.wait_answers(5, soon()).unwrap());
    for _ in 0..UPGRADES {
        let successor = subject.upgrade();
        for load in &loads {
            load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        }
    }
    for load in loads {
        let outcome = load.stop();
        outcome.assert_nothing_lost();
        assert_eq!(outcome.answered_by.len(), UPGRADES + 1, "{outcome}");
    }
}

fn seqpacket_and_abstract_listeners_lose_no_request(runtime: &str) {
    let name = format!("@handover-{}-{runtime}", process::id());
    let subject = Subject::start(&format!(
        "runtime {runtime}\nseqpacket messages ./m\nseqpacket - {name}-m\nunix stream {name}-s\n"
    ));
    let request = |address, kind| {
        move |number| {
            let (socket, text) = (connect_unix(&address, kind)?, format!("ping {number}"));
            // A seqpacket connection needs no end of line, a stream does.
            let line = if kind == Type::STREAM { format!("{text}\n") } else { text.clone() };
            expect_echo(&text, &exchange(&socket, &line)?)
        }
    };
    let path = subject.folder.join("m");
    let clients = [
        (path.to_str().unwrap().to_owned(), Type::SEQPACKET),
        (format!("{name}-m"), Type::SEQPACKET),
        (format!("{name}-s"), Type::STREAM),
    ]
    .map(|(address, kind)| Clients::start(request(unix_address(&address), kind)));
    for _ in 0..UPGRADES {
        subject.upgrade();
        clients.iter().for_each(|clients| clients.await_answers(50));
    }
    clients.into_iter().for_each(Clients::assert_nothing_lost);
}

fn udp_loses_no_datagram(runtime: &str) {
    let subject =
        Subject::start(&format!("runtime {runtime}\nudp v4 127.0.0.1:0\nudp v6 [::1]:0\n"));
    let clients = ["v4", "v6"].map(|name| {
        let address = subject.address(name);
        Clients::start(move |number| {
            let text = format!("ping {number}");
            let answer = ask_udp(address, &text)?;
            expect_echo(&text, &answer)
        })
    });
    for _ in 0..UPGRADES {
        subject.upgrade();
        clients.iter().for_each(|clients| clients.await_answers(50));
    }
    clients.into_iter().for_each(Clients::assert_nothing_lost);
}

/// The senders block while the queue is full, so every datagram that is sent has to be read.
fn unix_datagrams_are_all_read(runtime: &str) {
    let subject =
        Subject::start(&format!("runtime {runtime}\ndatagram d ./d log\nudp u 127.0.0.1:0\n"));
    let path = subject.folder.join("d");
    let clients = Clients::start(move |number| {
        UnixDatagram::unbound()?.send_to(format!("{number}").as_bytes(), &path).map(drop)
    });
    for _ in 0..UPGRADES {
        subject.upgrade();
        clients.await_answers(200);
    }
    let sent = clients.finish();
    await_logged(subject.folder.join("d.log").as_path(), &(0..sent).collect());
}

fn datagrams_that_were_queued_during_the_switch_are_read(runtime: &str) {
    const QUEUED: usize = 150;
    let subject =
        Subject::start(&format!("runtime {runtime}\nudp u 127.0.0.1:0 log\ndatagram d ./d log\n"));
    let (address, path) = (subject.address("u"), subject.folder.join("d"));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..UPGRADES {
        let predecessor = subject.pid();
        signal(predecessor, Signal::STOP);
        assert!(wait_state_stopped(predecessor, soon()));
        let numbers = round * QUEUED..(round + 1) * QUEUED;
        for number in numbers.clone() {
            udp.send_to(number.to_string().as_bytes(), address).unwrap();
        }
        let path = path.clone();
        let sender = thread::spawn(move || {
            for number in numbers {
                let sender = UnixDatagram::unbound().unwrap();
                sender.send_to(number.to_string().as_bytes(), &path).unwrap();
            }
        });
        signal(predecessor, Signal::HUP);
        signal(predecessor, Signal::CONT);
        subject.line_after(0, &format!("draining {predecessor} HandedOver"));
        subject.adopt_serving();
        sender.join().unwrap();
    }
    let all = (0..UPGRADES * QUEUED).collect();
    await_logged(&subject.folder.join("u.log"), &all);
    await_logged(&subject.folder.join("d.log"), &all);
}

fn connections_go_on_in_the_generation_that_accepted_them(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\ntcp echo 127.0.0.1:0\n"));
    let first = subject.pid();
    let kept = KeepAlive::echo(subject.address("echo")).start();
    kept.wait_open(soon()).unwrap();

    subject.upgrade();
    let second = subject.upgrade();

    kept.wait_pings(100, soon()).unwrap();
    assert_ne!(first, second);
    let outcome = kept.stop();
    assert_eq!(outcome.ends, []);
    assert_eq!(outcome.answered_by.keys().copied().collect::<Vec<_>>(), [first]);
}

fn ask_udp(address: SocketAddr, text: &str) -> std::io::Result<String> {
    let local = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(local)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.send(text.as_bytes())?;
    let mut buffer = [0; 2048];
    let bytes = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
}

/// Waits until the log holds these numbers, each once.
#[track_caller]
fn await_logged(log: &Path, expected: &BTreeSet<usize>) {
    let read = || {
        let log = std::fs::read_to_string(log).unwrap_or_default();
        log.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect::<Vec<usize>>()
    };
    let complete = recheck(soon(), || (read().len() >= expected.len()).then_some(()));
    let logged = read();
    let missing: Vec<_> = expected.iter().filter(|number| !logged.contains(number)).collect();
    assert!(complete.is_some() && missing.is_empty(), "{missing:?} were not read");
    assert_eq!(logged.len(), expected.len(), "each is read once");
}
