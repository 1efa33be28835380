//! What the log holds, at its most talkative, and what it does not.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use handover::control::{Answer, Client, Request, UpgradeRequest, VerdictOutcome};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, Service, example, soon};

use crate::common::status;
use crate::whole::{Caller, Whole};

const SECRET: &str = "hunter2-7c1f";

/// Asserts that the service logs all there is, and that the secret is not in it.
#[track_caller]
fn assert_kept(service: &Service) {
    let lines = service.lines();
    let levels = ["TRACE", "DEBUG", "INFO"];
    let logged = lines.iter().any(|line| levels.iter().any(|level| line.text.contains(level)));
    assert!(logged, "{lines:?}");
    let told = lines.iter().find(|line| line.text.contains(SECRET));
    assert!(told.is_none(), "{told:?}");
}

#[test]
fn no_state_variable_or_unread_byte_is_logged_or_told_to_operators() {
    let folder = Folder::create();
    let whole = Whole::with(folder, |folder| {
        let launch = Launch::of(example("subject_whole")).arg(folder.path()).arg("--log");
        launch.env("SECRET", SECRET)
    });
    let mut events = Client::connect(whole.control()).unwrap();
    events.send(&Request::Events {}).unwrap();
    let mut caller = Caller::new(whole.address);
    let first = caller.call("hello");
    caller.send(SECRET);
    let environment = [("TOKEN".to_owned(), Some(SECRET.to_owned()))].into();
    let how = UpgradeRequest { environment, ..UpgradeRequest::default() };
    let Answer::Verdict(verdict) = whole.ask(&Request::Upgrade(how)) else { panic!("no verdict") };
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    let goes_on = whole.service.wait_line(|line| line.contains("it goes on here"), soon()).unwrap();
    assert!(goes_on.contains(&format!("unread_bytes: {}", SECRET.len())), "{goes_on}");
    caller.send("\n");
    let (second, heard) = caller.hear();
    assert_eq!(heard, SECRET);
    assert_ne!(first, second);

    // One that fails, and a line that is none.
    let executable = Some("/nonexistent".to_owned());
    let environment = [("TOKEN".to_owned(), Some(SECRET.to_owned()))].into();
    let how = UpgradeRequest { executable, environment, ..UpgradeRequest::default() };
    let Answer::Verdict(verdict) = whole.ask(&Request::Upgrade(how)) else { panic!("no verdict") };
    assert_eq!(verdict.outcome, VerdictOutcome::Failed, "{verdict:?}");
    let mut bad = std::os::unix::net::UnixStream::connect(whole.control()).unwrap();
    bad.write_all(format!("{{\"request\":\"upgrade\",\"environment\":\"{SECRET}\n").as_bytes())
        .unwrap();
    let mut answer = [0; 64];
    assert!(bad.read(&mut answer).unwrap() > 0);
    let told = serde_json::to_string(&status(&whole.control())).unwrap();
    assert!(!told.contains(SECRET), "{told}");
    drop(caller);
    whole.stop(second);
    while let Ok(Some(line)) = events.next_line_within(Some(Duration::from_secs(10))) {
        let line = String::from_utf8(line).unwrap();
        assert!(!line.contains(SECRET), "{line}");
    }
    assert_kept(&whole.service);
}

#[test]
fn no_header_query_or_body_is_logged() {
    let folder = Folder::create();
    let launch = Launch::of(example("subject_http")).arg(folder.path());
    let service = launch.args(["--log-all", "--drain-timeout", "500"]).start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = &line["listening on ".len()..];
    let send = |text: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let secret = format!("Host: test\r\nAuthorization: {SECRET}\r\nCookie: {SECRET}\r\n");
    let last = "Connection: close\r\n\r\n";
    let answered = [
        format!("GET /?token={SECRET} HTTP/1.1\r\n{secret}{last}"),
        format!("POST /sum HTTP/1.1\r\n{secret}Content-Length: 12\r\n{last}{SECRET}"),
        // Each of these is none.
        format!("{SECRET}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{SECRET} {SECRET}\r\n\r\n"),
        format!("GET / HTTP/9.9\r\n{secret}\r\n"),
        format!("POST /sum HTTP/1.1\r\n{secret}Content-Length: {SECRET}\r\n\r\n"),
        format!("POST /sum HTTP/1.1\r\n{secret}Transfer-Encoding: chunked\r\n\r\n{SECRET}\r\n"),
    ];
    for text in answered {
        let mut stream = send(&text);
        // The end may be a reset: what was sent was not read.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // Those that are cut by the end of the drain are told of.
    let halves = [
        format!("GET /never?token={SECRET} HTTP/1.1\r\n{secret}\r\n"),
        format!("POST /sum HTTP/1.1\r\n{secret}Content-Length: 1000\r\n\r\n{SECRET}"),
        format!("GET /{SECRET} HTTP/1.1\r\n{secret}"),
    ];
    let _halves = halves.map(|text| send(&text));
    let server = service.pid();
    process::signal(server, Signal::HUP);
    let next = format!("serving {server}");
    let is_next = |line: &str| line.starts_with("serving ") && !line.starts_with(&next);
    let line = service.wait_line(is_next, soon()).unwrap();
    assert!(process::exited(server, soon()));
    process::signal(line["serving ".len()..].parse().unwrap(), Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
    let lines = service.lines();
    assert!(lines.iter().any(|line| line.text.contains("GET /never for ")), "{lines:?}");
    assert_kept(&service);
}
