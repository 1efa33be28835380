//! The server with real sockets, stepped by hand.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::{env, thread};

use handover_testkit::{Folder, Launch, is_root, skip, soon};
use serde_json::{Value, json};

use super::super::permission::{bind_how, permit};
use super::super::{
    CONTROL_REQUEST_TIMEOUT, CONTROL_WRITE_TIMEOUT, Client, Event, MAX_CONTROL_BACKLOG_BYTES,
    MAX_REQUEST_BYTES,
};
use super::*;
use crate::drain::InFlight;
use crate::listener::{Bind, Kind};
use crate::registry::Registry;
use crate::sys::poll::{Wake, is_readable, wait_readable};
use crate::sys::process::Condition;

mod access;
mod limits;

/// What a test is to do when it runs itself again as another process.
const ROLE: &str = "HANDOVER_CONTROL_TEST";

/// A server, and the loop around it.
struct Rig {
    server: Server,
    endpoint: Arc<Endpoint>,
    poller: Arc<Poller>,
    in_flight: Arc<InFlight>,
    path: PathBuf,
    folder: Folder,
    /// What came, and was not taken by a test.
    incoming: Vec<Incoming>,
}

impl Rig {
    fn new() -> Self {
        let folder = Folder::create();
        let path = folder.join("control");
        Self::with(folder, bind_how(&path), Policy::default())
    }

    fn with(folder: Folder, bind: Bind, policy: Policy) -> Self {
        let path = folder.join("control");
        let (endpoint, in_flight) = claim(bind);
        let poller = Arc::new(Poller::new().unwrap());
        let server = Server::new(Arc::clone(&endpoint), policy, Arc::clone(&poller));
        Self { server, endpoint, poller, in_flight, path, folder, incoming: Vec::new() }
    }

    fn connect(&self) -> Hand {
        Hand::connect(&self.path)
    }

    /// Waits as the engine's waiter does, and steps.
    fn turn(&mut self, other: Option<BorrowedFd<'_>>) {
        let deadline = self.server.deadline().map_or_else(soon, |deadline| deadline.min(soon()));
        let waited: Vec<_> = [Some(self.poller.as_fd()), other].into_iter().flatten().collect();
        wait_readable(&waited, Some(deadline)).unwrap();
        self.incoming.extend(self.server.step(Instant::now()));
    }

    fn turn_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = soon();
        while !done(self) {
            assert!(Instant::now() < deadline, "it takes too long: {:?}", self.incoming);
            self.turn(None);
        }
    }

    /// Steps until nothing is left to do but to wait, as of this time.
    fn settle_at(&mut self, now: Instant) {
        loop {
            self.incoming.extend(self.server.step(now));
            let is_due = self.server.deadline().is_some_and(|deadline| deadline <= now);
            if !is_due && !is_readable(self.poller.as_fd()) {
                return;
            }
        }
    }

    fn settle(&mut self) {
        self.settle_at(Instant::now());
    }

    /// The next thing that comes.
    fn next(&mut self) -> Incoming {
        self.turn_until(|rig| !rig.incoming.is_empty());
        self.incoming.remove(0)
    }

    fn next_request(&mut self) -> (ClientId, Asked, Peer) {
        match self.next() {
            Incoming::Request { client, request, peer } => (client, request, peer),
            gone @ Incoming::Gone { .. } => panic!("{gone:?}"),
        }
    }

    /// Serves until the end of another thread's work.
    fn serve_during<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        mut answer: impl FnMut(&mut Server, ClientId, Asked),
    ) -> T {
        let (end, told) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || {
            let _end = end;
            work()
        });
        while !is_readable(told.as_fd()) {
            self.turn(Some(told.as_fd()));
            for incoming in std::mem::take(&mut self.incoming) {
                if let Incoming::Request { client, request, .. } = incoming {
                    answer(&mut self.server, client, request);
                }
            }
        }
        thread.join().unwrap()
    }

    fn done(&mut self, client: ClientId) {
        self.server.answer(client, &done());
    }
}

fn claim(bind: Bind) -> (Arc<Endpoint>, Arc<InFlight>) {
    let in_flight = Arc::new(InFlight::new(Arc::new(Wake::new().unwrap())));
    let endpoint = Registry::default()
        .claim(Some("control"), Kind::UnixStream, bind, Stance::Open, &in_flight)
        .unwrap();
    (endpoint, in_flight)
}

/// A client, by hand.
struct Hand(BufReader<UnixStream>);

impl Hand {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(soon() - Instant::now())).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&self, text: &str) {
        self.0.get_ref().write_all(text.as_bytes()).unwrap();
    }

    fn end(&self) {
        self.0.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// The next line, which has to be there; `None` at the end.
    fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.0.read_line(&mut line).unwrap() {
            0 => None,
            _ => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    fn has_line(&self) -> bool {
        !self.0.buffer().is_empty() || is_readable(self.0.get_ref().as_fd())
    }
}

fn done() -> Answer {
    Answer::Done { message: "done".into() }
}

fn event(text: &str) -> TimedEvent {
    TimedEvent { at_ms: 7, event: Event::Progress { generation: 2, text: text.into() } }
}

const STATUS: &str = "{\"request\":\"status\"}\n";

fn is_status(asked: &Asked) -> bool {
    *asked == Asked::Ours(Request::Status {})
}

#[test]
fn a_request_comes_with_who_asks_and_its_answers_go_back() {
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    hand.send(STATUS);
    let (client, asked, peer) = rig.next_request();
    assert!(is_status(&asked));
    assert_eq!(peer.pid, Some(std::process::id()));
    assert_eq!(peer.to_string(), format!("uid {}, pid {}", peer.uid, std::process::id()));

    rig.server.answer(client, &Answer::Event(event("one")));
    assert_eq!(hand.read().unwrap()["text"], "one");
    rig.done(client);
    assert_eq!(hand.read(), Some(json!({"type": "done", "message": "done"})));
    assert!(rig.server.is_flushed());
    rig.done(client);
    assert!(!hand.has_line(), "there is one final answer");
    hand.send(STATUS);
    assert_eq!(rig.next_request().0, client);
}

#[test]
fn a_command_of_the_application_comes_with_its_arguments() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send("{\"request\":\"reload-cache\",\"size\":5}\r\n");
    let (_, asked, _) = rig.next_request();
    let arguments = json!({"size": 5});
    assert_eq!(asked, Asked::Command { name: "reload-cache".into(), arguments });
}

#[test]
fn pipelined_requests_are_answered_one_after_the_other() {
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    let lines: String = (0..5).map(|n| format!("{{\"request\":\"c{n}\"}}\n")).collect();
    hand.send(&lines);
    for n in 0..5 {
        let (client, asked, _) = rig.next_request();
        assert_eq!(asked, Asked::Command { name: format!("c{n}"), arguments: json!({}) });
        rig.settle();
        assert!(rig.incoming.is_empty(), "the next one waits for the answer");
        rig.server.answer(client, &Answer::Result { value: json!(n) });
        assert_eq!(hand.read().unwrap()["value"], n);
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    for byte in STATUS.split_inclusive(|_| true) {
        rig.settle();
        assert!(rig.incoming.is_empty());
        hand.send(byte);
    }
    assert!(is_status(&rig.next_request().1));
}

#[test]
fn blank_lines_and_carriage_returns_do_not_matter() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send("\n\r\n  \n\t{\"request\":\"status\"}\r\n\r\n");
    assert!(is_status(&rig.next_request().1));
}

#[test]
fn a_client_that_sends_no_more_gets_its_answers() {
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    // The last one without its end.
    hand.send("{\"request\":\"a\"}\n\n{\"request\":\"b\"}");
    hand.end();
    for value in ["a", "b"] {
        let (client, _, _) = rig.next_request();
        rig.settle();
        assert!(rig.incoming.is_empty(), "it is not gone");
        rig.server.answer(client, &Answer::Result { value: json!(value) });
        assert_eq!(hand.read().unwrap()["value"], value);
    }
    rig.settle();
    assert_eq!(hand.read(), None);
}

#[test]
fn what_is_asked_by_a_client_that_goes_at_once_is_done() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send("{\"request\":\"stop\"}\n");
    drop(hand);
    assert_eq!(rig.next_request().1, Asked::Ours(Request::Stop { drain_timeout_ms: None }));
    assert!(matches!(rig.next(), Incoming::Gone { .. }));
}

#[test]
fn a_client_that_vanishes_is_told_of_if_it_waits_for_an_answer() {
    let mut rig = Rig::new();
    let (idle, busy) = (rig.connect(), rig.connect());
    busy.send(STATUS);
    let (client, _, _) = rig.next_request();
    // There is more to read, which must not hide that it is gone.
    busy.send(STATUS);
    drop((idle, busy));
    match rig.next() {
        Incoming::Gone { client: gone } => assert_eq!(gone, client),
        request @ Incoming::Request { .. } => panic!("{request:?}"),
    }
    rig.settle();
    assert!(rig.incoming.is_empty());
    assert!(rig.server.clients.is_empty());
    rig.done(client);
}

#[test]
fn a_client_that_vanishes_from_its_events_is_told_of() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send("{\"request\":\"events\"}\n");
    let (client, _, _) = rig.next_request();
    drop(hand);
    // It is noticed by the write, or by the poller.
    rig.server.publish(&event("x"));
    assert!(matches!(rig.next(), Incoming::Gone { client: gone } if gone == client));
    assert!(rig.server.clients.is_empty());
}

#[test]
fn a_bad_line_is_answered_and_the_next_one_is_taken() {
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    hand.send("hello\n{\"request\":\"stop\",\"drain_timout_ms\":1}\n[]\n{\"request\":7}\n");
    let cases = [
        ["hello", "{\"request\":\"status\"}"],
        ["drain_timout_ms", "drain_timeout_ms\":30000"],
        ["[]", "{\"request\":\"status\"}"],
        ["is no text", "{\"request\":\"status\"}"],
    ];
    for case in cases {
        rig.turn_until(|_| hand.has_line());
        let answer = hand.read().unwrap();
        assert_eq!(answer["code"], "bad-request", "{answer}");
        for part in case {
            assert!(answer["message"].as_str().unwrap().contains(part), "{part}: {answer}");
        }
    }
    assert!(rig.incoming.is_empty());
    hand.send(STATUS);
    assert!(is_status(&rig.next_request().1));
}

#[test]
fn who_follows_its_upgrade_sees_events_until_the_verdict() {
    let mut rig = Rig::new();
    let (mut one, mut other) = (rig.connect(), rig.connect());
    one.send("{\"request\":\"upgrade\"}\n");
    let (client, _, _) = rig.next_request();
    other.send(STATUS);
    let (asks, _, _) = rig.next_request();
    rig.server.follow(client);
    rig.server.publish(&event("seen"));
    rig.done(client);
    rig.done(asks);
    rig.server.publish(&event("not seen"));
    assert_eq!(one.read().unwrap()["text"], "seen");
    assert_eq!(one.read().unwrap()["type"], "done");
    assert_eq!(other.read().unwrap()["type"], "done");
    assert!(!one.has_line() && !other.has_line());
}

#[test]
fn nothing_is_accepted_while_the_gate_is_shut() {
    let mut rig = Rig::new();
    let early = rig.connect();
    rig.settle();
    rig.endpoint.gate().turn(Stance::Paused);
    let late = rig.connect();
    late.send(STATUS);
    rig.settle();
    assert_eq!(rig.server.clients.len(), 1);
    assert!(!is_readable(rig.poller.as_fd()), "it would be a busy loop");
    early.send(STATUS);
    rig.next_request();

    rig.endpoint.gate().turn(Stance::Open);
    assert!(rig.server.deadline().unwrap() <= Instant::now(), "the engine comes back at once");
    rig.next_request();
    rig.endpoint.gate().turn(Stance::Ended);
    let _too_late = rig.connect();
    rig.settle();
    assert_eq!(rig.server.clients.len(), 2);
    assert!(!is_readable(rig.poller.as_fd()));
}

#[test]
fn a_retired_socket_serves_whoever_had_come() {
    let mut rig = Rig::new();
    let hands: Vec<Hand> = (0..20).map(|_| rig.connect()).collect();
    hands.iter().for_each(|hand| hand.send(STATUS));
    rig.endpoint.retire();
    assert!(UnixStream::connect(&rig.path).is_err());
    rig.settle();
    assert_eq!(rig.incoming.len(), hands.len());
    assert_eq!(rig.endpoint.gate().stance(), Stance::Ended);
}

#[test]
fn clients_are_not_in_flight() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send(STATUS);
    rig.next_request();
    assert!(rig.in_flight.is_idle());
}

#[test]
fn nobody_can_ask_a_process_that_finishes() {
    let mut rig = Rig::new();
    let (mut idle, mut busy, mut piped) = (rig.connect(), rig.connect(), rig.connect());
    busy.send(STATUS);
    let (client, _, _) = rig.next_request();
    piped.send(STATUS);
    piped.end();
    let (no_more, _, _) = rig.next_request();
    rig.server.finish();
    assert_eq!(idle.read().unwrap()["code"], "not-serving");
    idle.send(STATUS);

    for client in [client, no_more] {
        rig.done(client);
    }
    assert_eq!(busy.read().unwrap()["type"], "done");
    assert_eq!(busy.read().unwrap()["code"], "not-serving");
    assert_eq!(busy.read(), None);
    assert_eq!(piped.read().unwrap()["type"], "done", "and no word more: it expects none");
    rig.settle();
    assert_eq!(piped.read(), None);
    assert!(rig.incoming.is_empty());
    assert!(rig.server.is_flushed());
}

#[test]
fn a_descriptor_goes_with_its_line() {
    let mut rig = Rig::new();
    let (mine, theirs) = UnixStream::pair().unwrap();
    let path = rig.path.clone();
    let mut theirs = Some(theirs);
    let (answer, descriptor) = rig.serve_during(
        move || {
            let mut client = Client::connect(&path).unwrap();
            client.send(&Request::TakeOver {}).unwrap();
            assert!(matches!(client.next_answer().unwrap(), Some(Answer::Event(_))));
            (client.next_answer().unwrap(), client.take_descriptor())
        },
        |server, client, _| {
            // As long as it fills the socket: the descriptor must wait for its turn.
            server.answer(client, &Answer::Event(event(&"x".repeat(200_000))));
            let channel = Answer::Channel { token: "t".into(), generation: 2 };
            server.answer_with(client, &channel, theirs.take().unwrap().into());
        },
    );
    assert!(matches!(answer, Some(Answer::Channel { generation: 2, .. })));
    let mut received = UnixStream::from(descriptor.unwrap());
    (&mine).write_all(b"it is the one").unwrap();
    drop(mine);
    let mut text = String::new();
    received.read_to_string(&mut text).unwrap();
    assert_eq!(text, "it is the one");
}

#[test]
fn a_descriptor_for_a_client_that_is_gone_is_closed() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send("{\"request\":\"take-over\"}\n");
    let (client, _, _) = rig.next_request();
    drop(hand);
    let (mut mine, theirs) = UnixStream::pair().unwrap();
    let channel = Answer::Channel { token: "t".into(), generation: 2 };
    rig.server.answer_with(client, &channel, theirs.into());
    rig.settle();
    assert_eq!(mine.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_client_is_known_as_a_process() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send("{\"request\":\"take-over\"}\n");
    let (client, _, _) = rig.next_request();
    let process = rig.server.process(client).unwrap();
    assert_eq!(process.pid(), std::process::id());
    assert_eq!(process.condition(), Condition::Running);
    drop(hand);
    rig.settle();
    assert!(rig.server.process(client).is_err());
}
