//! A process with a heap that starts small ones.

#![allow(unsafe_code)]

use std::error::Error;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use handover::{Handle, Handover, UpgradeOptions, Verdict};
use handover_bench::now;
use handover_testkit::Launch;
use rustix::process::{WaitOptions, waitpid};

use crate::clone::Program;
use crate::memory::{self, Pages};

/// Has this program say when it began; what it prints begins with it, too.
pub(crate) const BEGAN: &str = "began";

const ROUNDS_MAX: usize = 40;

const ROUNDS_MIN: usize = 4;

/// In a row, in each round; the least counts.
const STARTS: usize = 3;

/// Not counted: what is done for the first time reads files, and allocates.
const ROUNDS_BEFORE: usize = 1;

/// In four rounds each way comes once after each other one: fork(2) leaves little of the caches.
const ORDERS: [[usize; 4]; 4] = [[3, 0, 2, 1], [0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0]];

/// How long it may take in all.
const TIMEOUT: Duration = Duration::from_secs(120);

/// In which way a process is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Handover,
    Clone,
    PosixSpawn,
    Fork,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Handover, Self::Clone, Self::PosixSpawn, Self::Fork];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Handover => "handover",
            Self::Clone => "clone + exec",
            Self::PosixSpawn => "posix_spawn",
            Self::Fork => "fork + exec",
        }
    }
}

/// How long one took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) way: Way,
    /// The call that starts it.
    pub(crate) in_call: Duration,
    /// From when it was asked for to the first thing in main.
    pub(crate) to_main: Duration,
}

/// What such a process tells.
#[derive(Debug)]
pub(crate) struct Started {
    /// As many of each way, round by round.
    pub(crate) samples: Vec<Sample>,
    /// How much of the heap was in huge pages, if it was to be.
    pub(crate) huge_share: f64,
}

/// Starts it, waits for its end, and returns what it has measured.
pub(crate) fn run(gib: u64, pages: Pages, time: Duration) -> Result<Started, Box<dyn Error>> {
    let (gib, milliseconds) = (gib.to_string(), time.as_millis().to_string());
    let launch = Launch::of(std::env::current_exe()?);
    let service = launch.args(["start", &gib, pages.word(), &milliseconds]).try_start()?;
    let finished = service.finish(Instant::now() + TIMEOUT).map_err(|error| error.to_string())?;
    let printed = finished.stdout();
    if !finished.status.success() {
        return Err(format!("it failed: {printed}{}", finished.stderr()).into());
    }
    let mut started = Started { samples: Vec::new(), huge_share: 0.0 };
    let (mut began, mut starts) = (Duration::ZERO, Vec::new());
    for line in printed.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [BEGAN, at] => began = Duration::from_nanos(at.parse()?),
            ["started", way, before, in_call] => starts.push(Sample {
                way: *Way::ALL.get(way.parse::<usize>()?).ok_or("no such way")?,
                in_call: Duration::from_nanos(in_call.parse()?),
                to_main: began.saturating_sub(Duration::from_nanos(before.parse()?)),
            }),
            ["huge", share] => started.huge_share = share.parse()?,
            _ => {}
        }
    }
    started.samples = starts.chunks_exact(STARTS).filter_map(least).collect();
    Ok(started)
}

/// The least of those that are of one way.
fn least(starts: &[Sample]) -> Option<Sample> {
    let in_call = starts.iter().map(|start| start.in_call).min()?;
    let to_main = starts.iter().map(|start| start.to_main).min()?;
    Some(Sample { way: starts.first()?.way, in_call, to_main })
}

/// Is such a process.
pub(crate) fn serve(gib: u64, pages: Pages, time: Duration) -> Result<(), Box<dyn Error>> {
    let handover = Handover::builder().start()?;
    let running = handover.ready()?;
    let handle = running.handle();
    let working = thread::spawn(move || {
        let done = work(&handle, gib, pages, time).map_err(|error| error.to_string());
        handle.stop();
        done
    });
    running.wait()?.drain()?;
    working.join().map_err(|_| "the thread panicked")?.map_err(Into::into)
}

fn work(handle: &Handle, gib: u64, pages: Pages, time: Duration) -> Result<(), Box<dyn Error>> {
    memory::fill(gib, pages)?;
    if pages == Pages::Huge {
        println!("huge {}", memory::huge_share(std::process::id(), gib)?);
    }
    let starter = Starter::new()?;
    let round = |number: usize| -> Result<(), Box<dyn Error>> {
        for way in ORDERS[number % ORDERS.len()] {
            for _ in 0..STARTS {
                let before = now();
                let in_call = match Way::ALL[way] {
                    Way::Handover => by_upgrade(handle)?,
                    other => starter.start(other)?,
                };
                if number >= ROUNDS_BEFORE {
                    println!("started {way} {} {}", before.as_nanos(), in_call.as_nanos());
                }
            }
        }
        Ok(())
    };
    let begun = Instant::now();
    for number in 0..ROUNDS_BEFORE + ROUNDS_MAX {
        if number >= ROUNDS_BEFORE + ROUNDS_MIN && begun.elapsed() > time {
            break;
        }
        round(number)?;
    }
    Ok(())
}

/// Starts a successor that ends at once; returns how long the call took.
fn by_upgrade(handle: &Handle) -> Result<Duration, Box<dyn Error>> {
    let options = UpgradeOptions::default().arguments([BEGAN]);
    let verdict = handle.upgrade_with(options).wait();
    match &*verdict {
        Verdict::Failed(failure) if !failure.timings.spawn.is_zero() => Ok(failure.timings.spawn),
        other => Err(other.to_string().into()),
    }
}

/// A thread that starts processes without the library when it is told to, as the library has one: whoever has just been
/// woken is not put on a processor as somebody is who has been on it all the time.
struct Starter {
    ask: SyncSender<Way>,
    answers: Receiver<io::Result<Duration>>,
}

impl Starter {
    fn new() -> Result<Self, Box<dyn Error>> {
        let path = std::env::current_exe()?;
        let mut program = Program::new(path.as_os_str(), BEGAN)?;
        let (ask, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        thread::spawn(move || {
            for way in asked {
                let in_call = match way {
                    Way::Fork => by_command(with_fork(Command::new(&path).arg(BEGAN))),
                    Way::PosixSpawn => by_command(Command::new(&path).arg(BEGAN)),
                    Way::Handover | Way::Clone => by_clone(&mut program),
                };
                if answer.send(in_call).is_err() {
                    return;
                }
            }
        });
        Ok(Self { ask, answers })
    }

    /// Has a process started; returns how long the call took when the process has ended.
    fn start(&self, way: Way) -> Result<Duration, Box<dyn Error>> {
        self.ask.send(way)?;
        Ok(self.answers.recv()??)
    }
}

fn by_clone(program: &mut Program) -> io::Result<Duration> {
    let (before, after, pid) = program.start(now)?;
    waitpid(Some(pid), WaitOptions::empty())?;
    Ok(after - before)
}

fn by_command(command: &mut Command) -> io::Result<Duration> {
    let before = now();
    let mut child = command.spawn()?;
    let in_call = now() - before;
    child.wait()?;
    Ok(in_call)
}

/// Has a command start by fork(2) and exec instead of posix_spawn(3).
fn with_fork(command: &mut Command) -> &mut Command {
    // SAFETY: the code between fork and exec does nothing.
    unsafe { command.pre_exec(|| Ok(())) }
}
