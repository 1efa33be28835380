//! A unit that may do little.

use handover_testkit::{Signal, Systemd, soon};

use crate::on_every_systemd;
use crate::stage::{UNIT, Unit};

on_every_systemd! {
    a_hardened_unit_reloads_recovers_and_stops,
}

const LINES: &str = "Type=notify-reload\nRestart=always\nRestartSec=0\nFileDescriptorStoreMax=8\n\
    RuntimeDirectory=subject\nRuntimeDirectoryPreserve=restart\nWatchdogSec=20\n\
    DynamicUser=yes\nProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nPrivateDevices=yes\n\
    NoNewPrivileges=yes\nCapabilityBoundingSet=\nProtectKernelTunables=yes\n\
    ProtectKernelModules=yes\nProtectKernelLogs=yes\nProtectControlGroups=yes\nProtectClock=yes\n\
    ProtectHostname=yes\nProtectProc=invisible\nProcSubset=pid\nLockPersonality=yes\n\
    MemoryDenyWriteExecute=yes\nRestrictRealtime=yes\nRestrictSUIDSGID=yes\n\
    RestrictNamespaces=yes\nRestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\nUMask=0077\n\
    SystemCallArchitectures=native\nSystemCallFilter=@system-service\n\
    SystemCallFilter=~@privileged @resources\nSystemCallErrorNumber=EPERM";

fn a_hardened_unit_reloads_recovers_and_stops(systemd: Systemd) {
    let arguments = "tcp:http=ADDRESS store: state:count control:/run/subject/control";
    let unit = Unit::new(systemd, arguments, LINES);
    let mut main = unit.start();
    let load = unit.load();
    for _ in 0..3 {
        assert!(unit.reload());
        assert_ne!(unit.main_pid(), main);
        main = unit.main_pid();
    }
    load.wait_answered_by(|pid| pid == main, soon()).unwrap();
    load.stop().assert_nothing_lost();

    unit.save();
    unit.signal(main, Signal::KILL);
    let next = unit.answered_by();
    unit.wait_journal(&format!("state {next} count version 7 saved: "));

    unit.wait_show("SubState", |state| state == "running");
    assert!(unit.reload());
    let held = unit.hold();
    let stop = unit.begin("stop");
    unit.wait_show("SubState", |state| state == "stop-sigterm");
    assert!(!held.is_cut() && held.release());
    assert!(stop.finish(soon()).unwrap().status.success());
    assert_eq!(unit.show("Result"), "success");
    assert!(unit.systemd.systemctl(&["is-failed", UNIT]).stdout.contains("inactive"));
}
