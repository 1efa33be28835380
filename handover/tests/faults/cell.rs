//! One handover with one fault: who serves after it, and what was lost.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use handover_testkit::{
    Fault as Loss, Folder, Launch, Outcome, Pid, Signal, example, process, soon,
};

use crate::common::Stage;
use crate::expected::Expected;
use crate::proxy::{Fault, Message, Proxy, Side, Struck, Times};

/// What a handover comes to if nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Course {
    /// The successor serves.
    Plain,
    /// It does, after a probation.
    Probation,
    /// On probation it says that it is unhealthy, and the predecessor takes back over.
    RolledBack,
}

impl Course {
    /// Who serves if nothing is wrong.
    pub(crate) fn serves(self) -> Serves {
        match self {
            Self::Plain | Self::Probation => Serves::Successor,
            Self::RolledBack => Serves::Predecessor,
        }
    }

    fn probation_ms(self) -> Option<u32> {
        match self {
            Self::Plain => None,
            // Two questions long: the second comes after a quarter of the answer timeout.
            Self::Probation => Some(240),
            // Long enough for nobody to be confirmed before the word comes.
            Self::RolledBack => Some(600),
        }
    }

    fn script(self) -> &'static str {
        match self {
            Self::Plain | Self::Probation => "",
            Self::RolledBack => "later 1 unhealthy bad",
        }
    }
}

/// The timeouts of the services. They are multiplied where the machine is too busy for them.
const READY_MS: u32 = 600;
const COMMIT_MS: u32 = 500;
const ANSWER_MS: u32 = 500;
const BRIEF_MS: u64 = 100;
const OVERDUE_MS: u64 = 1250;

/// How many requests a process may have accepted and not answered at any moment. A request takes
/// well below a millisecond, one comes every five; many services share the machine.
pub(crate) const IN_FLIGHT_MAX: usize = 40;

/// Who serves after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Serves {
    Predecessor,
    Successor,
    Nobody,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) serves: Serves,
    pub(crate) lost: usize,
    pub(crate) requests: usize,
    pub(crate) took: Duration,
    pub(crate) messages: Vec<Message>,
    /// How often it was tried before.
    pub(crate) missed: usize,
}

/// The handover has taken another course before the fault, or in spite of it: a defect, or a machine
/// too busy for the timeouts. With longer ones it is known which.
#[derive(Debug)]
pub(crate) struct Missed(pub(crate) String);

/// Runs a handover in which nothing is wrong.
pub(crate) fn clean(course: Course, slower: u32) -> Result<Ended, Missed> {
    let serves = course.serves();
    let expected = Expected { serves, loses_listener: false, leaves_successor: false };
    run(course, None, expected, slower)
}

/// Runs a handover of a service under load. Asserts that the right one serves then and can be
/// upgraded, and that nothing was lost but what a process had accepted that was killed.
pub(crate) fn run(
    course: Course,
    strike: Option<&(Message, Fault)>,
    expected: Expected,
    slower: u32,
) -> Result<Ended, Missed> {
    let begun = Instant::now();
    let address = own_address();
    let mut stage = Stage::with(&[], |_, folder| launch(folder, course, address, slower));
    let predecessor = stage.server();
    let listener = UnixListener::bind(stage.folder.join(RENDEZVOUS)).unwrap();
    stage.script(course.script());
    stage.folder.link("current", example("subject_proxied"));
    let proxy = Proxy::start(listener, predecessor, strike.cloned(), times(slower));
    // Keeps the predecessor from its end until its last message has come through.
    let held = stage.hold();

    let asked = stage.ask_of(predecessor);
    let struck = match strike {
        None => None,
        Some(_) => match proxy.struck() {
            None => return Err(Missed("the message did not come, or nobody was there".to_owned())),
            struck => struck,
        },
    };
    let killed = strike.and_then(|(message, fault)| fault.kills(message.direction));
    let verdict = match killed {
        Some(Side::Predecessor) => String::new(),
        Some(Side::Successor) | None => asked.verdict(),
    };
    held.release();
    let server = server(&stage, expected.serves);
    let serves = match server {
        None => Serves::Nobody,
        Some(server) if server == predecessor => Serves::Predecessor,
        Some(server) => {
            assert!(struck.is_none_or(|struck| struck.successor == server), "a stranger serves");
            stage.wait(&format!("serving {server} "));
            Serves::Successor
        }
    };
    if serves != expected.serves {
        if killed.is_none() && !verdict.contains("SIGKILL") {
            assert_losses(&stage.load.stop(), 0);
        }
        return Err(Missed(format!("{serves:?} serves, not {:?}: {verdict}", expected.serves)));
    }
    let next = upgrade_cleanly(&mut stage, server, course, address, slower)?;
    let before = [Some(predecessor), struck.map(|struck| struck.successor)];
    for pid in before.into_iter().flatten() {
        if expected.leaves_successor && pid != predecessor {
            stage.load.wait_answered_by(|by| by == pid, soon()).unwrap();
        } else {
            assert!(process::exited(pid, soon()), "{pid} does not go, {next} serves");
        }
    }
    let outcome = stage.load.stop();
    let messages = proxy.end();

    let accepted = match struck {
        _ if expected.loses_listener => usize::MAX,
        // The held connection is none of the load.
        Some(Struck { accepted, .. }) if killed == Some(Side::Predecessor) => accepted - 1,
        Some(Struck { accepted, .. }) if killed == Some(Side::Successor) => accepted,
        // By the predecessor, for it did not go.
        Some(_) if verdict.contains("SIGKILL") => IN_FLIGHT_MAX,
        Some(_) | None => 0,
    };
    assert_losses(&outcome, accepted);
    let (lost, requests) = (outcome.lost.len(), outcome.ok + outcome.lost.len());
    Ok(Ended { serves, lost, requests, took: begun.elapsed(), messages, missed: 0 })
}

/// Upgrades whoever serves, or else a service that is started anew, and returns who serves then.
fn upgrade_cleanly(
    stage: &mut Stage,
    server: Option<Pid>,
    course: Course,
    address: SocketAddr,
    slower: u32,
) -> Result<Pid, Missed> {
    stage.script("");
    stage.folder.link("current", example("subject"));
    let server = server.unwrap_or_else(|| {
        // As a supervisor does, which first ends whoever is left.
        for pid in stage.service.alive() {
            let _ = process::try_signal(pid, Signal::KILL);
            assert!(process::exited(pid, soon()));
        }
        stage.service = launch(&stage.folder, course, address, slower).start();
        stage.wait("serving ");
        stage.service.pid()
    });
    let asked = stage.ask_of(server);
    let verdict = asked.verdict();
    if !verdict.contains(" serves after ") {
        return Err(Missed(format!("the next upgrade: {verdict}")));
    }
    let next = asked.serving();
    stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
    Ok(next)
}

pub(crate) fn assert_losses(outcome: &Outcome, accepted: usize) {
    assert!(outcome.lost.len() <= accepted, "only {accepted} were accepted: {outcome}");
    let may_be = |what: &Loss| match what {
        Loss::Reset | Loss::Cut => true,
        // Where nobody held the listener.
        Loss::Refused => accepted == usize::MAX,
        Loss::TimedOut | Loss::Wrong(_) | Loss::Client(_) => false,
    };
    assert!(outcome.lost.iter().all(|lost| may_be(&lost.what)), "{outcome}");
}

/// Waits until one process alone answers what comes from now on; `None` if there is none left, or
/// if nobody is expected and everybody is refused.
pub(crate) fn server(stage: &Stage, expected: Serves) -> Option<Pid> {
    const ANSWERS: usize = 10;
    let (deadline, mut look) = (soon(), Duration::from_millis(500));
    loop {
        let (mut by, mut answers) = (BTreeSet::new(), 0);
        let count = |pid| {
            by.insert(pid);
            answers += 1;
            answers >= ANSWERS
        };
        match stage.load.wait_answered_by(count, Instant::now() + look) {
            Ok(pid) => {
                assert_eq!(by.len(), 1, "more than one serves: {by:?}");
                return Some(pid);
            }
            Err(_) if stage.service.alive().is_empty() => return None,
            Err(_) if expected == Serves::Nobody && by.is_empty() => return None,
            Err(error) => assert!(Instant::now() < deadline, "nobody serves: {error}"),
        }
        // Whoever serves may be slow.
        look *= 2;
    }
}

fn launch(folder: &Folder, course: Course, address: SocketAddr, slower: u32) -> Launch {
    let milliseconds = |time: u32| (time * slower).to_string();
    let mut launch = Launch::of(folder.join("current"))
        .args(["--listen", &address.to_string()])
        .args(argument("--script", &folder.join("script")))
        .args(argument("--early-gate", &folder.join("early")))
        .args(argument("--late-gate", &folder.join("late")))
        .args(["--ready-timeout", &milliseconds(READY_MS)])
        .args(["--commit-timeout", &milliseconds(COMMIT_MS)])
        .args(["--answer-timeout", &milliseconds(ANSWER_MS)]);
    if let Some(probation) = course.probation_ms() {
        launch = launch.args(["--probation", &milliseconds(probation)]);
    }
    launch.env("PROXIED_PROGRAM", example("subject")).env("PROXIED_BY", folder.join(RENDEZVOUS))
}

fn times(slower: u32) -> Times {
    let times = |ms| Duration::from_millis(ms) * slower;
    Times { brief: times(BRIEF_MS), overdue: times(OVERDUE_MS) }
}

fn argument(name: &'static str, path: &Path) -> [String; 2] {
    [name.to_owned(), path.to_str().unwrap().to_owned()]
}

/// Where the proxy waits.
const RENDEZVOUS: &str = "proxy";

/// An address that no other test has: port 0 would be another one for who has to bind it again.
pub(crate) fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    (Ipv4Addr::new(127, a | 0x80, b, c), 20_000 + number).into()
}
