//! The demo shows a lossless handover, and leaves nothing behind however it ends.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

#[test]
fn the_demo_loses_nothing_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &["--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["lost"], 0);
    assert_eq!(report["upgrades_done"], 2);
    assert_eq!(report["answerers"], 3);
    assert_eq!(report["verdicts"]["succeeded"], 2);
    assert!(report["commit_us"]["max"].is_u64());
    assert_nothing_is_left(folder.path());
}

#[test]
fn people_are_told_what_became_of_the_requests() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &[]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("A service replaced itself twice under load.\n"), "{text}");
    assert!(text.contains("were answered, none was lost"), "{text}");
    assert!(!text.contains(&folder.path().display().to_string()), "{text}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn an_interrupted_demo_fails_and_leaves_nothing() {
    for signals in [&["-INT"][..], &["-TERM"], &["-INT", "-INT"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = demo(folder.path(), &["--upgrades", "1000"]);
        let mut demo = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until_a_service_runs(folder.path());
        for signal in signals {
            let pid = demo.id().to_string();
            assert!(Command::new("kill").args([*signal, &pid]).status().unwrap().success());
        }
        let code = exit_code(&mut demo);
        assert!(matches!(code, Some(1 | 130)), "{signals:?}: {code:?}");
        assert_nothing_is_left(folder.path());
    }
}

fn demo(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
    command.arg("demo").args(["--every", "200ms", "--rate", "100", "--keep-alive", "5"]);
    if !args.contains(&"--upgrades") {
        command.args(["--upgrades", "2"]);
    }
    command.args(args).env("TMPDIR", folder);
    command
}

fn wait_until_a_service_runs(folder: &Path) {
    let is_there = || {
        let mut entries = fs::read_dir(folder).unwrap();
        entries.any(|entry| entry.unwrap().path().join("pid").exists())
    };
    // No other event tells from outside that the service has started.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_there() {
        assert!(Instant::now() < deadline, "the demo's service does not start");
        thread::sleep(Duration::from_millis(5));
    }
}

fn exit_code(demo: &mut Child) -> Option<i32> {
    demo.wait().unwrap().code()
}

fn assert_nothing_is_left(folder: &Path) {
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "the demo's folder is still there");
    if cfg!(target_os = "linux") {
        // What was killed in the demo's last moment may take a moment longer to be gone.
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Some(left) = processes_that_name(folder).first() {
            assert!(Instant::now() < deadline, "still running: {left}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The command lines of processes that were given a path in the folder, as the demo's service is.
fn processes_that_name(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        // A process may end while it is looked at.
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|line| line.contains(folder))
        .collect()
}
