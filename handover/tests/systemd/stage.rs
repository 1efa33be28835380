//! A service of a real systemd.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use handover_testkit::process::{self, Signal};
use handover_testkit::{
    Load, Pid, Service, Systemd, SystemdVersion, example, recheck, skipped, soon,
};

/// The name of the service in all tests.
pub(crate) const UNIT: &str = "subject.service";

/// Where the program is inside.
pub(crate) const PROGRAM: &str = "/usr/local/bin/subject";

/// Runs a test in a systemd of its own, or says that it is skipped.
pub(crate) fn on(version: SystemdVersion, test: fn(Systemd)) {
    match Systemd::boot(version) {
        Ok(systemd) => test(systemd),
        Err(reason) => skipped(&reason),
    }
}

/// A unit that is being tested.
pub(crate) struct Unit {
    pub(crate) systemd: Systemd,
    /// Where it listens, unless a test says otherwise.
    pub(crate) address: SocketAddr,
}

impl Unit {
    /// Installs the program under test and writes its unit: `[Service]` is these lines, with the
    /// arguments in the place of `ARGUMENTS`.
    pub(crate) fn new(systemd: Systemd, arguments: &str, lines: &str) -> Self {
        Self::of("subject_systemd", systemd, arguments, lines)
    }

    /// The same for another program.
    pub(crate) fn of(program: &str, systemd: Systemd, arguments: &str, lines: &str) -> Self {
        systemd.install(example(program), PROGRAM);
        let unit = Self { systemd, address: free_address() };
        unit.write(arguments, lines);
        unit
    }

    /// Writes the unit, `ADDRESS` and `FOLDER` being filled in.
    pub(crate) fn write(&self, arguments: &str, lines: &str) {
        let text = format!("[Service]\nExecStart={PROGRAM} {arguments}\n{lines}\n");
        self.put(UNIT, &text);
    }

    /// Writes any unit.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let folder = self.systemd.folder().path().to_str().unwrap().to_owned();
        let text = text.replace("ADDRESS", &self.address.to_string()).replace("FOLDER", &folder);
        self.systemd.put_unit(name, &text);
    }

    /// Starts the service; returns its main process, as it is known inside.
    #[track_caller]
    pub(crate) fn start(&self) -> Pid {
        self.systemd.start_unit(UNIT);
        self.main_pid()
    }

    /// The main process, as it is known inside.
    #[track_caller]
    pub(crate) fn main_pid(&self) -> Pid {
        self.systemd.main_pid(UNIT).unwrap_or_else(|| panic!("{}", self.systemd.report(UNIT)))
    }

    #[track_caller]
    pub(crate) fn show(&self, property: &str) -> String {
        self.systemd.show(UNIT, property)
    }

    /// Waits until systemd says so.
    #[track_caller]
    pub(crate) fn wait_show(&self, property: &str, matches: impl FnMut(&str) -> bool) -> String {
        self.systemd.wait_show(UNIT, property, matches, soon())
    }

    /// Waits for a line in the journal of the service that holds this.
    #[track_caller]
    pub(crate) fn wait_journal(&self, what: &str) -> String {
        self.systemd.wait_journal(UNIT, |line| line.contains(what), soon())
    }

    /// Reloads; returns whether systemd says that it has succeeded.
    #[track_caller]
    pub(crate) fn reload(&self) -> bool {
        self.systemd.systemctl(&["reload", UNIT]).success()
    }

    /// Has systemd do something that takes its time.
    pub(crate) fn begin(&self, verb: &str) -> Service {
        self.systemd.start(&["systemctl", verb, UNIT])
    }

    /// What the generations to come find under that name.
    pub(crate) fn leave(&self, name: &str, text: &str) -> PathBuf {
        self.systemd.folder().write(name, text)
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.systemd.folder().join(name)).unwrap();
    }

    /// Puts the service under load.
    pub(crate) fn load(&self) -> Load {
        let load = Load::http(self.address).start();
        load.wait_answers(1, soon()).unwrap();
        load
    }

    /// A request that is answered and not over.
    pub(crate) fn hold(&self) -> Held {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /hold HTTP/1.1\r\n\r\n").unwrap();
        let answer = read_answer(&mut stream);
        Held { by: pid_of(&answer), stream }
    }

    /// The body of an answer.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        read_answer(&mut stream)
    }

    /// Has the state saved; returns what was answered, once systemd has it.
    #[track_caller]
    pub(crate) fn save(&self) -> String {
        // A new main process may not be known as that for another moment.
        let saved = recheck(soon(), || {
            let answer = self.get("/save");
            answer.contains("Some(Ok(InFdStore))").then_some(answer)
        });
        saved.unwrap_or_else(|| panic!("{}", self.get("/save")))
    }

    /// Who answers.
    pub(crate) fn answered_by(&self) -> Pid {
        pid_of(&self.get("/"))
    }

    /// Sends a signal to a process by its pid inside.
    #[track_caller]
    pub(crate) fn signal(&self, inside: Pid, signal: Signal) {
        let pid = self.systemd.host_pid(inside);
        process::signal(pid.unwrap_or_else(|| panic!("{inside} is gone")), signal);
    }

    /// Asserts that systemd has had nothing to complain about.
    #[track_caller]
    pub(crate) fn assert_quiet(&self) {
        let journal = self.systemd.journal(UNIT);
        for word in
            ["not our child", "refusing", "not permitted", "Killing", "timed out", "ignoring"]
        {
            let complaint = journal
                .lines()
                // The kernel of the test may lack what this release asks for.
                .find(|line| line.contains(word) && !line.contains("control group"));
            assert_eq!(complaint, None, "{journal}");
        }
    }
}

fn pid_of(body: &str) -> Pid {
    let number = body.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no pid: {body}"))
}

fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let head = String::from_utf8_lossy(&answer).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

/// A request in flight.
pub(crate) struct Held {
    stream: TcpStream,
    /// Who has it.
    pub(crate) by: Pid,
}

impl Held {
    /// Lets go; whether it was still there.
    pub(crate) fn release(mut self) -> bool {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        matches!(self.stream.read(&mut [0]), Ok(0))
    }

    /// Whether the other end has gone without our doing.
    pub(crate) fn is_cut(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// An address on which nobody listens, below those that the kernel gives to others.
pub(crate) fn free_address() -> SocketAddr {
    // Each test is a process of its own: the number of it spreads them.
    let (first, count) = (20_000, 10_000);
    let start = std::process::id() % count;
    let ports = (0..count).map(|n| u16::try_from(first + (start + n) % count).unwrap());
    let free = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    free.into_iter().find(|address| TcpListener::bind(address).is_ok()).expect("a free port")
}
