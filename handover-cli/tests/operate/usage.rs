//! How the command explains itself, and what it makes of wrong calls.

use std::fs;

use crate::service::{Ended, handover};

fn run(args: &[&str]) -> Ended {
    handover(args).output().unwrap().into()
}

const OPERATING: &[&str] = &["upgrade", "status", "stop", "rollback", "confirm", "events", "call"];

#[test]
fn every_command_explains_itself() {
    for command in OPERATING {
        let ended = run(&[command, "--help"]);
        assert_eq!(ended.code, 0, "{command}");
        for option in ["--socket <PATH>", "[env: HANDOVER_SOCKET]", "--json", "--timeout <TIME>"] {
            assert!(ended.stdout.contains(option), "{command}: {option}");
        }
        assert_eq!(ended.stderr, "");
    }
    for command in ["verify", "demo", "unit", "doctor", "completions", "man"] {
        assert_eq!(run(&[command, "--help"]).code, 0, "{command}");
    }
    let help = run(&["--help"]).stdout;
    for command in OPERATING {
        assert!(help.contains(&format!("\n  {command}  ")), "{command}: {help}");
    }
    assert!(help.contains("Exit codes:") && help.contains("Examples:"), "{help}");
    assert!(!help.contains("demo-service"), "{help}");
}

#[test]
fn a_service_must_be_named() {
    for command in OPERATING {
        let args = if *command == "call" { vec![*command, "x"] } else { vec![*command] };
        let ended = run(&args);
        assert_eq!(ended.code, 2, "{command}");
        let hint = "Give --socket PATH, or set HANDOVER_SOCKET";
        assert!(ended.stderr.contains(hint), "{command}: {ended:?}");
        assert!(ended.stderr.contains(&format!("Usage: handover {command}")), "{ended:?}");

        let ended: Ended = handover(&args).env("HANDOVER_SOCKET", "").output().unwrap().into();
        assert_eq!(ended.code, 2, "an empty variable names no service: {command}");
    }
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    for (args, complaint) in [
        (&["upgrade", "--probation", "soon"][..], "--probation"),
        (&["upgrade", "--ready-timeout", "0s"], "must be longer than nothing"),
        (&["upgrade", "--env", "NAME"], "must be NAME=VALUE"),
        (&["upgrade", "--env", "A=1", "--env-remove", "A"], "A cannot be both set"),
        (&["upgrade", "--argument", "a", "--", "b"], "cannot be used with"),
        (&["upgrade", "--no-arguments", "--", "b"], "cannot be used with"),
        (&["upgrade", "/srv/app"], "unexpected argument"),
        (&["status", "--watch", "0"], "must be longer than nothing"),
        (&["status", "--timeout", "0s"], "must be longer than nothing"),
        (&["stop", "--now", "--drain-timeout", "1s"], "cannot be used with"),
        (&["rollback", "--reason"], "a value is required"),
        (&["confirm", "now"], "unexpected argument"),
        (&["events", "--once"], "unexpected argument"),
        (&["call", "status"], "see `handover status --help`"),
        (&["call", "x", "[1]"], "must be a JSON object"),
        (&["call"], "<NAME>"),
        (&["completions", "cmd"], "possible values"),
    ] {
        let mut command = handover(args);
        let ended: Ended = command.env("HANDOVER_SOCKET", "/nowhere").output().unwrap().into();
        assert_eq!(ended.code, 2, "{args:?}");
        assert!(ended.stderr.contains(complaint), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn there_are_completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = run(&["completions", shell]);
        assert_eq!(ended.code, 0, "{shell}");
        assert!(ended.stdout.contains("no-wait-probation"), "{shell}");
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    assert_eq!(run(&["man", pages.to_str().unwrap()]).code, 0);
    let mut names: Vec<_> = fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected = vec!["handover.1".to_owned()];
    let commands =
        OPERATING.iter().chain(&["verify", "demo", "unit", "doctor", "completions", "man"]);
    expected.extend(commands.map(|command| format!("handover-{command}.1")));
    expected.sort();
    assert_eq!(names, expected);
    let page = fs::read_to_string(pages.join("handover-upgrade.1")).unwrap();
    assert!(page.contains("no\\-wait\\-probation"), "{page}");

    let ended = run(&["man"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.contains(".TH handover 1"), "{}", ended.stdout);
    let ended = run(&["man", "/proc/nowhere"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("cannot write the manual pages to /proc/nowhere"), "{ended:?}");
}
