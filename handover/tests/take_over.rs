//! A process that the service has not started takes over from it.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use handover::control::{Answer, Client, Event, Request, StatusReport};
use handover_testkit::{Folder, Launch, Load, Service, example, skipped, soon};

#[test]
fn process_of_another_pid_namespace_takes_over_and_is_rolled_back_when_killed() {
    if !can_make_pid_namespace() {
        return skipped("only root can make a PID namespace");
    }
    let folder = Folder::create();
    let control = folder.join("control");
    // Side by side: neither can see the other.
    let (old, address) = start(isolated().args(["--probation", "60"]), &control, "127.0.0.1:0");
    let load = Load::echo(address).start();
    load.wait_answers(5, soon()).unwrap();

    let mut events = Client::connect(&control).unwrap();
    events.send(&Request::Events {}).unwrap();
    let launch = isolated().env("HANDOVER_TAKE_OVER", &control);
    let (new, _) = start(launch, &control, &address.to_string());
    wait_for(&mut events, |event| matches!(event, Event::Committed { generation: 2, .. }));
    load.wait_answers(5, soon()).unwrap();
    drop(new);
    wait_for(&mut events, |event| matches!(event, Event::Serving { generation: 1, .. }));
    load.wait_answers(5, soon()).unwrap();

    let launch = isolated().env("HANDOVER_TAKE_OVER", &control);
    let (new, _) = start(launch, &control, &address.to_string());
    wait_for(&mut events, |event| matches!(event, Event::Committed { generation: 3, .. }));
    assert!(matches!(ask(&control, &Request::Confirm {}), Answer::Done { .. }));
    old.wait_all_gone(soon()).unwrap();
    load.wait_answers(5, soon()).unwrap();
    let Answer::Status(StatusReport { generations, .. }) = ask(&control, &Request::Status {})
    else {
        panic!("no status");
    };
    assert_eq!(generations[0].report.generation, 3);
    load.stop();
    drop(new);
}

fn can_make_pid_namespace() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "true"]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The echo, as the first process of a PID namespace of its own.
fn isolated() -> Launch {
    let echo = example("echo_blocking");
    Launch::of("unshare").args(["--pid", "--fork", "--kill-child"]).arg(echo)
}

fn start(launch: Launch, control: &Path, address: &str) -> (Service, SocketAddr) {
    let service = launch.arg("--control").arg(control).arg(address).start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = line["listening on ".len()..].parse().unwrap();
    (service, address)
}

fn wait_for(client: &mut Client, is_it: impl Fn(&Event) -> bool) {
    loop {
        match client.next_answer().unwrap() {
            Some(Answer::Event(event)) if is_it(&event.event) => return,
            Some(Answer::Event(_)) => {}
            other => panic!("no such event: {other:?}"),
        }
    }
}

fn ask(control: &Path, request: &Request) -> Answer {
    let mut client = Client::connect(control).unwrap();
    client.send(request).unwrap();
    client.next_answer().unwrap().unwrap()
}
