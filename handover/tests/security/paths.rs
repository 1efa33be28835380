//! What others have put where the service has its files.

use std::fs::{Permissions, remove_file, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, example, is_root, skip, soon};

/// A user who has nothing; it needs no name.
const STRANGER: u32 = 61_001;

/// A folder as `/tmp` is: everybody may write to it, and remove what is their own.
fn sticky() -> Folder {
    let folder = Folder::create();
    folder.install(example("subject"), "subject");
    set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    folder
}

fn subject(folder: &Folder) -> Launch {
    Launch::of(folder.join("subject")).args(["--listen", "127.0.0.1:0"])
}

/// Starts it as another user than the one that holds the paths; returns what it says when it has ended.
#[track_caller]
fn refused(launch: Launch) -> String {
    let ended = launch.user(STRANGER, STRANGER).start().finish(soon()).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr());
    assert!(!ended.stdout().contains("serving "), "{}", ended.stdout());
    ended.stderr()
}

#[track_caller]
fn assert_says(said: &str, what: &str) {
    assert!(said.contains(what), "{said}");
}

#[test]
fn a_pid_path_that_another_user_holds_is_told_before_anybody_serves() {
    if !is_root() {
        skip!("a_pid_path_that_another_user_holds_is_told", "only root can be another user");
    }
    let folder = sticky();
    folder.write("pid", "1\n");
    let said = refused(subject(&folder).arg("--pid-file").arg(folder.join("pid")));
    assert_says(&said, "another user's file is there");
    assert_eq!(folder.read("pid").unwrap(), "1\n");
}

#[test]
fn a_control_path_that_another_user_holds_is_told_before_anybody_serves() {
    if !is_root() {
        skip!("a_control_path_that_another_user_holds_is_told", "only root can be another user");
    }
    let folder = sticky();
    let path = folder.join("control");
    let launch = || subject(&folder).arg("--control").arg(&path);
    let listener = UnixListener::bind(&path).unwrap();
    set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    assert_says(&refused(launch()), "another process listens on");
    // Nobody does, and it cannot be removed.
    drop(listener);
    assert_says(&refused(launch()), "to remove a stale socket");
    assert!(path.exists());
}

#[test]
fn what_is_no_socket_at_the_control_path_is_left_alone() {
    use std::os::unix::fs::symlink;

    let folder = Folder::create();
    folder.install(example("subject"), "subject");
    let target = folder.write("target", "precious");
    let path = folder.join("control");
    let put: [(&str, &dyn Fn()); 4] = [
        ("a file", &|| drop(folder.write("control", "precious"))),
        ("a folder", &|| std::fs::create_dir(&path).unwrap()),
        ("a FIFO", &|| fifo(&path)),
        ("a link", &|| symlink(&target, &path).unwrap()),
    ];
    for (what, put) in put {
        put();
        let before = std::fs::symlink_metadata(&path).unwrap();
        let service = subject(&folder).arg("--control").arg(&path).start();
        let ended = service.finish(soon()).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{what}: {}", ended.stderr());
        assert_says(&ended.stderr(), "cannot have the control socket");
        let after = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(after.file_type(), before.file_type(), "{what}");
        assert_eq!(after.permissions(), before.permissions(), "{what}");
        let aside = folder.join(format!("aside-{}", what.replace(' ', "-")));
        std::fs::rename(&path, aside).unwrap();
    }
    assert_eq!(folder.read("target").unwrap(), "precious");
}

#[test]
fn a_stop_waits_for_nobody_at_a_fifo_in_the_place_of_the_pid_file() {
    let folder = Folder::create();
    folder.install(example("subject"), "subject");
    let path = folder.join("pid");
    let service = subject(&folder).arg("--pid-file").arg(&path).start();
    service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
    remove_file(&path).unwrap();
    fifo(&path);
    process::signal(service.pid(), Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
    assert!(path.exists(), "it is not the service's to remove");
}

fn fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}
