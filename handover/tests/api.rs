//! The blocking interface, from the inside of a running service.

mod control;

use control::Subject;
use handover_testkit::{Launch, Load, Signal, example, soon};

#[test]
fn an_upgrade_that_is_asked_for_gives_its_verdict_to_the_asker_and_to_on_verdict() {
    let subject = Subject::start([]);
    assert_eq!(subject.control().ask("upgrade"), "generation 2 serves");
    subject.wait("verdict generation 2 serves");
    assert_eq!(subject.control().ask("upgrade"), "generation 3 serves");
    subject.stop();
}

#[test]
fn a_second_request_for_an_upgrade_is_told_that_one_is_under_way() {
    let subject = Subject::start(["early=e:1:write"]);
    let mut first = subject.control();
    let mut second = subject.control();

    let busy = "the upgrade failed in phase spawn: busy: ";
    first.ask("set e wait");
    first.send("upgrade");
    subject.wait("writing early e");
    let answer = second.ask("upgrade");
    let who = "the upgrade to generation 2, asked for by the application 0 s ago";
    assert_eq!(answer, format!("{busy}{who}, is in phase transfer"));
    second.ask("clear e");
    assert_eq!(first.answer(), "generation 2 serves");

    // Also while it is only asked for, or has only just begun.
    let answer = subject.control().ask("upgrade-twice");
    assert!(answer.starts_with(busy) && answer.ends_with("; generation 3 serves"), "{answer}");
    let asked = "an upgrade asked for by the application comes first";
    let begun = "the upgrade to generation 3, asked for by the application 0 s ago, is in phase";
    assert!(answer.contains(asked) || answer.contains(begun), "{answer}");
    subject.stop();
}

#[test]
fn signals_during_an_upgrade_are_one_more_upgrade_by_the_successor() {
    let subject = Subject::start(["early=e:1:write"]);
    let mut old = subject.control();
    let mut other = subject.control();
    old.ask("set e wait");
    old.send("upgrade");
    subject.wait("writing early e");
    for _ in 0..5 {
        subject.service.signal(Signal::HUP);
    }
    other.ask("clear e");
    assert_eq!(old.answer(), "generation 2 serves");

    subject.wait("serving 3");
    subject.wait("drained 2 0 0");
    assert_eq!(subject.control().ask("generation"), "3");
    subject.stop();
}

#[test]
fn an_upgrade_after_a_stop_or_a_handover_is_told_that_nobody_serves_here() {
    let refused = "the upgrade failed in phase spawn: this process does not serve";
    let subject = Subject::start([]);
    let mut old = subject.control();
    old.ask("guard");
    subject.service.signal(Signal::HUP);
    subject.wait("draining 1 HandedOver");
    assert_eq!(old.ask("upgrade"), refused);
    old.ask("release");

    subject.wait("serving 2");
    let mut new = subject.control();
    new.ask("guard");
    new.ask("stop");
    subject.wait("draining 2 Stopped");
    assert_eq!(new.ask("upgrade"), refused);
    new.ask("release");
    subject.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn a_stop_that_is_asked_for_is_graceful_and_immediate_when_asked_for_again() {
    let subject = Subject::start(["drain=3600000"]);
    let mut control = subject.control();
    control.ask("guard");
    control.ask("stop");
    subject.wait("draining 1 Stopped");
    subject.wait("until 1 drains");
    control.send("stop");
    subject.wait("drained 1 0 1");
    subject.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn the_predecessor_is_gone_when_its_process_is_gone_and_not_before() {
    let subject = Subject::start([]);
    subject.wait("predecessor of 1 gone");
    let mut old = subject.control();
    assert_eq!(old.ask("predecessor-gone"), "true");
    old.ask("set stay please");
    old.ask("guard");
    subject.service.signal(Signal::HUP);
    subject.wait("serving 2");
    let mut new = subject.control();
    assert_eq!(new.ask("predecessor-gone"), "false", "it drains");

    // It has drained and let go of the library, and does what it has to do before it exits.
    old.ask("release");
    subject.wait("staying 1");
    assert_eq!(new.ask("predecessor-gone"), "false", "it runs");
    assert!(handover_testkit::process::is_alive(old.pid));

    subject.folder.write("go", "");
    subject.wait("predecessor of 2 gone");
    assert!(handover_testkit::process::exited(old.pid, soon()));
    assert_eq!(new.ask("predecessor-gone"), "true");
    subject.stop();
}

#[test]
fn the_library_is_started_once_at_a_time() {
    let subject = Subject::start([]);
    let mut control = subject.control();
    let refused = control.ask("start-again");
    assert!(refused.starts_with("AlreadyStarted"), "{refused}");
    assert!(refused.contains("who served before serves on"), "{refused}");
    assert_eq!(control.ask("upgrade"), "generation 2 serves", "it does no harm");

    let mut control = subject.control();
    control.ask("set start-again please");
    subject.upgrade();
    subject.wait("again generation 1");
    subject.stop();
}

#[test]
fn a_program_that_the_service_starts_is_no_generation_of_it() {
    let subject = Subject::start([]);
    let nested = "nested generation 1 successor false";
    assert_eq!(subject.control().ask("nested"), nested);
    assert_eq!(subject.upgrade().ask("nested"), nested);
    subject.stop();
}

#[test]
fn a_variable_that_lies_has_no_effect() {
    for lie in ["", ":", "3", "3:", "3:token", "-1:x", "1:x", "999999999999:x", "2147483647:x"] {
        let nested = Launch::of(example("subject_state")).args([".", "nested=1"]);
        let finished = nested.env("HANDOVER_CHANNEL", lie).start().finish(soon()).unwrap();
        assert_eq!(finished.stdout(), "nested generation 1 successor false\n", "{lie:?}");
    }
}

#[test]
fn progress_extends_the_time_to_be_ready() {
    let subject = Subject::start(["ready=1000"]);
    let load = Load::echo(subject.address).rate(100).start();

    subject.folder.write("successor", "slow 3000\n");
    let verdict = subject.control().ask("upgrade");
    assert!(verdict.contains("phase initialise: the successor took too long"), "{verdict}");

    subject.folder.write("successor", "slow 3000\nprogress\n");
    let new = subject.upgrade();
    load.wait_answered_by(|pid| pid == new.pid, soon()).unwrap();
    load.stop().assert_nothing_lost();
    subject.stop();
}

#[test]
fn a_service_that_has_closed_its_standard_streams_is_upgraded() {
    let subject = Subject::start([]);
    for generation in 2..4 {
        let mut control = subject.control();
        let mut later = subject.control();
        control.ask("close-streams");
        assert_eq!(later.ask("upgrade"), format!("generation {generation} serves"));
    }
    subject.stop();
}
