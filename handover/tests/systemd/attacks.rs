//! Processes that are killed and stopped at bad moments, systemd itself among them.

use std::os::unix::net::UnixDatagram;

use handover_testkit::process::{signal, try_signal};
use handover_testkit::{Fault, Load, Outcome, Pid, Signal, Systemd, recheck, soon};

use crate::stage::{UNIT, Unit};
use crate::{on_every_systemd, on_systemd_257};

on_every_systemd! {
    the_main_process_killed_during_an_upgrade,
    a_child_of_the_service_is_not_heard,
    systemd_itself_stopped_during_an_upgrade,
}

on_systemd_257! {
    the_main_process_killed_on_probation,
    successors_killed_at_any_moment,
    a_stop_during_an_upgrade,
    a_storm_of_reloads,
    a_new_main_process_killed_at_once,
    an_old_process_that_drains_does_not_hold_up_the_one_after_a_crash,
    systemd_itself_stopped_with_its_queue_full,
    an_old_process_that_hangs_before_it_can_say_that_it_was_heard,
    a_successor_killed_before_systemd_has_heard_of_it,
}

const LINES: &str = "Type=notify-reload\nTimeoutStartSec=5\nTimeoutStopSec=20\nRestart=always\n\
                     RestartSec=0\nStartLimitBurst=1000\nFileDescriptorStoreMax=8";

/// Asserts that what was accepted by a killed process is all that was lost, and that the service is
/// well: it serves, its main process is who answers, and it can be reloaded.
fn assert_well(unit: &Unit, load: Load) {
    unit.wait_show("SubState", |state| state == "running");
    load.wait_answers(20, soon()).unwrap();
    let main = recheck(soon(), || {
        let main = unit.systemd.main_pid(UNIT)?;
        (unit.answered_by() == main).then_some(main)
    });
    let main = main.unwrap_or_else(|| panic!("{}", unit.systemd.report(UNIT)));
    assert!(unit.reload(), "{}", unit.systemd.report(UNIT));
    let next = unit.main_pid();
    assert_ne!(next, main);
    load.wait_answered_by(|pid| pid == next, soon()).unwrap();
    assert_only_accepted_lost(&load.stop());
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("Result"), "success", "{}", unit.systemd.report(UNIT));
}

fn assert_only_accepted_lost(outcome: &Outcome) {
    let accepted = |fault: &Fault| matches!(fault, Fault::Reset | Fault::Cut);
    assert!(outcome.lost.iter().all(|lost| accepted(&lost.what)), "{outcome}");
}

/// The successor that is initialising.
fn warming_up(unit: &Unit) -> Pid {
    let line = unit.wait_journal("warming up ");
    line.rsplit(' ').next().unwrap().trim().parse().unwrap()
}

fn the_main_process_killed_during_an_upgrade(systemd: Systemd) {
    let arguments = "tcp:http=ADDRESS store: slow:FOLDER/slow";
    let unit = Unit::new(systemd, arguments, LINES);
    let first = unit.start();
    let load = unit.load();
    unit.leave("slow", "3000");
    let reload = unit.begin("reload");
    let successor = warming_up(&unit);
    unit.remove("slow");
    unit.signal(first, Signal::KILL);

    let next = load.wait_answered_by(|pid| pid != first, soon()).unwrap();
    assert_ne!(next, successor, "systemd ends what is left, and starts anew");
    assert!(!reload.finish(soon()).unwrap().status.success());
    assert_well(&unit, load);
}

fn a_child_of_the_service_is_not_heard(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store: state:count", LINES);
    let first = unit.start();
    unit.save();
    let held = unit.show("NFileDescriptorStore");
    let load = unit.load();
    assert!(unit.get("/child").ends_with(" spoken"));
    // systemd reads one after the other: when it has this, it has read that.
    unit.save();

    assert_eq!(unit.main_pid(), first);
    assert_eq!(unit.show("StatusText"), "generation 1 serves");
    assert_eq!(
        (unit.show("SubState"), unit.show("NFileDescriptorStore")),
        ("running".into(), held)
    );
    assert!(unit.reload());
    assert_ne!(unit.main_pid(), first);
    load.stop().assert_nothing_lost();
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("Result"), "success");
}

fn the_main_process_killed_on_probation(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store: probation:60000", LINES);
    let first = unit.start();
    let load = unit.load();
    let reload = unit.begin("reload");
    let second = load.wait_answered_by(|pid| pid != first, soon()).unwrap();
    assert_eq!(unit.main_pid(), first);
    unit.signal(first, Signal::KILL);

    load.wait_answered_by(|pid| pid != first && pid != second, soon()).unwrap();
    drop(reload);
    unit.wait_show("SubState", |state| state == "running");
    assert_only_accepted_lost(&load.stop());
    assert_eq!(unit.answered_by(), unit.main_pid());
}

fn successors_killed_at_any_moment(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store:", LINES);
    unit.start();
    let load = unit.load();
    for round in 0..12 {
        let before: Vec<Pid> = unit.systemd.processes();
        signal(unit.systemd.main(UNIT), Signal::HUP);
        // The next process that systemd has is the successor, or a process that follows upon it.
        let new = recheck(soon(), || {
            unit.systemd.processes().into_iter().find(|pid| !before.contains(pid))
        });
        // From its first instructions to some while after it serves: so many looks at all processes.
        (0..round / 2).for_each(|_| drop(unit.systemd.processes()));
        signal(new.unwrap(), Signal::KILL);
        unit.wait_show("SubState", |state| state == "running");
        load.wait_answers(5, soon()).unwrap();
    }
    assert_well(&unit, load);
}

fn a_new_main_process_killed_at_once(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store: state:count", LINES);
    unit.start();
    let load = unit.load();
    for _ in 0..10 {
        assert!(unit.reload());
        let main = unit.main_pid();
        unit.signal(main, Signal::KILL);
        load.wait_answered_by(|pid| pid != main, soon()).unwrap();
        unit.wait_show("SubState", |state| state == "running");
    }
    assert_well(&unit, load);
}

fn an_old_process_that_drains_does_not_hold_up_the_one_after_a_crash(systemd: Systemd) {
    let lines = LINES.replace("TimeoutStopSec=20", "TimeoutStopSec=600");
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store: drain:600000", &lines);
    unit.start();
    let held = unit.hold();
    assert!(unit.reload());
    let second = unit.main_pid();
    let load = unit.load();
    unit.signal(second, Signal::KILL);
    load.wait_answered_by(|pid| pid != second, soon()).unwrap();
    assert!(held.is_cut());
    assert_well(&unit, load);
}

fn a_stop_during_an_upgrade(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS slow:FOLDER/slow", LINES);
    unit.start();
    let held = unit.hold();
    unit.leave("slow", "3000");
    let reload = unit.begin("reload");
    warming_up(&unit);
    let stop = unit.begin("stop");
    unit.wait_show("SubState", |state| state == "stop-sigterm");
    assert!(!held.is_cut() && held.release());
    assert!(stop.finish(soon()).unwrap().status.success());
    assert_eq!((&*unit.show("ActiveState"), &*unit.show("Result")), ("inactive", "success"));
    drop(reload);
}

fn a_storm_of_reloads(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store:", LINES);
    let first = unit.start();
    let load = unit.load();
    for _ in 0..20 {
        assert!(unit.systemd.systemctl(&["reload", "--no-block", UNIT]).success());
        // The main process may be another by the time that it is found.
        let main = unit.systemd.main_pid(UNIT).and_then(|pid| unit.systemd.host_pid(pid));
        if let Some(main) = main {
            let _ = try_signal(main, Signal::HUP);
        }
    }
    unit.wait_show("SubState", |state| state == "running");
    assert_ne!(unit.main_pid(), first);
    // What was asked for last may be under way still.
    unit.wait_show("StatusText", |text| text.ends_with(" serves"));
    load.wait_answers(20, soon()).unwrap();
    load.stop().assert_nothing_lost();
    assert!(unit.reload());
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("Result"), "success");
    unit.assert_quiet();
}

/// A service that was upgraded while systemd was stopped.
struct BehindItsBack {
    unit: Unit,
    load: Load,
    /// The old main process, by both its pids.
    first: Pid,
    host: Pid,
    second: Pid,
}

impl BehindItsBack {
    /// Does what is to be done once systemd is stopped, and upgrades.
    fn new(systemd: Systemd, prepare: impl FnOnce(&Unit)) -> Self {
        let unit = Unit::new(systemd, "tcp:http=ADDRESS store: state:count", LINES);
        let first = unit.start();
        let host = unit.systemd.main(UNIT);
        let load = unit.load();
        signal(unit.systemd.init(), Signal::STOP);
        prepare(&unit);
        signal(host, Signal::HUP);
        let second = load.wait_answered_by(|pid| pid != first, soon()).unwrap();
        Self { unit, load, first, host, second }
    }

    /// Has systemd go on.
    fn go_on(&self) {
        signal(self.unit.systemd.init(), Signal::CONT);
    }

    /// Asserts that systemd knows the successor, and that nothing was lost.
    fn assert_known(self) {
        let Self { unit, load, second, .. } = self;
        unit.wait_show("MainPID", |pid| pid == second.to_string());
        unit.wait_show("StatusText", |text| text == "generation 2 serves");
        load.stop().assert_nothing_lost();
        assert_eq!(unit.show("NRestarts"), "0");
        assert!(unit.reload());
        assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
        unit.assert_quiet();
    }
}

fn systemd_itself_stopped_during_an_upgrade(systemd: Systemd) {
    let upgraded = BehindItsBack::new(systemd, |_| {});
    upgraded.go_on();
    upgraded.assert_known();
}

fn systemd_itself_stopped_with_its_queue_full(systemd: Systemd) {
    let upgraded = BehindItsBack::new(systemd, |unit| {
        let noise = UnixDatagram::unbound().unwrap();
        noise.set_nonblocking(true).unwrap();
        let notify = format!("/proc/{}/root/run/systemd/notify", unit.systemd.init());
        while noise.send_to(b"STATUS=noise", &notify).is_ok() {}
    });
    // Longer than the old process waits for the word of a systemd that has room.
    upgraded.load.wait_answers(8 * 200, soon()).unwrap();
    upgraded.go_on();
    upgraded.assert_known();
}

fn an_old_process_that_hangs_before_it_can_say_that_it_was_heard(systemd: Systemd) {
    let upgraded = BehindItsBack::new(systemd, |_| {});
    signal(upgraded.host, Signal::STOP);
    upgraded.go_on();

    let BehindItsBack { unit, load, host, second, .. } = upgraded;
    unit.wait_show("MainPID", |pid| pid == second.to_string());
    assert!(unit.get("/save").contains("Later"));
    // In the end it takes itself for announced, with all that belongs to it.
    unit.wait_show("NFileDescriptorStore", |n| n == "2");
    signal(host, Signal::KILL);
    assert_well(&unit, load);
}

fn a_successor_killed_before_systemd_has_heard_of_it(systemd: Systemd) {
    let upgraded = BehindItsBack::new(systemd, |_| {});
    upgraded.unit.signal(upgraded.second, Signal::KILL);
    upgraded.go_on();

    // It hears of a main process that has ended, and starts another.
    let BehindItsBack { unit, load, first, second, .. } = upgraded;
    load.wait_answered_by(|pid| pid != first && pid != second, soon()).unwrap();
    assert_well(&unit, load);
}
