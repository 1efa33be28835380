//! What the tests of listeners share: the program under test, and clients of any socket.
#![allow(dead_code)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handover_testkit::process::{fds, signal};
use handover_testkit::{Folder, Launch, Pid, Service, Signal, example, recheck, soon};
use socket2::{Domain, SockAddr, Socket, Type};

/// Runs each test on both sides of the library: `blocking::name` and `tokio::name`.
macro_rules! in_both_runtimes {
    ($($name:ident),* $(,)?) => {
        mod blocking {
            $(#[test]
            fn $name() {
                super::$name("blocking");
            })*
        }

        mod tokio {
            $(#[test]
            fn $name() {
                super::$name("tokio");
            })*
        }
    };
}
pub(crate) use in_both_runtimes;

/// How long a client waits for an answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The program `subject_listeners` in a folder of its own, all generations of it.
pub(crate) struct Subject {
    // Before the folder, so that nobody writes into it any more when it is removed.
    pub(crate) service: Service,
    pub(crate) folder: Folder,
    serving: Cell<Pid>,
    generation: Cell<u64>,
}

impl Subject {
    /// Starts it with this configuration and waits until it serves.
    #[track_caller]
    pub(crate) fn start(config: &str) -> Self {
        Self::start_in(Folder::create(), config, |launch| launch)
    }

    /// Starts it in a folder, with more settings.
    #[track_caller]
    pub(crate) fn start_in(
        folder: Folder,
        config: &str,
        set: impl FnOnce(Launch) -> Launch,
    ) -> Self {
        folder.write("config", config);
        Self::adopt(folder, |folder| launch(folder, set))
    }

    /// Starts it as it is told in a folder that holds its configuration.
    #[track_caller]
    pub(crate) fn adopt(folder: Folder, launch: impl FnOnce(&Folder) -> Launch) -> Self {
        let service = launch(&folder).start();
        let subject = Self { service, folder, serving: Cell::new(0), generation: Cell::new(0) };
        subject.await_serving(0);
        subject
    }

    /// Returns the process that serves.
    pub(crate) fn pid(&self) -> Pid {
        self.serving.get()
    }

    /// Gives later generations another configuration.
    pub(crate) fn configure(&self, config: &str) {
        self.folder.write("config", config);
    }

    /// Returns the address that the first generation printed for this name.
    #[track_caller]
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        address_in(&self.line(&format!("{name} listening on ")))
    }

    /// Waits for the first line that begins so, of any generation.
    #[track_caller]
    pub(crate) fn line(&self, start: &str) -> String {
        self.line_after(0, start)
    }

    /// Waits for the first line that begins so, among those after the first `skip`.
    #[track_caller]
    pub(crate) fn line_after(&self, skip: usize, start: &str) -> String {
        self.service.wait_line_after(skip, |line| line.starts_with(start), soon()).unwrap()
    }

    /// Returns how many lines begin so.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.service.lines().iter().filter(|line| line.text.starts_with(start)).count()
    }

    /// Upgrades, waits until the successor serves, and returns its pid.
    #[track_caller]
    pub(crate) fn upgrade(&self) -> Pid {
        let before = self.service.line_count();
        signal(self.pid(), Signal::HUP);
        let verdict = self.line_after(before, "verdict ");
        assert!(verdict.starts_with("verdict generation "), "{verdict}: {:#?}", self.service);
        self.await_serving(before);
        self.pid()
    }

    /// Upgrades to this configuration.
    #[track_caller]
    pub(crate) fn upgrade_to(&self, config: &str) -> Pid {
        self.configure(config);
        self.upgrade()
    }

    /// Upgrades, waits for a verdict that is none of success, and returns it.
    #[track_caller]
    pub(crate) fn upgrade_fails(&self) -> String {
        let before = self.service.line_count();
        signal(self.pid(), Signal::HUP);
        let verdict = self.line_after(before, "verdict ");
        assert!(verdict.starts_with("verdict the upgrade failed"), "{verdict}");
        verdict
    }

    /// Waits until the successor of what served so far serves, however it was asked for.
    #[track_caller]
    pub(crate) fn adopt_serving(&self) {
        let next = format!("generation {}", self.generation.get() + 1);
        let is_next = |line: &str| line.starts_with("serving ") && line.ends_with(&next);
        let line = self.service.wait_line(is_next, soon()).unwrap();
        self.set_serving(&line);
    }

    /// Waits until a process has drained, and has exited.
    #[track_caller]
    pub(crate) fn await_gone(&self, pid: Pid) {
        self.line(&format!("drained {pid} "));
        assert!(handover_testkit::process::exited(pid, soon()));
    }

    /// Stops it and waits until nothing is left of it.
    #[track_caller]
    pub(crate) fn stop(&self) {
        signal(self.pid(), Signal::TERM);
        self.service.wait_all_gone(soon()).unwrap();
    }

    /// Sends a line to a TCP listener of it, and returns the answer.
    #[track_caller]
    pub(crate) fn ask(&self, address: SocketAddr, line: &str) -> String {
        ask(address, line).expect("it answers")
    }

    #[track_caller]
    fn await_serving(&self, skip: usize) {
        let line = self.line_after(skip, "serving ");
        self.set_serving(&line);
    }

    fn set_serving(&self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let ["serving", pid, "generation", generation] = words[..] else { panic!("{line}") };
        self.serving.set(pid.parse().expect("a pid"));
        self.generation.set(generation.parse().expect("a number"));
    }
}

/// How to start the program in a folder.
pub(crate) fn launch(folder: &Folder, set: impl FnOnce(Launch) -> Launch) -> Launch {
    set(Launch::of(example("subject_listeners")).arg(folder.path()).cwd(folder.path()))
}

/// Starts the program with a configuration that it cannot serve, and returns what it says.
#[track_caller]
pub(crate) fn refusal(config: &str) -> String {
    let folder = Folder::create();
    folder.write("config", config);
    let finished = launch(&folder, |launch| launch).start().finish(soon()).unwrap();
    assert_eq!(finished.status.code(), Some(1), "{:#?}", finished.printed);
    assert_eq!(finished.stderr(), "", "no panic");
    let said = finished.stdout();
    let error = said.lines().find_map(|line| line.strip_prefix("error "));
    error.unwrap_or_else(|| panic!("it says why: {said}")).to_owned()
}

pub(crate) fn address_in(line: &str) -> SocketAddr {
    let address = line.rsplit(' ').next().expect("a word");
    address.parse().unwrap_or_else(|_| panic!("{line}"))
}

/// Sends a line on a connection of its own, and returns the answer.
pub(crate) fn ask(address: SocketAddr, line: &str) -> io::Result<String> {
    let mut client = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    client.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    client.write_all(format!("{line}\n").as_bytes())?;
    read_line(client)
}

pub(crate) fn read_line(stream: impl Read) -> io::Result<String> {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// Waits until connections to the address are refused.
#[track_caller]
pub(crate) fn await_refused(address: SocketAddr) {
    let refused = || {
        let refusal = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT);
        refusal.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused).then_some(())
    };
    recheck(soon(), refused).unwrap_or_else(|| panic!("somebody listens on {address}"));
}

/// A new client socket, connected to a Unix socket of this type.
pub(crate) fn connect_unix(address: &SockAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, kind, None)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    socket.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    socket.connect(address)?;
    Ok(socket)
}

/// The address of a path, or of an abstract name behind `@`.
pub(crate) fn unix_address(text: &str) -> SockAddr {
    match text.strip_prefix('@') {
        Some(name) => SockAddr::unix(format!("\0{name}")),
        None => SockAddr::unix(Path::new(text)),
    }
    .expect("it is short")
}

/// Sends a line and returns the answer, on a stream or with whole messages.
pub(crate) fn exchange(socket: &Socket, text: &str) -> io::Result<String> {
    let mut buffer = [0; 2048];
    (&*socket).write_all(text.as_bytes())?;
    let bytes = (&*socket).read(&mut buffer)?;
    if bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&buffer[..bytes]).trim_end().to_owned())
}

/// Clients that never cease to make requests, each of which has to be answered.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Clients {
    /// Starts some threads; `request` is told a number that no other request has.
    pub(crate) fn start(
        request: impl Fn(usize) -> io::Result<()> + Clone + Send + 'static,
    ) -> Self {
        const THREADS: usize = 4;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let numbers = Arc::new(AtomicUsize::new(0));
        let threads = (0..THREADS).map(|_| {
            let (stop, answered, numbers) = (stop.clone(), answered.clone(), numbers.clone());
            let request = request.clone();
            thread::spawn(move || {
                let mut lost = Vec::new();
                while !stop.load(Ordering::SeqCst) && lost.len() < 20 {
                    match request(numbers.fetch_add(1, Ordering::SeqCst)) {
                        Ok(()) => _ = answered.fetch_add(1, Ordering::SeqCst),
                        Err(error) => lost.push(error.to_string()),
                    }
                }
                lost
            })
        });
        let threads = threads.collect();
        Self { stop, answered, threads }
    }

    /// Waits until as many more are answered.
    #[track_caller]
    pub(crate) fn await_answers(&self, count: usize) {
        let enough = self.answered.load(Ordering::SeqCst) + count;
        let answered = || (self.answered.load(Ordering::SeqCst) >= enough).then_some(());
        recheck(soon(), answered).expect("requests are answered");
    }

    /// Stops, and asserts that all were answered.
    #[track_caller]
    pub(crate) fn assert_nothing_lost(self) {
        self.finish();
    }

    /// Stops, asserts that all were answered, and returns how many those were: the numbers from
    /// zero on.
    #[track_caller]
    pub(crate) fn finish(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let lost = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        let lost: Vec<String> = lost.flatten().collect();
        let answered = self.answered.load(Ordering::SeqCst);
        assert_eq!(lost, [""; 0], "of {answered} requests");
        answered
    }
}

/// Fails unless the answer is the text behind a pid.
pub(crate) fn expect_echo(text: &str, answer: &str) -> io::Result<()> {
    match answer.split_once(' ') {
        Some((pid, echo)) if pid.parse::<Pid>().is_ok() && echo == text => Ok(()),
        _ => Err(io::Error::other(format!("\"{answer}\" is no answer to \"{text}\""))),
    }
}

/// Opens connections, each of which has sent a line, faster than a slow service accepts them.
#[track_caller]
pub(crate) fn queue_up(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connect = |number| {
        let mut client = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
        client.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        client.write_all(format!("ping {number}\n").as_bytes())?;
        Ok(client)
    };
    (0..count).map(connect).collect::<io::Result<_>>().expect("the queue has room")
}

/// Waits for the answer to each, and returns who gave them.
#[track_caller]
pub(crate) fn answers(clients: Vec<TcpStream>) -> BTreeSet<Pid> {
    let count = clients.len();
    let answers = clients.into_iter().enumerate().map(|(number, client)| {
        let answer = read_line(client)?;
        expect_echo(&format!("ping {number}"), &answer)?;
        Ok(answer.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid"))
    });
    let answers: Vec<io::Result<Pid>> = answers.collect();
    let lost: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(lost.is_empty(), "{} of {count} are lost: {lost:?}", lost.len());
    answers.into_iter().flatten().collect()
}

/// Returns who answers at this address.
#[track_caller]
pub(crate) fn asked(address: SocketAddr) -> Pid {
    let answer = ask(address, "who").expect("it answers");
    answer.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

/// A port that nobody else is given, by the kernel or by another test, while this lives.
pub(crate) struct Port {
    /// Bound and not listening: with `SO_REUSEADDR` on both sides that keeps nobody from it who
    /// asks for it by number.
    _reserved: Socket,
    port: u16,
}

impl Port {
    pub(crate) fn reserve() -> Self {
        // Both families: a dual-stack client or listener is kept off as well.
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([0; 8], 0)).into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        Self { _reserved: socket, port }
    }

    pub(crate) fn number(&self) -> u16 {
        self.port
    }

    /// The port at 127.0.0.1.
    pub(crate) fn v4(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The port at ::1.
    pub(crate) fn v6(&self) -> SocketAddr {
        ([0, 0, 0, 0, 0, 0, 0, 1], self.port).into()
    }
}

/// Makes a FIFO in the folder.
pub(crate) fn make_fifo(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.join(name);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

/// The sockets that a process has open.
pub(crate) fn sockets(pid: Pid) -> BTreeSet<String> {
    fds(pid).into_values().filter(|name| name.starts_with("socket:")).collect()
}
