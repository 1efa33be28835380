//! HTTP through a handover: nothing that was accepted is dropped, nothing idle is surprised.

mod ends;
mod raw;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use handover::control::{Client, Request};
use handover_testkit::process::{self, Pid, signal};
use handover_testkit::{Folder, Launch, Service, Signal, example, soon};

use raw::Raw;

/// The program under test, as it runs.
pub(crate) struct Server {
    service: Service,
    address: SocketAddr,
    folder: Folder,
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        let folder = Folder::create();
        let launch = Launch::of(example("subject_http")).arg(folder.path()).args(options);
        // The first one counts: it is for those that do not say.
        let launch = launch.args(["--idle-grace", "1000"]);
        let service = launch.start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address = line["listening on ".len()..].parse().unwrap();
        service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
        Self { service, address, folder }
    }

    pub(crate) fn connect(&self) -> Raw {
        Raw::connect(self.address)
    }

    /// Whoever serves a new connection.
    pub(crate) fn pid(&self) -> Pid {
        self.connect().get("/").pid()
    }

    /// Upgrades, and returns the new process once the old one drains.
    pub(crate) fn upgrade(&self) -> Pid {
        let old = self.pid();
        signal(old, Signal::HUP);
        self.line(&format!("draining {old} "));
        let new = self.pid();
        assert_ne!(new, old);
        new
    }

    /// Asks on the Unix socket; returns the body of the answer.
    pub(crate) fn ask_unix(&self, path: &str) -> String {
        let mut unix = UnixStream::connect(self.folder.join("http")).unwrap();
        write!(unix, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        unix.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Has whoever serves do something.
    pub(crate) fn control(&self, request: &Request) {
        let mut control = Client::connect(self.folder.join("control")).unwrap();
        control.send(request).unwrap();
        control.next_answer().unwrap();
    }

    pub(crate) fn line(&self, start: &str) -> String {
        self.service.wait_line(|line| line.starts_with(start), soon()).unwrap().to_string()
    }

    /// Stops whoever serves and waits for all to be gone.
    pub(crate) fn stop(self) {
        let pid = self.pid();
        signal(pid, Signal::TERM);
        self.service.wait_all_gone(soon()).unwrap();
    }
}

#[test]
fn accepted_and_unread_gets_its_answer() {
    let server = Server::start(&[]);
    let mut silent: Vec<Raw> = (0..50).map(|_| server.connect()).collect();
    // Accepted in turn: so are those before it.
    let old = server.pid();
    server.upgrade();
    for silent in &mut silent {
        let answer = silent.get("/");
        assert_eq!(answer.pid(), old);
        assert!(answer.says_close());
        silent.assert_ended();
    }
    assert!(server.line(&format!("drained {old} ")).ends_with(" finished, 0 cut"));
    server.stop();
}

/// Asks until the connection has changed hands: what is asked at once may still be the old one's.
pub(crate) fn assert_goes_on(client: &mut Raw, new: Pid) {
    loop {
        let answer = client.get("/");
        assert!(!answer.says_close(), "{answer:?}");
        if answer.pid() == new {
            break;
        }
    }
    assert_eq!(client.get("/").pid(), new);
}

/// Sends the first part, has the process replaced, sends the second one.
fn across(first: &str, second: &str, live: bool) -> (raw::Answer, Raw, Pid) {
    let server = Server::start(if live { &["--live"] } else { &[] });
    let mut client = server.connect();
    client.send(first);
    let old = server.pid();
    server.upgrade();
    client.send(second);
    let answer = client.answer();
    if live {
        // It goes on after the answer.
        assert!(!answer.says_close(), "{answer:?}");
        assert_goes_on(&mut client, server.pid());
    } else {
        assert!(answer.says_close(), "{answer:?}");
        client.assert_ended();
    }
    assert!(process::exited(old, soon()));
    server.stop();
    (answer, client, old)
}

#[test]
fn half_a_request_line_gets_its_answer() {
    for live in [false, true] {
        let (answer, _, old) = across("GE", "T / HTTP/1.1\r\nHost: test\r\n\r\n", live);
        assert!(answer.pid() == old || live);
    }
}

#[test]
fn half_a_header_gets_its_answer() {
    for live in [false, true] {
        let (answer, _, old) = across("GET / HTTP/1.1\r\nHost: te", "st\r\n\r\n", live);
        assert_eq!(answer.pid(), old);
    }
}

#[test]
fn half_a_body_gets_its_answer() {
    for live in [false, true] {
        let body: String = (0..10).map(|at| char::from(byte_at(at))).collect();
        let first = "POST /sum HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n";
        let (answer, _, old) = across(&[first, &body[..5]].concat(), &body[5..], live);
        assert_eq!(answer.body, format!("{old} 10 0\n"));
    }
}

#[test]
fn half_a_chunk_gets_its_answer() {
    for live in [false, true] {
        let body: String = (0..5).map(|at| char::from(byte_at(at))).collect();
        let first = "POST /sum HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n";
        let second = [&body[2..], "\r\n0\r\n\r\n"].concat();
        let (answer, _, old) = across(&[first, &body[..2]].concat(), &second, live);
        assert_eq!(answer.body, format!("{old} 5 0\n"));
    }
}

#[test]
fn a_response_that_is_half_written_is_written_to_its_end() {
    for options in [&[][..], &["--live"]] {
        let server = Server::start(options);
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send("4\r\nhalf\r\n");
        assert!(client.head().starts_with("http/1.1 200 "));
        assert_eq!(client.chunk(), b"half");
        let new = server.upgrade();
        client.send("5\r\nwhole\r\n0\r\n\r\n");
        assert_eq!(client.chunk(), b"whole");
        assert_eq!(client.chunk(), b"");
        if options.is_empty() {
            // It was too late to announce it.
            assert!(client.get("/").says_close());
            client.assert_ended();
        } else {
            assert_goes_on(&mut client, new);
        }
        server.stop();
    }
}

#[test]
fn pipelined_requests_are_all_answered_and_the_last_answer_says_close() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let post = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody";
    let get = "GET /until-drain HTTP/1.1\r\nHost: test\r\n\r\n";
    client.send([get, get, post, "\r\n", get, "GET / HTTP/1.1\n\n"].concat());
    let old = server.pid();
    server.upgrade();
    for body in [None, None, Some("body"), None] {
        let answer = client.answer();
        match body {
            Some(body) => assert_eq!(answer.body, body),
            None => assert_eq!(answer.pid(), old),
        }
        assert!(!answer.says_close(), "{answer:?}");
    }
    // HTTP/1.1 wants a Host of its own.
    let last = client.answer();
    assert!(last.says_close(), "{last:?}");
    client.assert_ended();
    server.stop();
}

#[test]
fn keep_alive_is_told_in_the_next_answer_and_ended_after_the_grace() {
    let server = Server::start(&["--idle-grace", "1500"]);
    let (mut asks, mut waits) = (server.connect(), server.connect());
    let old = asks.get("/").pid();
    assert_eq!(waits.get("/").pid(), old);
    let before = Instant::now();
    server.upgrade();
    assert!(waits.is_silent());
    let answer = asks.get("/");
    assert!(answer.says_close() && answer.pid() == old);
    asks.assert_ended();
    waits.assert_ended();
    assert!(before.elapsed() >= Duration::from_millis(1500), "{:?}", before.elapsed());
    assert!(process::exited(old, soon()));
    server.stop();
}

#[test]
fn keep_alive_changes_hands_where_it_is_live() {
    let server = Server::start(&["--live"]);
    let mut kept: Vec<Raw> = (0..20).map(|_| server.connect()).collect();
    for client in &mut kept {
        client.get("/");
    }
    for _ in 0..5 {
        let old = server.pid();
        let new = server.upgrade();
        assert!(process::exited(old, soon()));
        for client in &mut kept {
            let answer = client.get("/");
            assert_eq!(answer.pid(), new);
            assert!(!answer.says_close());
        }
    }
    server.stop();
}

#[test]
fn on_probation_connections_stay_until_it_is_over() {
    let server = Server::start(&["--live", "--probation", "60000"]);
    let mut client = server.connect();
    let old = client.get("/").pid();
    signal(old, Signal::HUP);
    let new = loop {
        let pid = server.pid();
        if pid != old {
            break pid;
        }
    };
    for _ in 0..3 {
        let answer = client.get("/");
        assert_eq!(answer.pid(), old);
        assert!(!answer.says_close());
    }
    server.control(&Request::Confirm {});
    assert!(process::exited(old, soon()));
    assert_eq!(client.get("/").pid(), new);
    server.stop();
}

#[test]
fn event_streams_and_long_polls_and_upgraded_connections_are_told_of_the_drain() {
    let server = Server::start(&[]);
    let (mut events, mut poll, mut lines) = (server.connect(), server.connect(), server.connect());
    events.send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n");
    let old = server.pid();
    assert!(events.head().contains("text/event-stream"));
    assert_eq!(events.chunk(), format!("data: first {old}\n\n").into_bytes());
    poll.send("GET /until-drain HTTP/1.1\r\nHost: test\r\n\r\n");
    lines.send(
        "GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\none\n",
    );
    assert!(lines.head().starts_with("http/1.1 101 "));
    assert_eq!(lines.line(), "one\n");

    server.upgrade();
    assert_eq!(events.chunk(), format!("data: last {old}\n\n").into_bytes());
    assert_eq!(events.chunk(), b"");
    assert_eq!(poll.answer().pid(), old);
    assert_eq!(lines.line(), "bye\n");
    lines.assert_ended();
    server.stop();
}

#[test]
fn the_end_of_the_drain_cuts_and_says_what() {
    let server = Server::start(&["--drain-timeout", "1000", "--header-timeout", "60000"]);
    let mut never_reads = server.connect();
    never_reads.send("GET /download/1000000000 HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut never_ends = server.connect();
    never_ends.send("POST /sum HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n01234");
    let mut never_told = server.connect();
    never_told
        .send("GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    never_told.head();
    never_told.send("line\n");
    let mut never_answered = server.connect();
    never_answered.send("GET /never HTTP/1.1\r\nHost: test\r\n\r\n");
    let old = server.pid();
    let began = Instant::now();
    signal(old, Signal::TERM);
    assert!(process::exited(old, soon()));
    assert!(began.elapsed() >= Duration::from_secs(1));
    for cut in [&mut never_reads, &mut never_ends, &mut never_answered] {
        cut.wait_cut();
    }
    let finished = server.service.finish(soon()).unwrap();
    assert_eq!(finished.status.code(), Some(3));
    let log = finished.stderr();
    for what in ["GET /download/1000000000 for ", "POST /sum for ", "GET /never for "] {
        let told = log.lines().find(|line| line.contains("cut by the end") && line.contains(what));
        assert!(
            told.is_some_and(|line| line.contains("127.0.0.1:") && line.contains(" s old")),
            "{log}"
        );
    }
    assert!(finished.stdout().contains(" 3 cut"), "{}", finished.stdout());
}

#[test]
fn a_head_that_does_not_come_is_not_waited_for_longer_than_allowed() {
    let server = Server::start(&["--header-timeout", "300"]);
    for begun in ["GET / HTTP/1.1\r\nHo", "P"] {
        let mut slow = server.connect();
        slow.send(begun);
        slow.assert_ended();
    }
    // Idleness is not slowness.
    let mut idle = server.connect();
    idle.get("/");
    let mut slow = server.connect();
    slow.get("/");
    slow.send("GET / HTTP/1.1\r\nHost: ");
    slow.assert_ended();
    assert!(idle.is_silent());
    idle.get("/");
    server.stop();
}

#[test]
fn while_draining_a_head_has_the_grace_at_most() {
    let server = Server::start(&["--idle-grace", "500"]);
    let mut slow = server.connect();
    slow.send("GET / HTTP/1.1\r\nHo");
    let old = server.pid();
    server.upgrade();
    slow.assert_ended();
    assert!(process::exited(old, soon()));
    server.stop();
}

#[test]
fn more_connections_than_allowed_wait_and_an_upgrade_does_not() {
    let server = Server::start(&["--max-connections", "2"]);
    let (mut one, mut two) = (server.connect(), server.connect());
    let old = one.get("/").pid();
    two.get("/");
    let mut waits = server.connect();
    waits.send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(waits.is_silent());
    signal(old, Signal::HUP);
    let new = waits.answer().pid();
    assert_ne!(new, old);
    server.line(&format!("draining {old} "));
    assert!(one.get("/").says_close() && two.get("/").says_close());
    drop(waits);
    server.stop();
}

#[test]
fn bad_requests_end_their_connection_and_nothing_else() {
    let server = Server::start(&[]);
    let mut good = server.connect();
    good.get("/");
    for bad in [
        "\r\n\r\n\r\nnonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nxx\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send([bad, "and what is not read of it"].concat());
        let answer = client.head();
        assert!(
            answer.starts_with("http/1.1 400 ") || answer.starts_with("http/1.1 505 "),
            "{answer}"
        );
        client.assert_ended();
    }
    let reset = server.connect();
    drop(reset);
    good.get("/");
    server.stop();
}

#[test]
fn the_application_knows_who_asks() {
    let server = Server::start(&[]);
    let mut client = server.connect();
    let body = client.get("/peer").body;
    let (session, info) = body.trim().split_once(' ').unwrap();
    assert!(session.starts_with("127.0.0.1:") && session == info, "{body}");
    let answer = server.ask_unix("/peer");
    assert!(answer.contains(&format!("process {}", std::process::id())), "{answer}");
    server.stop();
}

/// As many bytes, and as many a second, of the pattern of the subject.
const TRANSFER: u64 = 50_000_000;
const TRANSFER_RATE: u64 = 5_000_000;

fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(31) >> 3) as u8
}

/// Gives each piece its time; not a wait for anything, but the speed of the client.
fn pace(began: Instant, bytes: u64) {
    let due = began + Duration::from_micros(bytes * 1_000_000 / TRANSFER_RATE);
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
}

#[test]
fn uploads_and_downloads_go_on_through_an_upgrade() {
    let server = Server::start(&["--drain-timeout", "60000"]);
    let old = server.pid();
    let address = server.address;
    let upload = std::thread::spawn(move || {
        let mut client = Raw::connect(address);
        client.send("POST /sum HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
        let (began, mut at) = (Instant::now(), 0);
        while at < TRANSFER {
            let end = TRANSFER.min(at + 50_000);
            let piece: Vec<u8> = (at..end).map(byte_at).collect();
            client.send([format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat());
            at = end;
            pace(began, at);
        }
        client.send("0\r\n\r\n");
        client.answer()
    });
    let download = std::thread::spawn(move || {
        let mut client = Raw::connect(address);
        client.send(format!("GET /download/{TRANSFER} HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert!(client.head().starts_with("http/1.1 200 "));
        let (began, mut at) = (Instant::now(), 0);
        loop {
            let chunk = client.chunk();
            if chunk.is_empty() {
                return at;
            }
            for byte in chunk {
                assert_eq!(byte, byte_at(at), "at {at}");
                at += 1;
            }
            pace(began, at);
        }
    });
    server.upgrade();
    assert_eq!(upload.join().unwrap().body, format!("{old} {TRANSFER} 0\n"));
    assert_eq!(download.join().unwrap(), TRANSFER);
    assert!(process::exited(old, soon()));
    assert!(server.line(&format!("drained {old} ")).ends_with(", 0 cut"));
    server.stop();
}

#[test]
fn a_client_that_resets_disturbs_nobody() {
    let server = Server::start(&["--live"]);
    let mut kept = server.connect();
    kept.get("/");
    let streams: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for stream in &streams {
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let old = server.pid();
    signal(old, Signal::HUP);
    drop(streams);
    assert!(process::exited(old, soon()));
    let new = server.pid();
    assert_eq!(kept.get("/").pid(), new);
    server.stop();
}
