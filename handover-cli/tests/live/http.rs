//! The example that people start with, operated by the command.

use std::net::SocketAddr;

use handover_testkit::{Folder, Launch, Load, example, recheck, soon};
use serde_json::Value;

use crate::stage::{Ended, Stage, handover};

#[test]
fn the_http_example_is_upgraded_rolled_back_and_stopped() {
    let folder = Folder::create();
    let service = Launch::of(example("http"))
        .args(["127.0.0.1:0", "--control"])
        .arg(folder.join("control"))
        .start();
    assert!(folder.wait_for("control", soon()));
    let load = Load::http(address(&folder)).start();
    let stage = Stage { service, load, folder };
    let before = stage.serving();
    stage.load.wait_answered_by(|pid| pid == before.1, soon()).unwrap();
    stage.upgrade(&[]);
    let upgrade = stage.begin("upgrade", &["--probation", "60s"]);
    upgrade.line("committed, on probation for ");
    assert_eq!(stage.run("rollback", &[]).code, 0);
    assert_eq!(upgrade.finish().code, 4);
    let rollback = stage.run("rollback", &[]);
    assert_eq!(rollback.code, 0, "{rollback:#?}");
    let now = stage.serving();
    stage.load.wait_answered_by(|pid| pid == now.1, soon()).unwrap();
    let Stage { service, load, folder } = stage;
    load.stop().assert_nothing_lost();
    let stop = handover().args(["stop", "--socket"]).arg(folder.join("control"));
    assert!(stop.start().finish(soon()).unwrap().status.success());
    service.wait_all_gone(soon()).unwrap();
}

/// Where it listens, as its status tells.
fn address(folder: &Folder) -> SocketAddr {
    let told = || {
        let status = handover().args(["status", "--json", "--socket"]).arg(folder.join("control"));
        let ended = Ended::of(&status.start().finish(soon()).unwrap());
        let status: Value = serde_json::from_str(&ended.stdout).ok()?;
        let mut listeners = status["listeners"].as_array()?.iter();
        let http = listeners.find(|listener| listener["kind"] == "tcp")?;
        http["address"].as_str()?.parse().ok()
    };
    recheck(soon(), told).expect("a service that listens")
}
