//! What is not even begun: busy, too many generations, nobody who serves.

use std::time::Duration;

use handover_testkit::soon;

use crate::stage::{Stage, wait_exited};

/// Exit codes of the command.
const BUSY: i32 = 5;
const UNREACHABLE: i32 = 6;

#[test]
fn a_second_upgrade_is_told_who_is_first() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path()));
    let skip = stage.service.line_count();
    let first = stage.begin("upgrade", &[]);
    stage.line_after(skip, "waiting ");

    let human = stage.run("upgrade", &[]);
    assert_eq!((human.code, &*human.stdout), (BUSY, ""), "{human:#?}");
    for part in ["refused: busy: the upgrade to generation 2, asked for by uid ", "in phase"] {
        assert!(human.stderr.contains(part), "{part:?} is missing in: {human:#?}");
    }
    let json = stage.run("upgrade", &["--json"]);
    assert_eq!((json.code, &*json.stderr), (BUSY, ""), "{json:#?}");
    assert_eq!((&json.last()["type"], &json.last()["code"]), (&"error".into(), &"busy".into()));
    let status = stage.status();
    assert_eq!(status["upgrade"]["generation"], 2, "{status:#}");
    assert_eq!(status["upgrade"]["phase"], "initialise", "{status:#}");
    assert_eq!(stage.serving(), before);

    gate.open();
    assert_eq!(first.finish().code, 0);
    assert_eq!(stage.serving().0, 2);
    stage.assert_served_by_another(before);
}

#[test]
fn who_waits_for_a_turn_gets_it_from_the_process_that_serves_by_then() {
    const PROBATION: &[&str] = &["--probation", "60s", "--no-wait-probation"];
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path()));
    let skip = stage.service.line_count();
    let first = stage.begin("upgrade", PROBATION);
    stage.line_after(skip, "waiting ");
    let waiting = stage.begin("upgrade", &["--wait", "--no-wait-probation", "--timeout", "300ms"]);
    waiting.line("asking");
    // It waits for longer than it would wait for an answer.
    let until = stage.load.elapsed() + Duration::from_millis(600);
    while stage.load.elapsed() < until {
        stage.load.wait_answers(1, soon()).unwrap();
    }
    stage.script("");
    gate.open();
    let first = first.finish();
    assert_eq!(first.code, 0, "{first:#?}");
    // That the first one was committed is not what the second one waits for.
    assert_eq!(stage.serving().0, 2);
    assert_eq!(waiting.lines(), ["asking"]);
    assert_eq!(stage.run("confirm", &[]).code, 0);
    let waited = waiting.finish();
    assert_eq!(waited.code, 0, "{waited:#?}");
    waited.assert_says(&["upgraded: generation 3 "]);
    assert!(waited.stderr.starts_with("asking\nupgrade to generation 3 begun"), "{waited:#?}");
    assert_eq!(stage.serving().0, 3);
    stage.assert_served_by_another(before);
}

#[test]
fn too_many_generations_are_told_and_waited_for() {
    let stage = Stage::new(&["--max-generations", "2"]);
    let before = stage.serving();
    let held = stage.hold();
    stage.upgrade(&[]);

    let human = stage.run("upgrade", &[]);
    assert_eq!((human.code, &*human.stdout), (BUSY, ""), "{human:#?}");
    assert!(human.stderr.contains("2 generations are alive"), "{human:#?}");
    let json = stage.run("upgrade", &["--json"]);
    assert_eq!((json.code, &json.last()["code"]), (BUSY, &"busy".into()), "{json:#?}");
    assert_eq!(stage.serving().0, 2);

    let waiting = stage.begin("upgrade", &["--wait"]);
    waiting.line("asking");
    assert_eq!(stage.serving().0, 2);
    drop(held);
    let waited = waiting.finish();
    assert_eq!(waited.code, 0, "{waited:#?}");
    wait_exited(before.1);
    assert_eq!(stage.serving().0, 3);
    stage.assert_served_by_another(before);
}

#[test]
fn the_oldest_generation_is_cut_for_another_if_the_service_is_built_so() {
    let stage = Stage::new(&["--max-generations", "2", "--cut-oldest"]);
    let before = stage.serving();
    let mut held = stage.hold();
    stage.upgrade(&[]);
    stage.upgrade(&[]);
    wait_exited(before.1);
    // What it held is cut.
    let _ = std::io::Read::read_to_end(&mut held, &mut Vec::new());
    assert_eq!(stage.serving().0, 3);
    stage.assert_served_by_another(before);
}

#[test]
fn a_service_that_stops_is_asked_for_no_upgrade() {
    let stage = Stage::new(&[]);
    let held = stage.hold();
    stage.load.so_far().assert_nothing_lost();
    let stop = stage.run("stop", &["--drain-timeout", "60s"]);
    assert_eq!(stop.code, 0, "{stop:#?}");
    for options in [&["--timeout", "500ms"][..], &["--timeout", "500ms", "--json"]] {
        let ended = stage.run("upgrade", options);
        assert_eq!(ended.code, UNREACHABLE, "{ended:#?}");
    }
    drop(held);
    stage.service.wait_all_gone(soon()).unwrap();
    assert!(!stage.socket().exists(), "the socket is left");
    let ended = stage.run("upgrade", &[]);
    assert_eq!(ended.code, UNREACHABLE, "{ended:#?}");
    assert!(ended.stderr.contains("there is no control socket"), "{ended:#?}");
}
