//! Every message of a handover, in both directions, with one fault after the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::cell::{self, Course, Ended, Missed, Serves};
use crate::expected::expected;
use crate::proxy::{Fault, Message};

/// How many services run at once in a test. They wait most of the time.
const AT_ONCE: usize = 8;

/// By how much the timeouts are longer when a cell is tried again.
const SLOWER: [u32; 3] = [1, 4, 12];

/// Runs all faults at all messages of such a handover.
pub(crate) fn run(course: Course, faults: &[Fault]) {
    let clean = messages(course);
    let from = match course {
        Course::Plain | Course::Probation => 0,
        // What comes before is as on probation, up to the word that ends it, which crosses with the
        // first question.
        Course::RolledBack => {
            clean.iter().position(|message| message.name == "unhealthy").expect("it says so")
        }
    };
    let mut jobs = Vec::new();
    for (at, message) in clean.iter().enumerate().skip(from) {
        for &fault in faults {
            if fault != Fault::Stripped || message.has_descriptors {
                jobs.push((at, fault));
            }
        }
    }

    let (cells, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let queue = Mutex::new(jobs.iter());
    let work = || {
        while let Some(&(at, fault)) = next(&queue) {
            let strike = (clean[at].clone(), fault);
            let expected = expected(course, clean, at, fault);
            match patiently(|slower| cell::run(course, Some(&strike), expected, slower)) {
                Ok(ended) => drop(cells.lock().unwrap().insert((at, fault), ended)),
                Err(why) => failed.lock().unwrap().push(format!("{}, {fault}: {why}", strike.0)),
            }
        }
    };
    thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));

    let (cells, failed) = (cells.into_inner().unwrap(), failed.into_inner().unwrap());
    println!("{course:?}\n{}", table(clean, from, faults, &cells));
    assert!(failed.is_empty(), "{} cells failed:\n{}", failed.len(), failed.join("\n"));
    let stripped = clean[from..].iter().filter(|message| message.has_descriptors).count();
    let others = faults.iter().filter(|fault| **fault != Fault::Stripped).count();
    let size = (clean.len() - from) * others + stripped * (faults.len() - others);
    assert_eq!(cells.len(), size);
}

fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    queue.lock().unwrap().next()
}

/// Tries with longer timeouts what has missed, which a busy machine may be the cause of. What was
/// lost without a death, and whatever else a cell asserts, is never excused.
fn patiently(run: impl Fn(u32) -> Result<Ended, Missed>) -> Result<Ended, String> {
    let mut missed = Vec::new();
    for slower in SLOWER {
        match catch_unwind(AssertUnwindSafe(|| run(slower))) {
            Ok(Ok(ended)) => return Ok(Ended { missed: missed.len(), ..ended }),
            Ok(Err(Missed(why))) => missed.push(why),
            Err(panic) => {
                let why = panic.downcast_ref::<String>().cloned();
                return Err(why.unwrap_or_else(|| "it panicked".to_owned()));
            }
        }
    }
    Err(missed.join("; then "))
}

/// What both sides say in a handover that goes well, in its order.
fn messages(course: Course) -> &'static [Message] {
    static CLEAN: [OnceLock<Vec<Message>>; 3] = [const { OnceLock::new() }; 3];
    let clean = || patiently(|slower| cell::clean(course, slower)).unwrap().messages;
    let messages = CLEAN[course as usize].get_or_init(clean);
    // What all of them have in common, as the documentation of the protocol has it.
    for name in ["preamble", "hello", "welcome", "descriptors", "state", "ack", "claim", "ready"] {
        assert!(messages.iter().any(|message| message.name == name), "{messages:?}");
    }
    messages
}

/// Who serves in the end, and how many requests were lost.
fn table(
    clean: &[Message],
    from: usize,
    faults: &[Fault],
    cells: &BTreeMap<(usize, Fault), Ended>,
) -> String {
    let mut text = format!("{:<18}", "");
    for fault in faults {
        write!(text, "{fault:<11}").unwrap();
    }
    for (at, message) in clean.iter().enumerate().skip(from) {
        write!(text, "\n{:<18}", message.to_string()).unwrap();
        for &fault in faults {
            let cell = cells.get(&(at, fault)).map(show).unwrap_or_default();
            write!(text, "{cell:<11}").unwrap();
        }
    }
    let (mut lost, mut requests, mut missed, mut took) = (0, 0, 0, Duration::ZERO);
    for ended in cells.values() {
        missed += ended.missed;
        (lost, requests) = (lost + ended.lost, requests + ended.requests);
        took += ended.took;
    }
    let cells = cells.len();
    write!(text, "\n{cells} cells, {lost} of {requests} requests lost").unwrap();
    write!(text, ", {missed} tries too many, {took:.1?} in all").unwrap();
    text
}

fn show(ended: &Ended) -> String {
    let serves = match ended.serves {
        Serves::Predecessor => "P",
        Serves::Successor => "S",
        Serves::Nobody => "nobody",
    };
    match ended.lost {
        0 => serves.to_owned(),
        lost => format!("{serves} {lost}"),
    }
}
