//! What a successor is started with, and what a process makes of an environment that lies.

#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::{OsStr, OsString};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixDatagram;

use common::Stage;
use handover_testkit::{Pid, example, process, soon};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

const CHANNEL: &str = "HANDOVER_CHANNEL";

/// Starts the subject with this in its environment, and this descriptor if it is to have one, and
/// asserts that both are of no account: it is the first generation, and can be upgraded.
#[track_caller]
fn assert_harmless(channel: &str, descriptor: Option<OwnedFd>) {
    let stage = Stage::with(&[], |mut launch, _| {
        if let Some(descriptor) = descriptor {
            launch = launch.inherit(descriptor);
        }
        launch.env(CHANNEL, channel)
    });
    assert!(stage.wait("serving ").ends_with(" generation 1"));
    let second = stage.upgrade();
    let line = stage.wait(&format!("serving {second}"));
    assert!(line.ends_with(" generation 2"), "{line}");
    stage.load.stop().assert_nothing_lost();
}

fn seqpacket_pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn preamble(token: &str) -> String {
    format!(r#"{{"generation":7,"token":"{token}"}}"#)
}

#[test]
fn channel_that_is_no_number_and_token_is_harmless() {
    for text in ["", ":", "3", "garbage", "-1:x", "3:", "99999999999999999999:x", "1:x", "3 :x"] {
        assert_harmless(text, None);
    }
}

#[test]
fn channel_that_is_closed_is_harmless() {
    assert_harmless("77:0123456789abcdef0123456789abcdef", None);
}

#[test]
fn channel_with_the_number_of_the_listener_or_of_anything_else_is_harmless() {
    // Whatever is opened first gets these numbers.
    for number in 3..9 {
        assert_harmless(&format!("{number}:token"), None);
    }
}

#[test]
fn channel_that_is_a_regular_file_is_harmless() {
    let file = OwnedFd::from(std::fs::File::open("/etc/passwd").unwrap());
    assert_harmless(&format!("{}:token", file.as_raw_fd()), Some(file));
}

#[test]
fn channel_that_is_another_kind_of_socket_is_harmless() {
    let udp = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    assert_harmless(&format!("{}:token", udp.as_raw_fd()), Some(udp));

    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.send(preamble("token").as_bytes()).unwrap();
    let theirs = OwnedFd::from(theirs);
    assert_harmless(&format!("{}:token", theirs.as_raw_fd()), Some(theirs));
}

#[test]
fn channel_with_another_token_is_harmless_and_left_alone() {
    let (ours, theirs) = seqpacket_pair();
    send(&ours, preamble("one token").as_bytes(), SendFlags::empty()).unwrap();
    let left = theirs.try_clone().unwrap();
    assert_harmless(&format!("{}:another token", theirs.as_raw_fd()), Some(theirs));
    let mut buffer = [0; 256];
    let received = rustix::net::recv(&left, &mut buffer, rustix::net::RecvFlags::DONTWAIT);
    assert_eq!(buffer[..received.unwrap().1], *preamble("one token").as_bytes());
}

#[test]
fn channel_in_which_nothing_or_nonsense_waits_is_harmless() {
    let (_ours, theirs) = seqpacket_pair();
    assert_harmless(&format!("{}:token", theirs.as_raw_fd()), Some(theirs));

    for text in ["", "{}", "no JSON", &preamble("token").repeat(20)] {
        let (ours, theirs) = seqpacket_pair();
        send(&ours, text.as_bytes(), SendFlags::empty()).unwrap();
        assert_harmless(&format!("{}:token", theirs.as_raw_fd()), Some(theirs));
    }
}

#[test]
fn channel_whose_other_end_is_gone_is_harmless() {
    let (ours, theirs) = seqpacket_pair();
    drop(ours);
    assert_harmless(&format!("{}:token", theirs.as_raw_fd()), Some(theirs));
}

#[test]
fn nothing_of_ours_goes_on_to_the_children_of_a_generation() {
    let stage = Stage::new(&[]);
    stage.script("ready child\nserving child");
    let asked = stage.ask();
    let second = asked.serving();
    for when in ["ready", "serving"] {
        let line = stage.wait(&format!("child {second} {when} "));
        // One more is the directory that is listed.
        assert!(line.ends_with(" 0 0 1 2") || line.ends_with(" 0 0 1 2 3"), "{line}");
    }
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_has_one_variable_more_and_the_same_arguments() {
    let odd = OsString::from_vec(b"caf\xe9 \xff".to_vec());
    let stage = Stage::with(&[], |launch, _| {
        launch.env("ODD", &odd).env(OsString::from_vec(b"N\xe4me".to_vec()), "x").arg(&odd)
    });
    let first = stage.server();
    let (arguments, environment) = (process::arguments(first), process::environ(first));
    assert_eq!(environment[OsStr::new("ODD")], odd);
    assert!(arguments.contains(&odd));
    let second = stage.upgrade();
    let third = stage.upgrade();
    // The second has exited, or will.
    let _ = second;
    assert_eq!(process::arguments(third), arguments);
    let mut inherited = process::environ(third);
    assert!(inherited.remove(OsStr::new(CHANNEL)).is_some());
    assert_eq!(inherited, environment);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn relative_path_is_looked_up_where_the_service_was_started() {
    let stage = Stage::with(&["--chdir", "/"], |launch, folder| {
        // As `cd folder; ./current` does.
        launch.cwd(folder.path()).arg0("./current")
    });
    let first = stage.server();
    assert_eq!(process::cwd(first), std::path::Path::new("/"));
    let (one, two) = (stage.folder.install(example("subject"), "one"), "two");
    let two = stage.folder.install(one, two);
    stage.folder.link("current", "two");
    let second = stage.upgrade();
    assert_eq!(process::executable(second), two);
    assert_eq!(process::cwd(second), std::path::Path::new("/"));
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn release_that_the_link_points_to_is_what_runs() {
    let stage = Stage::new(&[]);
    for release in ["one", "two", "three"] {
        let path = stage.folder.install(example("subject"), release);
        stage.folder.link("current", release);
        let server = stage.upgrade();
        assert_eq!(process::executable(server), path);
        stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
        // The one before may go: nobody comes back to it.
        let _ = std::fs::remove_file(stage.folder.join("zero"));
    }
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn executable_that_was_replaced_in_its_place_is_what_runs() {
    let stage = Stage::new(&[]);
    std::fs::remove_file(stage.folder.join("current")).unwrap();
    let path = stage.folder.install(example("subject"), "current");
    for _ in 0..3 {
        let server = stage.upgrade();
        assert_eq!(process::executable(server), path);
        stage.folder.install(example("subject"), "current");
    }
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_is_a_child_of_its_predecessor_and_an_orphan_of_ours_after_it() {
    let stage = Stage::new(&[]);
    let _held = stage.hold();
    let first = stage.server();
    let second = stage.upgrade();
    assert_eq!(process::parent(second), first);
}

#[test]
fn successor_for_the_supervisor_is_a_sibling_of_its_predecessor() {
    let stage = Stage::new(&["--sibling"]);
    let supervisor: Pid = std::process::id();
    assert_eq!(process::parent(stage.server()), supervisor);
    let held = stage.hold();
    let second = stage.upgrade();
    assert!(process::is_alive(stage.service.pid()));
    assert_eq!(process::parent(second), supervisor);

    // Its status is the supervisor's to know, its end is not.
    stage.script("ready exit 3 no luck");
    let verdict = stage.ask().verdict();
    assert!(verdict.contains("phase initialise; reason the successor ended"), "{verdict}");
    assert!(verdict.ends_with("status ; stderr no luck"), "{verdict}");
    stage.script("");

    let third = stage.upgrade();
    assert_eq!(process::parent(third), supervisor);
    assert!(process::exited(second, soon()));
    assert_eq!(process::exit_status(second, soon()).unwrap().code(), Some(0));
    held.release();
    stage.load.wait_answered_by(|pid| pid == third, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn pid_file_names_who_serves() {
    let stage = Stage::with(&[], |launch, folder| launch.arg("--pid-file").arg(folder.join("pid")));
    let named = || stage.folder.read("pid").and_then(|text| text.trim().parse::<Pid>().ok());
    assert_eq!(named(), Some(stage.server()));
    for _ in 0..10 {
        let before = stage.server();
        let next = stage.upgrade();
        assert!(process::exited(before, soon()));
        assert_eq!(named(), Some(next));
    }
    let last = stage.server();
    process::signal(last, process::Signal::TERM);
    stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(named(), None);
    let left: Vec<_> = std::fs::read_dir(stage.folder.path()).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.path().ends_with(".tmp")), "{left:?}");
}
