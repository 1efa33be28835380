//! The process that is asked is killed meanwhile: what is told is true.

use handover_testkit::process::{self, Signal};

use crate::stage::Stage;

/// Exit codes of the command.
const UNREACHABLE: i32 = 6;
const UNKNOWN: i32 = 7;

#[test]
fn an_upgrade_goes_on_to_serve_although_the_old_process_is_killed() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path()));
    let skip = stage.service.line_count();
    let upgrade = stage.begin("upgrade", &[]);
    stage.line_after(skip, "waiting ");
    process::signal(before.1, Signal::KILL);
    upgrade.line_with("connection");
    gate.open();
    let ended = upgrade.finish();
    assert_eq!(ended.code, 0, "{ended:#?}");
    ended.assert_says(&["upgraded: generation 2 (pid ", ") serves"]);
    let now = stage.serving();
    assert_eq!(now.0, 2);
    stage.load.wait_answered_by(|pid| pid == now.1, handover_testkit::soon()).unwrap();
    // Nobody was refused: the socket was there all the time.
    use handover_testkit::Fault::{Cut, Reset};
    let outcome = stage.load.stop();
    let only = outcome.lost.iter().all(|lost| matches!(lost.what, Cut | Reset));
    assert!(only && outcome.lost.len() <= 10, "{outcome}");
}

#[test]
fn an_upgrade_of_which_nobody_is_left_to_tell_has_an_unknown_outcome() {
    for options in [&["--timeout", "500ms"][..], &["--timeout", "500ms", "--json"]] {
        let stage = Stage::new(&[]);
        let before = stage.serving();
        stage.script("start hang");
        let skip = stage.service.line_count();
        let upgrade = stage.begin("upgrade", options);
        let hanging = stage.line_after(skip, "hanging ");
        let successor = hanging.split(' ').nth(1).unwrap().parse().unwrap();
        // In this order: the old process would tell of the death of the new one.
        for pid in [before.1, successor] {
            process::signal(pid, Signal::KILL);
        }
        let ended = upgrade.finish();
        assert_eq!(ended.code, UNKNOWN, "{ended:#?}");
        assert!(ended.stderr.contains("could not be found out"), "{ended:#?}");
    }
}

#[test]
fn an_upgrade_that_takes_the_service_down_is_not_taken_for_one_that_succeeded() {
    // The old process dies while the new one initialises, and that fails: nobody serves.
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}\nready exit 3 no luck", gate.path()));
    let skip = stage.service.line_count();
    let upgrade = stage.begin("upgrade", &["--timeout", "500ms"]);
    stage.line_after(skip, "waiting ");
    process::signal(before.1, Signal::KILL);
    gate.open();
    let ended = upgrade.finish();
    assert_eq!(ended.code, UNKNOWN, "{ended:#?}");
}

#[test]
fn events_end_with_an_error_when_the_service_is_killed() {
    let stage = Stage::new(&[]);
    let (_, pid) = stage.serving();
    let events = stage.begin("events", &["--timeout", "500ms"]);
    super::events::await_listening(&stage, &events);
    process::signal(pid, Signal::KILL);
    let ended = events.finish();
    assert_eq!(ended.code, UNREACHABLE, "{ended:#?}");
    assert!(ended.stderr.contains("nobody listens at "), "{ended:#?}");
}

#[test]
fn a_question_to_a_process_that_is_stopped_ends_at_the_timeout() {
    let stage = Stage::new(&[]);
    let (_, pid) = stage.serving();
    process::signal(pid, Signal::STOP);
    let ended = stage.run("status", &["--timeout", "300ms"]);
    assert_eq!(ended.code, UNREACHABLE, "{ended:#?}");
    assert!(ended.stderr.contains("did not answer within 300ms"), "{ended:#?}");
    let ended = stage.run("upgrade", &["--timeout", "300ms"]);
    assert_eq!(ended.code, UNREACHABLE, "{ended:#?}");
    process::signal(pid, Signal::CONT);
    assert_eq!(stage.serving().1, pid);
    stage.load.stop().assert_nothing_lost();
}
