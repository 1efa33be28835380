//! How connections end that are in no usual state when the drain begins.

use handover::control::Request;
use handover_testkit::process::{Pid, exited, signal};
use handover_testkit::{Signal, soon};

use crate::raw::Raw;
use crate::{Server, assert_goes_on};

impl Server {
    /// Waits for a process that drains to be gone, and nothing to be cut.
    fn assert_whole(&self, old: Pid) {
        assert!(exited(old, soon()), "{old} holds on");
        assert!(self.line(&format!("drained {old} ")).ends_with(" 0 cut"));
    }
}

/// What begins HTTP/2, with settings that change nothing.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn what_moved_without_a_word_can_begin_http2() {
    let server = Server::start(&["--live"]);
    let (mut silent, mut begun) = (server.connect(), server.connect());
    begun.send(&HTTP2[..9]);
    let old = server.pid();
    server.upgrade();
    server.assert_whole(old);
    silent.send(HTTP2);
    begun.send(&HTTP2[9..]);
    for client in [&mut silent, &mut begun] {
        assert_eq!(client.frame(), 4, "no settings");
    }
    server.stop();
}

#[test]
fn what_cannot_move_is_told_of_its_end() {
    let server = Server::start(&["--live", "--shake", "--idle-grace", "60000"]);
    let shake = || {
        let mut client = Raw::connect(server.address);
        client.send("!");
        client
    };
    let mut client = shake();
    let old = client.get("/").pid();
    signal(old, Signal::HUP);
    server.line(&format!("draining {old} "));
    let answer = client.get("/");
    assert!(answer.says_close() && answer.pid() == old, "{answer:?}");
    client.assert_ended();
    server.assert_whole(old);
    signal(shake().get("/").pid(), Signal::TERM);
    server.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn what_a_successor_does_not_take_is_told_of_its_end() {
    let server = Server::start(&["--first-live", "--idle-grace", "3000"]);
    let (mut asks, mut waits) = (server.connect(), server.connect());
    let old = asks.get("/").pid();
    waits.get("/");
    server.upgrade();
    loop {
        let answer = asks.get("/");
        assert_eq!(answer.pid(), old);
        if answer.says_close() {
            break;
        }
    }
    asks.assert_ended();
    assert!(waits.is_silent());
    waits.assert_ended();
    server.assert_whole(old);
    server.stop();
}

#[test]
fn what_was_to_move_to_a_successor_that_died_is_told_of_its_end() {
    let server = Server::start(&["--live"]);
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: te");
    let old = server.pid();
    let new = server.upgrade();
    signal(new, Signal::KILL);
    assert!(exited(new, soon()));
    client.send("st\r\n\r\n");
    let answer = client.answer();
    assert!(answer.says_close() && answer.pid() == old, "{answer:?}");
    client.assert_ended();
    server.assert_whole(old);
}

#[test]
fn an_answer_that_announced_nothing_is_followed_by_a_whole_grace() {
    let server = Server::start(&["--idle-grace", "1500"]);
    let (mut client, mut idle) = (server.connect(), server.connect());
    client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("4\r\nhalf\r\n");
    client.head();
    assert_eq!(client.chunk(), b"half");
    let old = server.pid();
    server.upgrade();
    // The grace is over for those that were idle before.
    idle.assert_ended();
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
    let answer = client.get("/");
    assert!(answer.says_close() && answer.pid() == old, "{answer:?}");
    client.assert_ended();
    server.assert_whole(old);
    server.stop();
}

#[test]
fn empty_lines_are_no_request() {
    for first in [true, false] {
        let server = Server::start(&["--drain-timeout", "60000"]);
        let mut client = server.connect();
        if !first {
            client.get("/");
        }
        client.send("\r\n");
        let old = server.pid();
        server.upgrade();
        client.assert_ended();
        server.assert_whole(old);
        server.stop();
    }
}

#[test]
fn empty_lines_do_not_keep_a_connection_from_moving() {
    let server = Server::start(&["--live", "--drain-timeout", "60000"]);
    let mut client = server.connect();
    client.get("/");
    client.send("\r\n");
    let old = server.pid();
    let new = server.upgrade();
    server.assert_whole(old);
    client.send("\n");
    assert_eq!(client.get("/").pid(), new);
    server.stop();
}

const CHUNKED: &str = "POST /sum HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
                       1;x=0\r\n\0\r\n0\r\nTrailer: x\r\n\r\n";
const LENGTH: &str = "POST /sum HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n\0";

#[test]
fn what_was_pipelined_behind_chunks_is_no_reason_to_stay() {
    for live in [false, true] {
        let server = Server::start(if live { &["--live"] } else { &["--drain-timeout", "60000"] });
        let mut client = server.connect();
        client.send([CHUNKED, LENGTH, CHUNKED].concat());
        for _ in 0..3 {
            assert!(client.answer().body.ends_with(" 1 0\n"));
        }
        let old = server.pid();
        let new = server.upgrade();
        if live {
            assert_goes_on(&mut client, new);
        } else {
            client.assert_ended();
        }
        server.assert_whole(old);
        server.stop();
    }
}

#[test]
fn what_is_pipelined_behind_chunks_is_answered() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let (begun, rest) = CHUNKED.split_at(CHUNKED.len() - 12);
    client.send(begun);
    let old = server.pid();
    server.upgrade();
    client.send([rest, CHUNKED, LENGTH, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"].concat());
    for _ in 0..3 {
        assert!(!client.answer().says_close());
    }
    let last = client.answer();
    assert!(last.says_close() && last.pid() == old, "{last:?}");
    client.assert_ended();
    server.stop();
}

#[test]
fn an_answer_before_the_end_of_its_request_does_not_hold_the_drain() {
    let server = Server::start(&["--drain-timeout", "60000"]);
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
    assert!(client.head().starts_with("http/1.1 405 "));
    let old = server.pid();
    server.upgrade();
    server.assert_whole(old);
    client.wait_cut();
    server.stop();
}

#[test]
fn clients_that_do_not_close_their_end_are_not_cut() {
    let server = Server::start(&["--drain-timeout", "1500", "--idle-grace", "60000"]);
    let mut clients: Vec<Raw> = (0..10).map(|_| server.connect()).collect();
    clients.iter_mut().for_each(|client| assert!(client.get("/").is_ok()));
    let old = server.pid();
    server.upgrade();
    server.assert_whole(old);
    clients.iter_mut().for_each(Raw::assert_ended);
    server.stop();
}

#[test]
fn connections_that_arrived_count_against_the_limit() {
    let server = Server::start(&["--live", "--max-connections", "2"]);
    let (mut one, mut two) = (server.connect(), server.connect());
    let old = one.get("/").pid();
    two.get("/");
    signal(old, Signal::HUP);
    server.assert_whole(old);
    let new = one.get("/").pid();
    assert_ne!(new, old);
    let mut waits = server.connect();
    waits.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    for _ in 0..50 {
        assert_eq!(one.get("/").pid(), new);
        assert_eq!(two.get("/").pid(), new);
    }
    assert!(waits.is_silent());
    drop(one);
    assert_eq!(waits.answer().pid(), new);
    drop((two, waits));
    server.stop();
}

#[test]
fn an_http2_client_that_heeds_nothing_does_not_hold_the_drain() {
    let server = Server::start(&["--drain-timeout", "60000"]);
    let mut client = server.connect();
    client.send(HTTP2);
    assert_eq!(client.frame(), 4);
    let old = server.pid();
    server.upgrade();
    server.assert_whole(old);
    client.wait_cut();
    server.stop();
}

#[test]
fn a_handshake_has_the_grace_at_most_and_is_told_of_if_it_is_cut() {
    let options = ["--shake", "--header-timeout", "60000", "--drain-timeout", "60000"];
    let server = Server::start(&options);
    let mut slow = server.connect();
    let old = server.ask_unix("/").trim().parse().unwrap();
    signal(old, Signal::HUP);
    server.line(&format!("draining {old} "));
    slow.assert_ended();
    server.assert_whole(old);

    let server = Server::start(&["--shake", "--drain-timeout", "700", "--idle-grace", "60000"]);
    let mut slow = server.connect();
    signal(server.ask_unix("/").trim().parse().unwrap(), Signal::TERM);
    slow.wait_cut();
    let finished = server.service.finish(soon()).unwrap();
    assert!(finished.stderr().contains("before its first request"), "{}", finished.stderr());
}

#[test]
fn a_drain_that_is_shortened_closes_what_is_idle_in_time() {
    let server = Server::start(&["--drain-timeout", "60000", "--idle-grace", "50000"]);
    let mut idle = server.connect();
    let old = idle.get("/").pid();
    server.upgrade();
    server.control(&Request::Stop { drain_timeout_ms: Some(1500) });
    idle.assert_ended();
    server.assert_whole(old);
}
