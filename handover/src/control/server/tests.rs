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
        let in_flight = Arc::new(InFlight::new(Arc::new(Wake::new().unwrap())));
        let endpoint = Registry::default()
            .claim(Some("control"), Kind::UnixStream, bind, Stance::Open, &in_flight)
            .unwrap();
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
fn the_longest_line_is_taken_and_a_longer_one_refused() {
    let mut rig = Rig::new();
    let line = |bytes: usize| {
        let empty = "{\"request\":\"\"}\n".len();
        format!("{{\"request\":\"{}\"}}\n", "x".repeat(bytes - empty))
    };
    let hand = rig.connect();
    hand.send(&line(MAX_REQUEST_BYTES));
    assert!(matches!(rig.next_request().1, Asked::Command { .. }));

    let mut hand = rig.connect();
    hand.send(&line(MAX_REQUEST_BYTES + 1));
    rig.turn_until(|_| hand.has_line());
    assert_eq!(hand.read().unwrap()["code"], "too-long");
    assert_eq!(hand.read(), None);
}

#[test]
fn a_line_without_end_is_refused_while_it_is_written() {
    let mut rig = Rig::new();
    let path = rig.path.clone();
    let (answer, sent) = rig.serve_during(
        move || {
            let mut hand = Hand::connect(&path);
            let part = vec![b'x'; 1 << 20];
            // It goes through for as long as it is listened to.
            let sent = (0..64).take_while(|_| hand.0.get_ref().write_all(&part).is_ok()).count();
            (hand.read().unwrap(), sent)
        },
        |_, _, asked| panic!("{asked:?}"),
    );
    assert_eq!(answer["code"], "too-long");
    assert!(sent > 0, "the client has not seen a broken pipe before it knew why");
}

#[test]
fn a_reader_that_stalls_misses_events_and_is_told_how_many() {
    const EVENTS: u64 = 10_000;
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    hand.send("{\"request\":\"events\"}\n");
    let (client, _, _) = rig.next_request();
    let text = "x".repeat(100);
    for _ in 0..EVENTS {
        rig.server.publish(&event(&text));
    }
    rig.settle_at(Instant::now() + 10 * CONTROL_WRITE_TIMEOUT);
    assert_eq!(rig.server.clients.len(), 1, "who only follows may take its time");
    assert!(rig.server.is_flushed(), "and nobody waits for it");

    let count = move || {
        let (mut seen, mut missed) = (0, 0);
        while seen + missed < EVENTS {
            let event = hand.read().unwrap();
            match event["event"].as_str() {
                Some("missed") => missed += event["events"].as_u64().unwrap(),
                _ => seen += 1,
            }
        }
        (hand, seen, missed)
    };
    let (mut hand, seen, missed) = rig.serve_during(count, |_, _, asked| panic!("{asked:?}"));
    let line = 170;
    assert!(missed > 0 && seen > MAX_CONTROL_BACKLOG_BYTES as u64 / line, "{seen} seen");
    rig.server.publish(&event("last"));
    assert_eq!(hand.read().unwrap()["text"], "last");
    rig.done(client);
    assert_eq!(hand.read().unwrap()["type"], "done");
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
fn a_client_that_asks_nothing_is_closed() {
    let mut rig = Rig::new();
    let (mut idle, mut slow, busy) = (rig.connect(), rig.connect(), rig.connect());
    slow.send("{\"request\":");
    busy.send(STATUS);
    let (client, _, _) = rig.next_request();
    rig.settle();
    let began = Instant::now();
    let deadline = rig.server.deadline().unwrap();
    assert!(deadline <= began + CONTROL_REQUEST_TIMEOUT);

    rig.settle_at(deadline - Duration::from_millis(1));
    assert!(!idle.has_line() && !slow.has_line());
    rig.settle_at(began + CONTROL_REQUEST_TIMEOUT);
    for hand in [&mut idle, &mut slow] {
        assert_eq!(hand.read().unwrap()["code"], "bad-request");
        assert_eq!(hand.read(), None);
    }
    drop((idle, slow));
    rig.settle();
    assert_eq!(rig.server.clients.len(), 1, "what is under way takes the time that it takes");
    assert_eq!(rig.server.deadline(), None);
    rig.done(client);
    assert!(rig.server.deadline().is_some(), "the time begins with the answer");
}

#[test]
fn a_client_that_was_told_to_go_and_stays_is_closed() {
    let mut rig = Rig::new();
    let hand = rig.connect();
    rig.settle();
    let late = Instant::now() + CONTROL_REQUEST_TIMEOUT;
    rig.settle_at(late);
    assert_eq!(rig.server.clients.len(), 1);
    rig.settle_at(late + Duration::from_secs(1));
    assert!(rig.server.clients.is_empty());
    drop(hand);
}

#[test]
fn a_client_that_does_not_read_its_answer_is_closed() {
    let mut rig = Rig::new();
    let mut hand = rig.connect();
    hand.send(STATUS);
    let (client, _, _) = rig.next_request();
    // More than the kernel keeps for it.
    let value = Value::from("x".repeat(8 << 20));
    rig.server.answer(client, &Answer::Result { value });
    assert!(!rig.server.is_flushed());
    rig.settle();
    assert!(!is_readable(rig.poller.as_fd()), "there is nothing to do until it reads");
    rig.settle_at(Instant::now() + CONTROL_WRITE_TIMEOUT);
    assert!(rig.server.is_flushed());
    assert!(rig.server.clients.is_empty());
    assert!(hand.0.read_to_end(&mut Vec::new()).is_ok());
}

#[test]
fn a_large_answer_arrives_whole_before_the_next_request_is_taken() {
    let mut rig = Rig::new();
    let value = Value::from("x".repeat(8 << 20));
    let (path, sent) = (rig.path.clone(), value.clone());
    let received = rig.serve_during(
        move || {
            let mut hand = Hand::connect(&path);
            hand.send(STATUS);
            hand.send(STATUS);
            [hand.read().unwrap(), hand.read().unwrap()]
        },
        |server, client, _| server.answer(client, &Answer::Result { value: sent.clone() }),
    );
    assert!(received.iter().all(|answer| answer["value"] == value));
}

#[test]
fn the_longest_idle_client_makes_room_for_a_new_one() {
    let mut rig = Rig::new();
    let mut hands: Vec<Hand> = Vec::new();
    for _ in 0..MAX_CONTROL_CLIENTS {
        hands.push(rig.connect());
        rig.settle();
    }
    // Has just had an answer.
    hands[0].send(STATUS);
    let (client, _, _) = rig.next_request();
    rig.done(client);
    assert_eq!(hands[0].read().unwrap()["type"], "done");
    let new = rig.connect();
    new.send(STATUS);
    assert!(is_status(&rig.next_request().1));
    assert_eq!(hands[1].read().unwrap()["code"], "too-many-clients");
    assert_eq!(hands[1].read(), None);
    assert!(!hands[0].has_line() && !hands[2].has_line());
}

#[test]
fn a_new_client_is_told_when_all_others_wait_for_answers() {
    let mut rig = Rig::new();
    let mut hands: Vec<Hand> = Vec::new();
    for _ in 0..MAX_CONTROL_CLIENTS {
        hands.push(rig.connect());
        hands.last().unwrap().send(STATUS);
        rig.next_request();
    }
    let mut new = rig.connect();
    new.send(STATUS);
    rig.settle();
    assert!(rig.incoming.is_empty());
    assert_eq!(new.read().unwrap()["code"], "too-many-clients");
    assert_eq!(new.read(), None);
    let client = *rig.server.clients.keys().next().unwrap();
    rig.done(client);
    assert_eq!(hands[0].read().unwrap()["type"], "done");
    rig.connect().send(STATUS);
    rig.next_request();
}

#[test]
fn a_thousand_idle_clients_keep_nobody_out() {
    let mut rig = Rig::new();
    let mut hands = std::collections::VecDeque::new();
    for _ in 0..1000 {
        hands.push_back(rig.connect());
        if hands.len() > 4 * MAX_CONTROL_CLIENTS {
            hands.pop_front();
        }
        rig.settle();
        assert!(rig.server.clients.len() <= MAX_CONTROL_CLIENTS + MAX_LEAVING_CLIENTS);
    }
    let mut hand = rig.connect();
    hand.send(STATUS);
    let (client, _, _) = rig.next_request();
    rig.done(client);
    assert_eq!(hand.read().unwrap()["type"], "done");
}

#[test]
fn a_flood_is_accepted_in_parts() {
    let mut rig = Rig::new();
    let hands: Vec<Hand> = (0..50).map(|_| rig.connect()).collect();
    rig.server.step(Instant::now());
    assert_eq!(rig.server.clients.len(), ACCEPTS_PER_STEP);
    assert!(is_readable(rig.poller.as_fd()), "the poller brings it back");
    rig.settle();
    assert_eq!(rig.server.clients.len(), hands.len());
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

/// What a test is to do when it runs itself again as another process.
const ROLE: &str = "HANDOVER_CONTROL_TEST";

#[test]
fn the_socket_is_its_owners_whatever_the_umask() {
    let name = "control::server::tests::the_socket_is_its_owners_whatever_the_umask";
    if env::var_os(ROLE).is_some() {
        let folder = Folder::create();
        let path = folder.join("control");
        // As it is bound, before anything else is done to it.
        let rig = Rig::with(folder, bind_how(&path), Policy::default());
        println!("bound {:o}", mode(&path));
        permit(&rig.endpoint.local_address().unwrap(), Policy::default()).unwrap();
        println!("permitted {:o}", mode(&path));
        return;
    }
    for (umask, bound) in [("0000", "600"), ("0022", "600"), ("0777", "0")] {
        let run = Launch::of("/bin/sh")
            .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
            .arg(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(ROLE, "1");
        let finished = run.start().finish(soon()).unwrap();
        let printed = finished.stdout();
        assert!(printed.contains(&format!("bound {bound}\n")), "{umask}: {printed}");
        assert!(printed.contains("permitted 600\n"), "{umask}: {printed}");
    }
}

#[test]
fn a_group_may_connect_if_the_service_names_one() {
    if !is_root() {
        skip!("a_group_may_connect_if_the_service_names_one", "only root has every group");
    }
    let rig = Rig::new();
    let address = rig.endpoint.local_address().unwrap();
    permit(&address, Policy { group: Some(4242) }).unwrap();
    assert_eq!((mode(&rig.path), fs::metadata(&rig.path).unwrap().gid()), (0o660, 4242));
    permit(&address, Policy { group: Some(4243) }).unwrap();
    assert_eq!((mode(&rig.path), fs::metadata(&rig.path).unwrap().gid()), (0o660, 4243));
    permit(&address, Policy::default()).unwrap();
    assert_eq!(mode(&rig.path), 0o600);
}

#[test]
fn what_has_taken_the_place_of_the_socket_keeps_its_mode() {
    let rig = Rig::new();
    let other = rig.folder.write("other", "");
    fs::remove_file(&rig.path).unwrap();
    std::os::unix::fs::symlink(&other, &rig.path).unwrap();
    let before = mode(&other);
    let address = rig.endpoint.local_address().unwrap();
    assert!(permit(&address, Policy { group: Some(0) }).is_err());
    assert_eq!(mode(&other), before);
}

#[test]
fn other_users_may_not_ask_unless_they_are_of_the_group() {
    let name = "control::server::tests::other_users_may_not_ask_unless_they_are_of_the_group";
    if let Some(path) = env::var_os(ROLE) {
        let mut hand = Hand::connect(Path::new(&path));
        hand.send(STATUS);
        println!("answer {}", hand.read().unwrap());
        return;
    }
    if !is_root() {
        skip!("other_users_may_not_ask_unless_they_are_of_the_group", "only root has other users");
    }
    const NOBODY: u32 = 65534;
    let as_other = |path: PathBuf, group: u32| {
        move || {
            // The way to the file may be closed to others.
            let executable = File::open(env::current_exe().unwrap()).unwrap();
            let run = Launch::of(format!("/proc/self/fd/{}", executable.as_raw_fd()))
                .inherit(executable)
                .args(["--exact", name, "--nocapture"])
                .env(ROLE, path)
                .user(NOBODY, group);
            run.start().finish(soon()).unwrap().stdout()
        }
    };
    // Somebody has opened the socket to all: the answer is the last thing that keeps others out.
    let open = |policy| {
        let folder = Folder::create().open_to_all();
        let path = folder.join("control");
        let rig = Rig::with(folder, path.as_path().into(), policy);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        rig
    };
    for (policy, group, allowed) in
        [(None, 4242, false), (Some(4242), 4242, true), (Some(4242), 4243, false)]
    {
        let mut rig = open(Policy { group: policy });
        let path = rig.path.clone();
        let mut asked = 0;
        let printed = rig.serve_during(as_other(path, group), |server, client, _| {
            asked += 1;
            server.answer(client, &done());
        });
        let expected = if allowed { "\"type\":\"done\"" } else { "\"code\":\"forbidden\"" };
        assert!(printed.contains(expected), "{policy:?} {group}: {printed}");
        assert_eq!(asked, u64::from(allowed));
    }
}

#[test]
fn a_supplementary_group_counts() {
    let name = "control::server::tests::a_supplementary_group_counts";
    if let Some(path) = env::var_os(ROLE) {
        let mut hand = Hand::connect(Path::new(&path));
        hand.send(STATUS);
        println!("answer {}", hand.read().unwrap());
        return;
    }
    if !is_root() {
        skip!("a_supplementary_group_counts", "only root may change groups");
    }
    if !Path::new("/usr/bin/setpriv").exists() {
        skip!("a_supplementary_group_counts", "there is no setpriv");
    }
    let folder = Folder::create().open_to_all();
    let mut rig = {
        let path = folder.join("control");
        let rig = Rig::with(folder, bind_how(&path), Policy { group: Some(4242) });
        permit(&rig.endpoint.local_address().unwrap(), Policy { group: Some(4242) }).unwrap();
        rig
    };
    // More of them than fit the first look.
    let groups: Vec<String> = (4200..4300).map(|group: u32| group.to_string()).collect();
    let path = rig.path.clone();
    let work = move || {
        let executable = File::open(env::current_exe().unwrap()).unwrap();
        let program = format!("/proc/self/fd/{}", executable.as_raw_fd());
        let run = Launch::of("/usr/bin/setpriv")
            .args(["--reuid=65534", "--regid=65534", "--groups", &groups.join(",")])
            .arg(program)
            .inherit(executable)
            .args(["--exact", name, "--nocapture"])
            .env(ROLE, path);
        run.start().finish(soon()).unwrap().stdout()
    };
    let printed = rig.serve_during(work, |server, client, _| server.answer(client, &done()));
    assert!(printed.contains("\"type\":\"done\""), "{printed}");
}

#[test]
fn a_process_without_descriptors_rests() {
    let name = "control::server::tests::a_process_without_descriptors_rests";
    if env::var_os(ROLE).is_none() {
        let run = Launch::of(env::current_exe().unwrap())
            .args(["--exact", name])
            .env(ROLE, "1")
            .limit_open_fds(64, 64);
        let finished = run.start().finish(soon()).unwrap();
        assert!(finished.status.success(), "{}", finished.stdout());
        return;
    }
    let mut rig = Rig::new();
    let hand = rig.connect();
    hand.send(STATUS);
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    rig.server.step(Instant::now());
    assert!(!is_readable(rig.poller.as_fd()), "it would be a busy loop");
    assert!(rig.server.deadline().unwrap() > Instant::now());
    drop(files);
    // It tries again by itself.
    assert!(is_status(&rig.next_request().1));
}

#[test]
fn what_happens_again_and_again_is_logged_once_a_minute() {
    let (mut complaint, mut logged) = (Complaint::default(), Vec::new());
    let began = Instant::now();
    for second in 0..150 {
        complaint.say(began + Duration::from_secs(second), |times| logged.push(times));
    }
    assert_eq!(logged, [1, 60, 60]);
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}
