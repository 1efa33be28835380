//! Probation: systemd keeps to the old process until the new one is confirmed.

use handover_testkit::{Fault, Pid, Signal, Systemd, binary, soon};

use crate::on_every_systemd;
use crate::stage::{UNIT, Unit};

on_every_systemd! {
    a_successor_that_crashes_on_probation_leaves_the_unit_active,
    a_stop_on_probation_lets_both_generations_finish,
    a_stop_of_the_main_process_alone_lets_both_generations_finish,
}

const ARGUMENTS: &str = "tcp:http=ADDRESS control:/run/subject/control probation:60000";

const LINES: &str = "Type=notify-reload\nTimeoutStartSec=5\nTimeoutStopSec=20\nRestart=always\n\
                     RuntimeDirectory=subject";

/// A successor that is on probation.
fn on_probation(unit: &Unit, generation: u64) -> Pid {
    let line = unit.wait_journal(&format!(" generation {generation}"));
    let pid = line.split("serving ").nth(1).and_then(|rest| rest.split(' ').next());
    let pid = pid.unwrap().parse().unwrap();
    unit.wait_show("StatusText", |text| text.contains("on probation"));
    pid
}

fn a_successor_that_crashes_on_probation_leaves_the_unit_active(systemd: Systemd) {
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let unit = Unit::new(systemd, ARGUMENTS, LINES);
    let first = unit.start();
    let load = unit.load();

    let reload = unit.begin("reload");
    let second = on_probation(&unit, 2);
    load.wait_answered_by(|pid| pid == second, soon()).unwrap();
    assert_eq!(unit.main_pid(), first, "it can take back over");
    unit.signal(second, Signal::KILL);

    load.wait_answered_by(|pid| pid == first, soon()).unwrap();
    assert_eq!(unit.main_pid(), first);
    assert_eq!(
        unit.show("ActiveState"),
        if reload.alive().is_empty() { "active" } else { "reloading" }
    );
    let status = unit.wait_show("StatusText", |text| text.contains("rolled back"));
    assert!(status.starts_with("generation 1 serves again; 2 was rolled back: "), "{status}");
    assert!(!reload.finish(soon()).unwrap().status.success(), "nothing was reloaded");
    assert_eq!((&*unit.show("ActiveState"), &*unit.show("NRestarts")), ("active", "0"));

    let reload = unit.begin("reload");
    let third = on_probation(&unit, 3);
    let confirm = ["/usr/local/bin/handover", "confirm", "--socket", "/run/subject/control"];
    assert!(unit.systemd.run(&confirm).success());
    assert!(reload.finish(soon()).unwrap().status.success());
    assert_eq!(unit.main_pid(), third);
    load.wait_answered_by(|pid| pid == third, soon()).unwrap();

    let outcome = load.stop();
    let accepted = |fault: &Fault| matches!(fault, Fault::Reset | Fault::Cut);
    assert!(outcome.lost.iter().all(|lost| accepted(&lost.what)), "{outcome}");
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("Result"), "success");
}

fn a_stop_on_probation_lets_both_generations_finish(systemd: Systemd) {
    stop_on_probation(systemd, "KillMode=control-group");
}

fn a_stop_of_the_main_process_alone_lets_both_generations_finish(systemd: Systemd) {
    stop_on_probation(systemd, "KillMode=mixed");
}

fn stop_on_probation(systemd: Systemd, kill_mode: &str) {
    let unit = Unit::new(systemd, ARGUMENTS, &format!("{LINES}\n{kill_mode}"));
    let first = unit.start();
    let old = unit.hold();
    let reload = unit.begin("reload");
    let second = on_probation(&unit, 2);
    let new = unit.hold();
    assert_eq!((old.by, new.by), (first, second));

    let stop = unit.begin("stop");
    unit.wait_journal(&format!("draining {second}"));
    unit.wait_journal(&format!("draining {first}"));
    for held in [new, old] {
        assert!(!held.is_cut());
        assert!(held.release());
    }
    assert!(stop.finish(soon()).unwrap().status.success());
    assert_eq!((&*unit.show("ActiveState"), &*unit.show("Result")), ("inactive", "success"));
    drop(reload);
}
