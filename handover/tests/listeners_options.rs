//! How sockets are bound, and what is said when they cannot be.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};

use handover_testkit::{Folder, Load, soon};

use listeners::*;

in_both_runtimes! {
    the_hook_is_called_once_and_its_options_survive,
    an_address_in_time_wait_can_be_bound_again,
    a_hook_that_fails_is_an_error,
    bad_names_and_addresses_are_errors_that_say_what_to_do,
    a_successor_with_a_bad_claim_changes_nothing,
}

fn the_hook_is_called_once_and_its_options_survive(runtime: &str) {
    let config =
        format!("runtime {runtime}\nudp u 127.0.0.1:0 buffer=10000\ntcp t 127.0.0.1:0 mode=640\n");
    let subject = Subject::start(&config);
    for _ in 0..3 {
        let socket = copy_of(&subject, "u");
        // The kernel doubles what is asked for (SO_RCVBUF, socket(7)).
        assert_eq!(socket.recv_buffer_size().unwrap(), 20000);
        subject.upgrade();
    }
    assert_eq!(subject.count("before_bind u"), 1);
    assert_eq!(subject.count("before_bind t"), 1);
}

/// The service closes first, so the connections of its port stay in TIME_WAIT.
fn an_address_in_time_wait_can_be_bound_again(runtime: &str) {
    let port = Port::reserve();
    let config = format!("runtime {runtime}\ndrain 0\ntcp web {}\n", port.v4());
    let subject = Subject::start(&config);
    let clients: Vec<TcpStream> = (0..10)
        .map(|_| {
            let client = TcpStream::connect(port.v4()).unwrap();
            (&client).write_all(b"ping\n").unwrap();
            read_line(&client).unwrap();
            client
        })
        .collect();
    subject.stop();
    drop(clients);
    let again = Subject::start(&config);
    assert_eq!(asked(port.v4()), again.pid());
}

fn a_hook_that_fails_is_an_error(runtime: &str) {
    let error = refusal(&format!("runtime {runtime}\ntcp web 127.0.0.1:0 hook_fails\n"));
    assert_eq!(
        error,
        "cannot claim \"web\": the kernel refused what the application set before bind \
         (nobody serves): the hook fails"
    );
}

fn bad_names_and_addresses_are_errors_that_say_what_to_do(runtime: &str) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let long_name = "n".repeat(256);
    let long_path = format!("/{}", "p".repeat(107));
    let cases = [
        (
            "tcp web localhost:80",
            "\"web\": \"localhost:80\" is no address: write 127.0.0.1:80, [::1]:80, \
             /run/app.sock or @name",
        ),
        ("tcp - 80", "\"80\": \"80\" is no address: write"),
        (&format!("tcp web {taken}"), &format!("\"web\": {taken} is in use by another socket")),
        (
            "tcp web 127.0.0.1:0\ntcp web 127.0.0.1:0",
            "\"web\": the name is in use in this process: give each listener its own",
        ),
        ("tcp web 127.0.0.1:0\nfile web ./f", "\"web\": the name is in use in this process"),
        ("tcp \\e 127.0.0.1:0", "\"\": a name must not be empty"),
        (
            &format!("tcp {long_name} 127.0.0.1:0"),
            &format!("\"{long_name}\": a name may have 255 bytes, this one has 256"),
        ),
        ("tcp a\\x07 127.0.0.1:0", "a name must not have control characters"),
        (
            "tcp web ./s",
            "\"web\": ./s is an address for another kind of socket: write 127.0.0.1:80",
        ),
        (
            "datagram web 127.0.0.1:80",
            "\"web\": 127.0.0.1:80 is an address for another kind of socket: write \
             /run/app.sock or @name",
        ),
        (
            &format!("unix web {long_path}"),
            "\"web\": a Unix socket's path may have 107 bytes, this one has 108: choose a \
             shorter one",
        ),
        ("tcp web 192.0.2.1:0", "\"web\": the kernel refused to bind 192.0.2.1:0"),
    ];
    for (config, expected) in cases {
        let error = refusal(&format!("runtime {runtime}\n{config}\n"));
        assert!(error.starts_with("cannot claim \""), "{config}: {error}");
        assert!(error.contains(expected), "{config}: {error}");
        assert!(error.contains("(nobody serves)"), "{config}: {error}");
    }
}

fn a_successor_with_a_bad_claim_changes_nothing(runtime: &str) {
    let config = format!("runtime {runtime}\ntcp web 127.0.0.1:0\n");
    let subject = Subject::start(&config);
    let load = Load::echo(subject.address("web")).start();
    load.wait_answers(5, soon()).unwrap();
    for bad in ["tcp other 80", "tcp web 127.0.0.1:0", "unix u /nonexistent/s"] {
        subject.configure(&format!("{config}{bad}\n"));
        let verdict = subject.upgrade_fails();
        assert!(verdict.contains("the successor refused: cannot claim"), "{verdict}");
        assert!(verdict.contains("the predecessor serves on"), "{verdict}");
    }
    subject.configure(&config);
    let successor = subject.upgrade();
    load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    load.stop().assert_nothing_lost();
}

#[test]
fn a_backlog_of_4096_unless_another_is_asked_for() {
    let subject = Subject::start("tcp many 127.0.0.1:0\ntcp few 127.0.0.1:0 backlog=7\n");
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let most: u32 = somaxconn.trim().parse().unwrap();
    for _ in 0..2 {
        // Field tcpi_sacked of a listening socket (tcp(7)).
        assert_eq!(backlog(&subject, "many"), most.min(4096));
        assert_eq!(backlog(&subject, "few"), 7);
        subject.upgrade();
    }
}

#[test]
fn reuse_address_is_set_for_tcp_and_not_for_udp() {
    let subject = Subject::start("tcp t 127.0.0.1:0\nudp u 127.0.0.1:0\n");
    assert!(copy_of(&subject, "t").reuse_address().unwrap());
    assert!(!copy_of(&subject, "u").reuse_address().unwrap());
    for name in ["t", "u"] {
        assert!(!copy_of(&subject, name).reuse_port().unwrap());
        assert!(copy_of(&subject, name).nonblocking().unwrap());
    }
    // So a second service cannot take a share of the datagrams by mistake.
    let error = refusal(&format!("udp web {}\n", subject.address("u")));
    assert!(error.contains("is in use by another socket"), "{error}");
    assert!(UdpSocket::bind(subject.address("u")).is_err());
}

#[test]
fn a_socket_that_is_handed_over_keeps_what_was_asked_of_it() {
    let folder = Folder::create();
    let subject = Subject::start_in(folder, "tcp t [::1]:0\nudp u [::1]:0\n", |launch| launch);
    let address = subject.address("t");
    assert!(address.is_ipv6());
    subject.upgrade();
    assert_eq!(asked(address), subject.pid());
}

/// The socket of that name, out of the process that serves: `t` listens, `u` takes datagrams.
fn copy_of(subject: &Subject, name: &str) -> socket2::Socket {
    let address = subject.address(name);
    let pid = rustix::process::Pid::from_raw(subject.pid().cast_signed()).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
    let copy = |number| {
        let none = rustix::process::PidfdGetfdFlags::empty();
        match rustix::process::pidfd_getfd(&pidfd, number, none) {
            Ok(copy) => Some(copy),
            // It was closed after it was listed.
            Err(rustix::io::Errno::BADF) => None,
            Err(error) => panic!("descriptor {number} cannot be copied: {error}"),
        }
    };
    // What a listener has accepted has its address, too. And another file may have got the number.
    let is_it = |socket: &socket2::Socket| {
        let local = socket.local_addr().ok().and_then(|local| local.as_socket());
        let is_of_kind = match socket.r#type() {
            Ok(socket2::Type::STREAM) => name == "t" && socket.is_listener().unwrap(),
            Ok(socket2::Type::DGRAM) => name == "u",
            _ => false,
        };
        local == Some(address) && is_of_kind
    };
    let listed = handover_testkit::process::fds(subject.pid()).into_iter();
    let sockets = listed.filter(|(_, file)| file.starts_with("socket:"));
    let mut copies = sockets.filter_map(|(number, _)| copy(number).map(socket2::Socket::from));
    copies.find(is_it).expect("the process has it open")
}

fn backlog(subject: &Subject, name: &str) -> u32 {
    let port = format!(":{}", subject.address(name).port());
    let listed = std::process::Command::new("ss").args(["-Hltn"]).output();
    let listed = String::from_utf8(listed.expect("ss lists sockets").stdout).unwrap();
    let line = listed.lines().find(|line| {
        line.split_ascii_whitespace().nth(3).is_some_and(|local| local.ends_with(&port))
    });
    line.and_then(|line| line.split_ascii_whitespace().nth(2)?.parse().ok()).expect("it listens")
}
