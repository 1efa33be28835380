//! Ending probation, and going back.

use std::os::unix::fs::MetadataExt as _;

use handover_testkit::{Folder, Launch, Load, Pid, example, soon};

use crate::stage::{Stage, wait_exited};

/// Exit codes of the command.
const ROLLED_BACK: i32 = 4;
const REFUSED: i32 = 8;

#[test]
fn a_rollback_on_probation_has_the_old_process_serve_and_tells_who_waits() {
    let stage = Stage::new(&["--probation", "60000"]);
    let before = stage.serving();
    let upgrade = stage.begin("upgrade", &[]);
    upgrade.line("committed, on probation for ");
    let (_, successor) = stage.serving();
    let rollback = stage.run("rollback", &["--reason", "too many errors"]);
    assert_eq!(rollback.code, 0, "{rollback:#?}");
    let told = upgrade.finish();
    assert_eq!(told.code, ROLLED_BACK, "{told:#?}");
    told.assert_says(&["too many errors", "\n  reason     rollback-requested\n"]);
    wait_exited(successor);
    assert_eq!(stage.serving(), before);
    stage.load.wait_answered_by(|pid| pid == before.1, soon()).unwrap();
    stage.script("later 1 confirm");
    stage.upgrade(&[]);
    stage.assert_served_by_another(before);
}

#[test]
fn nobody_who_does_not_want_to_waits_for_probation_and_others_are_told_of_it() {
    const BUSY: i32 = 5;
    let stage = Stage::new(&["--probation", "60000"]);
    let before = stage.serving();
    stage.upgrade(&["--no-wait-probation"]);
    let busy = stage.run("upgrade", &[]);
    assert_eq!(busy.code, BUSY, "{busy:#?}");
    assert!(busy.stderr.contains("generation 2 is on probation for another "), "{busy:#?}");
    let status = stage.status();
    let state = |nth: usize| status["generations"][nth]["state"].as_str().unwrap();
    assert_eq!((state(0), state(1)), ("on-probation", "standby"), "{status:#}");
    assert_eq!(stage.run("confirm", &[]).code, 0);
    wait_exited(before.1);
    let twice = stage.run("confirm", &[]);
    assert_eq!(twice.code, REFUSED, "{twice:#?}");
    assert!(twice.stderr.contains("there is no probation to end"), "{twice:#?}");
    stage.assert_served_by_another(before);
}

#[test]
fn there_is_nothing_to_go_back_to_from_the_first_generation() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let ended = stage.run("rollback", &[]);
    assert_eq!(ended.code, REFUSED, "{ended:#?}");
    let json = stage.run("rollback", &["--json"]);
    assert_eq!(json.last()["code"], "nothing-to-roll-back", "{json:#?}");
    stage.assert_unharmed(before);
}

/// The number of the file that the process executes, whatever its name is now.
fn executable(pid: Pid) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

#[test]
fn a_rollback_after_probation_goes_back_to_an_executable_that_was_replaced_or_removed() {
    let folder = Folder::create();
    let app = folder.install(example("subject"), "app");
    let service = Launch::of(&app)
        .args(["--listen", "127.0.0.1:0", "--control"])
        .arg(folder.join("control"))
        .start();
    let start = "listening on ";
    let line = service.wait_line(|line| line.starts_with(start), soon()).unwrap();
    let address: std::net::SocketAddr = line[start.len()..].parse().unwrap();
    let load = Load::http(address).start();
    service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
    let stage = Stage { service, load, folder };
    let (_, first) = stage.serving();
    let old = executable(first);

    stage.folder.install(example("subject"), "app");
    stage.upgrade(&[]);
    let new = executable(stage.serving().1);
    assert_ne!(old, new);
    wait_exited(first);
    assert_eq!(stage.status()["previous_executable"], app.to_str().unwrap());

    let back = stage.run("rollback", &[]);
    assert_eq!(back.code, 0, "{back:#?}");
    back.assert_says(&["upgraded: generation 3 "]);
    assert_eq!(executable(stage.serving().1), old);

    // And forth again, with nothing at the path.
    std::fs::remove_file(&app).unwrap();
    let forth = stage.run("rollback", &[]);
    assert_eq!(forth.code, 0, "{forth:#?}");
    assert_eq!(executable(stage.serving().1), new);
    let missing = stage.run("upgrade", &[]);
    assert_eq!(missing.code, 3, "{missing:#?}");

    // An upgrade is to what is at the path, as ever.
    stage.folder.install(example("subject"), "app");
    stage.upgrade(&[]);
    let newest = executable(stage.serving().1);
    assert!(newest != old && newest != new);
    stage.load.stop().assert_nothing_lost();
}
