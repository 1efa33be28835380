//! A process that nobody drives any more ends when it is told to, whatever it still holds.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use handover::Handover;
use rustix::process::{Signal, getpid, kill_process};

/// Set in the process of its own.
const INSIDE: &str = "INSIDE_SIGNALS_AFTER_THE_END";

#[test]
fn a_stop_signal_after_the_drain_ends_the_process() {
    let status = in_a_process_of_its_own("a_stop_signal_after_the_drain_ends_the_process", || {
        let running = Handover::builder().start().unwrap().ready().unwrap();
        let handle = running.handle();
        handle.stop();
        running.wait().unwrap().drain().unwrap();
        handle
    });
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
}

#[test]
fn a_stop_signal_ends_a_process_that_does_not_wait() {
    let status = in_a_process_of_its_own("a_stop_signal_ends_a_process_that_does_not_wait", || {
        let running = Handover::builder().start().unwrap().ready().unwrap();
        running.handle()
    });
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
}

#[test]
fn an_upgrade_signal_after_the_drain_is_for_somebody_else() {
    let test = "an_upgrade_signal_after_the_drain_is_for_somebody_else";
    let status = in_a_process_of_its_own(test, || {
        let running = Handover::builder().start().unwrap().ready().unwrap();
        let handle = running.handle();
        handle.stop();
        running.wait().unwrap().drain().unwrap();
        drop(handle);
        kill_process(getpid(), Signal::HUP).unwrap();
    });
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()), "{status}");
}

/// Runs this in another process, which then sends itself SIGTERM; returns how it ends.
fn in_a_process_of_its_own<T>(test: &str, run: impl FnOnce() -> T) -> ExitStatus {
    if std::env::var_os(INSIDE).is_some() {
        let _kept = run();
        kill_process(getpid(), Signal::TERM).unwrap();
        // It does not come back from here, unless it is deaf.
        thread::sleep(Duration::from_secs(5));
        std::process::exit(1);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "");
    command.output().unwrap().status
}
