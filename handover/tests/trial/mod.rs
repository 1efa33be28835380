//! A service of which every successor is on probation.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use handover::control::{Answer, Client, ErrorCode, Event, GenerationReport, Request, TimedEvent};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, Outcome, Pid, Resource, recheck, soon};

use crate::common::{Asked, Stage};

/// The subject on probation for longer than a test takes, with a control socket and a PID file.
pub(crate) struct Trial {
    pub(crate) stage: Stage,
    /// The process that successors are rolled back to.
    pub(crate) old: Pid,
}

/// A successor on probation.
pub(crate) struct Tried<'a> {
    pub(crate) pid: Pid,
    pub(crate) asked: Asked<'a>,
}

impl Trial {
    /// Starts the subject with these arguments, which come before the usual ones.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Self::with(arguments, |launch, _| launch)
    }

    /// Starts the subject in another way.
    pub(crate) fn with(arguments: &[&str], change: impl FnOnce(Launch, &Folder) -> Launch) -> Self {
        let usual = ["--probation", "60000", "--answer-timeout", "20000"];
        let stage = Stage::with(&[&usual, arguments].concat(), |launch, folder| {
            let launch = launch.arg("--control").arg(folder.join("control"));
            let launch = launch.arg("--pid-file").arg(folder.join("pid"));
            change(launch.limit(Resource::Core, 0, 0), folder)
        });
        let old = stage.server();
        Self { stage, old }
    }

    /// Has the old process upgraded to a successor that follows the script, and waits until that is
    /// on probation.
    pub(crate) fn upgrade(&self, script: &str) -> Tried<'_> {
        self.stage.script(script);
        let mut events = self.client();
        // Once this is answered, what is asked next comes before what the signal does.
        answer(&mut events, &Request::Status {});
        events.send(&Request::Events {}).unwrap();
        let asked = self.stage.ask_of(self.old);
        let pid = asked.serving();
        // The successor serves a moment before its predecessor knows.
        wait_committed(&mut events);
        Tried { pid, asked }
    }

    /// Connects to whoever serves.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.stage.folder.join("control")).unwrap()
    }

    /// Asks whoever serves, and returns the answer that is no event.
    pub(crate) fn request(&self, request: &Request) -> Answer {
        answer(&mut self.client(), request)
    }

    /// What whoever serves says of a generation.
    pub(crate) fn generation(&self, pid: Pid) -> Option<GenerationReport> {
        let answer = self.request(&Request::Status {});
        let Answer::Status(status) = answer else { panic!("{answer:?}") };
        status.generations.into_iter().find(|generation| generation.report.pid == pid)
    }

    /// Asserts that the old process serves everything again, under its name.
    #[track_caller]
    pub(crate) fn assert_old_serves(&self) {
        let Self { stage, old } = self;
        stage.load.wait_answered_by(|pid| pid == *old, soon()).unwrap();
        assert_eq!(self.named(), Some(*old));
        assert!(process::is_alive(*old));
    }

    /// Asserts the same, that nothing is left of those that were rolled back, and that the next
    /// upgrade succeeds. Returns what became of the load.
    #[track_caller]
    pub(crate) fn finish(self) -> Outcome {
        self.assert_old_serves();
        assert_no_child_left(self.old);
        let next = self.upgrade("");
        assert!(matches!(self.request(&Request::Confirm {}), Answer::Done { .. }));
        assert!(next.asked.verdict().contains(" serves after "));
        assert!(process::exited(self.old, soon()));
        self.stage.load.wait_answered_by(|pid| pid == next.pid, soon()).unwrap();
        assert_eq!(self.named(), Some(next.pid));
        self.stage.load.stop()
    }

    /// Whom the PID file names.
    pub(crate) fn named(&self) -> Option<Pid> {
        self.stage.folder.read("pid")?.trim().parse().ok()
    }
}

impl Tried<'_> {
    /// Waits until it is rolled back, for these reasons.
    #[track_caller]
    pub(crate) fn rolled_back(&self, reasons: &[&str]) -> String {
        let verdict = self.asked.verdict();
        assert!(verdict.starts_with("verdict rolled back: "), "{verdict}");
        for reason in reasons {
            assert!(verdict.contains(reason), "{reason:?} is missing in: {verdict}");
        }
        verdict
    }

    /// Waits until it is told that it serves for good.
    #[track_caller]
    pub(crate) fn confirmed(&self) {
        let verdict = self.asked.verdict();
        assert!(verdict.contains(&format!("(pid {}) serves after ", self.pid)), "{verdict}");
        assert!(process::exited(self.asked.pid, soon()), "the predecessor drains and exits");
    }

    /// Waits until it has drained and ended by itself.
    #[track_caller]
    pub(crate) fn left(&self) {
        self.asked.line(&format!("draining {} RolledBack", self.pid));
        let drained = self.asked.line(&format!("drained {} ", self.pid));
        assert!(drained.ends_with(", 0 cut"), "{drained}");
        assert!(process::exited(self.pid, soon()));
    }
}

#[track_caller]
pub(crate) fn assert_no_child_left(pid: Pid) {
    let gone = recheck(soon(), || process::children(pid).is_empty().then_some(()));
    assert!(gone.is_some(), "left: {:?}", process::children(pid));
}

/// Asks, and returns the answer that is no event.
pub(crate) fn answer(client: &mut Client, request: &Request) -> Answer {
    client.send(request).unwrap();
    loop {
        let timeout = soon().duration_since(Instant::now());
        match client.next_answer_within(Some(timeout)).unwrap() {
            Some(Answer::Event(_)) => {}
            Some(answer) => return answer,
            None => panic!("closed without an answer to {request:?}"),
        }
    }
}

/// Waits until the predecessor knows that its successor serves, or has lost it again.
fn wait_committed(events: &mut Client) {
    loop {
        let timeout = soon().duration_since(Instant::now());
        match events.next_answer_within(Some(timeout)).unwrap() {
            Some(Answer::Event(TimedEvent { event: Event::Committed { .. }, .. })) | None => return,
            Some(Answer::Event(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[track_caller]
pub(crate) fn assert_refused(answer: &Answer, expected: ErrorCode, parts: &[&str]) {
    let Answer::Error { code, message } = answer else { panic!("{answer:?}") };
    assert_eq!(*code, expected, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }
}

/// Waits for the end of a process, and returns how long it then takes to an answer, and whose.
pub(crate) fn answer_after_death(address: SocketAddr, pid: Pid) -> (Duration, Pid) {
    assert!(process::exited(pid, soon()));
    let died = Instant::now();
    let answer = get(address);
    (died.elapsed(), answer.parse().expect("a pid"))
}

/// Makes one request, and returns the body of its answer.
pub(crate) fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().unwrap_or_default().to_owned()
}

/// Waits until a process has taken its signals: one that comes while the same one is pending is
/// lost (signal(7)).
pub(crate) fn wait_taken(pid: Pid) {
    let taken = recheck(soon(), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
        pending.trim().bytes().all(|digit| digit == b'0').then_some(())
    });
    assert!(taken.is_some());
}

/// What a process holds on to.
#[derive(Debug)]
pub(crate) struct Footprint {
    fds: usize,
    threads: usize,
    rss_bytes: u64,
}

impl Footprint {
    pub(crate) fn of(pid: Pid) -> Self {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
        let (fds, rss_bytes) = (process::fds(pid).len(), process::rss_bytes(pid));
        Self { fds, threads, rss_bytes }
    }

    /// Asserts that the process has not grown, but for requests that it has at this moment.
    #[track_caller]
    pub(crate) fn assert_kept(&self, pid: Pid) {
        const GROWTH_BYTES_MAX: u64 = 4 << 20;
        let kept = recheck(soon(), || {
            let now = Self::of(pid);
            let kept = now.fds <= self.fds
                && now.threads <= self.threads
                && now.rss_bytes <= self.rss_bytes + GROWTH_BYTES_MAX;
            kept.then_some(())
        });
        assert!(kept.is_some(), "{self:?}, {:?}: {:?}", Self::of(pid), process::fds(pid));
        assert!(process::zombies(pid).is_empty());
    }
}

/// Sorted times, to be printed.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    pub(crate) fn at(&self, share: f64) -> Duration {
        let last = self.0.len() - 1;
        self.0[(last as f64 * share).round() as usize]
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [median, most, worst] = [0.5, 0.99, 1.0].map(|share| self.at(share));
        write!(f, "{} times, p50 {median:.1?}, p99 {most:.1?}, max {worst:.1?}", self.0.len())
    }
}

/// Stops a process and waits until it stands still.
pub(crate) fn suspend(pid: Pid) {
    process::signal(pid, Signal::STOP);
    assert!(process::wait_state_stopped(pid, soon()));
}
