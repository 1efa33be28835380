//! The example that chats: clients notice nothing of an upgrade, and a room stays one room.

#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the other half is for the example")]
#[path = "../examples/paced/mod.rs"]
mod paced;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use handover::control::{
    Answer, Client as Control, Event, Request, UpgradeRequest, VerdictOutcome, VerdictReport,
};
use handover_testkit::process::{self, Pid, signal};
use handover_testkit::{Folder, Launch, Service, Signal, example, soon};
use paced::{MAX_FRAME, Paced};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Barrier, watch};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{Instant, interval_at, timeout_at};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// Opcodes of frames, and the bit that makes one the last of its message (RFC 6455, 5.2).
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const PING: u8 = 9;
const FINAL: u8 = 0x80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_chat_through_fifty_upgrades() {
    const ROOMS: usize = 100;
    const UPGRADES: usize = 50;
    let server = Server::start(&[]);
    let stop = watch::Sender::new(false);
    // Nobody speaks before all are there, nobody leaves before all have heard everything.
    let barrier = Arc::new(Barrier::new(ROOMS * MEMBERS));
    let mut chatting = JoinSet::new();
    for room in 0..ROOMS {
        for client in server.fill(&format!("room{room}")).await {
            let place = chatting.len();
            let (barrier, stop) = (Arc::clone(&barrier), stop.subscribe());
            chatting.spawn(chat(client, place, barrier, stop));
        }
    }
    let mut pid = server.service.pid();
    for _ in 0..UPGRADES {
        pid = server.upgrade(pid);
    }
    stop.send_replace(true);
    let mut said = 0;
    while let Some(chatted) = timeout_at(soon().into(), chatting.join_next()).await.unwrap() {
        said += chatted.unwrap();
    }
    eprintln!("{said} messages, each heard by {MEMBERS}");
    let lines = server.service.lines();
    let all_moved = format!("0 finished, {} moved, 0 cut", ROOMS * MEMBERS);
    assert_eq!(lines.iter().filter(|line| line.text == all_moved).count(), UPGRADES);
    server.stop(pid, []);
}

/// How many are in each room.
const MEMBERS: usize = 10;

/// How long a client says nothing between two bursts.
const PAUSE: Duration = Duration::from_secs(2);

/// How many messages it has on their way at once.
const BURST: usize = 2;

/// Talks until it is to stop; hears all members of its room to their end, each message once and in order.
/// Returns how many it has said.
async fn chat(
    mut client: Client,
    place: usize,
    barrier: Arc<Barrier>,
    stop: watch::Receiver<bool>,
) -> usize {
    barrier.wait().await;
    let offset = PAUSE.mul_f64((place % 1000) as f64 / 1000.0);
    let mut ticks = interval_at(Instant::now() + offset, PAUSE);
    let (mut said, mut ended) = (0, 0);
    let (mut joined, mut heard) = (HashSet::new(), HashMap::new());
    let mut goes_on = true;
    while ended < MEMBERS {
        tokio::select! {
            line = client.hear() => {
                let Some((name, text)) = line.split_once(": ") else {
                    // Those who came later, and each of them once. Nobody leaves.
                    let who = line.strip_prefix("* ").and_then(|it| it.strip_suffix(" has joined"));
                    assert!(who.is_some_and(|who| joined.insert(who.to_owned())), "{line}");
                    continue;
                };
                let (kind, number) = text.split_once(' ').unwrap();
                let expected: &mut usize = heard.entry(name.to_owned()).or_default();
                assert_eq!(number.parse::<usize>().unwrap(), *expected, "{line}");
                *expected += 1;
                ended += usize::from(kind == "end");
            }
            _ = ticks.tick(), if goes_on => {
                goes_on = !*stop.borrow();
                let kinds = if goes_on { &["text"; BURST][..] } else { &["end"] };
                for kind in kinds {
                    client.say(&format!("{kind} {said}")).await;
                    said += 1;
                }
            }
        }
    }
    barrier.wait().await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_one_room_while_a_successor_is_on_probation() {
    let server = Server::start(&["--probation", "60"]);
    let mut ada = server.join("lab", "ada").await;
    let (old, mut upgrading) = (server.service.pid(), server.control());
    let new = block_in_place(|| begin_probation(&mut upgrading));
    let mut bob = server.join("lab", "bob").await;
    assert_eq!(ada.hear().await, "* bob has joined");
    talk(&mut ada, &mut bob).await;
    assert!(process::is_alive(old));

    let confirmed = server.ask(&Request::Confirm {});
    assert!(matches!(confirmed, Answer::Done { .. }), "{confirmed:?}");
    assert!(block_in_place(|| process::exited(old, soon())), "all have moved");
    talk(&mut ada, &mut bob).await;
    server.stop(new, [ada, bob]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_successor_that_is_rolled_back_are_told_to_come_back() {
    let server = Server::start(&["--probation", "60"]);
    let mut ada = server.join("lab", "ada").await;
    let (old, mut upgrading) = (server.service.pid(), server.control());
    let new = block_in_place(|| begin_probation(&mut upgrading));
    let mut bob = server.join("lab", "bob").await;
    assert_eq!(ada.hear().await, "* bob has joined");
    talk(&mut ada, &mut bob).await;

    let back = server.ask(&Request::Rollback { reason: None });
    assert!(matches!(back, Answer::Done { .. }), "{back:?}");
    assert_eq!(bob.closed().await, CloseCode::Restart);
    assert!(block_in_place(|| process::exited(new, soon())));
    assert_eq!(ada.hear().await, "* bob has left");
    let mut bob = server.join("lab", "bob").await;
    assert_eq!(ada.hear().await, "* bob has joined");
    talk(&mut ada, &mut bob).await;
    server.stop(old, [ada, bob]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_frame_moves_with_its_connection() {
    let server = Server::start(&[]);
    let frame = frame(FINAL | TEXT, b"halved");
    let mut pid = server.service.pid();
    let mut bob = server.join("lab", "bob").await;
    let mut ada = server.join("lab", "ada").await;
    assert_eq!(bob.hear().await, "* ada has joined");
    for cut in 1..frame.len() {
        ada.send_raw(&frame[..cut]).await;
        pid = server.upgrade(pid);
        ada.send_raw(&frame[cut..]).await;
        for client in [&mut ada, &mut bob] {
            assert_eq!(client.hear().await, "ada: halved");
        }
    }
    server.stop(pid, [ada, bob]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_message_is_waited_for() {
    let server = Server::start(&[]);
    let mut ada = server.join("lab", "ada").await;
    let mut bob = server.join("lab", "bob").await;
    assert_eq!(ada.hear().await, "* bob has joined");
    ada.send_raw(&frame(TEXT, b"hal")).await;
    ada.send_raw(&frame(FINAL | PING, b"?")).await;
    ada.pong().await;
    let old = server.service.pid();
    let verdict = server.upgrade_to(UpgradeRequest::default());
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    // They may be in two processes by now.
    for _ in 0..10 {
        bob.say("go on").await;
        for client in [&mut ada, &mut bob] {
            assert_eq!(client.hear().await, "bob: go on");
        }
    }
    assert!(process::is_alive(old), "the message is not over");

    ada.send_raw(&frame(FINAL | CONTINUATION, b"ved")).await;
    for client in [&mut ada, &mut bob] {
        assert_eq!(client.hear().await, "ada: halved");
    }
    assert!(block_in_place(|| process::exited(old, soon())), "all have moved");
    talk(&mut ada, &mut bob).await;
    server.stop(verdict.pid.unwrap(), [ada, bob]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_misses_nothing() {
    // More than fits between the server and a client that does not read, less than is kept.
    const LINES: usize = 1500;
    const LENGTH: usize = 4 * 1024;
    let server = Server::start(&[]);
    let mut slow = server.join_slowly("lab", "slow").await;
    let mut ada = server.join("lab", "ada").await;
    for number in 0..LINES {
        ada.say(&format!("{number:LENGTH$}")).await;
        assert_eq!(ada.hear().await, format!("ada: {number:LENGTH$}"));
    }
    let old = server.service.pid();
    let verdict = server.upgrade_to(UpgradeRequest::default());
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    ada.say("done").await;
    assert!(process::is_alive(old), "it has half a message for the slow one");

    assert_eq!(slow.hear().await, "* ada has joined");
    for number in 0..LINES {
        assert_eq!(slow.hear().await, format!("ada: {number:LENGTH$}"));
    }
    assert_eq!(slow.hear().await, "ada: done");
    assert!(block_in_place(|| process::exited(old, soon())), "all have moved");
    server.stop(verdict.pid.unwrap(), [ada, slow]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_long_past_is_forgotten_and_who_is_that_slow_is_told() {
    // More than is kept, and one step of forgetting.
    const LINES: usize = 1600;
    const LENGTH: usize = 15 * 1024;
    const KEPT: u64 = 22 * 1024 * 1024;
    let server = Server::start(&[]);
    let mut slow = server.join_slowly("lab", "slow").await;
    let mut ada = server.join("lab", "ada").await;
    let mut cat = server.join("attic", "cat").await;
    for number in 0..LINES {
        ada.say(&format!("{number:LENGTH$}")).await;
        assert_eq!(ada.hear().await, format!("ada: {number:LENGTH$}"));
    }
    let old = server.service.pid();
    let fds = process::fds(old);
    let (fd, _) = fds.iter().find(|(_, target)| target.contains("memfd:chronicle")).unwrap();
    let file = std::fs::metadata(format!("/proc/{old}/fd/{fd}")).unwrap();
    assert!(file.size() > KEPT && file.blocks() * 512 < KEPT, "{file:?}");

    assert_eq!(slow.hear().await, "* ada has joined");
    let mut number = 0;
    let code = loop {
        match slow.next().await {
            Message::Text(text) => assert_eq!(text, format!("ada: {number:LENGTH$}")),
            Message::Close(Some(frame)) => break frame.code,
            other => panic!("{other:?}"),
        }
        number += 1;
    };
    assert_eq!(code, CloseCode::Again);
    drop(slow);
    assert_eq!(ada.hear().await, "* slow has left");

    // Who has heard nothing because nothing was said has missed nothing.
    let new = server.upgrade(old);
    cat.say("meow").await;
    assert_eq!(cat.hear().await, "cat: meow");
    server.stop(new, [ada, cat]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_the_successor_does_not_take_is_told_to_come_back() {
    let server = Server::start(&["--drain-timeout", "3"]);
    let mut ada = server.join("lab", "ada").await;
    let old = server.service.pid();
    // It knows nothing of chats.
    let verdict = server.upgrade_to(UpgradeRequest {
        executable: Some(example("echo").to_str().unwrap().to_owned()),
        arguments: Some(vec!["127.0.0.1:0".to_owned()]),
        ..UpgradeRequest::default()
    });
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    ada.say("still here?").await;
    assert_eq!(ada.hear().await, "ada: still here?");
    assert_eq!(ada.closed().await, CloseCode::Restart);
    assert!(block_in_place(|| process::exited(old, soon())));
    server.stop(verdict.pid.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_says_goodbye() {
    let server = Server::start(&[]);
    let ada = server.join("lab", "ada").await;
    server.service.signal(Signal::TERM);
    assert_eq!(ada.closed().await, CloseCode::Away);
    server.service.wait_all_gone(soon()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_long_is_refused() {
    let server = Server::start(&[]);
    for length in [20_000, MAX_FRAME, 200_000] {
        let mut ada = server.join("lab", "ada").await;
        ada.say(&"x".repeat(length)).await;
        assert_eq!(ada.closed().await, CloseCode::Size);
    }
    server.stop(server.service.pid(), []);
}

#[tokio::test]
async fn paced_hands_on_whole_frames_one_at_a_time() {
    let (mut client, stream) = duplex(1 << 20);
    let mut paced = Paced::new(stream, Vec::new());
    let mut buffer = vec![0; MAX_FRAME];
    for length in [0, 1, 125, 126, 1000, 65_536 / 4] {
        let [first, second] = [b'a', b'b'].map(|byte| frame(FINAL | TEXT, &vec![byte; length]));
        let cut = second.len() - 1;
        client.write_all(&[&*first, &second[..cut]].concat()).await.unwrap();
        paced.read_exact(&mut buffer[..first.len()]).await.unwrap();
        assert_eq!(buffer[..first.len()], first);
        tokio::select! {
            biased;
            read = paced.read(&mut buffer) => panic!("{read:?} of a frame that is not here"),
            () = std::future::ready(()) => {}
        }
        assert!(paced.is_quiet());
        client.write_all(&second[cut..]).await.unwrap();
        paced.read_exact(&mut buffer[..second.len()]).await.unwrap();
        assert_eq!(buffer[..second.len()], second);
    }
}

#[tokio::test]
async fn paced_gives_back_what_it_has_not_handed_on() {
    let [first, second] = [b"first", b"other"].map(|text| frame(FINAL | TEXT, text));
    for cut in 0..second.len() {
        let (mut client, stream) = duplex(1024);
        client.write_all(&first[4..]).await.unwrap();
        client.write_all(&second[..cut]).await.unwrap();
        let mut paced = Paced::new(stream, first[..4].to_vec());
        let mut buffer = [0; 1024];
        assert_eq!(paced.read(&mut buffer).await.unwrap(), first.len());
        assert!(paced.is_quiet());
        let (_, unread) = paced.into_parts();
        assert_eq!(unread, second[..cut]);
    }
}

#[tokio::test]
async fn paced_is_not_quiet_within_a_message() {
    let (mut client, stream) = duplex(1024);
    let mut paced = Paced::new(stream, Vec::new());
    for (first_byte, is_quiet) in [
        (FINAL | TEXT, true),
        (TEXT, false),
        (FINAL | PING, false),
        (CONTINUATION, false),
        (FINAL | CONTINUATION, true),
        (FINAL | PING, true),
    ] {
        let frame = frame(first_byte, b"part");
        client.write_all(&frame).await.unwrap();
        assert_eq!(paced.read(&mut [0; 1024]).await.unwrap(), frame.len());
        assert_eq!(paced.is_quiet(), is_quiet, "{first_byte:#x}");
    }
}

#[tokio::test]
async fn paced_hands_on_what_is_too_long_as_it_comes() {
    let (mut client, stream) = duplex(1024);
    let mut paced = Paced::new(stream, Vec::new());
    let long = frame(FINAL | TEXT, &vec![b'x'; MAX_FRAME]);
    client.write_all(&long[..100]).await.unwrap();
    assert_eq!(paced.read(&mut [0; 1024]).await.unwrap(), 100);
    assert!(!paced.is_quiet());
}

/// A frame as a client sends it: masked, with zeros, which change nothing.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut frame = match u16::try_from(length) {
        Ok(short @ ..=125) => vec![first_byte, 0x80 | short as u8],
        Ok(length) => [&[first_byte, 0x80 | 126][..], &length.to_be_bytes()].concat(),
        Err(_) => [&[first_byte, 0x80 | 127][..], &(length as u64).to_be_bytes()].concat(),
    };
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Each says something, and both hear both.
async fn talk(ada: &mut Client, bob: &mut Client) {
    ada.say("hello").await;
    for client in [&mut *ada, bob] {
        assert_eq!(client.hear().await, "ada: hello");
    }
    bob.say("hello yourself").await;
    for client in [ada, bob] {
        assert_eq!(client.hear().await, "bob: hello yourself");
    }
}

/// Upgrades to a successor on probation, and returns it.
fn begin_probation(client: &mut Control) -> Pid {
    client.send(&Request::Upgrade(UpgradeRequest::default())).unwrap();
    let mut successor = None;
    loop {
        match client.next_answer().unwrap() {
            Some(Answer::Event(timed)) => match timed.event {
                Event::Spawned { pid, .. } => successor = Some(pid),
                Event::Committed { .. } => return successor.expect("it was spawned"),
                _ => {}
            },
            other => panic!("no probation: {other:?}"),
        }
    }
}

/// The example, as it runs.
struct Server {
    service: Service,
    address: SocketAddr,
    folder: Folder,
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        let folder = Folder::create();
        let launch = Launch::of(example("chat")).arg("127.0.0.1:0").args(arguments);
        let service = launch.arg("--control").arg(folder.join("control")).start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address = line["listening on ".len()..].parse().unwrap();
        Self { service, address, folder }
    }

    async fn join(&self, room: &str, name: &str) -> Client {
        Client::join(TcpStream::connect(self.address).await.unwrap(), room, name).await
    }

    /// A client for which the kernel keeps little.
    async fn join_slowly(&self, room: &str, name: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        Client::join(socket.connect(self.address).await.unwrap(), room, name).await
    }

    /// As many as there are in a room.
    async fn fill(&self, room: &str) -> Vec<Client> {
        let mut clients = Vec::new();
        for number in 0..MEMBERS {
            clients.push(self.join(room, &format!("client{number}")).await);
        }
        clients
    }

    /// Upgrades, and returns the successor once all connections have moved there.
    fn upgrade(&self, old: Pid) -> Pid {
        block_in_place(|| {
            signal(old, Signal::HUP);
            assert!(process::exited(old, soon()), "{:?}", self.service.lines());
            let alive = self.service.alive();
            assert_eq!(alive.len(), 1, "{alive:?}");
            alive[0]
        })
    }

    fn upgrade_to(&self, request: UpgradeRequest) -> VerdictReport {
        block_in_place(|| {
            let mut client = self.control();
            client.send(&Request::Upgrade(request)).unwrap();
            loop {
                match client.next_answer().unwrap() {
                    Some(Answer::Event(_)) => {}
                    Some(Answer::Verdict(verdict)) => return verdict,
                    other => panic!("no verdict: {other:?}"),
                }
            }
        })
    }

    /// Stops who serves, once these clients have left.
    fn stop<const CLIENTS: usize>(&self, pid: Pid, clients: [Client; CLIENTS]) {
        drop(clients);
        signal(pid, Signal::TERM);
        block_in_place(|| self.service.wait_all_gone(soon())).unwrap();
    }

    fn control(&self) -> Control {
        let path: &Path = &self.folder.join("control");
        Control::connect(path).unwrap()
    }

    fn ask(&self, request: &Request) -> Answer {
        block_in_place(|| {
            let mut client = self.control();
            client.send(request).unwrap();
            client.next_answer().unwrap().unwrap()
        })
    }
}

struct Client(WebSocketStream<TcpStream>);

impl Client {
    /// Joins, and waits until it has.
    async fn join(stream: TcpStream, room: &str, name: &str) -> Self {
        stream.set_nodelay(true).unwrap();
        let url = format!("ws://localhost/{room}/{name}");
        // A thousand of the usual ones would be a lot of memory.
        let config = WebSocketConfig::default().read_buffer_size(4 * 1024);
        let shaking = client_async_with_config(url, stream, Some(config));
        let mut client = Self(shaking.await.unwrap().0);
        assert_eq!(client.hear().await, format!("* {name} has joined"));
        client
    }

    async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn send_raw(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).await.unwrap();
    }

    /// What comes next. Anything but that somebody has said something is a failure.
    async fn hear(&mut self) -> String {
        match self.next().await {
            Message::Text(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    async fn pong(&mut self) {
        let pong = self.next().await;
        assert!(matches!(pong, Message::Pong(_)), "{pong:?}");
    }

    /// Waits for the end, and returns how it was announced.
    async fn closed(mut self) -> CloseCode {
        let code = match self.next().await {
            Message::Close(Some(frame)) => frame.code,
            other => panic!("{other:?}"),
        };
        // The client answers, and the server ends the connection.
        assert!(timeout_at(soon().into(), self.0.next()).await.unwrap().is_none());
        code
    }

    async fn next(&mut self) -> Message {
        let next = timeout_at(soon().into(), self.0.next()).await;
        next.expect("it comes in time").expect("it is open").unwrap()
    }
}
