//! What the commands make of wrong calls.

use std::fs;

use crate::command::{handover, handover_in};

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let long = format!("/run/{}/control", "x".repeat(120));
    for (args, complaint) in [
        (&[][..], "<BINARY>"),
        (&["/tmp/app"], "cannot be seen by the service"),
        (&["/srv/$app"], "systemd starts no program with '$'"),
        (&["/srv/app/"], "must be the path of a file"),
        (&["/srv/my app"], "give it one with --name"),
        (&["/srv/app@1"], "template"),
        (&["--name", "a/b", "/srv/app"], "is no name for a unit"),
        (&["--description", "a\nb", "/srv/app"], "one line of text"),
        (&["--user", "a b", "/srv/app"], "is no name of a user"),
        (&["--env", "A", "/srv/app"], "must be NAME=VALUE"),
        (&["--listen", "80", "/srv/app"], "must be NAME=ADDRESS"),
        (&["--listen", "a=host:80", "/srv/app"], "is no address; write"),
        (&["--listen", "a=80", "--listen", "a=80", "/srv/app"], "is there twice"),
        (&["--control", "control", "/srv/app"], "must be an absolute path"),
        (&["--control", "/run/control", "/srv/app"], "such as /run/app/control"),
        (&["--control", "/tmp/a/control", "/srv/app"], "put it at /run/app/control"),
        (&["--control", "/srv/a/control", "/srv/app"], "or give --user"),
        (&["--control", &long, "/srv/app"], "at most 107 bytes"),
        (&["--fd-store", "0", "/srv/app"], "--fd-store"),
        (&["--watchdog", "0s", "/srv/app"], "must be longer than nothing"),
        (&["--drain-timeout", "2years", "/srv/app"], "longer than a year"),
        (&["--drain-timeout", "1us", "/srv/app"], "below a millisecond"),
        (&["--handover", "handover", "/srv/app"], "--handover says where"),
        (&["--handover", "/tmp/handover", "/srv/app"], "--handover says where"),
        (&["--reload", "kill", "/srv/app"], "possible values: upgrade, signal"),
        (&["--force", "/srv/app"], "--output <DIR>"),
        (&["/srv/app", "--config"], "unexpected argument"),
    ] {
        // Wherever it was built: a home directory, or one for temporary files.
        let command: &[&str] =
            if args.contains(&"--handover") { &[] } else { &["--handover", "/usr/bin/handover"] };
        let ended = handover(&[&["unit"], command, args].concat());
        assert_eq!(ended.code, 2, "{args:?} {ended:?}");
        assert!(ended.stderr.contains(complaint), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("--help"), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn a_relative_program_is_refused_with_what_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let folder = fs::canonicalize(folder.path()).unwrap();
    let ended = handover_in(&folder, &["unit", "./target/app"]);
    assert_eq!(ended.code, 2);
    let instead = format!("write {}", folder.join("target/app").display());
    assert!(ended.stderr.contains(&instead), "{ended:?}");
}
