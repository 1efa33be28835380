//! Each way in which an upgrade can fail: the exit code, the words and the JSON say which, the old
//! process serves on, and the next upgrade succeeds.

use std::path::PathBuf;

use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Pid, executables};
use serde_json::Value;

use crate::stage::{Ended, Stage};

/// What is told of an upgrade that failed.
#[derive(Clone, Copy, Default)]
struct Expected<'a> {
    phase: &'a str,
    reason: &'a str,
    exit_code: Option<i32>,
    signal: Option<i32>,
    /// A line of stderr.
    stderr: &'a str,
    /// Parts of the message.
    message: &'a [&'a str],
}

/// Exit codes of the command.
const FAILED: i32 = 3;
const ROLLED_BACK: i32 = 4;

impl Expected<'_> {
    #[track_caller]
    fn check(&self, code: i32, human: &Ended, json: &Ended) {
        assert_eq!(human.code, code, "{human:#?}");
        assert_eq!(json.code, code, "{json:#?}");
        self.check_human(code, human);
        self.check_json(code, json);
    }

    #[track_caller]
    fn check_human(&self, code: i32, human: &Ended) {
        let (title, ending) = match code {
            FAILED => ("upgrade failed", "\nthe old process serves on\n"),
            _ => ("rolled back", "\nthe old process serves again\n"),
        };
        assert!(human.stdout.starts_with(title), "{human:#?}");
        assert!(human.stdout.ends_with(ending), "{human:#?}");
        human.assert_says(&[
            &format!("\n  phase      {}\n", self.phase),
            &format!("\n  reason     {}\n", self.reason),
        ]);
        let ended = human.stdout.lines().find_map(|line| line.strip_prefix("  ended      "));
        let status = match (self.exit_code, self.signal) {
            (Some(code), _) => Some(format!("exit status: {code}")),
            (None, Some(signal)) => Some(format!("signal: {signal} ")),
            (None, None) => None,
        };
        match (ended, status) {
            (None, None) => {}
            (Some(ended), Some(status)) if format!("{ended} ").starts_with(&status) => {}
            (ended, status) => panic!("{status:?} and not {ended:?} in {human:#?}"),
        }
        human.assert_says(self.message);
        human.assert_says(&[self.stderr]);
    }

    #[track_caller]
    fn check_json(&self, code: i32, json: &Ended) {
        assert_eq!(json.stderr, "", "{json:#?}");
        let verdict = json.last();
        let outcome = if code == FAILED { "failed" } else { "rolled-back" };
        assert_eq!(verdict["type"], "verdict", "{verdict:#}");
        assert_eq!(verdict["outcome"], outcome, "{verdict:#}");
        assert_eq!(verdict["phase"], self.phase, "{verdict:#}");
        assert_eq!(verdict["reason"], self.reason, "{verdict:#}");
        assert_eq!(verdict.get("exit_code").and_then(Value::as_i64), self.exit_code.map(i64::from));
        assert_eq!(verdict.get("signal").and_then(Value::as_i64), self.signal.map(i64::from));
        let lines = verdict["stderr"].as_array().into_iter().flatten();
        let told = lines.filter_map(Value::as_str).any(|line| line.contains(self.stderr));
        assert!(self.stderr.is_empty() || told, "{verdict:#}");
        let message = verdict["message"].as_str().unwrap();
        for part in self.message {
            assert!(message.contains(part), "{part:?} is missing in: {message}");
        }
    }
}

/// Upgrades with these options, once for people and once for programs; what becomes of it is told,
/// and changes nothing.
#[track_caller]
fn assert_fails(service: &[&str], script: &str, options: &[&str], expected: Expected<'_>) {
    let stage = Stage::new(service);
    let before = stage.serving();
    stage.script(script);
    let human = stage.run("upgrade", options);
    let json = stage.run("upgrade", &[&["--json"], options].concat());
    expected.check(FAILED, &human, &json);
    stage.assert_unharmed(before);
}

#[track_caller]
fn assert_cannot_start(make: impl FnOnce(&Folder) -> PathBuf, phase: &str, message: &[&str]) {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let bad = make(&stage.folder);
    let options = ["--executable", bad.to_str().unwrap()];
    let human = stage.run("upgrade", &options);
    let json = stage.run("upgrade", &[&["--json"], &options[..]].concat());
    Expected { phase, reason: "spawn", message, ..Expected::default() }
        .check(FAILED, &human, &json);
    human.assert_says(&[", not started\n", options[1]]);
    stage.assert_unharmed(before);
}

#[test]
fn an_executable_that_is_missing_is_told() {
    assert_cannot_start(executables::missing, "preflight", &["/missing does not exist"]);
}

#[test]
fn a_file_that_may_not_be_executed_is_told() {
    assert_cannot_start(executables::not_executable, "preflight", &["chmod +x"]);
}

#[test]
fn an_empty_file_is_told() {
    assert_cannot_start(executables::empty, "preflight", &["it is empty"]);
}

#[test]
fn an_executable_for_another_architecture_is_told() {
    assert_cannot_start(executables::wrong_architecture, "spawn", &["this machine is "]);
}

#[test]
fn a_check_that_fails_is_told_with_what_it_printed() {
    assert_fails(
        &["--check"],
        "check exit 3 no database",
        &[],
        Expected {
            phase: "check",
            reason: "check-failed",
            exit_code: Some(3),
            stderr: "no database",
            ..Expected::default()
        },
    );
}

#[test]
fn a_check_that_hangs_is_told() {
    assert_fails(
        &["--check", "--check-timeout", "300"],
        "check hang",
        &[],
        Expected { phase: "check", reason: "check-failed", signal: Some(9), ..Expected::default() },
    );
}

#[test]
fn a_successor_that_exits_at_once_is_told_with_what_it_printed() {
    assert_fails(
        &[],
        "start exit 3 no configuration",
        &[],
        Expected {
            phase: "hello",
            reason: "exited",
            exit_code: Some(3),
            stderr: "no configuration",
            ..Expected::default()
        },
    );
}

#[test]
fn a_successor_that_exits_after_hello_is_told() {
    assert_fails(
        &[],
        "adopted exit 0 nothing to do",
        &[],
        Expected {
            phase: "initialise",
            reason: "exited",
            exit_code: Some(0),
            stderr: "nothing to do",
            ..Expected::default()
        },
    );
}

#[test]
fn a_successor_that_aborts_is_told() {
    assert_fails(
        &[],
        "ready abort",
        &[],
        Expected { phase: "initialise", reason: "exited", signal: Some(6), ..Expected::default() },
    );
}

#[test]
fn a_successor_that_is_killed_is_told() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    stage.script("ready hang");
    let upgrade = |options: &[&str]| {
        let skip = stage.service.line_count();
        let running = stage.begin("upgrade", options);
        let hanging = stage.line_after(skip, "hanging ");
        let successor: Pid = hanging.split(' ').nth(1).unwrap().parse().unwrap();
        process::signal(successor, Signal::KILL);
        running.finish()
    };
    let (human, json) = (upgrade(&[]), upgrade(&["--json"]));
    Expected { phase: "initialise", reason: "exited", signal: Some(9), ..Expected::default() }
        .check(FAILED, &human, &json);
    stage.assert_unharmed(before);
}

#[test]
fn a_successor_that_says_nothing_is_given_up_at_the_ready_timeout_of_the_command() {
    assert_fails(
        &[],
        "start hang",
        &["--ready-timeout", "300ms"],
        Expected { phase: "hello", reason: "timed-out", signal: Some(9), ..Expected::default() },
    );
}

#[test]
fn a_successor_that_is_never_ready_is_given_up_at_the_ready_timeout_of_the_command() {
    assert_fails(
        &[],
        "ready hang",
        &["--ready-timeout", "300ms"],
        Expected {
            phase: "initialise",
            reason: "timed-out",
            signal: Some(9),
            ..Expected::default()
        },
    );
}

#[test]
fn a_successor_that_refuses_is_told() {
    assert_fails(
        &[],
        "ready refuse no licence",
        &[],
        Expected {
            phase: "initialise",
            reason: "refused",
            exit_code: Some(1),
            message: &["no licence"],
            ..Expected::default()
        },
    );
}

#[test]
fn a_successor_that_speaks_garbage_is_told() {
    assert_fails(
        &[],
        "start raw garbage",
        &[],
        Expected {
            phase: "hello",
            reason: "misbehaved",
            exit_code: Some(4),
            stderr: "called off",
            ..Expected::default()
        },
    );
}

#[test]
fn a_successor_of_another_protocol_version_is_told() {
    assert_fails(
        &[],
        "start raw version-99",
        &[],
        Expected {
            phase: "hello",
            reason: "incompatible",
            exit_code: Some(4),
            message: &["99"],
            ..Expected::default()
        },
    );
}

#[test]
fn a_late_state_that_cannot_be_written_is_told() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    stage.folder.write("late", "the disk is full");
    let (human, json) = (stage.run("upgrade", &[]), stage.run("upgrade", &["--json"]));
    Expected {
        phase: "commit",
        reason: "state",
        exit_code: Some(1),
        message: &["\"late\" could not be written", "the disk is full"],
        ..Expected::default()
    }
    .check(FAILED, &human, &json);
    stage.assert_unharmed(before);
}

#[test]
fn a_successor_that_dies_after_the_commit_is_told() {
    assert_fails(
        &[],
        "start raw commit-exit",
        &[],
        Expected { phase: "confirm", reason: "exited", exit_code: Some(5), ..Expected::default() },
    );
}

/// Upgrades to a successor that goes wrong while it serves on probation.
#[track_caller]
fn assert_rolled_back(script: &str, expected: Expected<'_>) {
    let stage = Stage::new(&["--probation", "60000"]);
    let before = stage.serving();
    stage.script(script);
    let (human, json) = (stage.run("upgrade", &[]), stage.run("upgrade", &["--json"]));
    Expected { phase: "probation", ..expected }.check(ROLLED_BACK, &human, &json);
    assert_eq!(stage.serving(), before);
    stage.load.wait_answered_by(|pid| pid == before.1, handover_testkit::soon()).unwrap();
    stage.script("later 1 confirm");
    stage.upgrade(&[]);
    let now = stage.serving();
    assert!(now.0 > before.0, "{now:?}");
    let outcome = stage.load.stop();
    if expected.signal.is_none() {
        outcome.assert_nothing_lost();
    } else {
        // Only what it had accepted dies with it.
        use handover_testkit::Fault::{Cut, Reset};
        let only = outcome.lost.iter().all(|lost| matches!(lost.what, Cut | Reset));
        assert!(only && outcome.lost.len() <= 10, "{outcome}");
    }
}

#[test]
fn a_successor_that_dies_on_probation_is_rolled_back() {
    assert_rolled_back(
        "later 100 abort",
        Expected { reason: "exited", signal: Some(6), ..Expected::default() },
    );
}

#[test]
fn a_successor_that_says_it_is_unhealthy_is_rolled_back() {
    assert_rolled_back(
        "later 100 unhealthy no database",
        Expected { reason: "unhealthy", message: &["no database"], ..Expected::default() },
    );
}
