//! Unix sockets in the file system: who may replace what, and when the path goes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};

use handover_testkit::process::{exited, signal};
use handover_testkit::{Folder, Load, Signal, is_root, skipped, soon};

use listeners::*;

const KINDS: [&str; 3] = ["unix", "seqpacket", "datagram"];

in_both_runtimes! {
    a_path_is_kept_on_an_upgrade_and_removed_on_a_stop,
    a_stale_path_is_replaced,
    a_path_of_somebody_who_came_after_is_left_alone,
    two_names_have_two_paths,
    a_path_goes_also_when_the_directory_has_changed,
    permissions_are_set_by_the_hook_and_stay,
    a_successor_that_fails_leaves_the_path,
}

fn a_path_is_kept_on_an_upgrade_and_removed_on_a_stop(runtime: &str) {
    for kind in KINDS {
        let subject = Subject::start(&format!("runtime {runtime}\n{kind} s ./s\n"));
        let path = subject.folder.join("s");
        let inode = fs::metadata(&path).unwrap().ino();
        for _ in 0..3 {
            let predecessor = subject.pid();
            subject.upgrade();
            subject.await_gone(predecessor);
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "{kind}");
        }
        subject.stop();
        assert!(!path.exists(), "{kind}");
    }
}

fn a_stale_path_is_replaced(runtime: &str) {
    for kind in KINDS {
        let subject = Subject::start(&format!("runtime {runtime}\n{kind} s ./s\n"));
        signal(subject.pid(), Signal::KILL);
        assert!(exited(subject.pid(), soon()));
        let Subject { folder, service, .. } = subject;
        assert!(folder.join("s").exists(), "a kill leaves it");

        let config = format!("runtime {runtime}\n{kind} s ./s\n");
        let again = Subject::start_in(folder, &config, |launch| launch);
        again.upgrade();
        again.stop();
        assert!(!again.folder.join("s").exists());
        drop(service);
    }
}

/// Somebody has removed the path and put another socket in its place.
fn a_path_of_somebody_who_came_after_is_left_alone(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\nunix s ./s\n"));
    let path = subject.folder.join("s");
    fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    subject.stop();
    assert!(path.exists());
}

fn a_path_goes_also_when_the_directory_has_changed(runtime: &str) {
    let subject =
        Subject::start(&format!("runtime {runtime}\ntcp control 127.0.0.1:0\nunix s ./s\n"));
    subject.upgrade();
    assert_eq!(subject.ask(subject.address("control"), "!chdir /"), "ok");
    subject.stop();
    assert!(!subject.folder.join("s").exists());
}

fn two_names_have_two_paths(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\nunix a ./a\nunix b ./b\n"));
    let loads = ["a", "b"].map(|path| Load::echo(subject.folder.join(path)).start());
    loads.iter().for_each(|load| load.wait_answers(5, soon()).unwrap());
    // Swapped, and then one of them goes.
    let successor = subject.upgrade_to(&format!("runtime {runtime}\nunix a ./b\nunix b ./a\n"));
    for load in &loads {
        load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    }
    let [a, b] = loads;
    a.stop().assert_nothing_lost();
    let predecessor = subject.pid();
    subject.upgrade_to(&format!("runtime {runtime}\nunix a ./b\n"));
    subject.await_gone(predecessor);
    assert!(!subject.folder.join("a").exists());
    assert!(subject.folder.join("b").exists());
    b.wait_answers(10, soon()).unwrap();
    b.stop().assert_nothing_lost();
}

fn permissions_are_set_by_the_hook_and_stay(runtime: &str) {
    let subject = Subject::start(&format!("runtime {runtime}\nunix s ./s mode=600\n"));
    let mode = || fs::metadata(subject.folder.join("s")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    subject.upgrade();
    assert_eq!(mode(), 0o600);
    assert_eq!(subject.count("before_bind"), 1);
}

fn a_successor_that_fails_leaves_the_path(runtime: &str) {
    let config = format!("runtime {runtime}\nunix s ./s\n");
    let subject = Subject::start(&config);
    let load = Load::echo(subject.folder.join("s")).start();
    load.wait_answers(5, soon()).unwrap();
    subject.configure(&format!("{config}tcp wrong 192.0.2.1:1\n"));
    subject.upgrade_fails();
    assert!(subject.folder.join("s").exists());
    load.wait_answers(10, soon()).unwrap();
    load.stop().assert_nothing_lost();
}

#[test]
fn a_live_path_is_an_error_that_says_so() {
    let folder = Folder::create();
    let path = folder.join("s");
    let live = UnixListener::bind(&path).unwrap();
    let why = format!(
        "another process listens on {}: stop it, or choose another path (nobody serves)",
        path.display()
    );
    for kind in KINDS {
        let error = refusal(&format!("{kind} web {}\n", path.display()));
        assert_eq!(error, format!("cannot claim \"web\": {why}"));
    }
    drop(live);
    fs::remove_file(&path).unwrap();
    let _live = UnixDatagram::bind(&path).unwrap();
    assert_eq!(
        refusal(&format!("datagram web {}\n", path.display())),
        format!("cannot claim \"web\": {why}")
    );
    assert!(path.exists());
}

/// Also one that is too busy to take another connection.
#[test]
fn a_live_path_with_a_full_queue_is_alive() {
    let folder = Folder::create();
    let path = folder.join("s");
    let address = unix_address(path.to_str().unwrap());
    let full = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    full.bind(&address).unwrap();
    full.listen(0).unwrap();
    let _client = connect_unix(&address, socket2::Type::STREAM).unwrap();
    let error = refusal(&format!("unix web {}\n", path.display()));
    assert!(error.contains("another process listens on"), "{error}");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = Folder::create();
    folder.write("file", "precious");
    fs::create_dir(folder.join("directory")).unwrap();
    symlink("file", folder.join("to-file")).unwrap();
    symlink("nothing", folder.join("dangling")).unwrap();
    drop(UnixListener::bind(folder.join("stale")).unwrap());
    symlink("stale", folder.join("to-stale")).unwrap();
    for kind in KINDS {
        for name in ["file", "directory", "to-file", "dangling", "to-stale"] {
            let path = folder.join(name);
            let error = refusal(&format!("{kind} web {}\n", path.display()));
            let expected = format!(
                "cannot claim \"web\": {} exists and is no socket: remove it, or choose another \
                 path (nobody serves)",
                path.display()
            );
            assert_eq!(error, expected);
            assert!(path.symlink_metadata().is_ok(), "{kind} {name}");
        }
    }
    assert_eq!(folder.read("file").unwrap(), "precious");
}

#[test]
fn a_path_that_may_not_be_looked_at_is_not_called_alive() {
    if !is_root() {
        return skipped("only root may change the user");
    }
    let place = Folder::create().open_to_all();
    let path = place.join("s");
    drop(UnixListener::bind(&path).unwrap());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let folder = Folder::create().open_to_all();
    folder.write("config", format!("unix web {}\n", path.display()));
    let as_nobody = launch(&folder, |launch| launch.user(65534, 65534));
    let finished = as_nobody.start().finish(soon()).unwrap();
    let said = finished.stdout();
    assert!(!said.contains("another process listens"), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(path.exists());
}

#[test]
fn a_folder_that_does_not_exist_is_named_by_its_error() {
    let error = refusal("unix web /nonexistent/s\n");
    assert!(error.starts_with("cannot claim \"web\": "), "{error}");
    assert!(error.ends_with("No such file or directory (os error 2)"), "{error}");
}
