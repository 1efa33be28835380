//! Files, pipes and connected sockets go from generation to generation by name.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::io::{Read, Write};
use std::net::TcpListener;

use listeners::*;

in_both_runtimes! {
    a_file_keeps_its_position,
    a_pipe_and_a_socket_pair_keep_what_is_in_them,
    a_connection_to_elsewhere_stays_open,
    a_descriptor_that_is_forgotten_is_not_handed_over,
    a_descriptor_added_after_ready_is_handed_over,
    a_descriptor_that_cannot_be_made_is_an_error,
}

const CONTROL: &str = "tcp control 127.0.0.1:0\n";

fn a_file_keeps_its_position(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\n{CONTROL}file log ./log\n"));
    let control = subject.address("control");
    for word in ["one-", "two-", "three"] {
        assert_eq!(subject.ask(control, &format!("!write log {word}")), "ok");
        subject.upgrade();
    }
    assert_eq!(subject.folder.read("log").unwrap(), "one-two-three");
}

fn a_pipe_and_a_socket_pair_keep_what_is_in_them(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\n{CONTROL}pipe p -\npair s -\n"));
    let control = subject.address("control");
    let ask = |line: &str| subject.ask(control, line);
    assert_eq!([ask("!write p.1 abc"), ask("!write s.0 abc")], ["ok", "ok"]);
    subject.upgrade();
    assert_eq!([ask("!read p.0 1"), ask("!read s.1 1")], ["a", "a"]);
    assert_eq!([ask("!write p.1 de"), ask("!write s.0 de")], ["ok", "ok"]);
    subject.upgrade();
    assert_eq!([ask("!read p.0 4"), ask("!read s.1 4")], ["bcde", "bcde"]);
}

fn a_connection_to_elsewhere_stays_open(runtime: &str) {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = elsewhere.local_addr().unwrap();
    let subject =
        Subject::start(&format!("runtime {runtime}\n{CONTROL}connect backend {address}\n"));
    let control = subject.address("control");
    let (mut backend, _) = elsewhere.accept().unwrap();
    backend.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    for _ in 0..3 {
        assert_eq!(subject.ask(control, "!write backend ping"), "ok");
        let mut buffer = [0; 4];
        backend.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"ping");
        backend.write_all(b"pong").unwrap();
        subject.upgrade();
        assert_eq!(subject.ask(control, "!read backend 4"), "pong");
    }
    subject.stop();
    assert_eq!(backend.read(&mut [0; 1]).unwrap(), 0, "it ends with the last generation");
    elsewhere.set_nonblocking(true).unwrap();
    assert!(elsewhere.accept().is_err(), "there was one connection only");
}

fn a_descriptor_that_is_forgotten_is_not_handed_over(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\n{CONTROL}file log ./log\n"));
    let control = subject.address("control");
    subject.ask(control, "!write log one");
    assert_eq!(subject.ask(control, "!forget log"), "ok");
    subject.upgrade();
    // It was opened anew, so it is written from its start.
    subject.ask(control, "!write log two");
    assert_eq!(subject.folder.read("log").unwrap(), "two");
}

fn a_descriptor_added_after_ready_is_handed_over(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\n{CONTROL}"));
    let control = subject.address("control");
    assert_eq!(subject.ask(control, "!descriptor file log ./log"), "ok");
    subject.ask(control, "!write log one-");
    let config = format!("runtime {runtime}\n{CONTROL}file log ./log\n");
    for word in ["two-", "three-"] {
        subject.upgrade_to(&config);
        subject.ask(control, &format!("!write log {word}"));
    }
    assert_eq!(subject.folder.read("log").unwrap(), "one-two-three-");
}

fn a_descriptor_that_cannot_be_made_is_an_error(runtime: &str) {
    let error = refusal(&format!("runtime {runtime}\nfile log /nonexistent/log\n"));
    assert_eq!(
        error,
        "cannot claim \"log\": the kernel refused a descriptor (nobody serves): No such file or \
         directory (os error 2)"
    );
}
