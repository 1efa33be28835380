//! What `handover unit` writes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::command::{handover, settings, unit};

const APP: &str = "/srv/app/app";

#[test]
fn a_reload_is_an_upgrade_with_a_verdict_unless_it_is_to_be_a_signal() {
    let text = unit(&[APP]);
    assert_eq!(settings(&text, "Type"), ["notify"]);
    assert_eq!(
        settings(&text, "ExecReload"),
        ["/usr/bin/handover upgrade --socket /run/app/control"]
    );
    assert!(text.contains("# The program has to open it: Builder::control(\"/run/app/control\")"));
    assert_eq!(settings(&text, "RuntimeDirectory"), ["app"]);
    assert_eq!(settings(&text, "RuntimeDirectoryPreserve"), ["restart"]);

    let text = unit(&["--reload", "signal", APP]);
    assert_eq!(settings(&text, "Type"), ["notify-reload"]);
    assert!(settings(&text, "ExecReload").is_empty() && !text.contains("RuntimeDirectory"));
    assert!(text.contains("253"), "the release that it needs: {text}");
}

#[test]
fn systemd_waits_longer_than_the_program() {
    let text = unit(&[APP]);
    assert_eq!(settings(&text, "TimeoutStartSec"), ["90s"]);
    assert_eq!(settings(&text, "TimeoutStopSec"), ["45s"]);
    let text = unit(&["--drain-timeout", "2m", "--ready-timeout", "1500ms", APP]);
    assert_eq!(settings(&text, "TimeoutStartSec"), ["31s 500ms"]);
    assert_eq!(settings(&text, "TimeoutStopSec"), ["135s"]);
}

#[test]
fn the_sockets_of_a_name_share_a_unit() {
    let text = unit(&[
        "--listen",
        "http=127.0.0.1:80",
        "--listen",
        "dns=udp:53",
        "--listen",
        "http=[::1]:80",
        "--listen",
        "x=seqpacket:/run/x",
        "--listen",
        "f=fifo:/run/f",
        APP,
    ]);
    let units: Vec<_> = text.lines().filter(|line| line.starts_with("# /etc/systemd")).collect();
    assert_eq!(units.len(), 5, "{text}");
    assert_eq!(settings(&text, "ListenStream"), ["127.0.0.1:80", "[::1]:80"]);
    assert_eq!(settings(&text, "ListenDatagram"), ["53"]);
    assert_eq!(settings(&text, "ListenSequentialPacket"), ["/run/x"]);
    assert_eq!(settings(&text, "ListenFIFO"), ["/run/f"]);
    assert_eq!(settings(&text, "FileDescriptorName"), ["http", "dns", "x", "f"]);
    let names = "app-http.socket app-dns.socket app-x.socket app-f.socket";
    assert_eq!(settings(&text, "Sockets"), [names]);
    assert_eq!(settings(&text, "Also"), [names]);
    assert_eq!(settings(&text, "Service"), ["app.service"; 4]);
}

#[test]
fn what_is_asked_for_is_set() {
    let text = unit(&[
        "--name",
        "web",
        "--description",
        "The 100% web",
        "--fd-store",
        "8",
        "--watchdog",
        "30s",
        "--user",
        "www",
        "--state-directory",
        "--env",
        "A=b $c",
        "--allow-low-ports",
        APP,
        "--",
        "-c",
        "a b",
    ]);
    for (name, value) in [
        ("Description", "The 100%% web"),
        ("FileDescriptorStoreMax", "8"),
        ("WatchdogSec", "30s"),
        ("User", "www"),
        ("StateDirectory", "web"),
        ("Environment", "\"A=b $c\""),
        ("AmbientCapabilities", "CAP_NET_BIND_SERVICE"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
        ("ExecStart", "/srv/app/app -c \"a b\""),
        ("RuntimeDirectory", "web"),
    ] {
        assert_eq!(settings(&text, name), [value], "{name}");
    }
    assert!(!text.contains("DynamicUser"), "{text}");
}

#[test]
fn a_control_socket_elsewhere_has_its_directory() {
    let text = unit(&["--control", "/run/a/b/c", APP]);
    assert_eq!(settings(&text, "RuntimeDirectory"), ["a/b"]);
    let text = unit(&["--control", "/srv/app/run/control", "--user", "app", APP]);
    assert_eq!(settings(&text, "ReadWritePaths"), ["/srv/app/run"]);
    let text = unit(&["--control", "/var/lib/app/control", "--state-directory", APP]);
    assert_eq!(settings(&text, "StateDirectory"), ["app"]);
    assert!(settings(&text, "RuntimeDirectory").is_empty());
}

#[test]
fn a_program_in_a_home_directory_is_seen() {
    let text = unit(&["/home/me/app"]);
    assert_eq!(settings(&text, "ProtectHome"), ["read-only"]);
    assert_eq!(settings(&unit(&[APP]), "ProtectHome"), ["yes"]);
}

#[test]
fn files_are_written_all_or_none_and_not_over_others() {
    let folder = tempfile::tempdir().unwrap();
    let units = folder.path().join("units");
    let directory = units.to_str().unwrap();
    let command = ["unit", "--handover", "/usr/bin/handover"];
    let args = [&command[..], &["--listen", "http=80", "--output", directory, APP]].concat();
    let ended = handover(&args);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("enable --now app-http.socket app.service"), "{ended:?}");
    let service = units.join("app.service");
    let text = fs::read_to_string(&service).unwrap();
    assert_eq!(settings(&text, "Sockets"), ["app-http.socket"]);
    let socket = fs::read_to_string(units.join("app-http.socket")).unwrap();
    assert_eq!(settings(&socket, "ListenStream"), ["80"]);

    fs::remove_file(&service).unwrap();
    let ended = handover(&args);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("app-http.socket is there already; --force"), "{ended:?}");
    assert!(!service.exists(), "nothing is written if one is there");

    // A masked unit is there as well, and its link is replaced.
    std::os::unix::fs::symlink("/dev/null", &service).unwrap();
    let ended = handover(&[&["unit", "--force"], &args[1..]].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(fs::read_to_string(&service).unwrap(), text);
    let metadata = fs::symlink_metadata(&service).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
    assert_eq!(fs::read_dir(&units).unwrap().count(), 2, "nothing else is left");
}
