//! Clients that behave badly: nothing happens to the service.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use handover_testkit::process::{self, Signal};
use handover_testkit::{recheck, soon};

use crate::stage::{Stage, wait_exited};

#[test]
fn a_client_that_sends_a_line_without_end_is_told_and_costs_no_memory() {
    const CHUNK_BYTES: usize = 1 << 20;
    // Far more than can be taken from it before it is cut off.
    const CHUNKS: usize = 1 << 16;
    let stage = Stage::new(&["--log"]);
    let before = stage.serving();
    let memory = process::rss_bytes(before.1);
    for _ in 0..3 {
        let mut client = UnixStream::connect(stage.socket()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let chunk = vec![b'x'; CHUNK_BYTES];
        let broken = (0..CHUNKS).find_map(|_| client.write_all(&chunk).err());
        let kind = broken.expect("it is cut off before it has sent 64 GiB").kind();
        assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind:?}");
        let mut told = Vec::new();
        // What is left unread at the other end makes of the end a reset.
        let _ = client.read_to_end(&mut told);
        let told = String::from_utf8(told).unwrap();
        assert!(told.contains(r#""code":"too-long""#), "{told:?}");
    }
    let grown = process::rss_bytes(before.1).saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes");
    stage.assert_unharmed(before);
}

#[test]
fn a_thousand_idle_clients_keep_nobody_from_asking_and_are_logged_once() {
    let stage = Stage::new(&["--log"]);
    let before = stage.serving();
    let fds = process::fds(before.1).len();
    let idle: Vec<_> = (0..1000).map(|_| UnixStream::connect(stage.socket()).unwrap()).collect();
    assert_eq!(stage.serving(), before);
    let answered = stage.run("call", &["echo", r#"{"a":1}"#]);
    assert_eq!(answered.code, 0, "{answered:#?}");
    stage.upgrade(&[]);
    let lines = stage.service.lines();
    let complaints = lines.iter().filter(|line| line.text.contains("too many clients"));
    assert_eq!(complaints.count(), 1);
    drop(idle);
    let now = stage.serving();
    let settled = || (process::fds(now.1).len() <= fds + 8).then_some(());
    assert!(recheck(soon(), settled).is_some(), "{:?}", process::fds(now.1));
    stage.assert_unharmed(now);
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_its_upgrade_changes_nothing() {
    let stage = Stage::new(&["--log"]);
    let before = stage.serving();
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path()));
    let skip = stage.service.line_count();
    let client = stage.begin("upgrade", &[]);
    stage.line_after(skip, "waiting ");
    process::signal(client.pid(), Signal::KILL);
    wait_exited(client.pid());
    assert_eq!(stage.serving(), before);
    gate.open();
    stage.line_after(skip, "serving ");
    let now = stage.serving();
    assert_eq!(now.0, before.0 + 1);
    stage.assert_unharmed(now);
}

#[test]
fn a_client_that_vanishes_while_it_waits_for_its_turn_has_none() {
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let gate = stage.gate("gate");
    stage.script(&format!("ready wait {}", gate.path()));
    let skip = stage.service.line_count();
    let first = stage.begin("upgrade", &[]);
    stage.line_after(skip, "waiting ");
    // Raw: to be sure that it is heard before it goes.
    let mut second = UnixStream::connect(stage.socket()).unwrap();
    second.write_all(b"{\"request\":\"upgrade\",\"wait\":true}\n").unwrap();
    assert_eq!(stage.serving(), before);
    drop(second);
    assert_eq!(stage.serving(), before);
    stage.script("");
    gate.open();
    assert_eq!(first.finish().code, 0);
    let now = stage.serving();
    assert_eq!(now.0, before.0 + 1);
    stage.assert_unharmed(now);
}

#[test]
fn commands_of_the_application_answer_fail_panic_or_are_unknown() {
    const REFUSED: i32 = 8;
    let stage = Stage::new(&[]);
    let before = stage.serving();
    let echo = stage.run("call", &["echo", r#"{"level":"debug"}"#]);
    assert_eq!(echo.code, 0, "{echo:#?}");
    let value: serde_json::Value = serde_json::from_str(&echo.stdout).unwrap();
    assert_eq!(value, serde_json::json!({"level": "debug"}));
    for (name, says) in [
        ("fail", "refused: as asked"),
        ("panic", "refused: the application's code panicked"),
        ("unheard-of", "there is no request \"unheard-of\": there are status, "),
    ] {
        let ended = stage.run("call", &[name]);
        assert_eq!((ended.code, &*ended.stdout), (REFUSED, ""), "{ended:#?}");
        assert!(ended.stderr.contains(says), "{ended:#?}");
        let json = stage.run("call", &["--json", name]);
        assert_eq!((json.code, &json.last()["type"]), (REFUSED, &"error".into()), "{json:#?}");
    }
    stage.assert_unharmed(before);
}
