//! A service whose state goes from one generation to the next.

use std::error::Error;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use handover::{Handover, State, StateError, StateWriter, Verdict};
use handover_bench::now;
use handover_testkit::process::{Pid, exited, signal};
use handover_testkit::{Launch, Service, Signal};

use crate::TIMEOUT;
use crate::memory::{Source, touch};

/// In which way the state goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Manner {
    /// Written while the new process starts.
    Early,
    /// The same, and built in place.
    InPlace,
    /// Written when the old process accepts no more.
    Late,
}

const NAME: &str = "state";

const VERSION: u32 = 1;

/// The service, seen from outside.
#[derive(Debug)]
pub(crate) struct Subject {
    service: Service,
    serves: Pid,
}

impl Subject {
    pub(crate) fn start(
        manner: Manner,
        source: &Source,
        bytes: u64,
    ) -> Result<Self, Box<dyn Error>> {
        let manner = manner.to_possible_value().ok_or("no name")?;
        let arguments = ["serve", manner.get_name(), &source.path(), &bytes.to_string()];
        let service = Launch::of(std::env::current_exe()?).args(arguments).start();
        let mut subject = Self { serves: service.pid(), service };
        subject.serves = subject.wait(0, "serving ")?.parse()?;
        Ok(subject)
    }

    /// Upgrades it, and returns how long the state took. Returns when the old process is gone.
    pub(crate) fn upgrade(&mut self, sum: u64) -> Result<Duration, Box<dyn Error>> {
        let (old, printed) = (self.serves, self.service.line_count());
        signal(old, Signal::HUP);
        self.serves = self.wait(printed, "serving ")?.parse()?;
        let begun: u64 = self.wait(printed, "begun ")?.parse()?;
        let taken = self.wait(printed, "taken ")?;
        let (ended, read) = taken.split_once(' ').ok_or("no sum")?;
        if read.parse() != Ok(sum) {
            return Err("what came by an upgrade is not what was sent".into());
        }
        let ended: u64 = ended.parse()?;
        if !exited(old, Instant::now() + TIMEOUT) {
            return Err("the old process does not end".into());
        }
        Ok(Duration::from_nanos(ended - begun))
    }

    /// Waits for a line that begins like this, and returns the rest of it.
    fn wait(&self, skip: usize, start: &str) -> Result<String, Box<dyn Error>> {
        let deadline = Instant::now() + TIMEOUT;
        let begins = |line: &str| line.starts_with(start);
        let line = self.service.wait_line_after(skip, begins, deadline);
        Ok(line.map_err(|error| error.to_string())?[start.len()..].to_owned())
    }
}

pub(crate) fn serve(manner: Manner, source: String, bytes: u64) -> Result<(), Box<dyn Error>> {
    // Told once all is over, so that nobody else has anything to do while the state is on its way.
    let begun = Arc::new(AtomicU64::new(0));
    let to_tell = Arc::clone(&begun);
    let handover = Handover::builder()
        .commit_timeout(TIMEOUT)
        .on_verdict(move |verdict| tell(verdict, &to_tell))
        .start()?;
    take(handover.state(NAME));
    let source = Source::open(&source, bytes)?;
    let provide = move |out: &mut StateWriter| -> Result<(), StateError> {
        begun.store(nanoseconds(now()), Ordering::Relaxed);
        match manner {
            Manner::Early | Manner::Late => out.write_all(&source)?,
            Manner::InPlace => out.in_place(bytes)?.copy_from_slice(&source),
        }
        Ok(())
    };
    match manner {
        Manner::Early | Manner::InPlace => handover.provide_state(NAME, VERSION, provide)?,
        Manner::Late => handover.provide_late_state(NAME, VERSION, provide)?,
    }
    let running = handover.ready()?;
    take(running.handle().late_state(NAME));
    println!("serving {}", std::process::id());
    running.wait()?.drain()?;
    Ok(())
}

/// Reads a state, if there is one, and lets go of it.
fn take(state: Option<State>) {
    let Some(state) = state else { return };
    let sum = touch(&state);
    let ended = now();
    println!("taken {} {sum}", ended.as_nanos());
}

fn tell(verdict: &Verdict, begun: &AtomicU64) {
    match verdict {
        Verdict::Succeeded(_) => println!("begun {}", begun.load(Ordering::Relaxed)),
        other => panic!("{other}"),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
