//! Releases that speak differently, as real processes: an upgrade works, or is refused with a reason that
//! names the versions, and who served serves on.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use common::Stage;
use handover::control::{Answer, Request, UpgradeRequest, VerdictOutcome, VerdictReport};
use handover_testkit::process::exited;
use handover_testkit::{Folder, Launch, Load, Pid, Service, example, soon};

/// A release that speaks version 1, whatever else it may say.
const SAME: &[&str] = &[];
const WITH_FIELDS: &[&str] = &["--fields"];
const WITH_MESSAGE: &[&str] = &["--message"];
const ONLY_V2: &[&str] = &["--versions", "2", "2"];
const V1_AND_V2: &[&str] = &["--versions", "1", "2", "--fields"];

#[test]
fn service_is_replaced_by_releases_that_speak_its_version_as_well() {
    for other in [SAME, WITH_FIELDS, V1_AND_V2] {
        let stage = Stage::controlled(&[]);
        let verdict = upgrade_to(&stage, other);
        assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{other:?}: {verdict:?}");
        let pid = verdict.pid.unwrap();
        stage.load.wait_answered_by(|answered| answered == pid, soon()).unwrap();
        stage.load.stop().assert_nothing_lost();
    }
}

#[test]
fn release_without_a_common_version_is_refused_and_the_service_serves_on() {
    let stage = Stage::controlled(&[]);
    let server = stage.server();
    let verdict = upgrade_to(&stage, ONLY_V2);
    assert_eq!(verdict.outcome, VerdictOutcome::Failed, "{verdict:?}");
    assert_eq!(verdict.reason.as_deref(), Some("incompatible"), "{verdict:?}");
    let words = verdict.message.replace(['(', ')', ',', ';', ':'], " ");
    let names = |version: &str| words.split_whitespace().any(|word| word == version);
    assert!(names("1") && names("2"), "{}", verdict.message);
    // What the other release has to say about it.
    let told = "versions: the predecessor speaks protocol version 1, this process 2";
    assert!(verdict.stderr.iter().any(|line| line == told), "{verdict:?}");
    stage.assert_unharmed(server);
}

#[test]
fn release_that_says_what_is_unknown_is_refused_by_the_name_of_it() {
    let stage = Stage::controlled(&[]);
    let server = stage.server();
    let verdict = upgrade_to(&stage, WITH_MESSAGE);
    assert_eq!(verdict.outcome, VerdictOutcome::Failed, "{verdict:?}");
    assert!(verdict.message.contains("moonrise"), "{}", verdict.message);
    stage.assert_unharmed(server);
}

#[test]
fn service_replaces_releases_that_speak_its_version_as_well() {
    for other in [SAME, WITH_FIELDS, V1_AND_V2] {
        let old = Other::start(other);
        old.ask();
        assert_eq!(old.verdict(), "verdict succeeded", "{other:?}");
        let new = old.serving(2);
        old.load.wait_answered_by(|pid| pid == new, soon()).unwrap();
        assert!(exited(old.service.pid(), soon()));
        old.load.stop().assert_nothing_lost();
    }
}

#[test]
fn service_that_has_no_version_in_common_refuses_and_the_other_release_serves_on() {
    let old = Other::start(ONLY_V2);
    old.ask();
    let expected = "verdict failed: the successor speaks protocol version 1, this process 2";
    assert_eq!(old.verdict(), expected);
    let told = old.service.wait_line(|line| line.starts_with("subject: "), soon()).unwrap();
    assert!(told.contains('1') && told.contains('2'), "{told}");
    old.assert_unharmed();
}

#[test]
fn service_that_is_told_what_is_unknown_refuses_by_the_name_of_it() {
    let old = Other::start(WITH_MESSAGE);
    old.ask();
    let verdict = old.verdict();
    assert!(verdict.contains("refused") && verdict.contains("moonrise"), "{verdict}");
    old.assert_unharmed();
}

fn upgrade_to(stage: &Stage, arguments: &[&str]) -> VerdictReport {
    let answer = stage.request(&Request::Upgrade(UpgradeRequest {
        executable: Some(example("subject_versions").to_str().unwrap().to_owned()),
        arguments: Some(arguments.iter().map(|argument| (*argument).to_owned()).collect()),
        ..UpgradeRequest::default()
    }));
    match answer {
        Answer::Verdict(verdict) => verdict,
        other => panic!("no verdict: {other:?}"),
    }
}

/// A service of another release, under load, that can hand over to this one.
struct Other {
    service: Service,
    load: Load,
    address: SocketAddr,
    _folder: Folder,
}

impl Other {
    fn start(arguments: &[&str]) -> Self {
        let folder = Folder::create();
        let service = Launch::of(example("subject_versions"))
            .args(arguments)
            .arg("--")
            .arg(example("subject"))
            .args(["--listen", "127.0.0.1:0", "--script"])
            .arg(folder.join("script"))
            .start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address = line["listening on ".len()..].parse().unwrap();
        let load = Load::http(address).start();
        load.wait_answers(1, soon()).unwrap();
        Self { service, load, address, _folder: folder }
    }

    /// Asks it to hand over.
    fn ask(&self) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"GET /upgrade HTTP/1.1\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }

    fn verdict(&self) -> String {
        self.service.wait_line(|line| line.starts_with("verdict "), soon()).unwrap()
    }

    fn serving(&self, generation: u64) -> Pid {
        let end = format!(" generation {generation}");
        let is_it = |line: &str| line.starts_with("serving ") && line.ends_with(&end);
        let line = self.service.wait_line(is_it, soon()).unwrap();
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn assert_unharmed(self) {
        let server = self.service.pid();
        self.load.wait_answered_by(|pid| pid == server, soon()).unwrap();
        assert_eq!(self.service.alive(), [server]);
        self.load.stop().assert_nothing_lost();
    }
}
