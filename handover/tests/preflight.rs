//! An executable is looked at and checked before anything depends on it, and what was checked is
//! what runs.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use common::{Asked, Stage};
use handover_testkit::process::{self, Signal};
use handover_testkit::{
    Pid, can_make_network_namespace, example, executables, is_root, recheck, skipped, soon,
};

/// The service with a check, and arguments on top.
fn stage(arguments: &[&str]) -> Stage {
    let mut all = vec!["--check"];
    all.extend(arguments);
    Stage::new(&all)
}

#[track_caller]
fn assert_has(verdict: &str, parts: &[&str]) {
    for part in parts {
        assert!(verdict.contains(part), "{part:?} is missing in: {verdict}");
    }
}

/// Upgrades to a successor whose check follows the script, and asserts that nothing but a verdict
/// with all these parts comes of it.
#[track_caller]
fn assert_fails(stage: Stage, script: &str, verdict_has: &[&str]) {
    let server = stage.server();
    stage.script(script);
    let asked = stage.ask();
    assert_has(&asked.verdict(), verdict_has);
    assert_not_started(&asked);
    stage.assert_unharmed(server);
}

/// Asserts that no successor was started.
#[track_caller]
fn assert_not_started(asked: &Asked<'_>) {
    let lines = asked.lines();
    assert!(!lines.iter().any(|line| line.starts_with("starting ")), "{lines:?}");
}

fn checking(asked: &Asked<'_>) -> Pid {
    asked.line("checking ")["checking ".len()..].parse().unwrap()
}

/// The file that a process executes.
fn inode(path: impl AsRef<Path>) -> (u64, u64) {
    let metadata = std::fs::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

fn running(pid: Pid) -> (u64, u64) {
    inode(format!("/proc/{pid}/exe"))
}

/// Installs two releases, with the link `current` to the first one, and has checks switch it to
/// the other one.
fn switched_by_the_check(stage: &Stage) -> (PathBuf, PathBuf) {
    let one = stage.folder.install(example("subject"), "one");
    let two = stage.folder.install(example("subject"), "two");
    let current = stage.folder.link("current", &one);
    let next = stage.folder.link("next", &two);
    stage.script(&format!("check rename {} {}", next.display(), current.display()));
    (one, two)
}

#[test]
fn check_that_passes_is_followed_by_the_upgrade() {
    let stage = stage(&[]);
    for _ in 0..3 {
        let asked = stage.ask();
        let checked = checking(&asked);
        let successor = asked.starting();
        assert_ne!(checked, successor);
        assert_has(&asked.verdict(), &[" serves after "]);
        assert_eq!(asked.serving(), successor);
    }
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn release_that_was_checked_runs_although_the_link_leads_to_another_by_then() {
    let stage = stage(&[]);
    let (one, two) = switched_by_the_check(&stage);
    let second = stage.upgrade();
    assert_eq!(process::executable(second), one);

    // It has not lost sight of the link.
    stage.script("");
    let third = stage.upgrade();
    assert_eq!(process::executable(third), two);
    stage.load.wait_answered_by(|pid| pid == third, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn executable_that_was_checked_runs_although_its_place_is_taken_by_then() {
    let stage = stage(&[]);
    std::fs::remove_file(stage.folder.join("current")).unwrap();
    let current = stage.folder.install(example("subject"), "current");
    let checked = inode(&current);
    let next = executables::failing(&stage.folder, "not what was checked", 9);
    stage.script(&format!("check rename {} {}", next.display(), current.display()));
    let second = stage.upgrade();
    assert_eq!(running(second), checked);
    assert_ne!(inode(&current), checked);

    stage.script("");
    let verdict = stage.ask().verdict();
    assert_has(&verdict, &["phase check", "exit status: 9", "not what was checked"]);
    stage.assert_unharmed(second);
}

#[test]
fn script_that_was_checked_is_not_mistaken_for_what_took_its_place() {
    let stage = stage(&[]);
    let wrapper = executables::execs(&stage.folder, example("subject"));
    let current = stage.folder.link("current", wrapper);
    let server = stage.server();
    let next = executables::failing(&stage.folder, "not what was checked", 9);
    stage.script(&format!("check rename {} {}", next.display(), current.display()));
    let asked = stage.ask();
    assert_has(&asked.verdict(), &["phase spawn", "another file was put in its place", "again"]);
    assert_not_started(&asked);
    stage.assert_unharmed(server);
}

#[test]
fn script_that_execs_the_service_is_checked_and_serves() {
    let stage = stage(&[]);
    let wrapper = executables::execs(&stage.folder, example("subject"));
    stage.folder.link("current", wrapper);
    let asked = stage.ask();
    assert_ne!(checking(&asked), asked.serving());
    assert_has(&asked.verdict(), &[" serves after "]);
    stage.upgrade();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn what_is_executed_by_a_descriptor_is_called_as_by_its_path() {
    let stage = Stage::new(&[]);
    let name = |pid: Pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let first = stage.server();
    assert_eq!(name(first), "current\n");
    let arguments = process::arguments(first);
    for _ in 0..3 {
        let next = stage.upgrade();
        assert_eq!(name(next), "current\n");
        assert_eq!(process::arguments(next), arguments);
        assert_eq!(running(next), inode(example("subject")));
    }
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn check_that_says_no_changes_nothing() {
    assert_fails(
        stage(&[]),
        "check exit 3 no database",
        &[
            "phase check",
            "did not pass its check",
            "exit status: 3",
            // What goes to stdout is told as well.
            "stderr checking ",
            " | no database",
        ],
    );
}

#[test]
fn check_that_aborts_changes_nothing() {
    assert_fails(
        stage(&[]),
        "check abort",
        &["phase check", "did not pass its check", "signal: 6 (SIGABRT)"],
    );
}

#[test]
fn check_that_hangs_is_killed_at_its_timeout() {
    assert_fails(
        stage(&["--check-timeout", "300"]),
        "check hang",
        &["phase check", "longer than 300ms", "signal: 9 (SIGKILL)", " | hanging "],
    );
}

#[test]
fn check_that_writes_more_than_a_pipe_holds_is_read() {
    assert_fails(
        stage(&[]),
        "check shout 300000\ncheck exit 2 at last",
        &["phase check", "exit status: 2", "shout 00", " | at last"],
    );
}

#[test]
fn check_that_is_killed_changes_nothing() {
    let stage = stage(&[]);
    let server = stage.server();
    stage.script("check hang");
    let asked = stage.ask();
    let checked = checking(&asked);
    asked.line("hanging ");
    process::signal(checked, Signal::KILL);
    assert_has(&asked.verdict(), &["phase check", "did not pass", "signal: 9 (SIGKILL)"]);
    assert_not_started(&asked);
    stage.assert_unharmed(server);
}

#[test]
fn what_a_check_has_started_ends_with_it_at_its_timeout() {
    let stage = stage(&["--check-timeout", "300"]);
    let server = stage.server();
    let text = "#!/bin/sh\nsleep 1000000 &\necho two of us\nwait\n";
    let bad = stage.folder.write_executable("two", text);
    stage.folder.link("current", bad);
    let asked = stage.ask();
    assert_has(&asked.verdict(), &["phase check", "took longer", "stderr two of us"]);
    let alone = recheck(soon(), || (stage.service.alive() == [server]).then_some(()));
    assert!(alone.is_some(), "{:?}", stage.service.alive());
    stage.assert_unharmed(server);
}

#[test]
fn executable_that_cannot_be_executed_fails_as_without_a_check() {
    let stage = stage(&[]);
    let server = stage.server();
    let cases: [(PathBuf, &[&str]); 4] = [
        (executables::missing(&stage.folder), &["phase preflight", "/missing does not exist"]),
        (executables::directory(&stage.folder), &["phase preflight", "it is a directory"]),
        (executables::wrong_architecture(&stage.folder), &["phase check", "this machine is "]),
        (executables::without_interpreter(&stage.folder), &["phase check", "its interpreter, "]),
    ];
    for (bad, verdict_has) in cases {
        stage.folder.link("current", bad);
        let asked = stage.ask();
        assert_has(&asked.verdict(), verdict_has);
        assert_not_started(&asked);
    }
    stage.assert_unharmed(server);
}

#[test]
fn executable_on_a_file_system_without_execution_is_named_so() {
    // Both kinds of namespace are root's.
    if !is_root() || !can_make_network_namespace() {
        return skipped("only root can mount");
    }
    // In a mount namespace of the service's own.
    let stage = Stage::with(&[], |launch, folder| {
        let (folder_path, subject) = (folder.path().display(), example("subject"));
        std::fs::create_dir(folder.join("mounted")).unwrap();
        let text = format!(
            "#!/bin/sh\nexec unshare -m sh -c 'cd {folder_path} && \
             mount -t tmpfs -o noexec none mounted && cp {0} mounted && ln -sfn {0} current && \
             exec {folder_path}/current \"$@\"' sh \"$@\"\n",
            subject.display()
        );
        let wrapper = folder.write_executable("wrapper", text);
        folder.link("current", wrapper);
        launch
    });
    let server = stage.server();
    stage.folder.link("current", "mounted/subject");
    let verdict = stage.ask().verdict();
    assert_has(&verdict, &["phase preflight", "mounted noexec", "Permission denied"]);
    stage.assert_unharmed(server);
}

#[test]
fn check_has_nothing_of_the_handover_and_an_empty_stdin() {
    let stage = stage(&["--sibling"]);
    let server = stage.server();
    let gate = stage.gate("checked");
    stage.script(&format!("check child\ncheck wait {}", gate.path().display()));
    let asked = stage.ask();
    let line = asked.line("child ");
    // One more is the directory that is listed.
    assert!(line.ends_with(" 0 0 1 2") || line.ends_with(" 0 0 1 2 3"), "{line}");
    let checked = asked.waiting("check");
    assert_eq!(process::parent(checked), server);
    let descriptors = process::fds(checked);
    assert_eq!(descriptors[&0], "/dev/null");
    assert_eq!(descriptors[&1], descriptors[&2]);
    assert_eq!(process::environ(checked), process::environ(server));
    gate.open();
    assert_has(&asked.verdict(), &[" serves after "]);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn stop_during_a_check_stops() {
    let stage = stage(&[]);
    let server = stage.server();
    stage.script("check hang");
    let asked = stage.ask();
    asked.line("hanging ");
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    stage.load.so_far().assert_nothing_lost();
    process::signal(server, Signal::TERM);
    assert_has(&asked.verdict(), &["phase check", "told to stop", "signal: 9 (SIGKILL)"]);
    asked.line("drained ");
    stage.service.wait_all_gone(soon()).unwrap();
    assert!(stage.service.exit_status(soon()).unwrap().success());
}

#[test]
fn upgrade_that_is_asked_for_during_a_check_comes_after_it() {
    let stage = stage(&[]);
    let gate = stage.gate("checked");
    stage.script(&format!("check wait {}", gate.path().display()));
    let asked = stage.ask();
    asked.waiting("check");
    for _ in 0..3 {
        process::signal(asked.pid, Signal::HUP);
    }
    let is_taken = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", asked.pid)).unwrap();
        let pending =
            |name: &str| status.lines().any(|line| line == format!("{name}:\t{:016x}", 0));
        (pending("SigPnd") && pending("ShdPnd")).then_some(())
    };
    assert!(recheck(soon(), is_taken).is_some());
    gate.open();
    let third = stage.wait_generation(3);
    stage.load.wait_answered_by(|pid| pid == third, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrade_that_is_asked_for_during_a_check_that_fails_is_made() {
    let stage = stage(&[]);
    let gate = stage.gate("checked");
    stage.script(&format!("check wait {}\ncheck exit 3 not yet", gate.path().display()));
    let asked = stage.ask();
    asked.waiting("check");
    process::signal(asked.pid, Signal::HUP);
    stage.script("");
    gate.open();
    assert_has(&asked.verdict(), &["phase check", "not yet"]);
    let second = stage.wait_generation(2);
    stage.load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn upgrades_with_checks_leave_nothing_behind() {
    let stage = stage(&[]);
    let second = stage.upgrade();
    let third = stage.upgrade();
    assert!(process::exited(second, soon()));
    let before = process::fds(third).len();
    for round in 0..20 {
        // Those that fail add up in one process, the others over the generations.
        if round % 2 == 0 {
            stage.script("check exit 1 no");
            assert_has(&stage.ask().verdict(), &["phase check"]);
        } else {
            stage.script("");
            stage.upgrade();
        }
    }
    let last = stage.server();
    let settled = || {
        let at_most = process::fds(last).len() <= before;
        (at_most && process::children(last).is_empty()).then_some(())
    };
    assert!(recheck(soon(), settled).is_some(), "{:?}", process::fds(last));
    assert!(recheck(soon(), || (stage.service.alive() == [last]).then_some(())).is_some());
    stage.load.stop().assert_nothing_lost();
}
