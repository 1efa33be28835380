//! A process that the service has not started becomes its successor.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Stage, ask, serving, status};
use handover::control::{Answer, GenerationState, Request, UpgradeRequest, VerdictOutcome};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Finished, Folder, Launch, Pid, Service, example, is_root, skip, soon};

/// The subject, to be started by the test.
fn subject(control: &Path) -> Launch {
    Launch::of(example("subject"))
        .args(["--listen", "127.0.0.1:0", "--log", "--control"])
        .arg(control)
}

/// The same, to take over.
fn taker(stage: &Stage) -> Launch {
    let script = stage.folder.join("script");
    subject(&stage.control()).arg("--script").arg(script).arg("--take-over").arg(stage.control())
}

/// Waits until it serves, and returns its generation.
#[track_caller]
fn wait_serving(service: &Service) -> u64 {
    let start = format!("serving {} generation ", service.pid());
    let line = service.wait_line(|line| line.starts_with(&start), soon()).unwrap();
    line[start.len()..].parse().unwrap()
}

/// Waits until it has ended without serving, and returns what it has said.
#[track_caller]
fn wait_refused(service: Service) -> Finished {
    let ended = service.finish(soon()).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr());
    assert!(!ended.stdout().contains("serving "), "{}", ended.stdout());
    ended
}

/// Asserts that the process serves as before and can be taken over, and that nothing was lost.
#[track_caller]
fn assert_unharmed(stage: Stage, server: Pid) {
    assert_eq!(serving(&stage.status()), server);
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    stage.script("later 1 confirm");
    let next = taker(&stage).start();
    wait_serving(&next);
    stage.load.wait_answered_by(|pid| pid == next.pid(), soon()).unwrap();
    assert!(process::exited(server, soon()));
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn process_from_elsewhere_takes_over_and_loses_nothing() {
    let stage = Stage::controlled(&[]);
    let next = taker(&stage).start();
    assert_eq!(wait_serving(&next), 2);
    stage.load.wait_answered_by(|pid| pid == next.pid(), soon()).unwrap();
    stage.service.wait_all_gone(soon()).unwrap();
    let status = stage.status();
    assert_eq!(status.generations.len(), 1, "{status:?}");
    let server = &status.generations[0];
    assert_eq!((server.state, server.report.pid), (GenerationState::Serving, next.pid()));
    assert_eq!(server.report.generation, 2);
    assert!(status.previous_executable.is_some(), "{status:?}");
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn variable_names_the_service_to_take_over_and_comes_first() {
    let stage = Stage::controlled(&[]);
    let next = subject(&stage.control())
        .env("HANDOVER_TAKE_OVER", stage.control())
        .args(["--take-over", "/nonexistent"])
        .start();
    assert_eq!(wait_serving(&next), 2);
    stage.load.wait_answered_by(|pid| pid == next.pid(), soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn five_takeovers_and_upgrades_in_turn_lose_nothing() {
    let stage = Stage::controlled(&[]);
    let held = stage.hold();
    let mut takers = Vec::new();
    for nth in 1..=5 {
        let next = taker(&stage).start();
        assert_eq!(wait_serving(&next), 2 * nth);
        stage.load.wait_answered_by(|pid| pid == next.pid(), soon()).unwrap();
        let pid = stage.upgrade_with(UpgradeRequest::default());
        assert_eq!(process::executable(pid), example("subject"));
        stage.load.wait_answered_by(|answered| answered == pid, soon()).unwrap();
        let status = stage.status();
        assert_eq!(status.generations[0].report.generation, 2 * nth + 1);
        let last = status.generations.last().unwrap();
        assert_eq!((last.report.generation, last.state), (1, GenerationState::Draining));
        takers.push(next);
    }
    held.release();
    stage.service.wait_all_gone(soon()).unwrap();
    // Only the child of the last one is left.
    let alive: Vec<_> = takers.iter().flat_map(Service::alive).collect();
    assert_eq!(alive, [serving(&stage.status())]);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn rollback_after_a_takeover_starts_the_executable_of_before() {
    let stage = Stage::controlled(&[]);
    let next = taker(&stage).start();
    assert_eq!(wait_serving(&next), 2);
    stage.service.wait_all_gone(soon()).unwrap();
    let answer = stage.request(&Request::Rollback { reason: None });
    let Answer::Verdict(verdict) = answer else { panic!("{answer:?}") };
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    let arguments = process::arguments(verdict.pid.unwrap());
    let is_taker = arguments.iter().any(|argument| argument == "--take-over");
    assert!(!is_taker, "it was started as the first one was: {arguments:?}");
    stage.load.wait_answered_by(|pid| Some(pid) == verdict.pid, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn whoever_finds_nobody_to_take_over_is_the_first_generation() {
    let folder = Folder::create();
    let control = folder.join("control");
    let take_over = || subject(&control).arg("--take-over").arg(&control).start();
    let first = take_over();
    assert_eq!(wait_serving(&first), 1);
    // And where the service has left its socket behind.
    process::signal(first.pid(), Signal::KILL);
    first.wait_all_gone(soon()).unwrap();
    assert!(control.exists());
    let again = take_over();
    assert_eq!(wait_serving(&again), 1);
    assert_eq!(serving(&status(&control)), again.pid());
}

#[test]
fn taker_of_another_user_is_refused_and_says_so() {
    use std::os::unix::fs::PermissionsExt as _;
    const STRANGER: u32 = 61_003;
    if !is_root() {
        skip!("taker_of_another_user_is_refused_and_says_so", "only root can be another user");
    }
    let stage = Stage::controlled(&[]);
    let server = stage.server();
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(stage.folder.path(), 0o755);
    let copy = stage.folder.install(example("subject"), "copy");
    let as_stranger = || {
        Launch::of(&copy)
            .args(["--listen", "127.0.0.1:0", "--take-over"])
            .arg(stage.control())
            .user(STRANGER, STRANGER)
            .start()
    };
    let said = wait_refused(as_stranger()).stderr();
    assert!(said.contains("you may not speak to "), "{said}");
    set_mode(&stage.control(), 0o666);
    let said = wait_refused(as_stranger()).stderr();
    assert!(said.contains(&format!("does not hand over: uid {STRANGER}, pid ")), "{said}");
    assert_unharmed(stage, server);
}

#[test]
fn taker_that_exits_before_it_is_ready_changes_nothing() {
    for script in ["adopted exit 3 no luck", "ready refuse no licence", "ready abort"] {
        let stage = Stage::controlled(&[]);
        let server = stage.server();
        stage.script(script);
        let bad = taker(&stage).start();
        bad.wait_all_gone(soon()).unwrap();
        let verdict = stage.wait("verdict ");
        assert!(verdict.contains("phase initialise"), "{verdict}");
        assert_unharmed(stage, server);
    }
}

#[test]
fn taker_that_hangs_is_given_up_at_the_ready_timeout() {
    let stage = Stage::controlled(&["--ready-timeout", "300"]);
    let server = stage.server();
    stage.script("ready hang");
    let bad = taker(&stage).start();
    let verdict = stage.wait("verdict ");
    for part in ["phase initialise", "took too long"] {
        assert!(verdict.contains(part), "{verdict}");
    }
    bad.wait_all_gone(soon()).unwrap();
    assert_unharmed(stage, server);
}

#[test]
fn taker_on_probation_is_rolled_back() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let server = stage.server();
    stage.script("later 50 unhealthy as asked");
    let bad = taker(&stage).start();
    assert_eq!(wait_serving(&bad), 2);
    bad.wait_all_gone(soon()).unwrap();
    let drained = bad.lines().iter().any(|line| line.text.ends_with(" RolledBack"));
    assert!(drained, "{:?}", bad.lines());
    stage.wait("verdict rolled back: the successor is unhealthy: as asked");
    assert_unharmed(stage, server);
}

#[test]
fn taker_that_is_killed_on_probation_is_rolled_back() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let server = stage.server();
    let bad = taker(&stage).start();
    assert_eq!(wait_serving(&bad), 2);
    process::signal(bad.pid(), Signal::KILL);
    stage.wait("verdict rolled back: ");
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    assert_eq!(serving(&stage.status()), server);
    let next = stage.ask();
    next.serving();
    common::assert_only_accepted_lost(&stage.load.stop(), 10);
}

#[test]
fn second_taker_is_told_that_the_service_is_busy() {
    let stage = Stage::controlled(&[]);
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path().display()));
    let first = taker(&stage).start();
    first.wait_line(|line| line.starts_with("waiting "), soon()).unwrap();
    let said = wait_refused(taker(&stage).start()).stderr();
    let busy = "does not hand over: busy: the upgrade to generation 2, asked for by uid ";
    assert!(said.contains(busy), "{said}");
    gate.open();
    assert_eq!(wait_serving(&first), 2);
    stage.load.wait_answered_by(|pid| pid == first.pid(), soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn two_takers_at_once_are_one_that_serves_and_one_that_is_refused() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let takers = [taker(&stage).start(), taker(&stage).start()];
    let serves = |service: &Service| {
        let ends = |line: &str| line.starts_with("serving ") || line.starts_with("subject: ");
        service.wait_line(ends, soon()).unwrap().starts_with("serving ")
    };
    let serving: Vec<_> = takers.iter().filter(|taker| serves(taker)).map(Service::pid).collect();
    assert_eq!(serving.len(), 1, "{serving:?}");
    stage.load.wait_answered_by(|pid| pid == serving[0], soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn variable_that_reaches_a_successor_has_no_effect() {
    let other = Stage::controlled(&[]);
    let stage = Stage::with(&[], |launch, folder| {
        let control = folder.join("control");
        launch.env("HANDOVER_TAKE_OVER", &control).arg("--control").arg(control)
    });
    assert_eq!(stage.status().generations[0].report.generation, 1);
    for _ in 0..2 {
        // It was meant for the first one alone.
        let pid = stage.upgrade_with(UpgradeRequest::default());
        let kept = process::environ(pid).contains_key(std::ffi::OsStr::new("HANDOVER_TAKE_OVER"));
        assert!(!kept);
        stage.load.wait_answered_by(|answered| answered == pid, soon()).unwrap();
    }
    let name = other.control().display().to_string();
    let environment = [("HANDOVER_TAKE_OVER".to_owned(), Some(name))].into();
    let pid = stage.upgrade_with(UpgradeRequest { environment, ..UpgradeRequest::default() });
    stage.load.wait_answered_by(|answered| answered == pid, soon()).unwrap();
    assert_eq!(serving(&status(&other.control())), other.server());
    let answer = ask(&other.control(), &Request::Upgrade(UpgradeRequest::default()));
    assert!(matches!(answer, Answer::Verdict(_)), "{answer:?}");
    stage.load.stop().assert_nothing_lost();
    other.load.stop().assert_nothing_lost();
}

#[test]
fn service_that_is_killed_while_it_hands_over_leaves_the_taker_to_serve() {
    let stage = Stage::controlled(&[]);
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path().display()));
    let next = taker(&stage).start();
    next.wait_line(|line| line.starts_with("waiting "), soon()).unwrap();
    process::signal(stage.server(), Signal::KILL);
    gate.open();
    assert_eq!(wait_serving(&next), 2);
    stage.load.wait_answered_by(|pid| pid == next.pid(), soon()).unwrap();
    assert_eq!(serving(&stage.status()), next.pid());
    common::assert_only_accepted_lost(&stage.load.stop(), 10);
}
