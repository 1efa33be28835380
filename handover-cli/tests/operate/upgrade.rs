//! Upgrades: every outcome has its words and its exit code.

use serde_json::{Value, json};

use crate::service::{
    Service, Step, error, event, events_to_commit, events_to_spawned, failed, gate,
    generation_report, say, serving, status, succeeded,
};
use crate::terminal::Terminal;

fn with(mut steps: Vec<Step>, last: impl IntoIterator<Item = Step>) -> Vec<Step> {
    steps.extend(last);
    steps
}

#[test]
fn a_success_is_one_line_on_stdout_and_its_phases_are_lines_on_stderr() {
    let service = Service::start().on("upgrade", with(events_to_commit(None), [say(succeeded())]));
    let ended = service.run(&["upgrade"]);
    assert_eq!(ended.code, 0);
    assert_eq!(
        ended.stdout,
        "upgraded: generation 2 (pid 200) serves after 1.26 s \
         (spawn 300 µs, initialise 1.20 s, commit 250 µs)\n"
    );
    assert_eq!(
        ended.stderr,
        "\
asking
upgrade to generation 2 begun, asked by uid 0
spawned pid 200
hello from handover 0.1.0
state sessions 1.20 GiB
initialising with 3 descriptors
initialising: warming cache 40 %
ready
committed
"
    );
    assert_eq!(service.heard(), [json!({"request": "upgrade"})]);
}

#[test]
fn every_option_is_sent() {
    let service = Service::start().on("upgrade", [say(succeeded())]);
    let ended = service.run(&[
        "upgrade",
        "--executable=bin/app",
        "--env=LEVEL=debug",
        "--env-remove=OLD",
        "--ready-timeout=1m",
        "--probation=1500ms",
        "--wait",
        "--",
        "--port",
        "80",
    ]);
    assert_eq!(ended.code, 0, "{ended:?}");
    let request = json!({
        "request": "upgrade", "executable": "bin/app", "arguments": ["--port", "80"],
        "environment": {"LEVEL": "debug", "OLD": null}, "ready_timeout_ms": 60_000,
        "probation_ms": 1500, "wait": true,
    });
    assert_eq!(service.heard(), [request]);
}

#[test]
fn json_is_what_was_received() {
    // A later version may say more: nothing of it is lost.
    let event = r#"{"type":"event","at_ms":1, "event":"moonrise","phase":"full"}"#;
    let verdict = r#"{"outcome":"succeeded","type":"verdict","generation":2,"message":"","timings_us":{},"new":[1.0]}"#;
    let steps = [event, verdict].map(|line| Step::Say(line.to_owned()));
    let ended = Service::start().on("upgrade", steps).run(&["upgrade", "--json"]);
    assert_eq!(ended.code, 0);
    assert_eq!(ended.stdout, format!("{event}\n{verdict}\n"));
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_failure_tells_all_that_is_known_and_exits_with_3() {
    let steps = || with(events_to_spawned(), [say(failed())]);
    let service = Service::start().on("upgrade", steps()).on("upgrade", steps());
    let ended = service.run(&["upgrade"]);
    assert_eq!(ended.code, 3);
    assert_eq!(
        ended.stdout,
        "\
upgrade failed: the successor ended before it served
  successor  generation 2, pid 200
  phase      initialise
  reason     exited
  ended      signal: 11 (SIGSEGV)
  took       5.0 ms
  its last lines on stderr:
    ERROR no cache
    giving up
the old process serves on
"
    );
    let ended = service.run(&["upgrade", "--json"]);
    assert_eq!(ended.code, 3);
    let last: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last, failed());
}

#[test]
fn a_rollback_on_probation_exits_with_4() {
    let mut verdict = failed();
    verdict["outcome"] = "rolled-back".into();
    let rolled_back = event("rolled-back", json!({"generation": 2, "reason": "it crashed"}));
    let steps = with(events_to_commit(Some(5000)), [rolled_back, say(verdict)]);
    let ended = Service::start().on("upgrade", steps).run(&["upgrade"]);
    assert_eq!(ended.code, 4);
    assert!(ended.stdout.starts_with("rolled back: the successor ended"), "{ended:?}");
    assert!(ended.stdout.ends_with("the old process serves again\n"), "{ended:?}");
    assert!(ended.stderr.contains("\ncommitted, on probation for 5 s\n"), "{ended:?}");
    assert!(ended.stderr.ends_with("generation 2 rolled back: it crashed\n"), "{ended:?}");
}

#[test]
fn a_service_that_is_busy_or_refuses_is_told_apart() {
    for (code, exit) in [
        ("busy", 5),
        ("too-many-clients", 5),
        ("forbidden", 8),
        ("bad-request", 8),
        ("of-a-later-version", 8),
    ] {
        let refusal = error(code, "an upgrade is under way");
        let service = Service::start()
            .on("upgrade", [say(refusal.clone())])
            .on("upgrade", [say(refusal.clone())]);
        let ended = service.run(&["upgrade"]);
        assert_eq!(ended.code, exit, "{code}");
        assert_eq!(ended.stdout, "");
        assert!(
            ended.stderr.ends_with("handover: refused: an upgrade is under way\n"),
            "{ended:?}"
        );

        let ended = service.run(&["upgrade", "--json"]);
        assert_eq!(ended.code, exit, "{code}");
        assert_eq!(ended.stdout, format!("{refusal}\n"));
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn a_service_that_refuses_to_say_who_serves_is_asked_for_nothing_more() {
    let refusal = || [say(error("forbidden", "only the group staff may ask"))];
    let service = Service::start().on("status", refusal()).on("status", refusal());
    let ended = service.run(&["upgrade"]);
    assert_eq!(ended.code, 8);
    assert_eq!(ended.stderr, "handover: refused: only the group staff may ask\n");
    let ended = service.run(&["upgrade", "--json"]);
    assert_eq!((ended.code, &*ended.stderr), (8, ""));
    assert!(ended.stdout.starts_with('{'), "{ended:?}");
    assert_eq!(service.heard(), [] as [Value; 0]);
}

#[test]
fn whoever_does_not_serve_any_more_is_asked_no_second_time() {
    let late = || [say(error("not-serving", "connect again"))];
    let service = Service::start()
        .on("upgrade", late())
        .on("upgrade", late())
        .on("upgrade", [say(succeeded())]);
    let ended = service.run(&["upgrade"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(service.heard().len(), 3);

    let service = late_forever();
    let ended = service.run(&["upgrade", "--timeout", "1s"]);
    assert_eq!(ended.code, 6, "nobody who serves was reached: {ended:?}");
}

fn late_forever() -> Service {
    (0..20).fold(Service::start(), |service, _| {
        service.on("upgrade", [say(error("not-serving", "connect again"))])
    })
}

#[test]
fn nobody_waits_for_probation_who_does_not_want_to() {
    let steps = with(events_to_commit(Some(60_000)), [Step::Hold]);
    let ended = Service::start().on("upgrade", steps).run(&["upgrade", "--no-wait-probation"]);
    assert_eq!(ended.code, 0);
    assert_eq!(ended.stdout, "generation 2 (pid 200) serves, on probation for 1m\n");
}

#[test]
fn a_lost_verdict_of_a_successor_that_serves_is_a_success() {
    let service = Service::start()
        .on("status", [say(status(&[serving(1, 100)]))])
        .on("upgrade", events_to_commit(Some(1000)))
        // The socket is there, and nobody answers yet.
        .on("status", [])
        .on("status", [say(status(&[generation_report(2, 200, "on-probation")]))])
        .on("status", [say(status(&[serving(2, 200)]))]);
    let ended = service.run(&["upgrade"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        ended.stdout,
        "upgraded: generation 2 (pid 200) serves: generation 2 (pid 200): serving\n"
    );
    assert!(ended.stderr.contains("closed the connection without an answer"), "{ended:?}");
}

#[test]
fn a_lost_verdict_is_found_out_by_who_serves() {
    for (steps, exit, words) in [
        (events_to_spawned(), 3, "upgrade failed: generation 2 (pid 200) does not serve"),
        (events_to_commit(None), 4, "rolled back: generation 2 (pid 200) has served"),
    ] {
        let service = Service::start().on("upgrade", steps);
        let ended = service.run(&["upgrade"]);
        assert_eq!(ended.code, exit, "{ended:?}");
        assert!(ended.stdout.starts_with(words), "{ended:?}");
    }
}

#[test]
fn a_lost_verdict_is_known_if_the_events_told_it() {
    let confirmed = event("confirmed", json!({"generation": 2}));
    let steps = with(events_to_commit(Some(10)), [confirmed, Step::Vanish]);
    let ended = Service::start().on("upgrade", steps).run(&["upgrade"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(ended.stdout, "upgraded: generation 2 (pid 200) serves\n");
}

#[test]
fn an_outcome_that_cannot_be_found_out_exits_with_7() {
    let steps = with(events_to_spawned(), [Step::Vanish]);
    let service = Service::start().on("upgrade", steps);
    let ended = service.run(&["upgrade", "--timeout", "1s"]);
    assert_eq!(ended.code, 7, "nobody is there: {ended:?}");
    assert!(ended.stderr.contains("could not be found out"), "{ended:?}");
    assert!(ended.stderr.contains("there is no control socket"), "{ended:?}");

    let anew = || [say(status(&[serving(1, 300)]))];
    let service = Service::start()
        .on("status", [say(status(&[serving(1, 100)]))])
        .on("upgrade", events_to_spawned())
        .on("status", anew());
    let ended = service.run(&["upgrade"]);
    assert_eq!(ended.code, 7, "it was started anew: {ended:?}");
    assert!(ended.stderr.contains("by now there is generation 1 (pid 300): serving"), "{ended:?}");

    let service = Service::start()
        .on("status", [say(status(&[serving(1, 100)]))])
        .on("upgrade", events_to_spawned())
        .on("status", anew());
    let ended = service.run(&["upgrade", "--json"]);
    assert_eq!(ended.code, 7);
    let last: Value = serde_json::from_str(ended.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["generations"][0]["pid"], 300, "what is known is printed");
}

#[test]
fn a_service_that_hangs_is_given_up() {
    let service = Service::start().on("status", [Step::Hold]);
    let ended = service.run(&["upgrade", "--timeout", "200ms"]);
    assert_eq!(ended.code, 6, "nothing was asked for: {ended:?}");
    assert!(ended.stderr.contains("did not answer within 200ms"), "{ended:?}");
    assert_eq!(service.heard(), [] as [Value; 0]);

    let service = Service::start().on("upgrade", [Step::Hold]);
    let ended = service.run(&["upgrade", "--timeout", "1s"]);
    assert_eq!(ended.code, 7, "it may have been heard: {ended:?}");
}

#[test]
fn whoever_waits_for_a_turn_is_not_given_up() {
    let (closed, open) = gate();
    let service = Service::start().on("upgrade", [closed, say(succeeded())]);
    let command = service.command(&["upgrade", "--wait", "--timeout", "1s", "--json"]);
    let mut terminal = Terminal::run(command);
    // Longer than the timeout; nothing is to be seen meanwhile, so that time itself is waited for.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    open.send(()).unwrap();
    terminal.wait_for("succeeded");
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn a_terminal_gets_a_line_that_counts_probation_down() {
    let (while_initialising, initialised) = gate();
    let (while_on_probation, confirmed) = gate();
    let mut steps = events_to_spawned();
    steps.push(while_initialising);
    steps.push(event("committed", json!({"generation": 2, "probation_ms": 2500})));
    steps.push(while_on_probation);
    steps.push(say(succeeded()));
    let service = Service::start().on("upgrade", steps);
    let mut terminal = Terminal::run(service.command(&["upgrade"]));
    terminal.wait_for("spawned pid 200");
    initialised.send(()).unwrap();
    terminal.wait_for("probation 3 s left");
    terminal.wait_for("probation 2 s left");
    terminal.wait_for("probation 1 s left");
    confirmed.send(()).unwrap();
    let (code, shown) = terminal.end();
    assert_eq!(code, 0);
    assert!(shown.contains("\u{1b}[32m"), "the verdict is green: {shown:?}");
    let (_, last) = shown.rsplit_once("\r\u{1b}[2K").unwrap();
    assert!(last.contains("upgraded:") && !last.contains("probation"), "it stands alone: {last:?}");
}

#[test]
fn no_color_is_respected_and_so_is_a_pipe() {
    for (variable, value) in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
        let service = Service::start().on("upgrade", [say(succeeded())]);
        let mut command = service.command(&["upgrade"]);
        command.env(variable, value);
        let mut terminal = Terminal::run_as(command);
        terminal.wait_for("upgraded:");
        let (_, shown) = terminal.end();
        assert!(!shown.contains("\u{1b}[32m"), "{variable}: {shown:?}");
        assert!(
            variable != "TERM" || !shown.contains('\u{1b}'),
            "it cannot be drawn on: {shown:?}"
        );
    }
    let ended = Service::start().on("upgrade", [say(failed())]).run(&["upgrade"]);
    assert!(!format!("{ended:?}").contains("u{1b}"), "{ended:?}");
}

#[test]
fn ctrl_c_ends_the_watching_and_says_so() {
    let service = Service::start().on("upgrade", with(events_to_spawned(), [Step::Hold]));
    let mut terminal = Terminal::run(service.command(&["upgrade"]));
    terminal.wait_for("spawned pid 200");
    terminal.interrupt();
    let (code, shown) = terminal.end();
    assert_eq!(code, 130);
    assert!(shown.contains("what was asked for may go on"), "{shown:?}");
}
