//! Whoever sends too much is not listened to for longer than anybody else.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::{io, thread};

use handover::control::{Answer, Client, Event, Request, UpgradeRequest, VerdictOutcome};
use handover_testkit::{process, recheck, soon};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::common::{Stage, ask};

/// The most that one message carries (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;

#[test]
fn successor_that_floods_the_channel_is_given_up_and_holds_nobody_up() {
    let stage = Stage::controlled(&["--ready-timeout", "3000"]);
    let server = stage.server();
    stage.script("start raw flood");
    let asked = stage.ask();
    asked.line("flooding ");
    // Operators are answered meanwhile.
    assert_eq!(stage.status().generations.len(), 2);
    let verdict = asked.verdict();
    assert!(verdict.contains("the successor took too long"), "{verdict}");
    stage.assert_unharmed(server);
}

#[test]
fn successor_that_sends_as_many_descriptors_as_it_can_changes_nothing() {
    let stage = Stage::new(&[]);
    let server = stage.server();
    stage.script("start raw descriptors");
    for _ in 0..5 {
        let verdict = stage.ask().verdict();
        assert!(verdict.contains("broke the protocol"), "{verdict}");
    }
    // A pipe for stdout is all that it has sent.
    let pipes = || {
        let fds = process::fds(server).into_values();
        (fds.filter(|name| name.starts_with("pipe:")).count() <= 2).then_some(())
    };
    assert!(recheck(soon(), pipes).is_some(), "{:?}", process::fds(server));
    stage.assert_unharmed(server);
}

#[test]
fn descriptors_that_a_control_client_sends_are_not_kept() {
    let stage = Stage::controlled(&[]);
    let server = stage.server();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let name = std::fs::read_link("/proc/self/exe").unwrap().display().to_string();
    let all = [file.as_fd(); DESCRIPTORS];
    let mut clients: Vec<_> =
        (0..8).map(|_| UnixStream::connect(stage.control()).unwrap()).collect();
    for client in &mut clients {
        // With a request, and with a part of one.
        for text in ["{\"request\":\"status\"}\n", "{\"request\":"] {
            send_with(client, text.as_bytes(), &all).unwrap();
        }
    }
    assert_eq!(stage.status().generations.len(), 1);
    let kept = process::fds(server).into_values().filter(|held| *held == name).count();
    assert_eq!(kept, 0);
    stage.upgrade();
    stage.load.stop().assert_nothing_lost();
}

/// Sends bytes with descriptors, all of them.
fn send_with(to: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
    let bytes = [io::IoSlice::new(bytes)];
    Ok(sendmsg(to, &bytes, &mut ancillary, SendFlags::NOSIGNAL).map(drop)?)
}

#[test]
fn the_greatest_numbers_that_can_be_asked_for_do_no_harm() {
    let stage = Stage::controlled(&[]);
    let most = Some(u64::MAX);
    let how = UpgradeRequest {
        ready_timeout_ms: most,
        probation_ms: most,
        wait: true,
        ..UpgradeRequest::default()
    };
    confirmed(&stage.control(), how);
    let stop = Request::Stop { drain_timeout_ms: most };
    assert!(matches!(stage.request(&stop), Answer::Done { .. }));
    stage.service.wait_all_gone(soon()).unwrap();
}

/// Upgrades, and ends probation when it has begun.
fn confirmed(control: &Path, how: UpgradeRequest) {
    let mut events = Client::connect(control).unwrap();
    events.send(&Request::Events {}).unwrap();
    thread::scope(|scope| {
        let verdict = scope.spawn(|| ask(control, &Request::Upgrade(how)));
        let is_committed = |answer: &Option<Answer>| match answer {
            Some(Answer::Event(event)) => matches!(event.event, Event::Committed { .. }),
            other => panic!("{other:?}"),
        };
        while !is_committed(&events.next_answer().unwrap()) {}
        assert!(matches!(ask(control, &Request::Confirm {}), Answer::Done { .. }));
        let Answer::Verdict(verdict) = verdict.join().unwrap() else { panic!("no verdict") };
        assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    });
}

#[test]
fn requests_that_are_never_whole_and_answers_that_are_never_read_hold_nobody_up() {
    let stage = Stage::controlled(&[]);
    // As many as there may be, and as many again that are told to go.
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(stage.control()).unwrap()).collect();
    let deaf: Vec<_> = (0..32)
        .map(|_| {
            let mut client = UnixStream::connect(stage.control()).unwrap();
            client.set_nonblocking(true).unwrap();
            // Until no more is taken: the service does not read on before its answer is read.
            while client.write_all(b"{\"request\":\"status\"}\n").is_ok() {}
            client
        })
        .collect();
    for _ in 0..3 {
        stage.upgrade_with(UpgradeRequest::default());
    }
    assert_eq!(stage.status().generations[0].report.generation, 4);
    drop((silent, deaf));
    stage.load.stop().assert_nothing_lost();
}
