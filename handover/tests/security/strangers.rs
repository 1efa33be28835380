//! Another user on the same machine.

use handover::control::{Answer, Request};
use handover_testkit::{Folder, Launch, example, is_root, skip, soon};

use crate::common::{ask, serving, status};

/// A user who has nothing; it needs no name.
const STRANGER: u32 = 61_001;

/// The subject, for somebody else to start, with a control socket.
fn subject(folder: &Folder) -> Launch {
    Launch::of(folder.join("subject"))
        .args(["--listen", "127.0.0.1:0", "--log", "--control"])
        .arg(folder.join("control"))
}

#[test]
fn a_service_of_another_user_is_not_taken_over() {
    if !is_root() {
        skip!("a_service_of_another_user_is_not_taken_over", "only root can be another user");
    }
    let folder = Folder::create().open_to_all();
    folder.install(example("subject"), "subject");
    let theirs = subject(&folder).user(STRANGER, STRANGER).start();
    theirs.wait_line(|line| line.starts_with("serving "), soon()).unwrap();

    let ended = subject(&folder).env("HANDOVER_TAKE_OVER", folder.join("control")).start();
    let ended = ended.finish(soon()).unwrap();

    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr());
    assert!(ended.stderr().contains("is of the user 61001, "), "{}", ended.stderr());
    assert!(!ended.stdout().contains("listening on "), "{}", ended.stdout());
    let control = folder.join("control");
    assert_eq!(serving(&status(&control)), theirs.pid(), "it knows nothing of that");
    assert!(matches!(
        ask(&control, &Request::Stop { drain_timeout_ms: Some(0) }),
        Answer::Done { .. }
    ));
    theirs.wait_all_gone(soon()).unwrap();
}
