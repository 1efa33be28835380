//! Signs of life: from whoever is the main process, as long as it is well.

use handover_testkit::{Systemd, recheck, soon};

use crate::stage::{UNIT, Unit};
use crate::{on_every_systemd, on_systemd_257};

on_every_systemd! {
    signs_of_life_go_on_across_reloads,
    a_successor_that_hangs_is_killed_and_the_service_started_again,
}

on_systemd_257! {
    a_service_that_is_ill_gives_no_sign_of_life,
    nor_does_one_whose_successor_is_on_probation,
    a_long_initialisation_and_a_long_drain_get_the_time_they_ask_for,
}

const LINES: &str = "Type=notify-reload\nWatchdogSec=3\nTimeoutAbortSec=1\nRestart=always\n\
                     RestartSec=0\nLimitCORE=0";

/// Waits for so many signs of life, one after the other.
fn wait_signs(unit: &Unit, signs: usize) {
    for _ in 0..signs {
        let before = unit.show("WatchdogTimestampMonotonic");
        unit.wait_show("WatchdogTimestampMonotonic", |now| now != before);
    }
}

fn signs_of_life_go_on_across_reloads(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS", LINES);
    let first = unit.start();
    wait_signs(&unit, 2);
    for _ in 0..3 {
        assert!(unit.reload());
        // Each within the time in which one is wanted.
        wait_signs(&unit, 3);
    }
    let main = unit.main_pid();
    assert_eq!(unit.show("NRestarts"), "0");
    // What names a process names this one, and what was the first one's is gone.
    for (pid, successor) in [(first, false), (main, true)] {
        assert!(
            unit.wait_journal(&format!("started {pid} successor {successor}"))
                .contains(" recovery false")
        );
        for name in ["WATCHDOG_PID", "SYSTEMD_EXEC_PID"] {
            unit.wait_journal(&format!("variable {pid} {name}={pid}"));
        }
    }
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    unit.assert_quiet();
}

fn a_successor_that_hangs_is_killed_and_the_service_started_again(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS hang:FOLDER/hang", LINES);
    unit.start();
    unit.leave("hang", "");
    assert!(unit.reload());
    let second = unit.main_pid();
    unit.wait_journal(&format!("hanging {second}"));
    unit.remove("hang");

    unit.wait_show("NRestarts", |restarts| restarts == "1");
    let third = recheck(soon(), || unit.systemd.main_pid(UNIT).filter(|pid| *pid != second));
    unit.wait_show("SubState", |state| state == "running");
    assert_eq!(Some(unit.answered_by()), third);
    wait_signs(&unit, 2);
    unit.wait_journal("Watchdog timeout");
}

fn a_service_that_is_ill_gives_no_sign_of_life(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS ill:FOLDER/ill", LINES);
    unit.start();
    assert!(unit.reload());
    wait_signs(&unit, 2);
    unit.leave("ill", "");
    unit.wait_journal("Watchdog timeout");
    unit.remove("ill");
    unit.wait_show("NRestarts", |restarts| restarts != "0");
    unit.wait_show("SubState", |state| state == "running");
    wait_signs(&unit, 2);
}

fn nor_does_one_whose_successor_is_on_probation(systemd: Systemd) {
    let arguments = "tcp:http=ADDRESS ill:FOLDER/ill probation:600000";
    let unit = Unit::new(systemd, arguments, LINES);
    unit.start();
    let reload = unit.begin("reload");
    unit.wait_show("StatusText", |text| text.contains("on probation"));
    wait_signs(&unit, 3);
    unit.leave("ill", "");
    unit.wait_journal("Watchdog timeout");
    unit.remove("ill");
    unit.wait_show("NRestarts", |restarts| restarts != "0");
    drop(reload);
}

fn a_long_initialisation_and_a_long_drain_get_the_time_they_ask_for(systemd: Systemd) {
    let lines = "Type=notify-reload\nTimeoutStartSec=2\nTimeoutStopSec=2";
    let arguments = "tcp:http=ADDRESS slow:FOLDER/slow drain:60000";
    let unit = Unit::new(systemd, arguments, lines);
    unit.leave("slow", "4000");
    let first = unit.start();
    assert!(unit.reload());
    assert_ne!(unit.main_pid(), first);

    let held = unit.hold();
    let stop = unit.begin("stop");
    // Longer than the unit gives it, and as long as it says that it needs.
    unit.wait_show("StatusText", |text| {
        let left = text.strip_prefix("generation 2 stops: 1 in flight, for ");
        let left = left.and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        left.is_some_and(|left| left <= 56)
    });
    assert!(!held.is_cut());
    assert!(held.release());
    assert!(stop.finish(soon()).unwrap().status.success());
    assert_eq!(unit.show("Result"), "success");
}
