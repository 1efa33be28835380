//! Upgrades asked for from all sides, as fast as it goes.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::Stage;
use handover::control::{
    Answer, Client, ErrorCode, GenerationState, Request, UpgradeRequest, VerdictOutcome,
};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Pid, recheck, soon};

/// How long the storm blows at most.
const DURATION: Duration = Duration::from_secs(10);

const SIGNALS: usize = 500;
const CLIENTS: usize = 20;
const MAX_GENERATIONS: usize = 4;

/// What the clients were told.
#[derive(Default)]
struct Told {
    succeeded: AtomicUsize,
    busy: AtomicUsize,
    not_serving: AtomicUsize,
    closed: AtomicUsize,
}

#[test]
fn storm_of_requests_is_survived_and_the_last_one_is_honoured() {
    let most = MAX_GENERATIONS.to_string();
    let stage = Stage::controlled(&["--max-generations", &most]);
    // Two generations of the four have something to finish all the time.
    let held = stage.hold();
    stage.upgrade();
    let also_held = stage.hold();
    stage.upgrade();

    let (told, calm, until) = (Told::default(), AtomicBool::new(false), Instant::now() + DURATION);
    let is_over = || calm.load(Ordering::SeqCst) || Instant::now() >= until;
    thread::scope(|scope| {
        for nth in 0..CLIENTS {
            let (told, is_over, stage) = (&told, &is_over, &stage);
            scope.spawn(move || {
                while !is_over() {
                    ask_for_upgrade(stage, told, nth % 2 == 0);
                }
            });
        }
        scope.spawn(|| {
            while !is_over() {
                assert_orderly(&stage);
            }
        });
        scope.spawn(|| {
            while !is_over() {
                assert_not_too_many(&stage);
            }
        });
        let mut sent = 0;
        while sent < SIGNALS && !is_over() {
            // It may have gone meanwhile.
            sent += usize::from(process::try_signal(stage.server(), Signal::HUP).is_ok());
            stage.load.wait_answers(1, soon()).unwrap();
        }
        calm.store(true, Ordering::SeqCst);
        println!("{sent} signals");
    });
    println!(
        "{} succeeded, {} busy, {} not serving, {} closed",
        told.succeeded.load(Ordering::SeqCst),
        told.busy.load(Ordering::SeqCst),
        told.not_serving.load(Ordering::SeqCst),
        told.closed.load(Ordering::SeqCst),
    );
    assert!(told.succeeded.load(Ordering::SeqCst) > 0);
    assert!(told.busy.load(Ordering::SeqCst) > 0);

    assert_signal_is_honoured(&stage);
    let verdict = stage.request(&Request::Upgrade(wait()));
    assert!(matches!(verdict, Answer::Verdict(_)), "{verdict:?}");
    drop((held, also_held));
    let one = || (stage.service.alive().len() == 1).then_some(());
    assert!(recheck(soon(), one).is_some(), "{:?}", stage.service.alive());
    stage.load.wait_answered_by(|pid| stage.service.alive() == [pid], soon()).unwrap();
    let panicked = stage.service.lines().iter().any(|line| line.text.contains("panicked"));
    assert!(!panicked, "{:?}", stage.service.lines());
    stage.load.stop().assert_nothing_lost();
}

fn wait() -> UpgradeRequest {
    UpgradeRequest { wait: true, ..UpgradeRequest::default() }
}

/// Connects to whoever serves, and asks.
fn ask_for_upgrade(stage: &Stage, told: &Told, waits: bool) {
    let mut client = Client::connect(stage.control()).unwrap();
    let request = UpgradeRequest { wait: waits, ..UpgradeRequest::default() };
    client.send(&Request::Upgrade(request)).unwrap();
    loop {
        let answer = client.next_answer_within(Some(Duration::from_secs(60))).unwrap();
        let count = match answer {
            Some(Answer::Event(_)) => continue,
            Some(Answer::Verdict(verdict)) => {
                assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
                &told.succeeded
            }
            Some(Answer::Error { code: ErrorCode::Busy, .. }) => &told.busy,
            Some(Answer::Error { code: ErrorCode::NotServing, .. }) => &told.not_serving,
            None => &told.closed,
            other => panic!("{other:?}"),
        };
        count.fetch_add(1, Ordering::SeqCst);
        return;
    }
}

/// One serves, and at most one is about to.
fn assert_orderly(stage: &Stage) {
    let status = stage.status();
    let count = |state| status.generations.iter().filter(|it| it.state == state).count();
    assert_eq!(count(GenerationState::Serving), 1, "{status:?}");
    assert!(count(GenerationState::Initialising) <= 1, "{status:?}");
    assert!(status.generations.len() <= MAX_GENERATIONS, "{status:?}");
}

fn assert_not_too_many(stage: &Stage) {
    let seen = stage.service.alive();
    if seen.len() > MAX_GENERATIONS {
        // One that has finished may be on its last steps out of the kernel.
        let seen: BTreeSet<Pid> = seen.into_iter().collect();
        let gone = |pid: &Pid| !process::is_alive(*pid);
        let fewer =
            || (seen.iter().filter(|pid| !gone(pid)).count() <= MAX_GENERATIONS).then_some(());
        assert!(recheck(Instant::now() + Duration::from_secs(1), fewer).is_some(), "{seen:?}");
    }
}

/// A process that was started after the signal comes to serve.
fn assert_signal_is_honoured(stage: &Stage) {
    let skip = stage.service.line_count();
    while process::try_signal(stage.server(), Signal::HUP).is_err() {}
    let later = |start: &'static str| {
        let matches = move |line: &str| line.starts_with(start);
        let line = stage.service.wait_line_after(skip, matches, soon()).unwrap();
        line[start.len()..].split(' ').next().unwrap().parse::<Pid>().unwrap()
    };
    let started = later("starting ");
    let serving = format!("serving {started} ");
    let matches = |line: &str| line.starts_with(&serving);
    stage.service.wait_line_after(skip, matches, soon()).unwrap();
}
