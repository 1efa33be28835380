//! Older generations that drain: seen, and told to stop.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use handover_testkit::process::{self, Signal};
use handover_testkit::{Pid, recheck, soon};
use serde_json::Value;

use crate::stage::{Stage, wait_exited};

/// Number, state, connections and whether it answers, of each generation.
fn generations(stage: &Stage) -> Vec<(u64, String, u64, bool)> {
    let status = stage.status();
    let list = status["generations"].as_array().unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let of = |it: &Value| {
        let state = it["state"].as_str().unwrap().to_owned();
        (number(&it["generation"]), state, number(&it["in_flight"]), it["answers"] == true)
    };
    list.iter().map(of).collect()
}

/// Waits until these generations are left, the newest first; all answer.
#[track_caller]
fn await_generations(stage: &Stage, expected: &[(u64, &str, u64)]) {
    let found = || {
        let found = generations(stage);
        let found = found.iter().map(|(number, state, held, answers)| {
            assert!(answers, "generation {number} does not answer");
            // Requests of the load come and go.
            (*number, &**state, if *state == "draining" { *held } else { 0 })
        });
        (found.collect::<Vec<_>>() == expected).then_some(())
    };
    assert!(recheck(soon(), found).is_some(), "{:?} and not {expected:?}", generations(stage));
}

/// Holds a connection, and upgrades.
fn hold_and_upgrade(stage: &Stage) -> (Pid, TcpStream) {
    let (_, pid) = stage.serving();
    let held = stage.hold();
    stage.upgrade(&[]);
    (pid, held)
}

#[test]
fn generations_that_drain_are_seen_also_when_those_in_between_are_gone() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let (first, held_by_first) = hold_and_upgrade(&stage);
    let (second, held_by_second) = hold_and_upgrade(&stage);
    let (third, held_by_third) = hold_and_upgrade(&stage);
    await_generations(
        &stage,
        &[(4, "serving", 0), (3, "draining", 1), (2, "draining", 1), (1, "draining", 1)],
    );
    drop(held_by_second);
    wait_exited(second);
    await_generations(&stage, &[(4, "serving", 0), (3, "draining", 1), (1, "draining", 1)]);
    drop(held_by_third);
    wait_exited(third);
    await_generations(&stage, &[(4, "serving", 0), (1, "draining", 1)]);
    stage.upgrade(&[]);
    await_generations(&stage, &[(5, "serving", 0), (1, "draining", 1)]);

    process::signal(first, Signal::STOP);
    assert!(process::wait_state_stopped(first, soon()));
    let stopped = generations(&stage);
    assert_eq!(stopped[1], (1, "draining".to_owned(), 1, false), "{stopped:?}");
    let human = stage.run("status", &[]);
    assert_eq!(human.code, 0);
    let line = human.stdout.lines().find(|line| line.starts_with("1 ")).unwrap();
    assert!(line.contains("draining (1 in flight") && line.contains("(does not answer)"), "{line}");
    stage.upgrade(&[]);
    let stopped = generations(&stage);
    assert_eq!((stopped.len(), stopped[0].0, stopped[1].0), (2, 6, 1), "{stopped:?}");
    process::signal(first, Signal::CONT);
    await_generations(&stage, &[(6, "serving", 0), (1, "draining", 1)]);

    drop(held_by_first);
    wait_exited(first);
    await_generations(&stage, &[(6, "serving", 0)]);
    stage.assert_served_by_another(before);
}

/// How long after the stop every generation was gone, of which two older ones drain.
fn stopped_within(options: &[&str], release: bool) -> Duration {
    let stage = Stage::new(&["--drain-timeout", "600000"]);
    let (_, mut one) = hold_and_upgrade(&stage);
    let (_, mut two) = hold_and_upgrade(&stage);
    let mut three = stage.hold();
    stage.load.so_far().assert_nothing_lost();
    let begun = Instant::now();
    let ended = stage.run("stop", options);
    assert_eq!(ended.code, 0, "{ended:#?}");
    if release {
        let alive = stage.service.alive().len();
        assert_eq!(alive, 3, "all three have something to finish");
        drop((one, two, three));
    } else {
        for held in [&mut one, &mut two, &mut three] {
            // It is cut.
            let _ = held.read_to_end(&mut Vec::new());
        }
    }
    stage.service.wait_all_gone(soon()).unwrap();
    assert!(!stage.socket().exists(), "the socket is left");
    begun.elapsed()
}

#[test]
fn a_stop_lets_generations_that_drain_finish() {
    stopped_within(&[], true);
}

#[test]
fn a_stop_with_a_time_limit_limits_all_generations() {
    let took = stopped_within(&["--drain-timeout", "500ms"], false);
    assert!(took >= Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_stop_at_once_cuts_all_generations() {
    stopped_within(&["--now"], false);
}
