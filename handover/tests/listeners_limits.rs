//! Many listeners, and few descriptors.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod listeners;

use std::fmt::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use handover_testkit::process::{fds, highest_fd, signal};
use handover_testkit::{
    Folder, Launch, Load, Pid, Signal, example, is_root, recheck, skipped, soon,
};

use listeners::*;

in_both_runtimes! {
    two_thousand_listeners_of_an_ordinary_user_are_handed_over,
    a_successor_with_too_few_descriptors_is_refused_by_name_of_the_limit,
    a_service_without_descriptors_neither_ends_nor_spins_and_recovers,
    a_service_without_descriptors_can_retire_a_listener,
    the_number_of_descriptors_does_not_creep_up,
}

fn two_thousand_listeners_of_an_ordinary_user_are_handed_over(runtime: &str) {
    if !is_root() {
        return skipped("only root may change the user");
    }
    const LISTENERS: usize = 2000;
    // A thread for each would be the test of something else.
    let config = many(runtime, LISTENERS, "idle");
    let subject = Subject::start_in(Folder::create().open_to_all(), &config, |launch| {
        launch.user(65534, 65534).limit_open_fds(4096, 4096)
    });
    let load = Load::echo(subject.address("web")).start();
    load.wait_answers(5, soon()).unwrap();
    for _ in 0..3 {
        let successor = subject.upgrade();
        load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
        assert!(sockets(successor).len() > LISTENERS);
    }
    load.stop().assert_nothing_lost();
    assert_eq!(subject.count("before_bind"), LISTENERS + 1);
}

fn a_successor_with_too_few_descriptors_is_refused_by_name_of_the_limit(runtime: &str) {
    let folder = Folder::create();
    let subject_path = example("subject_listeners");
    let script = format!("#!/bin/sh\nulimit -n 128\nexec {} \"$@\"\n", subject_path.display());
    folder.write_executable("limited", script);
    folder.link("current", &subject_path);
    folder.write("config", many(runtime, 200, "idle"));
    let current = folder.join("current");
    let subject = Subject::adopt(folder, |folder| Launch::of(&current).arg(folder.path()));
    let load = Load::echo(subject.address("web")).start();
    load.wait_answers(5, soon()).unwrap();

    subject.folder.link("current", subject.folder.join("limited"));
    let verdict = subject.upgrade_fails();

    assert!(verdict.contains("RLIMIT_NOFILE"), "{verdict}");
    load.wait_answers(20, soon()).unwrap();
    subject.folder.link("current", &subject_path);
    let successor = subject.upgrade();
    load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    load.stop().assert_nothing_lost();
}

fn a_service_without_descriptors_neither_ends_nor_spins_and_recovers(runtime: &str) {
    let (subject, clients) = exhausted(runtime);
    let web = subject.address("web");
    let waiting = TcpStream::connect(web).unwrap();
    let before = (cpu_time(subject.pid()), Instant::now());
    // What is measured is time, so that time has to pass.
    let measured = Duration::from_secs(1);
    recheck(soon(), || (before.1.elapsed() > measured).then_some(())).unwrap();
    let busy = cpu_time(subject.pid()) - before.0;
    assert!(busy < before.1.elapsed() / 5, "{busy:?} of processor time in {measured:?}");
    assert_eq!(subject.count("ended"), 0);

    drop(clients);

    drop(waiting);
    assert_eq!(asked(web), subject.pid());
    let load = Load::echo(web).start();
    let successor = subject.upgrade();
    load.wait_answered_by(|pid| pid == successor, soon()).unwrap();
    load.stop().assert_nothing_lost();
}

fn a_service_without_descriptors_can_retire_a_listener(runtime: &str) {
    let (subject, clients) = exhausted(runtime);
    let waiting = queue_up(subject.address("web"), 10);
    signal(subject.pid(), Signal::TERM);
    subject.line("draining ");
    let before = (cpu_time(subject.pid()), Instant::now());
    recheck(soon(), || (before.1.elapsed() > Duration::from_millis(500)).then_some(())).unwrap();
    let busy = cpu_time(subject.pid()) - before.0;
    assert!(busy < before.1.elapsed() / 4, "{busy:?} of processor time");

    drop(clients);

    assert_eq!(answers(waiting), [subject.pid()].into());
    subject.service.wait_all_gone(soon()).unwrap();
}

fn the_number_of_descriptors_does_not_creep_up(runtime: &str) {
    let subject = Subject::start(&format!(
        "runtime {runtime}\ntcp web 127.0.0.1:0\nunix s ./s\nudp u 127.0.0.1:0\nfile f ./f\n"
    ));
    subject.upgrade();
    let second = subject.pid();
    let alone = |pid: Pid| {
        let is_alone = || (subject.service.alive() == [pid]).then_some(());
        recheck(soon(), is_alone).expect("its predecessor goes");
    };
    alone(second);
    let (count, highest) = (fds(second).len(), highest_fd(second));
    for _ in 0..8 {
        let successor = subject.upgrade();
        alone(successor);
        // The channel to the predecessor is closed at its end, a moment later.
        let alike = || (fds(successor).len() <= count).then_some(());
        recheck(soon(), alike).unwrap_or_else(|| panic!("{:#?}", fds(successor)));
        assert!(highest_fd(successor) <= highest + 1, "{:#?}", fds(successor));
    }
}

/// One listener that is served and some that are not.
fn many(runtime: &str, count: usize, option: &str) -> String {
    let mut config = format!("runtime {runtime}\ntcp web 127.0.0.1:0\n");
    for number in 0..count {
        writeln!(config, "tcp many-{number} 127.0.0.1:0 backlog=8 {option}").unwrap();
    }
    config
}

/// A service that has no descriptor left, and the clients that have taken them.
fn exhausted(runtime: &str) -> (Subject, Vec<UnixStream>) {
    const LIMIT: u64 = 64;
    let config = format!("runtime {runtime}\nunix s ./s\ntcp web 127.0.0.1:0\n");
    let subject =
        Subject::start_in(Folder::create(), &config, |launch| launch.limit_open_fds(LIMIT, LIMIT));
    let path = subject.folder.join("s");
    let clients = (0..LIMIT).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let full = || (fds(subject.pid()).len() as u64 == LIMIT).then_some(());
    recheck(soon(), full).expect("all descriptors are in use");
    (subject, clients)
}

/// The processor time that a process has used: fields 14 and 15 of proc_pid_stat(5), in hundredths
/// of a second.
fn cpu_time(pid: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_ascii_whitespace().collect();
    let ticks: u64 = fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
