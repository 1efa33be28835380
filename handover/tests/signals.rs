//! Signals in every phase: none is lost, none does more than it should.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use common::{Asked, Stage};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Fault, Pid, recheck, soon};

/// The modes in which the subject serves.
const MODES: [&[&str]; 2] = [&[], &["--tokio"]];

#[test]
fn first_stop_signal_lets_finish_what_was_accepted() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let held = stage.hold();
        let server = stage.server();
        process::signal(server, Signal::TERM);
        stage.wait(&format!("draining {server} Stopped"));
        assert!(process::is_alive(server));
        held.release();
        let status = stage.service.exit_status(soon()).unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
        stage.service.wait_all_gone(soon()).unwrap();
        assert_nothing_but_refused(stage);
    }
}

#[test]
fn second_stop_signal_ends_a_drain_at_once() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let _held = stage.hold();
        let server = stage.server();
        process::signal(server, Signal::TERM);
        stage.wait(&format!("draining {server} Stopped"));
        process::signal(server, Signal::INT);
        // What the load has under way may be cut as well.
        let cut = |line: &str| line.ends_with(" cut") && !line.ends_with(" 0 cut");
        stage.service.wait_line(cut, soon()).unwrap();
        assert_eq!(stage.service.exit_status(soon()).unwrap().code(), Some(0));
    }
}

#[test]
fn stop_signal_calls_an_upgrade_off() {
    for mode in MODES {
        let stage = Stage::new(mode);
        stage.script("ready hang");
        let asked = stage.ask();
        let successor = asked.starting();
        asked.line("hanging ");
        process::signal(asked.pid, Signal::TERM);
        let verdict = asked.verdict();
        assert!(verdict.contains("this process was told to stop"), "{verdict}");
        assert!(process::exited(successor, soon()));
        assert_eq!(stage.service.exit_status(soon()).unwrap().code(), Some(0));
        stage.service.wait_all_gone(soon()).unwrap();
        assert_nothing_but_refused(stage);
    }
}

#[test]
fn second_stop_signal_during_an_upgrade_ends_everything_at_once() {
    let stage = Stage::new(&[]);
    stage.script("adopted stop");
    let _held = stage.hold();
    let asked = stage.ask();
    let successor = asked.starting();
    assert!(process::wait_state_stopped(successor, soon()));
    process::signal(asked.pid, Signal::TERM);
    process::signal(asked.pid, Signal::INT);
    assert_eq!(stage.service.exit_status(soon()).unwrap().code(), Some(0));
    stage.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn stop_signal_during_the_late_states_calls_the_upgrade_off() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("late");
    let asked = stage.ask();
    asked.waiting("late");
    process::signal(asked.pid, Signal::TERM);
    let verdict = asked.verdict();
    assert!(verdict.contains("this process was told to stop"), "{verdict}");
    gate.open();
    assert_eq!(stage.service.exit_status(soon()).unwrap().code(), Some(0));
    stage.service.wait_all_gone(soon()).unwrap();
    assert_nothing_but_refused(stage);
}

#[test]
fn stop_signals_to_a_draining_predecessor_are_its_own() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let _held = stage.hold();
        let asked = stage.ask();
        let successor = asked.serving();
        asked.line(&format!("draining {} HandedOver", asked.pid));
        process::signal(asked.pid, Signal::TERM);
        stage.load.wait_answers(20, soon()).unwrap();
        assert!(process::is_alive(asked.pid), "the first one changes nothing: it drains already");
        process::signal(asked.pid, Signal::TERM);
        assert_eq!(stage.service.exit_status(soon()).unwrap().code(), Some(0));
        stage.load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        stage.load.stop().assert_nothing_lost();
    }
}

#[test]
fn stop_signal_to_a_successor_that_initialises_ends_it_alone() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let server = stage.server();
        let gate = stage.gate("gate");
        stage.script(&format!("ready wait {}", gate.path().display()));
        let asked = stage.ask();
        let successor = asked.waiting("ready");
        process::signal(successor, Signal::TERM);
        gate.open();
        let verdict = asked.verdict();
        assert!(verdict.contains("refused: stopped by a signal"), "{verdict}");
        stage.assert_unharmed(server);
    }
}

#[test]
fn second_stop_signal_to_a_successor_that_initialises_kills_it() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    stage.script("ready hang");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.line("hanging ");
    // Two of the same would be one if the first were still pending.
    process::signal(successor, Signal::TERM);
    process::signal(successor, Signal::INT);
    let verdict = asked.verdict();
    assert!(verdict.contains("SIGTERM") || verdict.contains("SIGINT"), "{verdict}");
    stage.assert_unharmed(server);
}

#[test]
fn stop_signal_to_a_successor_that_waits_for_the_commit_ends_it_alone() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    let gate = stage.gate("late");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("late");
    process::signal(successor, Signal::TERM);
    let verdict = asked.verdict();
    assert!(verdict.contains("refused: stopped by a signal"), "{verdict}");
    gate.open();
    stage.assert_unharmed(server);
}

#[test]
fn stop_signal_after_the_drain_still_ends_the_process() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let gate = stage.gate("gate");
        stage.script(&format!("drained wait {}", gate.path().display()));
        let second = stage.upgrade();
        process::signal(second, Signal::TERM);
        // What the application does after its drain may take for ever.
        stage.wait(&format!("waiting {second} drained"));
        process::signal(second, Signal::HUP);
        process::signal(second, Signal::TERM);
        assert!(process::exited(second, soon()));
        assert_eq!(process::exit_status(second, soon()).unwrap().signal(), Some(15));
    }
}

#[test]
fn upgrade_signal_before_the_library_has_started_is_kept() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let gate = stage.gate("gate");
        stage.script(&format!("start wait {}", gate.path().display()));
        let asked = stage.ask();
        let successor = asked.waiting("start");
        process::signal(successor, Signal::HUP);
        assert_honours_one_upgrade(&stage, &asked, successor, || gate.open());
    }
}

#[test]
fn upgrade_signal_to_a_successor_that_initialises_is_kept() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let gate = stage.gate("gate");
        stage.script(&format!("ready wait {}", gate.path().display()));
        let asked = stage.ask();
        let successor = asked.waiting("ready");
        process::signal(successor, Signal::HUP);
        assert_honours_one_upgrade(&stage, &asked, successor, || gate.open());
    }
}

#[test]
fn upgrade_signal_during_the_transfer_is_kept_and_costs_no_time() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("early");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("early");
    process::signal(successor, Signal::HUP);
    stage.load.wait_answers(1, soon()).unwrap();
    let before = cpu_ticks(successor);
    stage.load.wait_answers(100, soon()).unwrap();
    // Half a second, of which it is to sleep all.
    assert!(cpu_ticks(successor) - before < 10, "it waits without sleeping");
    assert_honours_one_upgrade(&stage, &asked, successor, || gate.open());
}

#[test]
fn upgrade_signals_during_an_upgrade_are_one_further_upgrade() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let gate = stage.gate("gate");
        stage.script(&format!("ready wait {}", gate.path().display()));
        let asked = stage.ask();
        let successor = asked.waiting("ready");
        for _ in 0..5 {
            process::signal(asked.pid, Signal::HUP);
        }
        assert_honours_one_upgrade(&stage, &asked, successor, || gate.open());
    }
}

#[test]
fn upgrade_signal_during_the_late_states_is_one_further_upgrade() {
    let stage = Stage::new(&[]);
    let gate = stage.gate("late");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("late");
    process::signal(asked.pid, Signal::HUP);
    assert_honours_one_upgrade(&stage, &asked, successor, || gate.open());
}

#[test]
fn upgrade_signal_during_an_upgrade_that_fails_is_one_further_upgrade() {
    let stage = Stage::new(&[]);
    stage.script("ready hang");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.line("hanging ");
    stage.script("");
    for _ in 0..5 {
        process::signal(asked.pid, Signal::HUP);
    }
    process::signal(successor, Signal::KILL);
    let verdict = asked.verdict();
    assert!(verdict.contains("SIGKILL"), "{verdict}");
    let next = asked.serving();
    stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
    assert_no_further_upgrade(&stage, next);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_signal_to_a_draining_predecessor_is_passed_on() {
    for mode in MODES {
        let stage = Stage::new(mode);
        let held = stage.hold();
        let second = stage.upgrade();
        let _also_held = stage.hold();
        let first = stage.service.pid();
        assert!(process::is_alive(first));
        let before = stage.service.line_count();
        process::signal(first, Signal::HUP);
        let line = stage.service.wait_line_after(before, |l| l.starts_with("serving "), soon());
        line.unwrap();
        let third = stage.server();
        assert!(![first, second].contains(&third));
        // It goes through all who drain to the one who serves.
        assert!(process::is_alive(second));
        process::signal(first, Signal::HUP);
        let fourth = recheck(soon(), || (stage.server() != third).then(|| stage.server())).unwrap();
        stage.load.wait_answered_by(|pid| pid == fourth, soon()).unwrap();
        held.release();
        stage.load.stop().assert_nothing_lost();
    }
}

#[test]
fn storm_of_upgrade_signals_loses_nothing() {
    for mode in MODES {
        const SIGNALS: usize = 200;
        const EVERY: Duration = Duration::from_millis(5);
        let stage = Stage::new(&[mode, &["--max-generations", "4"]].concat());
        let begun = Instant::now();
        let mut processes_max = 0;
        for number in 0..SIGNALS {
            // At its time, whatever the machine does; nothing is waited for here.
            let due = begun + EVERY * u32::try_from(number).unwrap();
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // Who serves may have exited since it said so.
            let _ = process::try_signal(stage.server(), Signal::HUP);
            processes_max = processes_max.max(stage.service.alive().len());
        }
        assert!(processes_max <= 4, "{processes_max} processes at once");

        let server = settle(&stage);
        assert_upgrades_one_at_a_time(&stage);
        let next = stage.upgrade();
        assert_ne!(server, next);
        stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
        stage.load.stop().assert_nothing_lost();
    }
}

/// Asserts that after `go` the successor serves and makes exactly one upgrade more.
#[track_caller]
fn assert_honours_one_upgrade(stage: &Stage, asked: &Asked<'_>, successor: Pid, go: impl FnOnce()) {
    stage.script("");
    go();
    assert_eq!(asked.serving(), successor);
    let third = recheck(soon(), || (stage.server() != successor).then(|| stage.server())).unwrap();
    stage.load.wait_answered_by(|pid| pid == third, soon()).unwrap();
    assert_no_further_upgrade(stage, third);
}

/// Asserts that the process is asked for no upgrade: one that it is asked for last is the next.
#[track_caller]
fn assert_no_further_upgrade(stage: &Stage, server: Pid) {
    stage.load.wait_answers(20, soon()).unwrap();
    assert!(process::children(server).is_empty());
    assert_eq!(stage.server(), server);
}

/// The processor time that the process has used, in hundredths of a second.
fn cpu_ticks(pid: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Waits until one process is left, which serves and has no upgrade to do.
fn settle(stage: &Stage) -> Pid {
    let mut before = None;
    let settled = recheck(soon(), || {
        let alive = stage.service.alive();
        let same = before.replace(alive.clone()) == Some(alive.clone());
        stage.load.wait_answers(20, soon()).unwrap();
        (same && alive == [stage.server()]).then(|| stage.server())
    });
    settled.expect("one process is left in the end")
}

/// Asserts that each process that was started served, as a generation of its own: of two upgrades at
/// once, two would be the same.
fn assert_upgrades_one_at_a_time(stage: &Stage) {
    let lines = stage.service.lines();
    let all = |start: &str| lines.iter().filter(|line| line.text.starts_with(start)).count();
    let number = |text: &str| text.rsplit(' ').next()?.parse::<usize>().ok();
    let serving = lines.iter().filter(|line| line.text.starts_with("serving "));
    let generations: BTreeSet<usize> = serving.filter_map(|line| number(&line.text)).collect();
    assert_eq!(generations, (1..=all("serving ")).collect(), "{lines:#?}");
    assert_eq!(all("starting "), all("serving "), "{lines:#?}");
    assert_eq!(all("verdict failed"), 0, "{lines:#?}");
    assert!(generations.len() > 2, "{} upgrades came of the storm", generations.len());
}

/// Asserts that whoever came before the stop was answered.
fn assert_nothing_but_refused(stage: Stage) {
    let outcome = stage.load.stop();
    assert!(outcome.lost.iter().all(|lost| lost.what == Fault::Refused), "{outcome}");
}
