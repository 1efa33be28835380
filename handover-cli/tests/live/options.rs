//! What an upgrade does otherwise than the service would.

use std::ffi::OsStr;

use handover_testkit::{example, process};

use crate::stage::Stage;

#[test]
fn another_executable_serves() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let arguments = process::arguments(before.1);
    let other = stage.folder.install(example("subject"), "other");
    stage.upgrade(&["--executable", other.to_str().unwrap()]);
    let (_, pid) = stage.serving();
    assert_eq!(process::executable(pid), other);
    assert_eq!(process::arguments(pid)[1..], arguments[1..]);
    stage.assert_served_by_another(before);
}

#[test]
fn other_arguments_are_all_that_there_are() {
    let stage = Stage::new(&["--version", "1.0"]);
    let before = stage.serving();
    let version = || stage.status()["generations"][0]["version"].clone();
    assert_eq!(version(), "1.0");
    let control = stage.socket();
    let arguments = ["--listen", "127.0.0.1:0", "--control", control.to_str().unwrap()];
    stage.upgrade(&[&["--"], &arguments[..], &["--version", "2.0 of \"today\""]].concat());
    assert_eq!(version(), "2.0 of \"today\"");
    let (_, pid) = stage.serving();
    assert_eq!(process::arguments(pid).len(), 1 + arguments.len() + 2);
    // What a process was started with is what the next one is.
    stage.upgrade(&[]);
    assert_eq!(version(), "2.0 of \"today\"");
    stage.assert_served_by_another(before);
}

#[test]
fn variables_are_set_and_removed() {
    let stage = Stage::with(handover_testkit::Folder::create(), &[], |launch| {
        launch.env("OLD", "1").env("KEPT", "1")
    });
    let before = stage.serving();
    let variable = |name: &str| {
        let environment = process::environ(stage.serving().1);
        environment.get(OsStr::new(name)).map(|value| value.to_str().unwrap().to_owned())
    };
    stage.upgrade(&["--env", "NEW=a=b c", "--env-remove", "OLD"]);
    assert_eq!(variable("NEW").as_deref(), Some("a=b c"));
    assert_eq!(variable("OLD"), None);
    assert_eq!(variable("KEPT").as_deref(), Some("1"));
    stage.assert_served_by_another(before);
}

#[test]
fn what_cannot_be_given_to_a_process_is_refused() {
    const REFUSED: i32 = 8;
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let ended = stage.run("upgrade", &["--executable", ""]);
    assert!([REFUSED, 3].contains(&ended.code), "{ended:#?}");
    stage.assert_unharmed(before);
}

#[test]
fn probation_is_had_for_one_upgrade_alone() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let upgrade = stage.begin("upgrade", &["--probation", "60s"]);
    upgrade.line("committed, on probation for ");
    let state = || stage.status()["generations"][0]["state"].clone();
    assert_eq!(state(), "on-probation");
    let confirmed = stage.run("confirm", &[]);
    assert_eq!(confirmed.code, 0, "{confirmed:#?}");
    assert_eq!(upgrade.finish().code, 0);
    assert_eq!(state(), "serving");
    stage.upgrade(&[]);
    assert_eq!(state(), "serving");
    stage.assert_served_by_another(before);
}

#[test]
fn probation_can_be_done_without() {
    let stage = Stage::new(&["--probation", "60000"]);
    let before = stage.serving();
    stage.upgrade(&["--probation", "0s"]);
    assert_eq!(stage.status()["generations"][0]["state"], "serving");
    stage.assert_served_by_another(before);
}
