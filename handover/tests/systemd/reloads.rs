//! Reloads that tell the truth, in both styles.

use handover_testkit::{Systemd, binary, recheck, soon};

use crate::stage::{UNIT, Unit};
use crate::{on_every_systemd, on_systemd_257};

on_every_systemd! {
    a_reload_by_signal_succeeds_and_a_failed_upgrade_fails_it,
    a_reload_by_command_fails_at_once_with_the_reason,
    twenty_reloads_under_load_lose_nothing_and_the_main_process_follows,
}

on_systemd_257! {
    a_service_that_systemd_does_not_listen_to_says_so,
}

/// A reload that sends a signal.
const BY_SIGNAL: &str = "Type=notify-reload\nTimeoutStartSec=5";

/// A reload that waits for the verdict.
const BY_COMMAND: &str = "Type=notify\nExecReload=/usr/local/bin/handover upgrade --socket \
                          /run/subject/control\nRuntimeDirectory=subject";

fn by_command(systemd: Systemd) -> Unit {
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let arguments = "tcp:http=ADDRESS control:/run/subject/control fail:FOLDER/fail";
    Unit::new(systemd, arguments, BY_COMMAND)
}

fn a_reload_by_signal_succeeds_and_a_failed_upgrade_fails_it(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS fail:FOLDER/fail", BY_SIGNAL);
    a_broken_version_fails_the_reload_and_changes_nothing(&unit, || {
        let status = unit.show("StatusText");
        assert!(status.starts_with("generation 2 serves; upgrade to 3 failed ("), "{status}");
    });
}

fn a_reload_by_command_fails_at_once_with_the_reason(systemd: Systemd) {
    let unit = by_command(systemd);
    a_broken_version_fails_the_reload_and_changes_nothing(&unit, || {
        // What the command says, and what the new release has said.
        unit.wait_journal("the new release is broken");
        unit.wait_journal("status=3");
        // It is systemd's child and not the old process's, and yet that knows how it has ended.
        unit.wait_journal("exit status: 1");
    });
}

fn a_broken_version_fails_the_reload_and_changes_nothing(unit: &Unit, look: impl FnOnce()) {
    let first = unit.start();
    let load = unit.load();
    assert!(unit.reload());
    let second = unit.main_pid();
    assert_ne!(second, first);

    unit.leave("fail", "the new release is broken");
    assert!(!unit.reload());
    assert_eq!(unit.main_pid(), second);
    assert_eq!((&*unit.show("ActiveState"), &*unit.show("SubState")), ("active", "running"));
    look();

    unit.remove("fail");
    assert!(unit.reload());
    assert_ne!(unit.main_pid(), second);
    load.stop().assert_nothing_lost();
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("Result"), "success");
}

fn twenty_reloads_under_load_lose_nothing_and_the_main_process_follows(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS", BY_SIGNAL);
    let mut main = unit.start();
    let load = unit.load();
    for generation in 2..=21 {
        assert!(unit.reload());
        let successor = unit.main_pid();
        assert_ne!(successor, main);
        main = successor;
        load.wait_answered_by(|pid| pid == main, soon()).unwrap();
        let status = unit.wait_show("StatusText", |text| !text.contains("drain"));
        assert_eq!(status, format!("generation {generation} serves"));
    }
    // The old ones are gone, and systemd watches the one that is left.
    let host = unit.systemd.host_pid(main).unwrap();
    let alone = recheck(soon(), || {
        let mut processes = unit.systemd.run(&["systemctl", "show", "-P", "ControlGroup", UNIT]);
        processes.stdout.truncate(processes.stdout.trim_end().len());
        let tasks = unit.systemd.read(&format!("/sys/fs/cgroup{}/cgroup.procs", processes.stdout));
        (tasks?.lines().count() == 1).then_some(())
    });
    assert!(alone.is_some(), "{}", unit.systemd.report(UNIT));
    load.stop().assert_nothing_lost();
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("Result"), "success");
    assert!(!unit.systemd.processes().contains(&host));
    unit.assert_quiet();
}

fn a_service_that_systemd_does_not_listen_to_says_so(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS", "Type=simple\nEnvironment=SUBJECT_LOG=1");
    unit.start();
    let warning = unit.wait_journal("systemd does not listen to this service");
    assert!(warning.contains("WARN") && warning.contains("Type=notify"), "{warning}");
    assert_eq!(unit.answered_by(), unit.main_pid());
}
