//! Listeners and datagram sockets in both kinds of runtime, across upgrades, with every request
//! accounted for.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use handover_testkit::process::{Pid, fds, signal};
use handover_testkit::{
    Folder, KeepAlive, Launch, Load, LoadSetup, Service, Signal, Target, example, recheck, soon,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// How long a datagram or packet may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

const UPGRADES: u64 = 5;

struct Subject {
    service: Service,
    tcp: SocketAddr,
    udp: SocketAddr,
    folder: Folder,
}

impl Subject {
    fn start(runtime: &str, how: &str) -> Self {
        Self::launch(runtime, how, |launch| launch)
    }

    fn launch(runtime: &str, how: &str, with: impl FnOnce(Launch) -> Launch) -> Self {
        let folder = Folder::create();
        let launch = Launch::of(example("subject_tokio")).arg(folder.path()).args([runtime, how]);
        let service = with(launch).start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let addresses: Vec<_> = line["listening on ".len()..].split(' ').collect();
        let address = |index: usize| addresses[index].parse().unwrap();
        service.wait_line(|line| line == "serving 1", soon()).unwrap();
        Self { service, tcp: address(0), udp: address(1), folder }
    }

    fn unix(&self) -> Target {
        Target::from(self.folder.join("stream"))
    }

    /// Upgrades and waits until the next generation has answered the load.
    fn upgrade(&self, load: &Load, old: Pid) -> Pid {
        signal(old, Signal::HUP);
        load.wait_answered_by(|pid| pid != old, soon()).unwrap()
    }

    /// The process that answers.
    fn serving(load: &Load) -> Pid {
        load.wait_answered_by(|_| true, soon()).unwrap()
    }

    fn stop(&self, pid: Pid) {
        signal(pid, Signal::TERM);
        self.service.wait_all_gone(soon()).unwrap();
    }
}

/// Upgrades under this load, and stops.
fn survives_upgrades(runtime: &str, how: &str, load: impl Fn(&Subject) -> LoadSetup) {
    let subject = Subject::start(runtime, how);
    let load = load(&subject).start();
    let mut pid = Subject::serving(&load);
    for _ in 0..UPGRADES {
        pid = subject.upgrade(&load, pid);
    }
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.len() as u64, UPGRADES + 1, "{outcome}");
    subject.stop(pid);
}

fn tcp(subject: &Subject) -> LoadSetup {
    Load::echo(subject.tcp).rate(500)
}

fn unix(subject: &Subject) -> LoadSetup {
    Load::echo(subject.unix()).rate(500)
}

macro_rules! accepted_in {
    ($($name:ident: $how:literal by $load:ident,)*) => {$(
        mod $name {
            #[test]
            fn in_one_thread_loses_no_request() {
                super::survives_upgrades("current", $how, super::$load);
            }

            #[test]
            fn in_many_threads_loses_no_request() {
                super::survives_upgrades("multi", $how, super::$load);
            }
        }
    )*};
}

accepted_in! {
    tcp_accepted_in_a_loop: "loop" by tcp,
    tcp_accepted_as_a_stream: "stream" by tcp,
    tcp_accepted_by_many_tasks: "tasks" by tcp,
    tcp_accepted_by_attempts_that_are_given_up: "cancelled" by tcp,
    unix_streams: "loop" by unix,
}

#[test]
fn connections_opened_before_an_upgrade_live_on_with_their_generation() {
    for runtime in ["current", "multi"] {
        let subject = Subject::start(runtime, "loop");
        let load = tcp(&subject).rate(50).start();
        let mut pid = Subject::serving(&load);
        let mut kept = Vec::new();
        for target in [Target::from(subject.tcp), subject.unix(), Target::from(subject.tcp)] {
            let connections = KeepAlive::echo(target).connections(5).start();
            connections.wait_open(soon()).unwrap();
            kept.push((pid, connections));
            pid = subject.upgrade(&load, pid);
        }
        for (pid, connections) in kept {
            connections.wait_pings(20, soon()).unwrap();
            let outcome = connections.stop();
            assert_eq!(outcome.ends, []);
            assert_eq!(outcome.answered_by.into_keys().collect::<Vec<_>>(), [pid]);
        }
        load.stop().assert_nothing_lost();
        subject.stop(pid);
    }
}

#[test]
fn datagrams_and_packets_are_all_answered_across_upgrades() {
    for runtime in ["current", "multi"] {
        let subject = Subject::start(runtime, "loop");
        let load = tcp(&subject).rate(50).start();
        let mut pid = Subject::serving(&load);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = [
                scope.spawn(|| ask_by_udp(&subject, &done)),
                scope.spawn(|| ask_by_unix_datagram(&subject, &done)),
                scope.spawn(|| ask_by_seqpacket(&subject, &done)),
            ];
            for _ in 0..UPGRADES {
                pid = subject.upgrade(&load, pid);
            }
            done.store(true, Ordering::SeqCst);
            let asked = asking.map(|asking| asking.join().unwrap());
            assert!(asked.iter().all(|asked| *asked > 0), "{asked:?}");
        });
        load.stop().assert_nothing_lost();
        subject.stop(pid);
    }
}

/// Asks over and over, one question at a time; returns how many.
fn ask(done: &AtomicBool, mut ask: impl FnMut(&[u8], &mut [u8]) -> usize) -> usize {
    let mut count = 0;
    while !done.load(Ordering::SeqCst) {
        let question = format!("question {count}");
        let mut answer = [0; 1024];
        let bytes = ask(question.as_bytes(), &mut answer);
        assert!(answer[..bytes].ends_with(format!(" {question}").as_bytes()));
        count += 1;
    }
    count
}

fn ask_by_udp(subject: &Subject, done: &AtomicBool) -> usize {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    ask(done, |question, answer| {
        socket.send_to(question, subject.udp).unwrap();
        socket.recv(answer).unwrap()
    })
}

fn ask_by_unix_datagram(subject: &Subject, done: &AtomicBool) -> usize {
    let socket = UnixDatagram::bind(subject.folder.join("client")).unwrap();
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
    ask(done, |question, answer| {
        socket.send_to(question, subject.folder.join("datagram")).unwrap();
        socket.recv(answer).unwrap()
    })
}

fn ask_by_seqpacket(subject: &Subject, done: &AtomicBool) -> usize {
    let address = SockAddr::unix(subject.folder.join("seqpacket")).unwrap();
    ask(done, |question, answer| {
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        socket.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        socket.connect(&address).unwrap();
        socket.send(question).unwrap();
        std::io::Read::read(&mut &socket, answer).unwrap()
    })
}

#[test]
fn running_out_of_descriptors_ends_no_accept_loop() {
    const LIMIT: u64 = 64;
    for (runtime, how) in [("current", "loop"), ("multi", "tasks"), ("multi", "axum")] {
        let limited = |launch: Launch| launch.limit_open_fds(LIMIT, LIMIT);
        let subject = Subject::launch(runtime, how, limited);
        let pid = subject.service.pid();
        let crowd: Vec<_> = (0..100).map(|_| TcpStream::connect(subject.tcp).unwrap()).collect();
        let full = || (fds(pid).len() as u64 == LIMIT).then_some(());
        assert!(recheck(soon(), full).is_some(), "{} open", fds(pid).len());
        drop(crowd);

        let load = if how == "axum" { Load::http(subject.tcp) } else { Load::echo(subject.tcp) };
        let load = load.rate(50).start();
        load.wait_answers(50, soon()).unwrap();
        let new = subject.upgrade(&load, pid);
        load.stop().assert_nothing_lost();
        subject.stop(new);
    }
}
