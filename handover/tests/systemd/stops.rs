//! Stops and restarts that let finish what is in flight.

use handover_testkit::{Signal, Systemd, soon};

use crate::stage::{UNIT, Unit};
use crate::{on_every_systemd, on_systemd_257};

on_every_systemd! {
    a_stop_after_reloads_lets_requests_of_all_generations_finish,
    a_restart_lets_a_request_finish,
}

on_systemd_257! {
    a_process_that_drains_does_not_stop_the_unit_even_where_all_are_heard,
}

const LINES: &str = "Type=notify-reload\nTimeoutStopSec=20";

fn a_stop_after_reloads_lets_requests_of_all_generations_finish(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS", LINES);
    unit.start();
    let mut held = vec![unit.hold()];
    for _ in 0..20 {
        assert!(unit.reload());
        if held.len() < 3 {
            held.push(unit.hold());
        }
    }
    held.push(unit.hold());
    assert_eq!(held.last().unwrap().by, unit.main_pid());

    let stop = unit.begin("stop");
    unit.wait_show("SubState", |state| state == "stop-sigterm");
    let status = unit.wait_show("StatusText", |text| text.contains(" stops: "));
    assert!(status.starts_with("generation 21 stops: 1 in flight"), "{status}");
    // The main process has nothing more to do, and stays for the others.
    assert!(held.pop().unwrap().release());
    unit.wait_show("StatusText", |text| text.contains(" 0 in flight"));
    for held in held {
        assert!(!held.is_cut());
        assert!(held.release());
    }

    assert!(stop.finish(soon()).unwrap().status.success());
    assert_eq!(unit.show("Result"), "success");
    assert_eq!(unit.show("ActiveState"), "inactive");
    unit.assert_quiet();
}

fn a_restart_lets_a_request_finish(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS", LINES);
    unit.start();
    assert!(unit.reload());
    let before = unit.main_pid();
    let held = unit.hold();

    let restart = unit.begin("restart");
    unit.wait_show("SubState", |state| state == "stop-sigterm");
    assert!(!held.is_cut());
    assert!(held.release());

    assert!(restart.finish(soon()).unwrap().status.success());
    let after = unit.main_pid();
    assert_ne!(after, before);
    assert_eq!(unit.answered_by(), after);
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    unit.assert_quiet();
}

fn a_process_that_drains_does_not_stop_the_unit_even_where_all_are_heard(systemd: Systemd) {
    let lines = format!("{LINES}\nNotifyAccess=all\nWatchdogSec=3\nLimitCORE=0\nTimeoutAbortSec=1");
    let unit = Unit::new(systemd, "tcp:http=ADDRESS hang:FOLDER/hang", &lines);
    let first = unit.start();
    let held = unit.hold();
    assert!(unit.reload());
    let second = unit.main_pid();
    unit.signal(first, Signal::TERM);
    // The drainer has taken the signal when it has ended, and its request has ended it.
    assert!(!held.is_cut() && held.release());
    unit.wait_show("StatusText", |text| text == "generation 2 serves");
    assert_eq!((&*unit.show("ActiveState"), unit.main_pid()), ("active", second));

    // Nor does it hide that the new one hangs.
    let held = unit.hold();
    unit.leave("hang", "");
    assert!(unit.reload());
    unit.remove("hang");
    unit.wait_journal("Watchdog timeout");
    drop(held);
}
