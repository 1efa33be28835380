//! The control socket is there for as long as the service is, and belongs to whoever serves.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use common::{Stage, ask, status};
use handover::control::{
    Answer, ErrorCode, GenerationState, Request, UpgradeRequest, VerdictOutcome,
};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, Pid, example, recheck, soon};

/// A client that connects again and again, until it is told to stop.
struct Knocking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Knocking {
    fn at(control: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut times = 0;
            while !stopping.load(Ordering::SeqCst) {
                match UnixStream::connect(&control) {
                    Ok(_) => times += 1,
                    Err(error) => panic!("after {times} times: {error}"),
                }
                thread::yield_now();
            }
            times
        });
        Self { stop, thread }
    }

    /// Asserts that somebody was there each time.
    #[track_caller]
    fn assert_answered(self) {
        self.stop.store(true, Ordering::SeqCst);
        assert!(self.thread.join().unwrap() > 0);
    }
}

/// Who serves, by its own word: one that was rolled back may not be gone yet.
fn serving(stage: &Stage) -> Option<Pid> {
    let generations = stage.status().generations;
    let serving = generations.iter().find(|it| it.state == GenerationState::Serving);
    serving.map(|it| it.report.pid)
}

#[track_caller]
fn assert_private(control: &Path) {
    let file = std::fs::symlink_metadata(control).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    assert_eq!(file.uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn control_socket_is_there_at_every_moment_of_20_upgrades_and_rollbacks() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let control = stage.control();
    assert_private(&control);
    let inode = std::fs::metadata(&control).unwrap().ino();
    let knocking = Knocking::at(control.clone());
    let mut server = stage.server();
    for nth in 0..20 {
        let goes_well = nth % 2 == 0;
        let script = if goes_well { "later 1 confirm" } else { "later 1 unhealthy as asked" };
        stage.script(script);
        match stage.request(&Request::Upgrade(UpgradeRequest::default())) {
            Answer::Verdict(verdict) if goes_well => server = verdict.pid.unwrap(),
            Answer::Verdict(verdict) => {
                assert_eq!(verdict.reason.as_deref(), Some("unhealthy"), "{verdict:?}");
            }
            other => panic!("{other:?}"),
        }
        stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
        assert_eq!(serving(&stage), Some(server));
        assert_private(&control);
    }
    knocking.assert_answered();
    assert_eq!(std::fs::metadata(&control).unwrap().ino(), inode, "it is the same one");
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn control_socket_of_a_dead_service_is_replaced() {
    let stage = Stage::with(&[], |launch, folder| {
        drop(UnixListener::bind(folder.join("control")).unwrap());
        launch.arg("--control").arg(folder.join("control"))
    });
    assert_private(&stage.control());
    assert_eq!(stage.status().generations.len(), 1);
    stage.upgrade();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn control_socket_of_a_living_service_is_an_error_that_says_so() {
    let stage = Stage::controlled(&[]);
    let other = Launch::of(example("subject"))
        .args(["--listen", "127.0.0.1:0", "--control"])
        .arg(stage.control())
        .start();
    let ended = other.finish(soon()).unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = ended.stderr();
    assert!(said.contains(&stage.control().display().to_string()), "{said}");
    assert!(said.contains("listens"), "{said}");
    let server = stage.server();
    stage.assert_unharmed(server);
}

#[test]
fn control_socket_is_removed_when_the_service_stops_and_left_alone_if_it_is_another() {
    for signal in [None, Some(Signal::TERM)] {
        let stage = Stage::controlled(&[]);
        stage.upgrade();
        let control = stage.control();
        match signal {
            Some(signal) => process::signal(stage.server(), signal),
            None => {
                let answer = stage.request(&Request::Stop { drain_timeout_ms: None });
                assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
            }
        }
        stage.service.wait_all_gone(soon()).unwrap();
        assert!(!control.exists());
    }
    let stage = Stage::controlled(&[]);
    let control = stage.control();
    std::fs::remove_file(&control).unwrap();
    let _another = UnixListener::bind(&control).unwrap();
    process::signal(stage.server(), Signal::TERM);
    stage.service.wait_all_gone(soon()).unwrap();
    assert!(control.exists(), "it is not this service's to remove");
}

/// An upgrade to the same program with another control socket, or none.
fn to_control(stage: &Stage, control: Option<&Path>) -> UpgradeRequest {
    let mut arguments =
        vec!["--listen".to_owned(), "127.0.0.1:0".to_owned(), "--script".to_owned()];
    arguments.push(stage.folder.join("script").display().to_string());
    if let Some(control) = control {
        arguments.extend(["--control".to_owned(), control.display().to_string()]);
    }
    UpgradeRequest { arguments: Some(arguments), ..UpgradeRequest::default() }
}

/// Waits until nobody can connect any more.
#[track_caller]
fn wait_retired(control: &Path) {
    let gone = || match UnixStream::connect(control) {
        Err(error) if error.kind() == ErrorKind::NotFound => Some(()),
        Ok(_) | Err(_) => None,
    };
    assert!(recheck(soon(), gone).is_some(), "{} is there", control.display());
}

#[test]
fn control_socket_is_retired_by_a_successor_without_one() {
    let stage = Stage::controlled(&[]);
    let server = stage.upgrade_with(to_control(&stage, None));
    wait_retired(&stage.control());
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    // Signals are obeyed still.
    let next = stage.upgrade();
    stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn control_socket_moves_to_where_the_successor_has_it() {
    let stage = Stage::controlled(&[]);
    let elsewhere = stage.folder.join("elsewhere");
    let server = stage.upgrade_with(to_control(&stage, Some(&elsewhere)));
    assert_eq!(status(&elsewhere).generations[0].report.pid, server);
    assert_private(&elsewhere);
    wait_retired(&stage.control());
    let answer = ask(&elsewhere, &Request::Upgrade(UpgradeRequest::default()));
    assert!(matches!(answer, Answer::Verdict(_)), "{answer:?}");
    assert_private(&elsewhere);
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn control_socket_that_has_moved_is_back_after_a_rollback() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let (server, control) = (stage.server(), stage.control());
    let elsewhere = stage.folder.join("elsewhere");
    let knocking = Knocking::at(control.clone());
    stage.script("later 1 unhealthy as asked");
    let answer = stage.request(&Request::Upgrade(to_control(&stage, Some(&elsewhere))));
    let Answer::Verdict(verdict) = answer else { panic!("{answer:?}") };
    assert_eq!(verdict.reason.as_deref(), Some("unhealthy"), "{verdict:?}");
    assert_eq!(serving(&stage), Some(server));
    knocking.assert_answered();
    wait_retired(&elsewhere);
    assert_private(&control);
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn control_socket_that_cannot_be_bound_fails_the_successor_and_changes_nothing() {
    let stage = Stage::controlled(&[]);
    let server = stage.server();
    let elsewhere = stage.folder.join("elsewhere");
    let _other = UnixListener::bind(&elsewhere).unwrap();
    let answer = stage.request(&Request::Upgrade(to_control(&stage, Some(&elsewhere))));
    let Answer::Verdict(verdict) = answer else { panic!("{answer:?}") };
    assert_eq!(verdict.reason.as_deref(), Some("refused"), "{verdict:?}");
    assert!(verdict.message.contains("elsewhere"), "{verdict:?}");
    assert_eq!(serving(&stage), Some(server));
    stage.assert_unharmed(server);
}

/// Upgrades to a successor without a control socket, asks the predecessor for this while that stands
/// by, and returns what becomes of the upgrade.
#[track_caller]
fn ask_while_standing_by(stage: &Stage, request: &Request) -> Answer {
    thread::scope(|scope| {
        let upgrade =
            scope.spawn(|| ask(&stage.control(), &Request::Upgrade(to_control(stage, None))));
        let stands_by = || {
            let status = stage.status();
            status.generations.iter().any(|it| it.state == GenerationState::Standby).then_some(())
        };
        assert!(recheck(soon(), stands_by).is_some(), "{:?}", stage.status());
        let answer = stage.request(request);
        assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        upgrade.join().unwrap()
    })
}

#[test]
fn successor_without_a_control_socket_is_confirmed_through_that_of_its_predecessor() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let asked = ask_while_standing_by(&stage, &Request::Confirm {});
    let Answer::Verdict(verdict) = asked else { panic!("{asked:?}") };
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded);
    wait_retired(&stage.control());
    stage.load.wait_answered_by(|pid| Some(pid) == verdict.pid, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_without_a_control_socket_is_rolled_back_through_that_of_its_predecessor() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let server = stage.server();
    let asked = ask_while_standing_by(&stage, &Request::Rollback { reason: None });
    let Answer::Verdict(verdict) = asked else { panic!("{asked:?}") };
    assert_eq!(verdict.outcome, VerdictOutcome::RolledBack);
    assert_eq!(verdict.reason.as_deref(), Some("rollback-requested"));
    let status = stage.status();
    let serving = status.generations.iter().find(|it| it.state == GenerationState::Serving);
    assert_eq!(serving.map(|it| it.report.pid), Some(server), "{status:?}");
    stage.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
    stage.load.stop().assert_nothing_lost();
}

#[test]
fn successor_without_a_control_socket_is_stopped_through_that_of_its_predecessor() {
    let stage = Stage::controlled(&["--probation", "60000"]);
    let asked = ask_while_standing_by(&stage, &Request::Stop { drain_timeout_ms: None });
    assert!(matches!(asked, Answer::Verdict(_)), "{asked:?}");
    stage.service.wait_all_gone(soon()).unwrap();
    assert!(!stage.control().exists());
}

#[test]
fn relative_path_of_the_control_socket_is_meant_where_the_service_was_started() {
    let folder = Folder::create();
    let elsewhere = Folder::create();
    let service = Launch::of(example("subject"))
        .args(["--listen", "127.0.0.1:0", "--control", "control", "--chdir"])
        .arg(elsewhere.path())
        .cwd(folder.path())
        .start();
    service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
    let control = folder.join("control");
    for _ in 0..2 {
        let answer = ask(&control, &Request::Upgrade(UpgradeRequest::default()));
        assert!(matches!(answer, Answer::Verdict(_)), "{answer:?}");
    }
    assert_eq!(status(&control).generations[0].report.generation, 3);
    assert!(!elsewhere.join("control").exists());
    let answer = ask(&control, &Request::Confirm {});
    assert!(matches!(answer, Answer::Error { code: ErrorCode::NotOnProbation, .. }), "{answer:?}");
    let answer = ask(&control, &Request::Stop { drain_timeout_ms: None });
    assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
    service.wait_all_gone(soon()).unwrap();
    assert!(!control.exists());
}
