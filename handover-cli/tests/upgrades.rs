//! An upgrade counts only if it is seen, and what is wrong is said.

mod support;

use support::{FIRST_PID, Reply, Service, verify};

#[test]
fn an_upgrade_that_does_not_happen_fails_the_test() {
    let verified = Service::start(|_| Reply::Answer)
        .verify_with("true", &["--upgrade-timeout", "300ms", "--upgrades", "1"]);
    assert_eq!(verified.code, 1);
    assert_eq!(verified.count("lost"), 0, "{verified:#?}");
    assert_eq!(verified.count("upgrades_asked"), 1);
    assert_eq!(verified.count("upgrades_done"), 0);
    let why = verified.report["failed_upgrades"][0]["why"].as_str().unwrap();
    assert_eq!(why, "no other process answered within 300ms");
}

#[test]
fn a_command_that_fails_is_told_with_what_it_printed() {
    let verified = Service::start(|_| Reply::Answer)
        .verify_with("echo no such release >&2; exit 3", &["--upgrades", "1"]);
    assert_eq!(verified.code, 1);
    assert_eq!(verified.count("upgrades_done"), 0);
    let why = verified.report["failed_upgrades"][0]["why"].as_str().unwrap();
    assert_eq!(why, "COMMAND failed (exit status: 3): no such release");
}

#[test]
fn a_command_that_never_ends_is_told() {
    let service = Service::start(|_| Reply::Answer);
    let forever = format!("{}; exec sleep 1000", service.upgrade());
    let verified =
        service.verify_with(&forever, &["--upgrades", "1", "--upgrade-timeout", "500ms"]);
    assert_eq!(verified.code, 1);
    let why = verified.report["failed_upgrades"][0]["why"].as_str().unwrap();
    assert_eq!(why, "COMMAND was still running after 500ms");
}

#[test]
fn the_command_learns_the_pid_that_answers() {
    let service = Service::start(|_| Reply::Answer);
    let is_first = format!("test \"$HANDOVER_VERIFY_PID\" = {FIRST_PID}");
    let upgrade = format!("{is_first} && {}", service.upgrade());
    let verified = service.verify_with(&upgrade, &["--upgrades", "2"]);
    assert_eq!(
        verified.count("upgrades_done"),
        1,
        "the second was no longer the first: {verified:#?}"
    );
    assert_eq!(verified.code, 1);
}

#[test]
fn the_command_has_the_callers_limit_of_open_files() {
    let service = Service::start(|_| Reply::Answer);
    let soft = std::process::Command::new("sh").args(["-c", "ulimit -S -n"]).output().unwrap();
    let soft = String::from_utf8(soft.stdout).unwrap();
    let upgrade = format!("test \"$(ulimit -S -n)\" = {} && {}", soft.trim(), service.upgrade());
    service.verify_with(&upgrade, &[]).assert_nothing_lost();
}

#[test]
fn an_interrupted_test_still_accounts_for_every_request_and_fails() {
    let service = Service::start(|_| Reply::Answer);
    let verified = service.verify_with("kill -INT $PPID; exec sleep 1000", &["--upgrades", "20"]);
    assert_eq!(verified.code, 1);
    assert_eq!(verified.count("upgrades_asked"), 1);
    assert_eq!(verified.report["failed_upgrades"][0]["why"], "stopped before it was seen");
    assert_eq!(verified.count("lost"), 0);
    assert!(verified.count("requests") > 0);
    verified.assert_sums();
}

#[test]
fn the_process_that_answered_from_the_start_is_no_change() {
    let verified = Service::start(|_| Reply::Answer)
        .verify_with("true", &["--every", "0s", "--upgrade-timeout", "300ms", "--upgrades", "1"]);
    assert_eq!(verified.count("upgrades_done"), 0, "{verified:#?}");
}

#[test]
fn a_service_that_is_not_there_is_told_with_advice() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}/");
    let verified = verify(&["--json", "--url", &url, "--upgrade", "true"]);
    assert_eq!(verified.code, 1);
    assert_eq!(verified.stdout, "");
    let expected = format!(
        "handover: cannot reach {url}: the connection was refused; is the service running?\n"
    );
    assert_eq!(verified.stderr, expected);
}

#[test]
fn a_service_that_names_no_process_is_told_with_advice() {
    let verified = Service::start(|_| Reply::Anonymous).verify(&[]);
    assert_eq!(verified.code, 1);
    assert!(verified.stderr.contains("--identity-header"), "{}", verified.stderr);
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let url = "http://127.0.0.1:1/";
    for (args, complaint) in [
        (&["--url", "https://127.0.0.1/", "--upgrade", "true"][..], "https is not spoken here"),
        (&["--url", "127.0.0.1:80", "--upgrade", "true"], "http://HOST:PORT/PATH"),
        (&["--url", url, "--upgrade", "true", "--rate", "0"], "--rate"),
        (&["--url", url, "--upgrade", "true", "--timeout", "0s"], "must be longer than nothing"),
        (&["--url", url, "--upgrade", "true", "--every", "soon"], "--every"),
        (&["--url", url, "--upgrade", "true", "--upgrades", "0"], "--upgrades"),
        (&["--url", url], "--upgrade"),
    ] {
        let verified = verify(args);
        assert_eq!(verified.code, 2, "{args:?}");
        assert!(verified.stderr.contains(complaint), "{args:?}: {}", verified.stderr);
        assert_eq!(verified.stdout, "");
    }
}

#[test]
fn people_get_a_summary_that_ends_with_the_verdict() {
    let service = Service::start(|_| Reply::Answer);
    let (url, upgrade) = (service.url(), service.upgrade());
    let verified =
        verify(&["--url", &url, "--upgrade", &upgrade, "--upgrades", "1", "--every", "100ms"]);
    assert_eq!(verified.code, 0);
    assert_eq!(verified.stderr, "", "no progress bar without a terminal");
    let verdict = verified.stdout.lines().last().unwrap();
    assert!(verdict.starts_with("1 upgrades, ") && verdict.ends_with(", none lost"), "{verdict}");
}
