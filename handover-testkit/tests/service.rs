//! A service is started, heard and ended, whatever its generations do.

#![cfg(target_os = "linux")]

use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::process;
use std::time::{Duration, Instant};

use handover_testkit::process::{State, cwd, exited, fds, is_alive, signal, state};
use handover_testkit::{Folder, Launch, Pid, Service, Signal, is_root, recheck, skip, soon};

#[test]
fn drop_kills_children_grandchildren_and_orphans() {
    let service = shell(
        "sleep 1000 & echo child $!
         sh -c 'sleep 1000 & echo grandchild $!; exec sleep 1000' & echo shell $!
         sh -c 'sleep 1000 & echo orphan $!'
         wait",
    );
    let pids = ["child", "grandchild", "shell", "orphan"].map(|name| pid_in(&service, name));
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    // The shell that leaves the orphan exits after it has told of it.
    let are_all = || (service.alive().len() == 5).then_some(());
    assert!(recheck(soon(), are_all).is_some(), "{:?}", service.alive());

    drop(service);

    assert_eq!(pids.map(state), [None; 4], "killed, and reaped");
}

#[test]
fn drop_kills_a_daemon_in_a_session_of_its_own() {
    let service = shell("setsid sleep 1000 & echo daemon $!; wait");
    let daemon = pid_in(&service, "daemon");
    let has_own_session = || (session(daemon) == daemon).then_some(());
    recheck(soon(), has_own_session).unwrap();
    assert!(service.alive().contains(&daemon));

    drop(service);

    assert_eq!(state(daemon), None);
}

#[test]
fn drop_kills_what_is_stopped_or_ignores_signals() {
    let service = shell("trap '' TERM HUP; sleep 1000 & echo stopped $!; wait");
    let stopped = pid_in(&service, "stopped");
    signal(stopped, Signal::STOP);
    drop(service);
    assert_eq!(state(stopped), None);
}

#[test]
fn drop_reaps_what_exited_before() {
    let service = shell("sh -c 'sh -c \"read go; exit 0\" </dev/null & echo orphan $!'");
    let orphan = pid_in(&service, "orphan");
    service.wait_all_gone(soon()).unwrap();
    assert!(exited(orphan, soon()));

    let pid = service.pid();
    drop(service);

    assert_eq!([pid, orphan].map(state), [None; 2]);
}

#[test]
fn drop_leaves_the_processes_of_other_services_alone() {
    let other = Launch::of("sleep").arg("1000").start();
    drop(shell("sleep 1000 & echo started; wait"));
    assert!(is_alive(other.pid()));
}

#[test]
fn an_orphan_becomes_a_child_of_the_test() {
    let service = shell("sh -c 'sleep 1000 & echo orphan $!'; exec sleep 1000");
    let orphan = pid_in(&service, "orphan");
    let adopted = || (handover_testkit::process::parent(orphan) == process::id()).then_some(());
    recheck(soon(), adopted).unwrap();
    signal(orphan, Signal::KILL);
    assert!(exited(orphan, soon()));
    assert_eq!(state(orphan), Some(State::Zombie));
}

#[test]
fn wait_line_finds_what_was_printed_before_and_after() {
    let service = shell("echo one; echo two >&2; sleep 1000");
    assert_eq!(service.wait_line(|line| line.starts_with("tw"), soon()).unwrap(), "two");
    assert_eq!(service.wait_line(|line| line.starts_with("on"), soon()).unwrap(), "one");
    let skipped = service.wait_line_after(service.line_count(), |_| true, Instant::now());
    assert!(!skipped.unwrap_err().ended);
}

#[test]
fn wait_line_times_out_with_the_output() {
    let service = shell("echo out; echo err >&2; echo last; sleep 1000");
    service.wait_line(|line| line == "last", soon()).unwrap();
    service.wait_line(|line| line == "err", soon()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(20);

    let error = service.wait_line(|line| line == "never", deadline).unwrap_err();

    assert!(Instant::now() >= deadline);
    assert!(!error.ended);
    let shown = error.to_string();
    assert!(shown.contains("deadline"), "{shown}");
    assert!(shown.contains("out| out") && shown.contains("err| err"), "{shown}");
}

#[test]
fn wait_line_does_not_wait_for_a_service_that_has_ended() {
    let service = shell("echo all; exit 1");
    let error = service.wait_line(|line| line == "never", soon()).unwrap_err();
    assert!(error.ended);
    assert_eq!(error.printed.len(), 1);
}

#[test]
fn all_gone_only_when_the_last_generation_is() {
    let service = shell("sleep 1000 & echo successor $!; exit 5");
    let successor = pid_in(&service, "successor");
    assert_eq!(service.exit_status(soon()).unwrap().code(), Some(5));
    let error = service.wait_all_gone(Instant::now()).unwrap_err();
    assert_eq!(error.alive, [successor]);

    signal(successor, Signal::TERM);

    service.wait_all_gone(soon()).unwrap();
}

#[test]
fn starts_with_directory_environment_limits_and_fds_as_told() {
    let folder = Folder::create();
    let (reader, _writer) = std::io::pipe().unwrap();
    let number = reader.as_raw_fd();
    let service = Launch::of("sh")
        .args(["-c", "echo $KEPT:$HOME:$(ulimit -Sn):$(ulimit -Hn); exec sleep 1000"])
        .env("KEPT", "kept")
        .env_remove("HOME")
        .cwd(folder.path())
        .limit_open_fds(50, 60)
        .inherit(reader)
        .start();
    assert_eq!(service.wait_line(|_| true, soon()).unwrap(), "kept::50:60");
    assert_eq!(cwd(service.pid()), folder.path().canonicalize().unwrap());
    assert!(fds(service.pid()).contains_key(&number));
}

#[test]
fn activated_listeners_come_from_fd_three_on_with_their_names() {
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let names = |fd: i32| fds(process::id())[&fd].clone();
    let service = Launch::of("sh")
        .args(["-c", "echo $LISTEN_FDS $LISTEN_FDNAMES $LISTEN_PID; exec \"$@\"", "-"])
        .args(["sleep", "1000"])
        .activate([("http", &second), ("http", &first)])
        .start();
    let line = service.wait_line(|_| true, soon()).unwrap();
    assert_eq!(line, format!("2 http:http {}", service.pid()));
    let passed = fds(service.pid());
    assert_eq!(passed[&3], names(second.as_raw_fd()));
    assert_eq!(passed[&4], names(first.as_raw_fd()));
    assert_eq!(passed.len(), 5, "and the standard streams: {passed:?}");
}

#[test]
fn runs_as_another_user() {
    if !is_root() {
        skip!("runs_as_another_user", "only root may change the user");
    }
    let service = Launch::of("sh").args(["-c", "id -u; id -g; id -G"]).user(65534, 65533).start();
    assert_eq!(service.finish(soon()).unwrap().stdout(), "65534\n65533\n65533\n");
}

#[test]
fn a_service_that_cannot_start_is_an_error() {
    let error = Launch::of("/nonexistent").try_start().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

fn shell(script: &str) -> Service {
    Launch::of("sh").args(["-c", script]).start()
}

/// Waits for a line of `name` and a pid.
fn pid_in(service: &Service, name: &str) -> Pid {
    let line = service.wait_line(|line| line.split(' ').next() == Some(name), soon());
    let line = line.expect("the script prints the pid");
    line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

fn session(pid: Pid) -> Pid {
    let raw = rustix::process::Pid::from_raw(pid.cast_signed());
    let session = rustix::process::getsid(raw).expect("the process is there");
    session.as_raw_pid().cast_unsigned()
}
