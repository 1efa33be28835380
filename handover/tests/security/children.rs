//! What a service starts has nothing of the service's.

use std::time::Duration;

use handover_testkit::process::{self, Signal, signal};
use handover_testkit::{KeepAlive, soon};

use crate::whole::Whole;

const UPGRADES: u64 = 100;
const CONNECTIONS: usize = 50;

#[test]
fn no_child_has_a_descriptor_of_the_service_through_a_hundred_upgrades() {
    let whole = Whole::start(&["--children"]);
    let kept = KeepAlive::echo(whole.address).connections(CONNECTIONS);
    let kept = kept.every(Duration::from_millis(100)).start();
    kept.wait_open(soon()).unwrap();
    let mut server = whole.service.pid();
    for upgrade in 1..=UPGRADES {
        signal(server, Signal::HUP);
        let next = whole.wait_generation(1 + upgrade);
        assert!(process::exited(server, soon()), "its connections have moved");
        server = next;
    }
    assert_eq!(kept.stop().ends, []);
    whole.stop(server);
    for bad in ["leak ", "stray ", "back "] {
        assert_eq!(whole.printed(bad), Vec::<String>::new());
    }
    let children = |line: String| line.split(' ').nth(3).unwrap().parse::<u64>().unwrap();
    let drained = whole.printed("drained ");
    assert_eq!(drained.len() as u64, UPGRADES + 1);
    let children: u64 = drained.into_iter().map(children).sum();
    assert!(children > 5 * UPGRADES, "{children} children were started");
}

#[test]
fn a_descriptor_that_a_child_has_would_be_seen() {
    let whole = Whole::start(&["--children", "--leak"]);
    let leak = whole.service.wait_line(|line| line.starts_with("leak "), soon()).unwrap();
    assert!(leak.contains("subject_whole"), "{leak}");
}
