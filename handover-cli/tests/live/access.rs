//! Who may speak to a service, and who may not.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use handover_testkit::{Folder, Launch, is_root, skip, soon};

use crate::stage::{Ended, Stage, handover};

/// Users and groups that have nothing; they need no name.
const STRANGER: u32 = 61_001;
const GROUP: u32 = 61_002;

/// Exit codes of the command.
const UNREACHABLE: i32 = 6;
const REFUSED: i32 = 8;

/// A service of root, in a folder that everybody can enter.
fn stage(arguments: &[&str]) -> Stage {
    let folder = Folder::create().open_to_all();
    // The one that was built may be where nobody else can go.
    folder.install(env!("CARGO_BIN_EXE_handover"), "handover");
    Stage::with(folder, &[&["--log"], arguments].concat(), |launch| launch)
}

/// Runs the command as another user.
fn run_as(stage: &Stage, (user, group): (u32, u32), command: &[&str]) -> Ended {
    let launch = Launch::of(stage.folder.join("handover")).args(command).arg("--socket");
    let launch = launch.arg(stage.socket()).user(user, group);
    Ended::of(&launch.start().finish(soon()).unwrap())
}

fn mode_and_group(stage: &Stage) -> (u32, u32) {
    let file = std::fs::metadata(stage.socket()).unwrap();
    assert_eq!(file.uid(), 0);
    (file.permissions().mode() & 0o7777, file.gid())
}

/// How often the service has logged this.
fn logged(stage: &Stage, text: &str) -> usize {
    stage.service.lines().iter().filter(|line| line.text.contains(text)).count()
}

#[test]
fn another_user_cannot_connect() {
    if !is_root() {
        skip!("another_user_cannot_connect", "only root can be another user");
    }
    let stage = stage(&[]);
    let before = stage.serving();
    assert_eq!(mode_and_group(&stage).0, 0o600);
    for who in [(STRANGER, STRANGER), (STRANGER, GROUP), (STRANGER, 0)] {
        for command in [&["status"][..], &["upgrade"], &["stop", "--now"]] {
            let ended = run_as(&stage, who, command);
            assert_eq!((ended.code, &*ended.stdout), (UNREACHABLE, ""), "{ended:#?}");
            assert!(ended.stderr.contains("you may not speak to "), "{ended:#?}");
        }
    }
    stage.upgrade(&[]);
    assert_eq!(mode_and_group(&stage).0, 0o600);
    stage.assert_served_by_another(before);
}

#[test]
fn another_user_that_the_file_lets_in_is_refused_and_logged_once() {
    if !is_root() {
        skip!("another_user_that_the_file_lets_in_is_refused", "only root can be another user");
    }
    let stage = stage(&[]);
    let before = stage.serving();
    let everybody = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(stage.socket(), everybody).unwrap();
    for command in [&["status"][..], &["upgrade"], &["stop", "--now"], &["call", "echo"]] {
        let ended = run_as(&stage, (STRANGER, GROUP), command);
        assert_eq!((ended.code, &*ended.stdout), (REFUSED, ""), "{ended:#?}");
        let told = format!("refused: uid {STRANGER}, pid ");
        assert!(ended.stderr.contains(&told), "{ended:#?}");
    }
    assert_eq!(logged(&stage, "is not allowed to ask"), 1);
    stage.upgrade(&[]);
    assert_eq!(mode_and_group(&stage).0, 0o600, "who serves sees to the mode");
    stage.assert_served_by_another(before);
}

#[test]
fn the_group_that_the_service_names_may_ask_and_others_may_not() {
    if !is_root() {
        skip!("the_group_that_the_service_names_may_ask", "only root can be another user");
    }
    let stage = stage(&["--control-group", &GROUP.to_string()]);
    let before = stage.serving();
    for _ in 0..2 {
        assert_eq!(mode_and_group(&stage), (0o660, GROUP));
        let stranger = run_as(&stage, (STRANGER, STRANGER), &["status"]);
        assert_eq!(stranger.code, UNREACHABLE, "{stranger:#?}");
        let member = run_as(&stage, (STRANGER, GROUP), &["status"]);
        assert_eq!(member.code, 0, "{member:#?}");
        let member = run_as(&stage, (STRANGER, GROUP), &["upgrade"]);
        assert_eq!(member.code, 0, "{member:#?}");
        let told = format!("asked by uid {STRANGER}, pid ");
        assert!(member.stderr.contains(&told), "{member:#?}");
    }
    stage.assert_served_by_another(before);
}

#[test]
fn root_may_ask_a_service_of_another_user() {
    if !is_root() {
        skip!("root_may_ask_a_service_of_another_user", "only root can be another user");
    }
    let folder = Folder::create().open_to_all();
    let subject = folder.install(handover_testkit::example("subject"), "subject");
    let service = Launch::of(subject)
        .args(["--listen", "127.0.0.1:0", "--control"])
        .arg(folder.join("control"))
        .user(STRANGER, STRANGER)
        .start();
    service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
    assert_eq!(std::fs::metadata(folder.join("control")).unwrap().uid(), STRANGER);
    let upgrade = handover().args(["upgrade", "--socket"]).arg(folder.join("control")).start();
    let ended = Ended::of(&upgrade.finish(soon()).unwrap());
    assert_eq!(ended.code, 0, "{ended:#?}");
}
