//! A load sees every way in which a service can fail a request: the tests that stand on it can fail.

#![cfg(target_os = "linux")]

mod server;

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use handover_testkit::{Ending, Fault, Folder, KeepAlive, Load, Outcome, soon};
use rustix::net::{AddressFamily, SocketType};

use server::{Server, read_head, read_line};

#[test]
fn answers_are_counted_by_the_process_that_gave_them() {
    let pid = Arc::new(AtomicU32::new(11));
    let answering = Arc::clone(&pid);
    let server = Server::tcp(move |mut stream| {
        read_head(&stream);
        answer(&mut stream, &format!("{} ok", answering.load(Ordering::Relaxed)));
    });
    let load = Load::http(server.address()).rate(300).start();
    assert_eq!(load.wait_answered_by(|_| true, soon()).unwrap(), 11);
    pid.store(22, Ordering::Relaxed);
    assert_eq!(load.wait_answered_by(|pid| pid != 11, soon()).unwrap(), 22);
    load.wait_answers(10, soon()).unwrap();

    let outcome = load.stop();

    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.keys().copied().collect::<Vec<_>>(), [11, 22]);
    assert_eq!(outcome.answered_by.values().sum::<usize>(), outcome.ok);
    assert!(outcome.latency(0.0) <= outcome.latency(0.5));
    assert!(outcome.latency(0.5) <= outcome.latency(1.0));
}

#[test]
fn a_port_without_a_listener_is_refused() {
    // Bound, so that no test beside this one gets the port.
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address: SocketAddr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
    assert_eq!(first_lost(Load::http(address).start()), Fault::Refused);
    assert_eq!(first_lost(Load::echo(address).start()), Fault::Refused);
}

#[test]
fn a_missing_socket_path_is_refused() {
    let folder = Folder::create();
    assert_eq!(first_lost(Load::echo(folder.join("socket")).start()), Fault::Refused);
}

#[test]
fn a_reset_is_seen() {
    // Closing with a request unread resets.
    let server = Server::tcp(|stream| {
        stream.peek(&mut [0]).unwrap();
    });
    assert_eq!(first_lost(Load::http(server.address()).start()), Fault::Reset);
    assert_eq!(first_lost(Load::echo(server.address()).start()), Fault::Reset);
}

#[test]
fn a_listener_that_closes_with_connections_queued_resets_them() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let load = Load::http(listener.local_addr().unwrap()).rate(500).start();
    drop(listener);
    let fault = first_lost(load);
    assert!(matches!(fault, Fault::Reset | Fault::Refused), "{fault}");
}

#[test]
fn an_answer_that_ends_early_is_cut() {
    let server = Server::tcp(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n42 ").unwrap();
    });
    assert_eq!(first_lost(Load::http(server.address()).start()), Fault::Cut);
}

#[test]
fn a_connection_closed_without_an_answer_is_cut() {
    let server = Server::tcp(|stream| read_head(&stream));
    assert_eq!(first_lost(Load::http(server.address()).start()), Fault::Cut);
    let server = Server::tcp(|mut stream| {
        read_line(&mut stream);
        stream.write_all(b"pin").unwrap();
    });
    assert_eq!(first_lost(Load::echo(server.address()).start()), Fault::Cut);
}

#[test]
fn another_status_is_wrong() {
    let server = Server::tcp(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy").unwrap();
    });
    let fault = first_lost(Load::http(server.address()).start());
    assert!(matches!(&fault, Fault::Wrong(answer) if answer.contains("503")), "{fault}");
}

#[test]
fn another_line_is_wrong() {
    let server = Server::tcp(|mut stream| {
        read_line(&mut stream);
        stream.write_all(b"pong\n").unwrap();
    });
    let fault = first_lost(Load::echo(server.address()).start());
    assert_eq!(fault, Fault::Wrong("pong\n".to_owned()));
}

#[test]
fn no_answer_times_out() {
    let server = Server::tcp(|stream| {
        read_head(&stream);
        // Until the client gives up.
        let _ = stream.peek(&mut [0]);
    });
    let load = Load::http(server.address()).timeout(Duration::from_millis(50)).start();
    assert_eq!(first_lost(load), Fault::TimedOut);
}

#[test]
fn an_echo_may_tell_its_pid() {
    let server = Server::tcp(|mut stream| {
        let line = read_line(&mut stream);
        write!(stream, "33 {line}").unwrap();
    });
    let load = Load::echo(server.address()).start();
    assert_eq!(load.wait_answered_by(|_| true, soon()).unwrap(), 33);
    load.stop().assert_nothing_lost();
}

#[test]
fn a_unix_socket_is_loaded_and_held_like_a_port() {
    let folder = Folder::create();
    let path = folder.join("socket");
    let _server = Server::unix(&path, |mut stream: UnixStream| echo_until_end(&mut stream));
    let load = Load::echo(path.as_path()).start();
    let held = KeepAlive::echo(path.as_path()).start();
    held.wait_open(soon()).unwrap();
    load.wait_answers(5, soon()).unwrap();
    load.stop().assert_nothing_lost();
    assert_eq!(held.stop().ends, []);
}

#[test]
fn the_load_is_open_and_a_stalled_service_is_asked_on() {
    const STALLED: usize = 20;
    let gate = Arc::new((Mutex::new(0_usize), Condvar::new()));
    let gate_of_server = Arc::clone(&gate);
    let server = Server::tcp(move |mut stream| {
        read_head(&stream);
        // Answers none before all are there.
        let (arrived, changed) = &*gate_of_server;
        let mut arrived = arrived.lock().unwrap();
        *arrived += 1;
        changed.notify_all();
        while *arrived < STALLED {
            arrived = changed.wait(arrived).unwrap();
        }
        answer(&mut stream, "1");
    });
    let load = Load::http(server.address()).rate(200).start();
    load.wait_answers(STALLED, soon()).unwrap();
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    // The first one waited for the nineteen after it, 5 ms apart.
    assert!(outcome.latency(1.0) >= Duration::from_millis(80), "{:?}", outcome.latency(1.0));
}

#[test]
fn a_wait_that_fails_tells_what_was_lost() {
    let server = Server::tcp(|stream| read_head(&stream));
    let load = Load::http(server.address()).start();
    load.wait_lost(1, soon()).unwrap();
    let error = load.wait_answers(1, std::time::Instant::now()).unwrap_err();
    assert!(error.to_string().contains("cut"), "{error}");
}

#[test]
#[should_panic(expected = "requests were lost")]
fn nothing_sent_is_not_nothing_lost() {
    Outcome { ok: 0, lost: vec![], answered_by: [].into(), latencies: vec![] }
        .assert_nothing_lost();
}

#[test]
fn held_connections_ping_until_the_service_closes_them() {
    let closing = Arc::new(AtomicBool::new(false));
    let server_closing = Arc::clone(&closing);
    let server = Server::tcp(move |mut stream| {
        while !server_closing.load(Ordering::Relaxed) {
            echo_one(&mut stream);
        }
    });
    let held = KeepAlive::echo(server.address()).connections(3).every(Duration::from_millis(30));
    let held = held.start();
    held.wait_open(soon()).unwrap();
    held.wait_pings(10, soon()).unwrap();
    assert_eq!(held.so_far().ends, []);

    closing.store(true, Ordering::Relaxed);
    held.wait_ends(3, soon()).unwrap();

    // Each one closed after an answer, with no ping under way.
    let outcome = held.stop();
    assert!(outcome.ends.iter().all(|end| end.how == Ending::Closed), "{outcome:?}");
    assert_eq!(outcome.lost().count(), 0);
}

#[test]
fn a_ping_without_an_answer_is_lost() {
    let cut = Server::tcp(|mut stream| {
        echo_one(&mut stream);
        read_line(&mut stream);
    });
    assert_eq!(ending(&cut), Ending::Lost(Fault::Cut));
    let reset = Server::tcp(|mut stream| {
        echo_one(&mut stream);
        stream.peek(&mut [0]).unwrap();
    });
    assert_eq!(ending(&reset), Ending::Lost(Fault::Reset));
}

#[test]
fn a_connection_that_cannot_be_opened_fails_the_wait() {
    let folder = Folder::create();
    let held = KeepAlive::echo(folder.join("socket")).connections(2).start();
    let outcome = held.wait_open(soon()).unwrap_err();
    assert!(outcome.ends.iter().all(|end| end.how == Ending::Lost(Fault::Refused)));
}

/// Stops the load once a request was lost, and returns what became of that.
fn first_lost(load: Load) -> Fault {
    load.wait_lost(1, soon()).expect("a request is lost");
    let mut outcome = load.stop();
    outcome.lost.swap_remove(0).what
}

fn ending(server: &Server) -> Ending {
    let held = KeepAlive::echo(server.address()).connections(1).start();
    held.wait_ends(1, soon()).expect("the connection ends");
    held.stop().ends.remove(0).how
}

fn answer(stream: &mut TcpStream, body: &str) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).expect("the client is there");
}

fn echo_one(stream: &mut TcpStream) {
    let line = read_line(stream);
    // The client may have stopped.
    let _ = stream.write_all(line.as_bytes());
}

fn echo_until_end(stream: &mut UnixStream) {
    loop {
        let line = read_line(stream);
        if line.is_empty() || stream.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}
