//! The units of docs/operations.md, as they stand there.

use std::path::Path;

use handover_testkit::{Fault, Load, Signal, Systemd, binary, example, soon};

use crate::on_every_systemd;
use crate::stage::free_address;

on_every_systemd! {
    the_plain_unit,
    the_unit_with_a_socket,
    the_unit_that_survives_crashes,
}

const UNIT: &str = "web.service";

/// The address in the units.
const ADDRESS: &str = "127.0.0.1:8080";

/// Installs the units of a section, and what they run. Returns the names of the units and a load on
/// the address that is theirs.
fn install(systemd: &Systemd, section: &str) -> (Vec<String>, Load) {
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md"),
    );
    let text = text.unwrap();
    let (_, section) = text.split_once(&format!("\n### {section}\n")).expect("a section");
    let section = section.split("\n### ").next().unwrap();
    let blocks = section.split("```ini\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    systemd.install(example("http"), "/usr/local/bin/web");
    systemd.install(binary("handover"), "/usr/local/bin/handover");
    let address = free_address();
    let mut names = Vec::new();
    for block in blocks {
        let path = block.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        let name = path.strip_prefix("/etc/systemd/system/").unwrap();
        systemd.put_unit(name, &block.replace(ADDRESS, &address.to_string()));
        names.push(name.to_owned());
    }
    let names_only = names.iter().map(String::as_str);
    let verify: Vec<&str> = ["systemd-analyze", "verify"].into_iter().chain(names_only).collect();
    let verified = systemd.run(&verify);
    assert!(verified.success() && verified.stderr.is_empty(), "{verified:?}");
    assert!(names.iter().any(|name| name == UNIT), "{names:?}");
    systemd.start_unit(names.first().unwrap());
    let load = Load::http(address).start();
    load.wait_answers(1, soon()).unwrap();
    (names, load)
}

/// A bad version fails the reload and changes nothing, a good one succeeds.
fn roll_out(systemd: &Systemd, load: &Load) {
    let before = systemd.main_pid(UNIT).unwrap();
    systemd.write("/usr/local/bin/next", "#!/bin/sh\necho out of luck >&2\nexit 9\n");
    assert!(systemd.run(&["chmod", "755", "/usr/local/bin/next"]).success());
    assert!(systemd.run(&["mv", "/usr/local/bin/next", "/usr/local/bin/web"]).success());
    assert!(!systemd.systemctl(&["reload", UNIT]).success());
    assert_eq!(systemd.main_pid(UNIT), Some(before));
    assert_eq!(systemd.show(UNIT, "ActiveState"), "active");
    systemd.wait_journal(UNIT, |line| line.contains("out of luck"), soon());

    systemd.install(example("http"), "/usr/local/bin/web");
    for _ in 0..3 {
        let before = systemd.main_pid(UNIT).unwrap();
        let reload = systemd.systemctl(&["reload", UNIT]);
        assert!(reload.success(), "{}", systemd.report(UNIT));
        let main = systemd.main_pid(UNIT).unwrap();
        assert_ne!(main, before);
        load.wait_answered_by(|pid| pid == main, soon()).unwrap();
    }
}

fn stop(systemd: &Systemd, names: &[String]) {
    for name in names {
        assert!(systemd.systemctl(&["stop", name]).success(), "{}", systemd.report(name));
    }
    assert_eq!(systemd.show(UNIT, "Result"), "success");
}

fn the_plain_unit(systemd: Systemd) {
    let (names, load) = install(&systemd, "A plain unit");
    roll_out(&systemd, &load);
    load.stop().assert_nothing_lost();
    stop(&systemd, &names);
}

fn the_unit_with_a_socket(systemd: Systemd) {
    let (names, load) = install(&systemd, "Sockets from systemd");
    roll_out(&systemd, &load);
    // Nobody is refused, also not by a restart.
    assert!(systemd.systemctl(&["restart", UNIT]).success());
    let main = systemd.main_pid(UNIT).unwrap();
    load.wait_answered_by(|pid| pid == main, soon()).unwrap();
    load.stop().assert_nothing_lost();
    stop(&systemd, &names);
}

fn the_unit_that_survives_crashes(systemd: Systemd) {
    let (names, load) = install(&systemd, "Through crashes");
    roll_out(&systemd, &load);
    let killed = systemd.main_pid(UNIT).unwrap();
    handover_testkit::process::signal(systemd.main(UNIT), Signal::KILL);
    load.wait_answered_by(|pid| pid != killed, soon()).unwrap();
    let outcome = load.stop();
    let accepted = |fault: &Fault| matches!(fault, Fault::Reset | Fault::Cut);
    assert!(outcome.lost.iter().all(|lost| accepted(&lost.what)), "{outcome}");
    stop(&systemd, &names);
}
