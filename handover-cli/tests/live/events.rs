//! What happens, as `handover events` tells it.

use handover_testkit::{recheck, soon};
use serde_json::Value;

use crate::stage::{Running, Stage};

/// Waits until what happens from here on is told: an upgrade that fails is.
pub(crate) fn await_listening(stage: &Stage, events: &Running) {
    let told = || {
        let seen = events.lines().len();
        let failed = stage.run("upgrade", &["--executable", "/nonexistent"]);
        assert_eq!(failed.code, 3, "{failed:#?}");
        let told =
            |line: &String| line.contains("upgrade-failed") || line.contains("upgrade failed");
        events.lines().iter().skip(seen).any(told).then_some(())
    };
    assert!(recheck(soon(), told).is_some(), "{:?}", events.lines());
}

#[test]
fn events_are_told_across_upgrades_to_the_stop() {
    const UPGRADES: u64 = 3;
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let human = stage.begin("events", &[]);
    let json = stage.begin("events", &["--json"]);
    for nth in 1..=UPGRADES {
        await_listening(&stage, &human);
        await_listening(&stage, &json);
        stage.upgrade(&[]);
        assert_eq!(stage.serving().0, before.0 + nth);
    }
    await_listening(&stage, &human);
    await_listening(&stage, &json);
    stage.load.so_far().assert_nothing_lost();
    assert_eq!(stage.run("stop", &[]).code, 0);
    let (human, json) = (human.finish(), json.finish());
    assert_eq!((human.code, json.code), (0, 0), "{human:#?} {json:#?}");

    let events: Vec<Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for nth in 1..=UPGRADES {
        let generation = before.0 + nth;
        let names = ["upgrade-begun", "spawned", "hello", "initialising", "ready", "committed"];
        let mut told = events.iter().filter(|event| event["generation"] == generation);
        for name in names {
            // In this order; upgrades that have failed had the same number.
            assert!(told.any(|event| event["event"] == name), "{name} {generation}: {json:#?}");
        }
        for part in ["handed-over", &format!("generation {generation}: committed")] {
            human.assert_says(&[part]);
        }
    }
    let last = before.0 + UPGRADES;
    let (draining, drained) = (&events[events.len() - 2], &events[events.len() - 1]);
    assert_eq!((&draining["event"], &draining["ending"]), (&"draining".into(), &"stopped".into()));
    assert_eq!((&drained["event"], &drained["generation"]), (&"drained".into(), &last.into()));
    assert!(events.iter().all(|event| event["event"] != "missed"), "{json:#?}");
}
