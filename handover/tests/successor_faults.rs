//! Whatever is wrong with a successor, the predecessor serves on, says why, and can try again.

#![allow(clippy::unwrap_used)]

mod common;

use common::Stage;
use handover_testkit::process::{self, Signal, State};
use handover_testkit::{Folder, Pid, executables, recheck, soon};

/// Upgrades to a successor that follows the script, and asserts that nothing but a verdict with
/// all these parts comes of it.
#[track_caller]
fn assert_fails(stage: Stage, script: &str, verdict_has: &[&str]) {
    let server = stage.server();
    stage.script(script);
    assert_verdict(&stage.ask().verdict(), verdict_has);
    stage.assert_unharmed(server);
}

#[track_caller]
fn assert_verdict(verdict: &str, parts: &[&str]) {
    for part in parts {
        assert!(verdict.contains(part), "{part:?} is missing in: {verdict}");
    }
}

/// Upgrades to a release of which the executable cannot be started.
#[track_caller]
fn assert_cannot_start(make: impl FnOnce(&Folder) -> std::path::PathBuf, verdict_has: &[&str]) {
    let stage = Stage::new(&[]);
    let server = stage.server();
    let bad = make(&stage.folder);
    let current = stage.folder.link("current", bad);
    let named = format!("reason cannot execute {}: ", current.display());
    assert_verdict(&stage.ask().verdict(), &[&named]);
    assert_verdict(&stage.ask().verdict(), verdict_has);
    stage.assert_unharmed(server);
}

#[test]
fn successor_that_is_missing_changes_nothing() {
    let absent = &["phase preflight", "/missing does not exist", "No such file"];
    assert_cannot_start(executables::missing, absent);
}

#[test]
fn successor_that_may_not_be_executed_changes_nothing() {
    let denied = &["phase preflight", "permissions, 0644", "chmod +x", "Permission denied"];
    assert_cannot_start(executables::not_executable, denied);
}

#[test]
fn successor_that_is_a_directory_changes_nothing() {
    assert_cannot_start(executables::directory, &["phase preflight", "it is a directory"]);
}

#[test]
fn successor_that_is_an_empty_file_changes_nothing() {
    assert_cannot_start(executables::empty, &["phase preflight", "it is empty"]);
}

#[test]
fn successor_that_is_cut_short_changes_nothing() {
    let half = |folder: &Folder| {
        let whole = std::fs::read(handover_testkit::example("subject")).unwrap();
        folder.write_executable("half", &whole[..64 * 1024])
    };
    assert_cannot_start(half, &["phase preflight", " of at least ", "install it again"]);
}

#[test]
fn successor_for_another_architecture_changes_nothing() {
    let foreign = &["phase spawn", "it is for ", ", this machine is ", "Exec format error"];
    assert_cannot_start(executables::wrong_architecture, foreign);
}

#[test]
fn successor_without_its_interpreter_changes_nothing() {
    let missing = &["phase spawn", "/nonexistent/interpreter, does not exist", "No such file"];
    assert_cannot_start(executables::without_interpreter, missing);
}

#[test]
fn successor_that_exits_at_once_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start exit 3 no configuration",
        &["phase hello", "ended before it served", "exit status: 3", "stderr no configuration"],
    );
}

#[test]
fn successor_that_exits_after_hello_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "adopted exit 0 nothing to do",
        &["phase initialise", "ended before it served", "exit status: 0", "nothing to do"],
    );
}

#[test]
fn successor_that_aborts_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "ready abort",
        &["phase initialise", "ended before it served", "signal: 6 (SIGABRT)"],
    );
}

#[test]
fn successor_that_panics_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "ready panic at the disco",
        &["phase initialise", "exit status: 101", "at the disco"],
    );
}

#[test]
fn successor_that_refuses_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "ready refuse no database",
        &["phase initialise", "the successor refused: no database", "exit status: 1"],
    );
}

#[test]
fn successor_that_is_killed_changes_nothing() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    stage.script("ready hang");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.line("hanging ");
    process::signal(successor, Signal::KILL);
    assert_verdict(&asked.verdict(), &["phase initialise", "ended", "signal: 9 (SIGKILL)"]);
    stage.assert_unharmed(server);
}

#[test]
fn successor_that_hangs_before_hello_is_given_up_at_the_ready_timeout() {
    assert_fails(
        Stage::new(&["--ready-timeout", "300"]),
        "start hang",
        &["phase hello", "took too long", "signal: 9 (SIGKILL)"],
    );
}

#[test]
fn successor_that_hangs_before_ready_is_given_up_at_the_ready_timeout() {
    assert_fails(
        Stage::new(&["--ready-timeout", "300"]),
        "ready hang",
        &["phase initialise", "took too long", "signal: 9 (SIGKILL)"],
    );
}

#[test]
fn successor_that_is_stopped_is_given_up_at_the_ready_timeout() {
    assert_fails(
        Stage::new(&["--ready-timeout", "300"]),
        "adopted stop",
        &["phase initialise", "took too long", "signal: 9 (SIGKILL)"],
    );
}

#[test]
fn successor_that_makes_progress_gets_the_time_it_asks_for() {
    let stage = Stage::new(&["--ready-timeout", "300"]);
    let gate = stage.gate("gate");
    stage.script(&format!("adopted progress 20000\nready wait {}", gate.path().display()));
    let asked = stage.ask();
    asked.waiting("ready");
    // Twice the timeout of it, as the load's clock has it.
    let until = stage.load.elapsed() + std::time::Duration::from_millis(600);
    while stage.load.elapsed() < until {
        stage.load.wait_answers(1, soon()).unwrap();
    }
    gate.open();
    assert_verdict(&asked.verdict(), &[" serves after "]);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_that_sends_garbage_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw garbage",
        &["phase hello", "broke the protocol", "exit status: 4", "called off"],
    );
}

#[test]
fn successor_that_sends_an_unknown_message_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw brand-new",
        &["phase hello", "broke the protocol", "brand-new", "exit status: 4", "called off"],
    );
}

#[test]
fn successor_of_another_protocol_version_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw version-99",
        &["phase hello", "speaks protocol version 99, this process 1", "\"versions\":"],
    );
}

#[test]
fn successor_that_is_ready_too_early_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw ready",
        &["phase transfer", "broke the protocol", "ready", "exit status: 4"],
    );
}

#[test]
fn successor_that_says_it_serves_too_early_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw serving",
        &["phase transfer", "broke the protocol", "serving", "exit status: 4"],
    );
}

#[test]
fn successor_that_sends_a_huge_frame_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw huge",
        &["phase hello", "broke the protocol", "exit status: 4"],
    );
}

#[test]
fn successor_that_sends_a_descriptor_changes_nothing() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    let before = process::fds(server).len();
    stage.script("start raw descriptor");
    for _ in 0..3 {
        let verdict = stage.ask().verdict();
        assert_verdict(&verdict, &["phase hello", "broke the protocol", "exit status: 4"]);
    }
    let after = || (process::fds(server).len() <= before).then_some(());
    assert!(recheck(soon(), after).is_some(), "{:?}", process::fds(server));
    stage.assert_unharmed(server);
}

#[test]
fn program_without_the_library_changes_nothing() {
    let stage = Stage::new(&["--ready-timeout", "300"]);
    let server = stage.server();
    let bad = executables::hanging(&stage.folder);
    stage.folder.link("current", bad);
    let verdict = stage.ask().verdict();
    assert_verdict(&verdict, &["phase hello", "took too long", "signal: 9 (SIGKILL)"]);
    let bad = executables::failing(&stage.folder, "usage: prog FILE", 64);
    stage.folder.link("current", bad);
    let verdict = stage.ask().verdict();
    assert_verdict(&verdict, &["phase hello", "exit status: 64", "stderr usage: prog FILE"]);
    stage.assert_unharmed(server);
}

#[test]
fn successor_that_cannot_write_the_pid_file_changes_nothing() {
    let stage = Stage::with(&[], |launch, folder| {
        std::fs::create_dir(folder.join("run")).unwrap();
        launch.arg("--pid-file").arg(folder.join("run/pid"))
    });
    let server = stage.server();
    let (run, away) = (stage.folder.join("run"), stage.folder.join("away"));
    let named = |pid: Pid| (stage.folder.read("run/pid") == Some(format!("{pid}\n"))).then_some(());
    assert!(recheck(soon(), || named(server)).is_some());
    std::fs::rename(&run, &away).unwrap();
    let verdict = stage.ask().verdict();
    assert_verdict(&verdict, &["phase initialise", "cannot write the PID file", "exit status: 1"]);
    std::fs::rename(&away, &run).unwrap();
    assert!(named(server).is_some());
    stage.assert_unharmed(server);
}

#[test]
fn successor_behind_a_script_that_execs_it_serves() {
    let stage = Stage::new(&[]);
    let wrapper = executables::execs(&stage.folder, handover_testkit::example("subject"));
    stage.folder.link("current", wrapper);
    let second = stage.upgrade();
    let third = stage.upgrade();
    assert_ne!(second, third);
    stage.load.wait_answered_by(|pid| pid == third, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_without_a_working_directory_changes_nothing() {
    let stage = Stage::with(&[], |launch, folder| {
        std::fs::create_dir(folder.join("home")).unwrap();
        launch.cwd(folder.join("home"))
    });
    let server = stage.server();
    std::fs::remove_dir(stage.folder.join("home")).unwrap();
    let verdict = stage.ask().verdict();
    assert_verdict(&verdict, &["phase spawn", "cannot enter the working directory", "/home"]);
    std::fs::create_dir(stage.folder.join("home")).unwrap();
    stage.assert_unharmed(server);
}

#[test]
fn successor_killed_between_ready_and_commit_changes_nothing() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    let gate = stage.gate("late");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("late");
    process::signal(successor, Signal::KILL);
    assert_verdict(&asked.verdict(), &["phase commit", "ended", "signal: 9 (SIGKILL)"]);
    // It accepts again although the code that writes the state has not come to its end.
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    gate.open();
    stage.assert_unharmed(server);
}

#[test]
fn successor_stopped_between_ready_and_commit_is_given_up_at_the_commit_timeout() {
    let stage = Stage::new(&["--commit-timeout", "300"]);
    let server = stage.server();
    let gate = stage.gate("late");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.waiting("late");
    process::signal(successor, Signal::STOP);
    assert!(process::wait_state_stopped(successor, soon()));
    gate.open();
    // The state waits for its ack.
    assert_verdict(&asked.verdict(), &["phase commit", "took too long", "signal: 9 (SIGKILL)"]);
    stage.assert_unharmed(server);
}

#[test]
fn successor_that_exits_after_the_commit_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw commit-exit",
        &["phase confirm", "ended before it served", "exit status: 5"],
    );
}

#[test]
fn successor_that_refuses_after_the_commit_changes_nothing() {
    assert_fails(
        Stage::new(&[]),
        "start raw commit-refuse",
        &["phase confirm", "the successor refused: no", "exit status: 4"],
    );
}

#[test]
fn successor_that_hangs_after_the_commit_is_given_up_at_the_commit_timeout() {
    assert_fails(
        Stage::new(&["--commit-timeout", "300"]),
        "start raw commit-hang",
        &["phase confirm", "took too long", "signal: 9 (SIGKILL)"],
    );
}

#[test]
fn successor_killed_after_the_commit_changes_nothing() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    stage.script("start raw commit-hang");
    let asked = stage.ask();
    let successor = asked.starting();
    asked.line("hanging ");
    process::signal(successor, Signal::KILL);
    assert_verdict(&asked.verdict(), &["phase confirm", "ended", "signal: 9 (SIGKILL)"]);
    stage.assert_unharmed(server);
}

#[test]
fn late_state_that_hangs_is_given_up_at_the_commit_timeout() {
    let stage = Stage::new(&["--commit-timeout", "300"]);
    let server = stage.server();
    let gate = stage.gate("late");
    let asked = stage.ask();
    asked.waiting("late");
    assert_verdict(&asked.verdict(), &["phase commit", "this process took too long"]);
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();

    // While the first one hangs still, a second one is refused in the same way.
    assert_verdict(&stage.ask().verdict(), &["phase commit", "took too long"]);
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    assert!(matches!(process::state(server), Some(State::Sleeping | State::Running)));

    gate.open();
    stage.assert_unharmed(server);
}

#[test]
fn early_state_that_hangs_is_given_up_at_the_ready_timeout() {
    let stage = Stage::new(&["--ready-timeout", "300"]);
    let server = stage.server();
    let gate = stage.gate("early");
    let asked = stage.ask();
    asked.waiting("early");
    assert_verdict(&asked.verdict(), &["phase transfer", "this process took too long"]);

    // While the first one hangs still, a second one fails in the same way.
    assert_verdict(&stage.ask().verdict(), &["phase transfer", "took too long"]);

    gate.open();
    stage.assert_unharmed(server);
}

#[test]
fn helper_of_a_successor_that_has_ended_holds_nobody_up() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    // It has the successor's end of the channel, which nobody has taken over yet, and its stderr.
    stage.script("start helper\nstart exit 3 no luck");
    let asked = stage.ask();
    let helper = asked.line("helper ")["helper ".len()..].parse().unwrap();
    assert_verdict(&asked.verdict(), &["phase hello", "the successor ended", "stderr no luck"]);
    assert!(process::is_alive(helper));
    stage.assert_unharmed(server);
}

#[test]
fn successor_that_dies_while_its_predecessor_drains_is_reaped() {
    let stage = Stage::new(&[]);
    let (first, held) = (stage.server(), stage.hold());
    let second = stage.upgrade();
    stage.load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    process::signal(second, Signal::KILL);
    let reaped = recheck(soon(), || process::children(first).is_empty().then_some(()));
    assert!(reaped.is_some(), "left: {:?}", process::zombies(first));
    assert!(process::is_alive(first), "it drains");
    held.release();
    assert!(process::exited(first, soon()));
}
