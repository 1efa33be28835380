//! Each example does what it says: it serves, is upgraded under load, and stops.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use handover::control::{
    Answer, Client, ErrorCode, Request, UpgradeRequest, VerdictOutcome, VerdictReport,
};
use handover_testkit::process::signal;
use handover_testkit::{
    Folder, KeepAlive, Launch, Load, LoadSetup, Service, Signal, binary, example, soon,
};
use serde_json::Value;

/// As many as may drain beside the one that serves.
const UPGRADES: usize = 3;

fn start(name: &str) -> (Service, SocketAddr) {
    listening(Launch::of(example(name)).arg("127.0.0.1:0"))
}

fn listening(launch: Launch) -> (Service, SocketAddr) {
    let service = launch.start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = line["listening on ".len()..].parse().unwrap();
    (service, address)
}

/// Upgrades under load and stops; with connections that live on if it echoes.
fn serves_through_upgrades(name: &str, load: fn(SocketAddr) -> LoadSetup, echoes: bool) {
    let (service, address) = start(name);
    let load = load(address).rate(400).start();
    let mut pid = load.wait_answered_by(|_| true, soon()).unwrap();
    let mut kept = Vec::new();
    for _ in 0..UPGRADES {
        if echoes {
            let connections = KeepAlive::echo(address).connections(4).start();
            connections.wait_open(soon()).unwrap();
            kept.push((pid, connections));
        }
        let old = pid;
        signal(old, Signal::HUP);
        pid = load.wait_answered_by(|pid| pid != old, soon()).unwrap();
    }

    for (pid, connections) in kept {
        connections.wait_pings(8, soon()).unwrap();
        let outcome = connections.stop();
        assert_eq!(outcome.ends, []);
        assert_eq!(outcome.answered_by.into_keys().collect::<Vec<_>>(), [pid]);
    }
    let outcome = load.stop();
    outcome.assert_nothing_lost();
    assert_eq!(outcome.answered_by.len(), UPGRADES + 1, "{outcome}");
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

/// Upgrades under new connections and under such as are kept, which are told to come back.
fn loses_nothing_by_the_count_of_verify(name: &str) {
    let (service, address) = start(name);
    let verified = Command::new(binary("handover"))
        .args(["verify", "--json", "--url", &format!("http://{address}/")])
        .args(["--upgrade", "kill -HUP \"$HANDOVER_VERIFY_PID\""])
        .args(["--upgrades", &UPGRADES.to_string(), "--every", "300ms", "--keep-alive", "10"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&verified.stdout).unwrap_or_default();
    assert!(verified.status.success(), "{report:#} {verified:?}");
    assert_eq!(report["lost"], 0, "{report:#}");
    assert_eq!(report["upgrades_done"], UPGRADES, "{report:#}");
    assert_eq!(report["idle_closed"], 0, "{report:#}");
    assert!(report["announced_closes"].as_u64() > Some(0), "{report:#}");
    for pid in service.alive() {
        signal(pid, Signal::TERM);
    }
    service.wait_all_gone(soon()).unwrap();
}

#[test]
fn http_serves_through_upgrades() {
    serves_through_upgrades("http", Load::http, false);
}

#[test]
fn hyper_serves_through_upgrades() {
    serves_through_upgrades("hyper", Load::http, false);
}

#[test]
fn hyper_loses_nothing_by_the_count_of_verify() {
    loses_nothing_by_the_count_of_verify("hyper");
}

#[test]
fn http_blocking_serves_through_upgrades() {
    serves_through_upgrades("http_blocking", Load::http, false);
}

#[test]
fn http_blocking_loses_nothing_by_the_count_of_verify() {
    loses_nothing_by_the_count_of_verify("http_blocking");
}

#[test]
fn actix_serves_through_upgrades() {
    serves_through_upgrades("actix", Load::http, false);
}

#[test]
fn actix_loses_nothing_by_the_count_of_verify() {
    loses_nothing_by_the_count_of_verify("actix");
}

#[test]
fn echo_serves_through_upgrades() {
    serves_through_upgrades("echo", Load::echo, true);
}

#[test]
fn echo_blocking_serves_through_upgrades() {
    serves_through_upgrades("echo_blocking", Load::echo, true);
}

#[test]
fn state_counts_every_command_once_through_upgrades() {
    const CLIENTS: u64 = 4;
    const COMMANDS: u64 = 150;
    let (service, address) = start("state");
    assert_eq!(command(address, "set colour green").1, "");

    let counted = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let adds = move || {
                    (0..COMMANDS).map(|_| command(address, "add").1.parse().unwrap()).collect()
                };
                scope.spawn::<_, Vec<u64>>(adds)
            })
            .collect();
        let mut pid = service.pid();
        for _ in 0..UPGRADES {
            signal(pid, Signal::HUP);
            // Asking until the answer is another's is a load of its own.
            pid = (0..).map(|_| command(address, "get").0).find(|other| *other != pid).unwrap();
        }
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });

    // No number was given out twice, and none is missing.
    let mut numbers = counted;
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=CLIENTS * COMMANDS).collect::<Vec<_>>());
    let (pid, total) = command(address, "get");
    assert_eq!(total, (CLIENTS * COMMANDS).to_string());
    assert_eq!(command(address, "get colour").1, "green");
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

#[test]
fn probation_confirms_what_passes_its_test_and_rolls_back_what_fails_it() {
    let folder = Folder::create();
    let control = folder.join("control");
    let launch = Launch::of(example("probation")).arg("127.0.0.1:0");
    let launch = launch.arg("--control").arg(&control).args(["--probation", "60"]);
    let (service, address) = listening(launch);
    let mut serving = service.pid();
    let mut workers = vec![serving];
    service.wait_line(|line| line.ends_with(&format!(" by {serving}")), soon()).unwrap();

    for (greeting, expected) in [
        ("hello", VerdictOutcome::Succeeded),
        ("", VerdictOutcome::RolledBack),
        ("hello again", VerdictOutcome::Succeeded),
    ] {
        let verdict = upgrade(&control, &[("GREETING", greeting)]);
        assert_eq!(verdict.outcome, expected, "{verdict:?}");
        let successor = verdict.pid.unwrap();
        workers.push(successor);
        if verdict.outcome == VerdictOutcome::Succeeded {
            serving = successor;
            assert_eq!(answer(address), format!("{serving} {greeting}\n"));
        } else {
            assert_eq!(verdict.reason.as_deref(), Some("unhealthy"));
            assert!(answer(address).starts_with(&format!("{serving} ")));
            workers.push(serving);
        }
        let is_counted = |line: &str| line.ends_with(&format!(" by {serving}"));
        service.wait_line_after(service.line_count(), is_counted, soon()).unwrap();
    }
    signal(serving, Signal::TERM);
    let finished = service.finish(soon()).unwrap();

    // One at a time, in this order, and each goes on where the one before has stopped.
    let printed = finished.stdout();
    let numbers: Vec<(u64, u32)> = printed
        .lines()
        .filter_map(|line| {
            let (number, pid) = line.split_once(" by ")?;
            Some((number.parse().unwrap(), pid.parse().unwrap()))
        })
        .collect();
    let expected: Vec<_> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers.iter().map(|(number, _)| *number).collect::<Vec<_>>(), expected);
    let mut counted_by: Vec<_> = numbers.into_iter().map(|(_, pid)| pid).collect();
    counted_by.dedup();
    assert_eq!(counted_by, workers);
}

#[test]
fn control_keeps_what_its_command_has_changed() {
    let folder = Folder::create();
    let control = folder.join("control");
    let launch = Launch::of(example("control")).arg("127.0.0.1:0");
    let (service, address) = listening(launch.arg("--control").arg(&control));
    let text = serde_json::json!({"request": "greeting", "text": "good evening"});
    assert_eq!(call(&control, &text), Answer::Result { value: "good evening".into() });
    let verdict = upgrade(&control, &[]);
    assert_eq!(verdict.outcome, VerdictOutcome::Succeeded, "{verdict:?}");
    assert_eq!(answer(address), "good evening\n");

    let empty = serde_json::json!({"request": "greeting", "text": ""});
    assert!(matches!(call(&control, &empty), Answer::Error { code: ErrorCode::Failed, .. }));
    assert_eq!(answer(address), "good evening\n");
    let stopped = call(&control, &serde_json::json!({"request": "stop"}));
    assert!(matches!(stopped, Answer::Done { .. }), "{stopped:?}");
    service.wait_all_gone(soon()).unwrap();
}

/// Sends one request; returns the answer.
fn call(control: &Path, request: &Value) -> Answer {
    let mut client = Client::connect(control).unwrap();
    client.send_command(request).unwrap();
    client.next_answer().unwrap().unwrap()
}

/// What is told to who connects and says nothing.
fn answer(address: SocketAddr) -> String {
    let mut text = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
    text
}

/// Asks for an upgrade with these variables.
fn upgrade(control: &Path, environment: &[(&str, &str)]) -> VerdictReport {
    let variable = |(name, value): &(&str, &str)| (name.to_string(), Some(value.to_string()));
    let environment = environment.iter().map(variable).collect();
    let mut client = Client::connect(control).unwrap();
    client
        .send(&Request::Upgrade(UpgradeRequest { environment, ..UpgradeRequest::default() }))
        .unwrap();
    loop {
        match client.next_answer().unwrap() {
            Some(Answer::Event(_)) => {}
            Some(Answer::Verdict(verdict)) => return verdict,
            other => panic!("no verdict: {other:?}"),
        }
    }
}

/// Sends one command; returns who answered, and what.
fn command(address: SocketAddr, command: &str) -> (u32, String) {
    let mut connection = TcpStream::connect(address).unwrap();
    writeln!(connection, "{command}").unwrap();
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).unwrap();
    let (pid, answer) = line.trim_end_matches('\n').split_once(' ').expect("PID ANSWER");
    (pid.parse().unwrap(), answer.to_owned())
}
