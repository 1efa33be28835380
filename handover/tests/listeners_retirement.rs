//! A listener that nobody claims any more, or whose service stops, is closed without a reset: of
//! what was queued, of handshakes that were half done, and of clients that come meanwhile.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use handover_testkit::process::signal;
use handover_testkit::{Folder, Launch, Signal, is_root, recheck, skipped, soon};
use socket2::{Domain, Socket, Type};

use listeners::*;

/// How often a race is run.
const ROUNDS: usize = 20;

/// Nobody, who has no CAP_NET_ADMIN.
const NOBODY: u32 = 65534;

in_both_runtimes! {
    an_unclaimed_name_loses_nothing_that_was_queued,
    an_unclaimed_name_loses_nothing_that_was_queued_without_privilege,
    a_stop_answers_what_was_queued,
    a_stop_answers_what_was_queued_without_privilege,
    clients_that_come_meanwhile_are_answered_or_refused,
    clients_that_come_meanwhile_are_answered_or_refused_without_privilege,
    handshakes_half_done_are_completed,
    handshakes_half_done_are_completed_without_privilege,
    members_of_a_group_retire_one_by_one_without_privilege,
    unix_listeners_answer_what_was_queued,
}

fn an_unclaimed_name_loses_nothing_that_was_queued(runtime: &str) {
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        queued(runtime, address, subject, Way::Upgrade);
    }
}

fn an_unclaimed_name_loses_nothing_that_was_queued_without_privilege(runtime: &str) {
    if !is_root() {
        return skipped("only root may change the user");
    }
    for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
        queued(runtime, address, unprivileged, Way::Upgrade);
    }
}

fn a_stop_answers_what_was_queued(runtime: &str) {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        queued(runtime, address, subject, Way::Stop);
    }
}

fn a_stop_answers_what_was_queued_without_privilege(runtime: &str) {
    if !is_root() {
        return skipped("only root may change the user");
    }
    for address in ["127.0.0.1:0", "[::]:0"] {
        queued(runtime, address, unprivileged, Way::Stop);
    }
}

fn clients_that_come_meanwhile_are_answered_or_refused(runtime: &str) {
    stampedes(runtime, &["127.0.0.1:0", "[::1]:0", "[::]:0"], subject);
}

fn clients_that_come_meanwhile_are_answered_or_refused_without_privilege(runtime: &str) {
    if !is_root() {
        return skipped("only root may change the user");
    }
    stampedes(runtime, &["127.0.0.1:0", "[::1]:0", "[::]:0"], unprivileged);
}

fn handshakes_half_done_are_completed(runtime: &str) {
    half_open(runtime, "127.0.0.1:0", subject, Way::Upgrade);
    half_open(runtime, "[::1]:0", subject, Way::Stop);
}

fn handshakes_half_done_are_completed_without_privilege(runtime: &str) {
    half_open(runtime, "[::1]:0", unprivileged, Way::Upgrade);
    half_open(runtime, "127.0.0.1:0", unprivileged, Way::Stop);
}

fn members_of_a_group_retire_one_by_one_without_privilege(runtime: &str) {
    if !is_root() {
        return skipped("only root may change the user");
    }
    let port = Port::reserve();
    let group = |count: usize| {
        (0..count).fold(format!("runtime {runtime}\n"), |config, number| {
            config + &format!("tcp worker-{number} {} reuse_port\n", port.v4())
        })
    };
    let subject = unprivileged(&group(4));
    let load = handover_testkit::Load::echo(port.v4()).rate(400).start();
    for count in [3, 1, 4, 2] {
        let successor = subject.upgrade_to(&group(count));
        load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        load.wait_answers(100, soon()).unwrap();
    }
    load.stop().assert_nothing_lost();
}

fn unix_listeners_answer_what_was_queued(runtime: &str) {
    for (kind, end) in [("unix", "\n"), ("seqpacket", "")] {
        for way in [Way::Upgrade, Way::Stop] {
            let subject = subject(&format!(
                "runtime {runtime}\n{kind} s ./s slow=5\ntcp other 127.0.0.1:0\n"
            ));
            let path = subject.folder.join("s");
            let address = unix_address(path.to_str().unwrap());
            let kind = if end == "\n" { Type::STREAM } else { Type::SEQPACKET };
            let clients = (0..100).map(|number| {
                let client = connect_unix(&address, kind).unwrap();
                (&client).write_all(format!("ping {number}{end}").as_bytes()).unwrap();
                client
            });
            let clients: Vec<Socket> = clients.collect();
            let retired = way.begin(&subject, runtime);
            for (number, client) in clients.iter().enumerate() {
                let answer = receive(client).unwrap();
                expect_echo(&format!("ping {number}"), &answer).unwrap();
            }
            drop(clients);
            subject.line_after(retired, "drained ");
            assert!(connect_unix(&address, kind).is_err());
            assert!(!path.exists());
        }
    }
}

/// How a listener comes to be retired.
#[derive(Clone, Copy)]
enum Way {
    /// The successor does not claim it.
    Upgrade,
    /// The service stops.
    Stop,
}

impl Way {
    /// Begins; returns how many lines were printed before.
    fn begin(self, subject: &Subject, runtime: &str) -> usize {
        let before = subject.service.line_count();
        match self {
            Self::Upgrade => {
                subject.configure(&format!("runtime {runtime}\ntcp other 127.0.0.1:0\n"));
                signal(subject.pid(), Signal::HUP);
            }
            Self::Stop => signal(subject.pid(), Signal::TERM),
        }
        before
    }
}

fn subject(config: &str) -> Subject {
    Subject::start(config)
}

fn unprivileged(config: &str) -> Subject {
    let as_nobody = |launch: Launch| launch.user(NOBODY, NOBODY);
    Subject::start_in(Folder::create().open_to_all(), config, as_nobody)
}

/// Many connections wait, because the service is slow to accept them.
fn queued(runtime: &str, address: &str, start: fn(&str) -> Subject, way: Way) {
    let config = format!("runtime {runtime}\ntcp web {address} slow=2\ntcp other 127.0.0.1:0\n");
    let subject = start(&config);
    let (address, predecessor) = (reachable(subject.address("web")), subject.pid());
    let clients = queue_up(address, 200);

    let begun = way.begin(&subject, runtime);

    assert_eq!(answers(clients), [predecessor].into());
    subject.line_after(begun, &format!("drained {predecessor} "));
    await_refused(address);
}

/// Each round with another address and the other way, some at once: most of the time is waited for
/// clients that try again.
fn stampedes(runtime: &str, addresses: &[&str], start: fn(&str) -> Subject) {
    const AT_ONCE: usize = 4;
    for first in (0..ROUNDS).step_by(AT_ONCE) {
        thread::scope(|scope| {
            for round in first..first + AT_ONCE {
                let address = addresses[round % addresses.len()];
                let way = [Way::Stop, Way::Upgrade][round % 2];
                scope.spawn(move || stampede(runtime, address, start, way));
            }
        });
    }
}

/// Clients connect, ask and come again, as fast as they can, up to the end of the listener and
/// beyond. Each is answered, or never gets through.
fn stampede(runtime: &str, address: &str, start: fn(&str) -> Subject, way: Way) {
    let subject = start(&format!("runtime {runtime}\ntcp web {address}\ntcp other 127.0.0.1:0\n"));
    let address = reachable(subject.address("web"));
    let stop = Arc::new(AtomicBool::new(false));
    let clients = (0..12).map(|_| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut answered = 0;
            while !stop.load(Ordering::SeqCst) {
                let client = match TcpStream::connect_timeout(&address, ANSWER_TIMEOUT) {
                    Ok(client) => client,
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => break,
                    Err(error) => return Err((answered, error)),
                };
                client.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
                let asked = (&client).write_all(b"ping\n").and_then(|()| read_line(&client));
                match asked {
                    Ok(_) => answered += 1,
                    Err(error) => return Err((answered, error)),
                }
            }
            Ok(answered)
        })
    });
    let clients: Vec<_> = clients.collect();

    let begun = way.begin(&subject, runtime);

    subject.line_after(begun, "drained ");
    // A client that was dropped at the very end tries again in a second, and is refused.
    let outcomes: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    stop.store(true, Ordering::SeqCst);
    assert!(outcomes.iter().all(Result::is_ok), "answered and then lost: {outcomes:?}");
}

/// Clients whose handshake takes seconds, as the first answers to each are dropped on their way.
fn half_open(runtime: &str, address: &str, start: fn(&str) -> Subject, way: Way) {
    if !is_root() {
        return skipped("only root may attach a packet filter");
    }
    const ATTEMPTS: usize = 10;
    let mut attempts = 0..ATTEMPTS;
    assert!(attempts.any(|_| is_half_open_in_time(runtime, address, start, way)), "too slow");
}

/// Makes the attempt; false if the clients heard again too late for the listener to wait for them.
fn is_half_open_in_time(
    runtime: &str,
    address: &str,
    start: fn(&str) -> Subject,
    way: Way,
) -> bool {
    const CLIENTS: usize = 20;
    /// An answer is sent again after one second and after three (RFC 6298), and the listener waits
    /// for five.
    const IN_TIME: Duration = Duration::from_millis(2500);
    // What a client asks is dropped until it is accepted, and asked again after three seconds, or
    // twice as many.
    let subject =
        start(&format!("runtime {runtime}\ndrain 60\ntcp web {address}\ntcp other 127.0.0.1:0\n"));
    let address = subject.address("web");
    let first_begun = Instant::now();
    let clients: Vec<Socket> = (0..CLIENTS).map(|_| begin_handshake(address)).collect();
    recheck(soon(), || (count_half_open(address) == CLIENTS).then_some(())).unwrap();

    let begun = way.begin(&subject, runtime);
    // The successor serves, or the stop is under way.
    subject.line_after(begun, "draining ");
    clients.iter().for_each(hear_again);
    if first_begun.elapsed() > IN_TIME {
        return false;
    }

    for client in clients {
        client.set_nonblocking(false).unwrap();
        client.set_write_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        client.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let client = TcpStream::from(client);
        recheck(soon(), || client.peer_addr().ok()).expect("the handshake completes");
        (&client).write_all(b"ping\n").unwrap();
        expect_echo("ping", &read_line(&client).expect("it is not reset")).unwrap();
    }
    subject.line_after(begun, "drained ");
    await_refused(address);
    true
}

fn begin_handshake(address: SocketAddr) -> Socket {
    let client = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    client.attach_filter(&[return_(0)]).unwrap();
    client.set_nonblocking(true).unwrap();
    let pending = client.connect(&address.into()).unwrap_err();
    assert_eq!(pending.raw_os_error(), Some(rustix::io::Errno::INPROGRESS.raw_os_error()));
    client
}

fn hear_again(client: &Socket) {
    client.detach_filter().unwrap();
}

/// A filter of one statement (BPF_RET | BPF_K): how many bytes of a packet to take.
fn return_(bytes: u32) -> socket2::SockFilter {
    socket2::SockFilter::new(0x06, 0, 0, bytes)
}

/// How many handshakes of the listener wait for the last packet: state 03 of proc_pid_net(5).
fn count_half_open(address: SocketAddr) -> usize {
    let table = if address.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string(table).unwrap();
    let is_half_open = |line: &&str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields[1].ends_with(&port) && fields[3] == "03"
    };
    table.lines().skip(1).filter(is_half_open).count()
}

/// The loopback address instead of the unspecified one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => [127, 0, 0, 1].into(),
            SocketAddr::V6(_) => [0, 0, 0, 0, 0, 0, 0, 1].into(),
        });
    }
    address
}

fn receive(client: &Socket) -> io::Result<String> {
    let mut buffer = [0; 2048];
    let bytes = io::Read::read(&mut &*client, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..bytes]).trim_end().to_owned())
}
