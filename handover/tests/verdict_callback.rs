//! What the application does with a verdict does not end the service.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::thread;

use handover::Handover;

#[test]
fn a_panic_of_on_verdict_leaves_the_verdict_and_the_service() {
    let running = Handover::builder()
        .executable("/nonexistent/program")
        .on_verdict(|verdict| panic!("a panic on purpose: {verdict}"))
        .start()
        .unwrap()
        .ready()
        .unwrap();
    let handle = running.handle();
    let waiter = thread::spawn(move || running.wait()?.drain());

    for _ in 0..2 {
        assert!(!handle.upgrade().wait().is_success());
    }

    handle.stop();
    waiter.join().unwrap().unwrap();
}
