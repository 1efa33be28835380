//! A service under load, for tests that attack it.

#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use handover::control::{
    Answer, Client, ErrorCode, GenerationState, Request, StatusReport, UpgradeRequest,
    VerdictOutcome,
};
use handover_testkit::process::{self, Signal};
use handover_testkit::{
    Fault, Folder, Launch, Load, Outcome, Pid, Service, example, recheck, soon,
};

/// The `subject`, started through the link `current` in a folder of its own, and loaded.
pub(crate) struct Stage {
    pub(crate) service: Service,
    pub(crate) load: Load,
    pub(crate) folder: Folder,
    pub(crate) address: SocketAddr,
}

impl Stage {
    /// Starts the subject with these arguments on top of its usual ones.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::with(arguments, |launch, _| launch)
    }

    /// Starts the subject in another way.
    pub(crate) fn with(arguments: &[&str], change: impl FnOnce(Launch, &Folder) -> Launch) -> Self {
        let folder = Folder::create();
        let current = folder.link("current", example("subject"));
        let launch = Launch::of(current)
            .args(["--listen", "127.0.0.1:0", "--script"])
            .arg(folder.join("script"))
            .arg("--early-gate")
            .arg(folder.join("early"))
            .arg("--late-gate")
            .arg(folder.join("late"))
            .args(arguments);
        let service = change(launch, &folder).start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address: SocketAddr = line["listening on ".len()..].parse().unwrap();
        service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
        let load = Load::http(address).start();
        load.wait_answers(1, soon()).unwrap();
        Self { service, load, folder, address }
    }

    /// Starts the subject with a control socket.
    pub(crate) fn controlled(arguments: &[&str]) -> Self {
        Self::with(arguments, |launch, folder| {
            launch.arg("--control").arg(folder.join(CONTROL)).arg("--log")
        })
    }

    /// The path of the control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join(CONTROL)
    }

    /// Asks whoever serves, and waits for the final answer.
    #[track_caller]
    pub(crate) fn request(&self, request: &Request) -> Answer {
        ask(&self.control(), request)
    }

    /// Asks whoever serves for an upgrade that is like this, and expects success.
    #[track_caller]
    pub(crate) fn upgrade_with(&self, how: UpgradeRequest) -> Pid {
        let answer = self.request(&Request::Upgrade(how));
        let Answer::Verdict(verdict) = &answer else { panic!("no verdict: {answer:?}") };
        assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
        verdict.pid.expect("it serves")
    }

    /// What runs.
    #[track_caller]
    pub(crate) fn status(&self) -> StatusReport {
        status(&self.control())
    }

    /// What the generations to come do, as `Script` of the subject has it.
    pub(crate) fn script(&self, text: &str) {
        self.folder.write("script", text);
    }

    /// The process that was the last to serve.
    pub(crate) fn server(&self) -> Pid {
        let lines = self.service.lines();
        let serving = lines.iter().rev().find_map(|line| pid_in(&line.text, "serving "));
        serving.expect("somebody has served")
    }

    /// Asks the process that serves for an upgrade.
    pub(crate) fn ask(&self) -> Asked<'_> {
        self.ask_of(self.server())
    }

    /// Asks that process for an upgrade.
    pub(crate) fn ask_of(&self, pid: Pid) -> Asked<'_> {
        let asked = Asked { stage: self, since: self.service.line_count(), pid };
        process::signal(asked.pid, Signal::HUP);
        asked
    }

    /// Makes an upgrade that succeeds, and returns who serves then.
    pub(crate) fn upgrade(&self) -> Pid {
        let asked = self.ask();
        let verdict = asked.verdict();
        assert!(verdict.contains(" serves after "), "{verdict}");
        asked.serving()
    }

    /// Asserts that a failed upgrade has changed nothing: the process serves, the next upgrade
    /// succeeds, and no request was lost.
    pub(crate) fn assert_unharmed(self, server: Pid) {
        assert_eq!(self.server(), server);
        self.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
        let gone = recheck(soon(), || process::children(server).is_empty().then_some(()));
        assert!(gone.is_some(), "nothing is left of the successor that failed");
        self.script("");
        self.folder.link("current", example("subject"));
        let next = self.upgrade();
        self.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
        self.load.stop().assert_nothing_lost();
    }

    /// Makes a FIFO that stops whoever comes to it.
    pub(crate) fn gate(&self, name: &str) -> Gate {
        Gate::new(self.folder.join(name))
    }

    /// Waits for a line that begins like this, printed at any time.
    pub(crate) fn wait(&self, start: &str) -> String {
        self.service.wait_line(|line| line.starts_with(start), soon()).unwrap()
    }

    /// Waits until a generation serves, and returns its process.
    pub(crate) fn wait_generation(&self, generation: u64) -> Pid {
        let end = format!(" generation {generation}");
        let matches = |line: &str| line.starts_with("serving ") && line.ends_with(&end);
        let line = self.service.wait_line(matches, soon()).unwrap();
        pid_in(&line, "serving ").expect("a pid")
    }

    /// A connection that the process which serves has accepted and answered, and holds.
    pub(crate) fn hold(&self) -> Held {
        Held::new(self.address)
    }
}

/// The name of the control socket.
const CONTROL: &str = "control";

/// Asks the service at that control socket, and waits for the final answer.
#[track_caller]
pub(crate) fn ask(control: &Path, request: &Request) -> Answer {
    loop {
        let mut client = Client::connect(control).unwrap();
        client.send(request).unwrap();
        let answer = loop {
            match client.next_answer_within(Some(ANSWER_TIMEOUT)).unwrap() {
                Some(Answer::Event(_)) => {}
                Some(answer) => break answer,
                None => panic!("the connection was closed without an answer to {request:?}"),
            }
        };
        // It has handed over since the connection was made: nothing was done.
        if !matches!(answer, Answer::Error { code: ErrorCode::NotServing, .. }) {
            return answer;
        }
    }
}

/// What runs, as the service at that control socket says.
#[track_caller]
pub(crate) fn status(control: &Path) -> StatusReport {
    match ask(control, &Request::Status {}) {
        Answer::Status(status) => status,
        other => panic!("no status: {other:?}"),
    }
}

/// The process that serves. One that was rolled back is newer, and may drain still.
#[track_caller]
pub(crate) fn serving(status: &StatusReport) -> Pid {
    let mut generations = status.generations.iter();
    let found = generations.find(|generation| generation.state == GenerationState::Serving);
    found.unwrap_or_else(|| panic!("nobody serves: {status:?}")).report.pid
}

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// An upgrade that was asked for.
pub(crate) struct Asked<'a> {
    stage: &'a Stage,
    since: usize,
    /// Who was asked.
    pub(crate) pid: Pid,
}

impl Asked<'_> {
    /// Waits for a line that was printed since.
    pub(crate) fn line(&self, start: &str) -> String {
        let matches = |line: &str| line.starts_with(start);
        self.stage.service.wait_line_after(self.since, matches, soon()).unwrap()
    }

    /// Everything that was printed since.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.stage.service.lines().into_iter().skip(self.since);
        lines.map(|line| line.text).collect()
    }

    /// Waits for the verdict.
    pub(crate) fn verdict(&self) -> String {
        self.line("verdict ")
    }

    /// Waits until the successor runs.
    pub(crate) fn starting(&self) -> Pid {
        pid_in(&self.line("starting "), "starting ").expect("a pid")
    }

    /// Waits until the successor serves.
    pub(crate) fn serving(&self) -> Pid {
        pid_in(&self.line("serving "), "serving ").expect("a pid")
    }

    /// Waits until somebody waits at a gate.
    pub(crate) fn waiting(&self, at: &str) -> Pid {
        let matches = |line: &str| line.starts_with("waiting ") && line.ends_with(at);
        let line = self.stage.service.wait_line_after(self.since, matches, soon()).unwrap();
        pid_in(&line, "waiting ").expect("a pid")
    }
}

fn pid_in(line: &str, start: &str) -> Option<Pid> {
    line.strip_prefix(start)?.split(' ').next()?.parse().ok()
}

/// A FIFO at which a process waits until it is let through.
pub(crate) struct Gate {
    path: PathBuf,
}

impl Gate {
    fn new(path: PathBuf) -> Self {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets through who waits, who is on the way, and those who come later.
    pub(crate) fn open(self) {
        // Opened for both, a FIFO waits for nobody; see fifo(7).
        let mut file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        file.write_all(&[b'.'; 64]).unwrap();
        self.remove();
        // Who has found the FIFO before its name was gone takes a byte, be it later.
        std::mem::forget(file);
    }

    /// Lets those through who come later.
    pub(crate) fn remove(self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// A connection that keeps the process busy that accepted it.
pub(crate) struct Held(TcpStream);

impl Held {
    fn new(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /hold HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        Self(stream)
    }

    /// Lets go, and waits until the process has, too.
    pub(crate) fn release(mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Write);
        let _ = self.0.read_to_end(&mut Vec::new());
    }
}

/// Asserts that a killed process took with it only what it had accepted: nobody was refused.
pub(crate) fn assert_only_accepted_lost(outcome: &Outcome, at_most: usize) {
    let accepted = |fault: &Fault| matches!(fault, Fault::Reset | Fault::Cut);
    assert!(outcome.lost.iter().all(|lost| accepted(&lost.what)), "{outcome}");
    assert!(outcome.lost.len() <= at_most, "{outcome}");
}
