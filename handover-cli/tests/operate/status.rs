//! The status, once and again and again.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use handover_testkit::{is_root, skipped};
use serde_json::{Value, json};

use crate::service::{
    Ended, Service, Step, error, generation_report, handover, say, serving, status,
};
use crate::terminal::{Terminal, interrupt};

#[test]
fn people_get_tables_and_programs_get_what_was_received() {
    let mut probation = generation_report(2, 200, "on-probation");
    probation["probation_left_ms"] = 6500.into();
    probation["version"] = "1.4.2".into();
    probation["memory_bytes"] = (24_u64 << 20).into();
    let mut draining = generation_report(1, 100, "draining");
    draining["in_flight"] = 12.into();
    draining["drain_left_ms"] = 21_000.into();
    draining["answers"] = false.into();
    let mut answer = status(&[probation, draining]);
    answer["listeners"] = json!([
        {"name": "http", "address": "0.0.0.0:80", "kind": "tcp", "queued": 3, "backlog": 4096},
    ]);
    answer["upgrade"] =
        json!({"generation": 3, "phase": "hello", "age_ms": 100, "asked_by": "uid 0"});
    answer["previous_executable"] = "/srv/app/41/app".into();
    answer["from_a_later_version"] = true.into();
    let service =
        Service::start().on("status", [say(answer.clone())]).on("status", [say(answer.clone())]);

    let ended = service.run(&["status"]);
    assert_eq!(ended.code, 0);
    assert_eq!(
        ended.stdout,
        "\
GENERATION  PID  VERSION  STATE                               FOR    MEMORY
2           200  1.4.2    on probation (7 s left)             5.0 s  24.00 MiB
1           100  -        draining (12 in flight, 21 s left)  5.0 s  -          (does not answer)

LISTENER  KIND  ADDRESS     QUEUE
http      tcp   0.0.0.0:80  3 of 4096

upgrade under way: generation 3, phase hello, for 0.1 s, asked by uid 0
rollback goes back to: /srv/app/41/app
"
    );
    assert_eq!(ended.stderr, "");

    let ended = service.run(&["status", "--json"]);
    assert_eq!(ended.code, 0);
    assert_eq!(ended.stdout, format!("{answer}\n"));
}

#[test]
fn a_socket_that_cannot_be_spoken_to_is_told_with_advice_and_exits_with_6() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| -> Ended {
        let path = folder.path().join(name);
        handover(&["status", "--socket"]).arg(path).output().unwrap().into()
    };
    let ended = run("missing");
    assert_eq!(ended.code, 6);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("check the path, and that the service runs"), "{ended:?}");

    drop(UnixListener::bind(folder.path().join("stale")).unwrap());
    let ended = run("stale");
    assert_eq!(ended.code, 6);
    assert!(ended.stderr.contains("nobody listens at"), "{ended:?}");

    if is_root() {
        return skipped("root may speak to every socket");
    }
    use std::os::unix::fs::PermissionsExt;
    let _listener = UnixListener::bind(folder.path().join("forbidden")).unwrap();
    let permissions = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(folder.path().join("forbidden"), permissions).unwrap();
    let ended = run("forbidden");
    assert_eq!(ended.code, 6);
    assert!(ended.stderr.contains("you may not speak to"), "{ended:?}");
}

#[test]
fn a_service_that_does_not_answer_is_given_up() {
    for steps in [vec![Step::Hold], vec![]] {
        let service = Service::start().on("status", steps);
        let ended = service.run(&["status", "--timeout", "200ms"]);
        assert_eq!(ended.code, 6, "{ended:?}");
    }
    let service = Service::start();
    let _listener = full(&service);
    let args = ["status", "--timeout", "200ms", "--socket"];
    let ended: Ended = handover(&args).arg(service.folder().join("full")).output().unwrap().into();
    assert_eq!(ended.code, 6, "{ended:?}");
    assert!(ended.stderr.contains("took no connection within 200ms"), "{ended:?}");
}

/// A listener that accepts nothing, and whose queue is full, with those who wait in it.
fn full(service: &Service) -> (socket2::Socket, Vec<socket2::Socket>) {
    use socket2::{Domain, SockAddr, Socket, Type};
    let address = SockAddr::unix(service.folder().join("full")).unwrap();
    let socket = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let listener = socket();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = socket();
        client.set_nonblocking(true).unwrap();
        if client.connect(&address).is_err() {
            return (listener, waiting);
        }
        waiting.push(client);
    }
}

#[test]
fn another_program_at_the_socket_is_told() {
    let service = Service::start().on("status", [Step::Say("220 mail.example ESMTP".into())]);
    let ended = service.run(&["status"]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("is no handover service of this version"), "{ended:?}");
}

#[test]
fn a_refusal_is_told() {
    let refusal = error("forbidden", "only the group staff may ask");
    let service =
        Service::start().on("status", [say(refusal.clone())]).on("status", [say(refusal.clone())]);
    let ended = service.run(&["status"]);
    assert_eq!(ended.code, 8);
    assert_eq!(ended.stderr, "handover: refused: only the group staff may ask\n");
    let ended = service.run(&["status", "--json"]);
    assert_eq!((ended.code, ended.stdout), (8, format!("{refusal}\n")));
}

#[test]
fn watching_goes_on_over_a_short_silence_until_ctrl_c() {
    let answer = |generation| [say(status(&[serving(generation, 100)]))];
    let service = Service::start()
        .on("status", answer(1))
        .on("status", [])
        .on("status", answer(2))
        .on("status", answer(3));
    let mut command = service.command(&["status", "--json", "--watch", "20ms"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen: Vec<u64> = lines
        .take(3)
        .map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            line["generations"][0]["generation"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(seen, [1, 2, 3]);
    interrupt(&child);
    let ended: Ended = child.wait_with_output().unwrap().into();
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.starts_with("handover: not answered, trying again: "), "{ended:?}");
}

#[test]
fn watching_ends_when_the_silence_lasts() {
    let service = Service::start().on("status", [say(status(&[serving(1, 100)])), Step::Vanish]);
    let ended = service.run(&["status", "--watch=0.02", "--timeout", "1s"]);
    assert_eq!(ended.code, 6);
    assert!(ended.stdout.starts_with("GENERATION"), "{ended:?}");
    assert!(ended.stderr.ends_with("No such file or directory (os error 2)\n"), "{ended:?}");
}

#[test]
fn a_terminal_is_drawn_over() {
    let service = Service::start()
        .on("status", [say(status(&[serving(1, 100)]))])
        .on("status", [say(status(&[serving(2, 200)]))]);
    let mut terminal = Terminal::run(service.command(&["status", "--watch", "20ms"]));
    terminal.wait_for("\u{1b}[H");
    terminal.wait_for("2           200");
    terminal.interrupt();
    let (code, shown) = terminal.end();
    assert_eq!(code, 0);
    assert!(shown.contains("\u{1b}[32mserving\u{1b}[0m"), "{shown:?}");
}
