//! Which process serves which listener on probation, and after a rollback.

#![allow(clippy::unwrap_used)]

mod common;
mod trial;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;

use handover::control::{Answer, Request};
use handover_testkit::process;
use handover_testkit::{Fault, Load, Pid, recheck, soon};
use trial::{Footprint, Trial};

/// Starts a first generation that follows this script as well.
fn trial(script: impl Fn(&Path) -> String) -> Trial {
    Trial::with(&[], |launch, folder| {
        folder.write("script", script(folder.path()));
        launch
    })
}

fn roll_back(trial: &Trial) {
    let answer = trial.request(&Request::Rollback { reason: None });
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
}

/// Where a process listens under that name.
fn address(trial: &Trial, name: &str, pid: Pid) -> SocketAddr {
    let start = format!("{name} {pid} at ");
    trial.stage.wait(&start)[start.len()..].parse().unwrap()
}

fn answered_at(path: &Path) -> Pid {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().and_then(|line| line.parse().ok()).expect("a pid")
}

#[test]
fn listener_that_a_successor_does_not_claim_is_served_throughout() {
    let trial = trial(|_| "ready listen extra 127.0.0.1:0".into());
    let old = trial.old;
    let load = Load::http(address(&trial, "extra", old)).start();
    for _ in 0..3 {
        let tried = trial.upgrade("");
        trial.stage.load.wait_answered_by(|pid| pid == tried.pid, soon()).unwrap();
        load.wait_answered_by(|pid| pid == old, soon()).unwrap();
        roll_back(&trial);
        tried.left();
        load.wait_answered_by(|pid| pid == old, soon()).unwrap();
        trial.assert_old_serves();
    }
    load.stop().assert_nothing_lost();
    trial.finish().assert_nothing_lost();
}

#[test]
fn listener_that_a_successor_does_not_claim_is_retired_when_it_is_confirmed() {
    let trial = trial(|_| "ready listen extra 127.0.0.1:0".into());
    let load = Load::http(address(&trial, "extra", trial.old)).start();
    let tried = trial.upgrade("");
    load.wait_answered_by(|pid| pid == trial.old, soon()).unwrap();
    assert!(matches!(trial.request(&Request::Confirm {}), Answer::Done { .. }));
    tried.confirmed();
    load.wait_lost(1, soon()).unwrap();
    assert_only_turned_away(load);
    trial.stage.load.stop().assert_nothing_lost();
}

#[test]
fn listener_that_only_the_successor_has_is_retired_on_rollback() {
    let trial = Trial::new(&[]);
    let tried = trial.upgrade("ready listen mine 127.0.0.1:0");
    let load = Load::http(address(&trial, "mine", tried.pid)).rate(500).start();
    load.wait_answered_by(|pid| pid == tried.pid, soon()).unwrap();
    roll_back(&trial);
    tried.left();
    load.wait_lost(1, soon()).unwrap();
    assert_only_turned_away(load);
    trial.finish().assert_nothing_lost();
}

/// Asserts that whoever got through was answered: what a listener had queued is not reset.
#[track_caller]
fn assert_only_turned_away(load: Load) {
    let outcome = load.stop();
    let away = |fault: &Fault| matches!(fault, Fault::Refused | Fault::TimedOut);
    assert!(outcome.lost.iter().all(|lost| away(&lost.what)), "{outcome}");
}

#[test]
fn paths_survive_rollbacks() {
    let listen = |folder: &Path| format!("ready listen path {}", folder.join("path").display());
    let trial = trial(listen);
    let path = trial.stage.folder.join("path");
    assert_eq!(answered_at(&path), trial.old);
    for claimed in [true, false, true] {
        let script = if claimed { listen(trial.stage.folder.path()) } else { String::new() };
        let tried = trial.upgrade(&script);
        assert_eq!(answered_at(&path), if claimed { tried.pid } else { trial.old });
        roll_back(&trial);
        tried.left();
        assert_eq!(answered_at(&path), trial.old);
    }
    trial.finish().assert_nothing_lost();
}

#[test]
fn path_that_only_the_successor_has_is_gone_after_a_rollback() {
    let trial = Trial::new(&[]);
    let path = trial.stage.folder.join("mine");
    let tried = trial.upgrade(&format!("ready listen mine {}", path.display()));
    assert_eq!(answered_at(&path), tried.pid);
    roll_back(&trial);
    tried.left();
    assert!(!path.exists());

    // The next one binds it anew, and a crash leaves it for the one after that.
    let next =
        trial.upgrade(&format!("ready listen mine {}\nlater 0 exit 1 no luck", path.display()));
    next.rolled_back(&["exit status: 1"]);
    assert!(path.exists());
    let last = trial.upgrade(&format!("ready listen mine {}", path.display()));
    assert_eq!(answered_at(&path), last.pid);
}

#[test]
fn stderr_is_the_services_own_on_probation_and_after_a_rollback() {
    const LINES: usize = 10;
    let trial = Trial::new(&[]);
    let gate = trial.stage.gate("gate");
    let tried = trial.upgrade(&format!(
        "later 0 shout {}\nlater 0 wait {}\nlater 0 shout {}",
        LINES * 100,
        gate.path().display(),
        LINES * 100
    ));
    let held = trial.stage.hold();
    tried.asked.line("shouted ");
    roll_back(&trial);
    tried.rolled_back(&[]);
    gate.open();
    let shouted = || {
        let lines = trial.stage.service.lines();
        lines.iter().filter(|line| line.text.starts_with("shout ")).count()
    };
    assert!(recheck(soon(), || (shouted() == 2 * LINES).then_some(())).is_some());
    held.release();
    tried.left();
    trial.finish();
}

#[test]
fn rollbacks_with_listeners_leave_nothing_behind() {
    let listen = |folder: &Path| format!("ready listen path {}", folder.join("path").display());
    let trial = trial(listen);
    let mut before = None;
    for round in 0..10 {
        let script = format!(
            "{}\nready listen mine 127.0.0.1:0\nready listen own {}",
            if round % 2 == 0 { listen(trial.stage.folder.path()) } else { String::new() },
            trial.stage.folder.join("own").display(),
        );
        let tried = trial.upgrade(&script);
        roll_back(&trial);
        tried.left();
        trial.assert_old_serves();
        trial::assert_no_child_left(trial.old);
        before.get_or_insert_with(|| Footprint::of(trial.old));
    }
    before.unwrap().assert_kept(trial.old);
    assert!(process::is_alive(trial.old));
    trial.finish().assert_nothing_lost();
}
