//! States that go wrong: who serves, what the verdict says, and how many requests were lost.

mod control;

use control::Subject;
use handover_testkit::{KeepAlive, Load, Signal, soon};

const BOTH: [&str; 2] = ["early=e:1:write", "late=l:1:write"];

/// Upgrades with a provider that goes wrong, then again without, all under load.
#[track_caller]
fn fails_and_then_works(settings: &[&str], name: &str, how: &str, verdict: &str) {
    let subject = Subject::start(settings.iter().copied());
    let load = Load::echo(subject.address).rate(200).start();
    let mut old = subject.control();

    old.ask(&format!("set {name} {how}"));
    assert_eq!(old.ask("upgrade"), verdict);

    // The predecessor serves on, on the same connections and on new ones.
    assert_eq!(old.ask("generation"), "1");
    load.wait_answered_by(|pid| pid == old.pid, soon()).unwrap();
    subject.wait(&format!("verdict {verdict}"));

    old.ask(&format!("clear {name}"));
    let new = subject.upgrade();
    load.wait_answered_by(|pid| pid == new.pid, soon()).unwrap();
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.len(), 2, "{outcome}");
    subject.stop();
}

fn verdict(phase: &str, name: &str, cause: &str) -> String {
    let reason = format!("the state \"{name}\" could not be written (exit status: 1)");
    format!("the upgrade failed in phase {phase}: {reason}: {cause}")
}

#[test]
fn an_early_provider_that_fails_is_named_and_the_next_upgrade_works() {
    fails_and_then_works(&BOTH, "e", "error", &verdict("transfer", "e", "the disk is on fire"));
}

#[test]
fn an_early_provider_that_panics_is_named_and_the_next_upgrade_works() {
    let cause = "the application's code panicked";
    fails_and_then_works(&BOTH, "e", "panic", &verdict("transfer", "e", cause));
}

#[test]
fn a_late_provider_that_fails_has_accepting_resumed_and_nothing_is_lost() {
    fails_and_then_works(&BOTH, "l", "error", &verdict("commit", "l", "the disk is on fire"));
}

#[test]
fn a_late_provider_that_panics_has_accepting_resumed_and_nothing_is_lost() {
    let cause = "the application's code panicked";
    fails_and_then_works(&BOTH, "l", "panic", &verdict("commit", "l", cause));
}

#[test]
fn a_part_in_place_that_outlives_its_provider_fails_the_upgrade() {
    let cause = "a part that was built in place is held beyond its provider";
    fails_and_then_works(&BOTH, "e", "keep", &verdict("transfer", "e", cause));
}

#[test]
fn a_late_provider_that_waits_for_ever_meets_the_commit_timeout_only() {
    let settings = ["late=l:1:write", "commit=1500"];
    let subject = Subject::start(settings);
    let load = Load::echo(subject.address).rate(200).start();
    let mut old = subject.control();
    old.ask("guard");
    old.ask("set l for-ever");

    let verdict = old.ask("upgrade");
    assert!(verdict.contains("in phase commit"), "{verdict}");

    load.wait_answered_by(|pid| pid == old.pid, soon()).unwrap();
    load.stop().assert_nothing_lost();
    // The provider is still in there. Nothing else waits for it.
    assert_eq!(old.ask("generation"), "1");
    old.ask("clear l");
    old.ask("release");
    subject.upgrade();
    subject.stop();
}

#[test]
fn a_state_beyond_the_limit_fails_the_upgrade_with_the_limit() {
    for (how, helping) in [("large8192", "early"), ("long8192", "early"), ("large8192", "late")] {
        let setting = format!("{helping}=big:1:{how}");
        let subject = Subject::start([&*setting, "max-state=8191"]);
        let load = Load::echo(subject.address).rate(100).start();
        let mut old = subject.control();

        let verdict = old.ask("upgrade");

        assert!(verdict.contains("the state \"big\" could not be written"), "{verdict}");
        assert!(verdict.ends_with("grows beyond the limit of 8191 bytes"), "{verdict}");
        load.wait_answered_by(|pid| pid == old.pid, soon()).unwrap();
        load.stop().assert_nothing_lost();
        subject.stop();
    }
}

#[test]
fn a_state_of_exactly_the_limit_arrives() {
    let settings = ["early=e:1:large8192", "late=l:1:long8192", "max-state=8192"];
    let subject = Subject::start(settings);
    subject.upgrade();
    subject.wait("early e 1 \"8192 bytes, 0 wrong\"");
    subject.wait("late l 1 \"8192 bytes, 0 wrong\"");
    subject.stop();
}

#[test]
fn a_successor_that_cannot_read_the_version_refuses_with_its_reason() {
    let subject = Subject::start(BOTH);
    subject.folder.write("successor", "needs e 2\n");
    let load = Load::echo(subject.address).rate(200).start();
    let mut old = subject.control();

    let verdict = old.ask("upgrade");

    let refused = "in phase initialise: the successor refused: \"e\" has version 1, not 2";
    assert!(verdict.contains(refused), "{verdict}");
    load.wait_answered_by(|pid| pid == old.pid, soon()).unwrap();
    subject.folder.write("successor", "");
    let new = subject.upgrade();
    load.wait_answered_by(|pid| pid == new.pid, soon()).unwrap();
    load.stop().assert_nothing_lost();
    subject.stop();
}

#[test]
fn the_predecessor_serves_while_an_early_state_takes_its_time() {
    let subject = Subject::start(["early=e:1:write"]);
    let load = Load::echo(subject.address).rate(300).start();
    let mut old = subject.control();
    old.ask("set e wait");
    subject.service.signal(Signal::HUP);
    subject.wait("writing early e");

    load.wait_answers(100, soon()).unwrap();
    assert_eq!(old.ask("draining"), "false");

    old.ask("clear e");
    load.wait_answered_by(|pid| pid != old.pid, soon()).unwrap();
    load.stop().assert_nothing_lost();
    subject.stop();
}

#[test]
fn the_kernel_queues_while_a_late_state_takes_its_time() {
    let subject = Subject::start(["late=l:1:write"]);
    let old_connections = KeepAlive::echo(subject.address).connections(20).start();
    old_connections.wait_open(soon()).unwrap();
    let mut old = subject.control();
    old.ask("set l wait");
    subject.service.signal(Signal::HUP);
    subject.wait("writing late l");

    // What was accepted is served on; what comes now waits.
    let load = Load::echo(subject.address).rate(100).start();
    old_connections.wait_pings(100, soon()).unwrap();
    assert_eq!(load.so_far().ok, 0);
    old.ask("clear l");

    load.wait_answers(100, soon()).unwrap();
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert!(!outcome.answered_by.contains_key(&old.pid), "{outcome}");
    let outcome = old_connections.stop();
    assert_eq!(outcome.ends, []);
    subject.stop();
}

#[test]
fn an_upgrade_after_one_that_left_its_provider_at_work_blocks_nobody() {
    let subject = Subject::start(["early=e:1:write", "ready=1500"]);
    let load = Load::echo(subject.address).rate(200).start();
    let mut old = subject.control();
    let mut other = subject.control();
    old.ask("set e wait");
    let verdict = old.ask("upgrade");
    assert!(verdict.contains("took too long"), "{verdict}");

    // The provider of the first upgrade still runs when the second begins.
    old.send("upgrade");
    assert_eq!(other.ask("generation"), "1");
    other.ask("in-flight");
    other.ask("clear e");
    let verdict = old.answer();

    if verdict.contains("took too long") {
        subject.upgrade();
    }
    load.stop().assert_nothing_lost();
    subject.stop();
}

#[test]
fn a_stop_while_a_provider_runs_calls_the_upgrade_off_and_stops() {
    for setting in ["early=s:1:write", "late=s:1:write"] {
        let subject = Subject::start([setting]);
        let mut old = subject.control();
        old.ask("set s wait");
        old.send("upgrade");
        let helping = &setting[..setting.find('=').unwrap()];
        subject.wait(&format!("writing {helping} s"));

        subject.service.signal(Signal::TERM);

        assert!(old.answer().contains("this process was told to stop"));
        let finished = subject.service.finish(soon()).unwrap();
        assert!(finished.stdout().contains("draining 1 Stopped\n"));
        assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr());
    }
}
