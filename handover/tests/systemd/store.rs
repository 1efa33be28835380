//! The fd store: listeners and states outlive a crash.

use handover_testkit::{Fault, Signal, Systemd, binary, recheck, soon};

use crate::stage::{UNIT, Unit, free_address};
use crate::{on_every_systemd, on_systemd_257};

on_every_systemd! {
    nobody_is_refused_while_a_killed_service_starts_again_and_its_state_is_there,
    a_restart_loses_nothing,
}

on_systemd_257! {
    the_store_holds_what_the_service_has_and_no_more,
    what_does_not_fit_is_said_at_the_start,
    what_does_not_fit_fails_an_upgrade_and_a_later_listener,
    a_name_that_is_too_long_is_said,
    a_restart_on_probation_leaves_the_sockets_to_the_next_process,
    a_state_that_takes_long_to_write_holds_nothing_up,
    a_service_with_a_store_can_move_to_sockets_of_systemd,
    what_is_left_for_later_stays_in_the_store,
    the_watchdog_leaves_listeners_and_state,
    a_reexecuted_manager_is_told_as_before,
    without_room_for_a_store_there_is_an_error,
    who_does_not_use_the_store_takes_what_is_left_there_and_leaves_nothing,
}

const LINES: &str = "Type=notify-reload\nRestart=always\nRestartSec=0\nStartLimitBurst=100\n\
                     FileDescriptorStoreMax=8\nTimeoutStopSec=20";

const ARGUMENTS: &str = "tcp:http=ADDRESS store: state:count";

fn nobody_is_refused_while_a_killed_service_starts_again_and_its_state_is_there(systemd: Systemd) {
    let unit = Unit::new(systemd, ARGUMENTS, LINES);
    let first = unit.start();
    assert!(unit.wait_journal(&format!("started {first}")).contains("recovery false"));
    let load = unit.load();
    let mut killed = first;
    for round in 1..=3 {
        if round > 1 {
            assert!(unit.reload());
            killed = unit.main_pid();
            load.wait_answered_by(|pid| pid == killed, soon()).unwrap();
        }
        let saved = unit.save();
        let count: u64 = saved.split(' ').nth(1).unwrap().parse().unwrap();
        unit.signal(killed, Signal::KILL);

        let next = load.wait_answered_by(|pid| pid != killed, soon()).unwrap();
        assert!(unit.wait_journal(&format!("started {next}")).contains("recovery true"));
        let line = unit.wait_journal(&format!("state {next} count version 7 saved: "));
        let recovered: u64 = line.rsplit(' ').next().unwrap().trim().parse().unwrap();
        assert!(recovered >= count, "{line}, and {saved}");
        assert_eq!(unit.wait_show("NRestarts", |n| n == round.to_string()), round.to_string());
        unit.wait_show("SubState", |state| state == "running");
    }
    // What the killed ones had accepted is lost, and nothing else: nobody was refused.
    let outcome = load.stop();
    let accepted = |fault: &Fault| matches!(fault, Fault::Reset | Fault::Cut);
    assert!(outcome.lost.iter().all(|lost| accepted(&lost.what)), "{outcome}");
    assert!(outcome.lost.len() <= 3 * 10, "{outcome}");
}

fn a_restart_loses_nothing(systemd: Systemd) {
    let unit = Unit::new(systemd, ARGUMENTS, LINES);
    let mut main = unit.start();
    let load = unit.load();
    for _ in 0..3 {
        unit.save();
        assert!(unit.systemd.systemctl(&["restart", UNIT]).success());
        main = load.wait_answered_by(|pid| pid != main, soon()).unwrap();
        assert_eq!(main, unit.main_pid());
        unit.wait_journal(&format!("state {main} count version 7 saved: "));
    }
    load.stop().assert_nothing_lost();
    assert!(unit.systemd.systemctl(&["stop", UNIT]).success());
    assert_eq!(unit.show("NFileDescriptorStore"), "0");
    unit.assert_quiet();
}

fn the_store_holds_what_the_service_has_and_no_more(systemd: Systemd) {
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let arguments = format!("{ARGUMENTS} control:/run/control tcp:more=127.0.0.1:0");
    let unit = Unit::new(systemd, &arguments, LINES);
    unit.start();
    unit.wait_show("NFileDescriptorStore", |n| n == "3");
    // In each generation another number of saves.
    for generation in 0..6 {
        for _ in 0..generation % 3 {
            // A new main process may not be known as that for another moment.
            assert!(!unit.get("/save").contains("Nowhere"));
            unit.wait_show("NFileDescriptorStore", |n| n == "4");
        }
        assert!(unit.reload());
    }
    unit.save();
    unit.wait_show("NFileDescriptorStore", |n| n == "4");

    // One that is bound later is kept for as long as it is there.
    assert!(unit.get("/listen").contains("Some(Ok(()))"));
    unit.wait_show("NFileDescriptorStore", |n| n == "5");
    unit.get("/unlisten");
    unit.wait_show("NFileDescriptorStore", |n| n == "4");

    // What the next release does not want is taken out: the listener, and the state.
    let address = unit.address.to_string();
    let command = ["/usr/local/bin/handover", "upgrade", "--socket", "/run/control", "--"];
    let next = ["store:", "control:/run/control", &format!("tcp:http={address}")];
    let ran = unit.systemd.run(&[&command[..], &next].concat());
    assert!(ran.success(), "{ran:?}");
    unit.wait_show("NFileDescriptorStore", |n| n == "2");
    // And what it does not keep at all.
    let next = ["control:/run/control", &format!("tcp:http={address}")];
    assert!(unit.systemd.run(&[&command[..], &next].concat()).success());
    assert_eq!(unit.answered_by(), unit.main_pid());
    unit.wait_show("NFileDescriptorStore", |n| n == "0");
}

fn who_does_not_use_the_store_takes_what_is_left_there_and_leaves_nothing(systemd: Systemd) {
    let unit = Unit::new(systemd, ARGUMENTS, LINES);
    let first = unit.start();
    unit.save();
    unit.write("tcp:http=ADDRESS state:count", LINES);
    let load = unit.load();
    unit.signal(first, Signal::KILL);

    let next = load.wait_answered_by(|pid| pid != first, soon()).unwrap();
    unit.wait_journal(&format!("state {next} count version 7 saved: "));
    unit.wait_show("NFileDescriptorStore", |n| n == "0");
    assert!(unit.get("/save").contains("Nowhere"));
    let outcome = load.stop();
    assert!(
        outcome.lost.iter().all(|lost| matches!(lost.what, Fault::Reset | Fault::Cut)),
        "{outcome}"
    );
}

fn what_does_not_fit_is_said_at_the_start(systemd: Systemd) {
    let lines = LINES.replace("Restart=always", "Restart=no");
    let lines = lines.replace("StoreMax=8", "StoreMax=2");
    let unit = Unit::new(systemd, ARGUMENTS, &lines);
    assert!(!unit.systemd.systemctl(&["start", UNIT]).success());
    unit.wait_journal("there are 4 descriptors for the fd store, which takes 2");
    unit.wait_journal("FileDescriptorStoreMax=4");
}

fn without_room_for_a_store_there_is_an_error(systemd: Systemd) {
    let lines = "Type=notify-reload";
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store:", lines);
    assert!(!unit.systemd.systemctl(&["start", UNIT]).success());
    unit.wait_journal("there are 1 descriptors for the fd store, which takes 0");
}

fn what_does_not_fit_fails_an_upgrade_and_a_later_listener(systemd: Systemd) {
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let lines = LINES.replace("StoreMax=8", "StoreMax=2");
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store: control:/run/control", &lines);
    let main = unit.start();
    let late = unit.get("/listen");
    assert!(late.contains("there are 3 descriptors for the fd store, which takes 2"), "{late}");

    let address = format!("tcp:http={}", unit.address);
    let command = ["/usr/local/bin/handover", "upgrade", "--socket", "/run/control", "--"];
    let next = ["store:", "control:/run/control", &address, "tcp:more=127.0.0.1:0"];
    let ran = unit.systemd.run(&[&command[..], &next].concat());
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(ran.stdout.contains("FileDescriptorStoreMax=3"), "{ran:?}");
    assert_eq!((unit.main_pid(), unit.answered_by()), (main, main));
}

fn the_watchdog_leaves_listeners_and_state(systemd: Systemd) {
    let lines = format!("{LINES}\nWatchdogSec=3\nTimeoutAbortSec=1\nLimitCORE=0");
    let unit = Unit::new(systemd, &format!("{ARGUMENTS} ill:FOLDER/ill"), &lines);
    let first = unit.start();
    unit.save();
    unit.leave("ill", "");
    unit.wait_journal("Watchdog timeout");
    unit.remove("ill");
    let next = recheck(soon(), || unit.systemd.main_pid(UNIT).filter(|pid| *pid != first));
    let next = next.expect("it is started again");
    unit.wait_journal(&format!("state {next} count version 7 saved: "));
    assert_eq!(unit.answered_by(), unit.main_pid());
}

fn a_reexecuted_manager_is_told_as_before(systemd: Systemd) {
    let unit = Unit::new(systemd, ARGUMENTS, LINES);
    unit.start();
    let load = unit.load();
    assert!(unit.reload());
    assert!(unit.systemd.systemctl(&["daemon-reexec"]).success());
    let before = unit.main_pid();
    assert!(unit.reload());
    assert_ne!(unit.main_pid(), before);
    unit.save();
    unit.wait_show("NFileDescriptorStore", |n| n == "2");
    load.stop().assert_nothing_lost();
}

fn a_name_that_is_too_long_is_said(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store:", LINES);
    unit.start();
    let told = unit.get("/listen-long");
    assert!(told.contains("is too long for the fd store"), "{told}");
    unit.wait_show("NFileDescriptorStore", |n| n == "1");
}

fn a_restart_on_probation_leaves_the_sockets_to_the_next_process(systemd: Systemd) {
    let arguments = "tcp:http=ADDRESS unix:u=FOLDER/u store: probation:60000";
    let unit = Unit::new(systemd, arguments, LINES);
    let mut main = unit.start();
    let load = unit.load();
    for _ in 0..2 {
        let reload = unit.begin("reload");
        let second = load.wait_answered_by(|pid| pid != main, soon()).unwrap();
        assert_eq!(unit.main_pid(), main, "it is on probation");
        assert!(unit.systemd.systemctl(&["restart", UNIT]).success());
        main = load.wait_answered_by(|pid| pid != main && pid != second, soon()).unwrap();
        drop(reload);
        unit.wait_show("NFileDescriptorStore", |n| n == "2");
    }
    load.stop().assert_nothing_lost();

    unit.signal(main, Signal::KILL);
    assert_ne!(unit.answered_by(), main);
    unit.wait_show("SubState", |state| state == "running");
    assert_eq!(unit.show("NRestarts"), "1");
}

fn a_state_that_takes_long_to_write_holds_nothing_up(systemd: Systemd) {
    let lines = format!("{LINES}\nWatchdogSec=5\nLimitCORE=0");
    let arguments = "tcp:http=ADDRESS store: gate:FOLDER/gate state:count";
    let unit = Unit::new(systemd, arguments, &lines);
    unit.start();
    let gate = unit.systemd.folder().join("gate");
    assert!(unit.systemd.run(&["mkfifo", gate.to_str().unwrap()]).success());
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| unit.get("/save"));
        unit.wait_journal("waiting ");
        let reload = unit.begin("reload");
        // The waiter is not held up: it tells, and gives signs of life.
        unit.wait_show("StatusText", |text| text.contains("upgrade to 2"));
        for _ in 0..4 {
            let before = unit.show("WatchdogTimestampMonotonic");
            unit.wait_show("WatchdogTimestampMonotonic", |now| now != before);
        }
        // For who waits, and for who comes after.
        let mut open = std::fs::OpenOptions::new().read(true).write(true).open(&gate).unwrap();
        std::io::Write::write_all(&mut open, &[b'.'; 64]).unwrap();
        assert!(saving.join().unwrap().contains("InFdStore"));
        assert!(reload.finish(soon()).unwrap().status.success());
        std::fs::remove_file(&gate).unwrap();
    });
    assert_eq!(unit.answered_by(), unit.main_pid());
    assert_eq!(unit.show("NRestarts"), "0");
}

fn a_service_with_a_store_can_move_to_sockets_of_systemd(systemd: Systemd) {
    let unit = Unit::new(systemd, "tcp:http=ADDRESS store:", LINES);
    unit.start();
    let more = free_address();
    let text = format!(
        "[Socket]\nListenStream={more}\nFileDescriptorName=http\nService=subject.service\n"
    );
    unit.put("http.socket", &text);
    unit.write(&format!("tcp:http={more} store:"), &format!("{LINES}\nSockets=http.socket"));
    // Which keeps the store.
    assert!(unit.systemd.systemctl(&["restart", UNIT]).success());
    assert_eq!(unit.systemd.show("http.socket", "ActiveState"), "active");
    let main = unit.main_pid();
    unit.wait_journal(&format!("started {main} successor false recovery true"));
    unit.wait_journal(&format!("claimed {main} http {more}"));
    unit.wait_show("NFileDescriptorStore", |n| n == "0");
}

fn what_is_left_for_later_stays_in_the_store(systemd: Systemd) {
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let arguments = "tcp:http=ADDRESS tcp:more=127.0.0.1:0 control:/run/control store:";
    let unit = Unit::new(systemd, arguments, LINES);
    unit.start();
    unit.wait_show("NFileDescriptorStore", |n| n == "3");
    let address = format!("tcp:http={}", unit.address);
    let command = ["/usr/local/bin/handover", "upgrade", "--socket", "/run/control", "--"];
    let next = [&address, "later:more", "control:/run/control", "store:"];
    assert!(unit.systemd.run(&[&command[..], &next].concat()).success());
    let main = unit.main_pid();
    unit.wait_journal(&format!("later {main} more true"));
    unit.wait_show("StatusText", |text| text == "generation 2 serves");
    unit.wait_show("NFileDescriptorStore", |n| n == "3");
}
