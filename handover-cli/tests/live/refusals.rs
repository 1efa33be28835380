//! What is not even begun: busy, too many generations, nobody who serves.

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
