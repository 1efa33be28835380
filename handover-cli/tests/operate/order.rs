//! Orders: one request, one answer.

use serde_json::{Value, json};

use crate::service::{
    Service, Step, done, error, events_to_commit, generation_report, say, status, succeeded,
};

#[test]
fn what_is_done_is_told() {
    for (args, request) in [
        (&["stop"][..], json!({"request": "stop"})),
        (&["stop", "--drain-timeout=30s"], json!({"request": "stop", "drain_timeout_ms": 30_000})),
        (&["stop", "--now"], json!({"request": "stop", "drain_timeout_ms": 0})),
        (&["rollback"], json!({"request": "rollback"})),
        (&["rollback", "--reason", "slow"], json!({"request": "rollback", "reason": "slow"})),
        (&["confirm"], json!({"request": "confirm"})),
        (&["call", "reload"], json!({"request": "reload"})),
        (&["call", "log", r#"{"level":"debug"}"#], json!({"request": "log", "level": "debug"})),
    ] {
        let name = request["request"].as_str().unwrap();
        let service =
            Service::start().on(name, [say(done("so be it"))]).on(name, [say(done("so be it"))]);
        let ended = service.run(args);
        assert_eq!((ended.code, &*ended.stdout), (0, "so be it\n"), "{args:?}: {ended:?}");
        let ended = service.run(&[args, &["--json"]].concat());
        assert_eq!((ended.code, ended.stdout), (0, format!("{}\n", done("so be it"))), "{args:?}");
        assert_eq!(service.heard(), [request.clone(), request]);
    }
}

#[test]
fn what_is_refused_exits_with_8_and_what_is_busy_with_5() {
    for (args, code, exit) in [
        (&["stop"][..], "forbidden", 8),
        (&["rollback"], "nothing-to-roll-back", 8),
        (&["rollback"], "busy", 5),
        (&["confirm"], "not-on-probation", 8),
        (&["call", "dump"], "failed", 8),
        (&["call", "dump"], "unknown-request", 8),
    ] {
        let refusal = || [say(error(code, "no"))];
        let service = Service::start().on(args.last().unwrap(), refusal());
        let service = service.on(args.last().unwrap(), refusal());
        let ended = service.run(args);
        assert_eq!(ended.code, exit, "{args:?}");
        assert_eq!(ended.stdout, "");
        assert!(ended.stderr.ends_with("handover: refused: no\n"), "{ended:?}");
        let ended = service.run(&[args, &["--json"]].concat());
        assert_eq!((ended.code, ended.stdout), (exit, format!("{}\n", error(code, "no"))));
    }
}

#[test]
fn what_is_not_answered_in_time_exits_with_7() {
    for args in [&["stop"][..], &["rollback"], &["confirm"], &["call", "dump"]] {
        let service = Service::start().on(args.last().unwrap(), [Step::Hold]);
        let ended = service.run(&[args, &["--timeout", "1s"]].concat());
        assert_eq!(ended.code, 7, "{args:?}");
        assert!(ended.stderr.contains("did not answer within 1s (--timeout)"), "{ended:?}");
    }
}

#[test]
fn an_order_whose_answer_is_lost_tells_what_there_is_by_then() {
    for args in [&["stop"][..], &["rollback"], &["confirm"], &["call", "dump"]] {
        let ended = Service::start().on(args.last().unwrap(), []).run(args);
        assert_eq!(ended.code, 7, "{args:?}");
        assert!(
            ended.stderr.contains("by now there is generation 1 (pid 100): serving"),
            "{args:?}: {ended:?}"
        );
    }
}

#[test]
fn a_service_that_is_gone_after_a_stop_has_stopped() {
    let service = Service::start().on("stop", [Step::Vanish]);
    let ended = service.run(&["stop", "--now"]);
    assert_eq!(ended.code, 0);
    assert_eq!(ended.stdout, "stopped: it did not answer, and nobody listens any more\n");
}

#[test]
fn a_rollback_after_probation_is_followed_like_an_upgrade() {
    let mut steps = events_to_commit(None);
    steps.push(say(succeeded()));
    let service = Service::start().on("rollback", steps);
    let ended = service.run(&["rollback"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.starts_with("upgraded: generation 2 (pid 200) serves"), "{ended:?}");
    assert!(ended.stderr.contains("initialising: warming cache 40 %"), "{ended:?}");
}

#[test]
fn the_result_of_a_call_is_printed() {
    for (value, text) in [
        (json!("plain\ntext"), "plain\ntext\n"),
        (json!({"entries": 3}), "{\n  \"entries\": 3\n}\n"),
        (Value::Null, "null\n"),
    ] {
        let answer = json!({"type": "result", "value": value});
        let service =
            Service::start().on("cache", [say(answer.clone())]).on("cache", [say(answer.clone())]);
        let ended = service.run(&["call", "cache"]);
        assert_eq!((ended.code, &*ended.stdout), (0, text));
        let ended = service.run(&["call", "cache", "--json"]);
        assert_eq!((ended.code, ended.stdout), (0, format!("{answer}\n")));
    }
}

#[test]
fn an_answer_that_was_not_asked_for_is_an_error() {
    let answer = status(&[generation_report(1, 100, "serving")]);
    for args in [&["confirm"][..], &["rollback"], &["events"]] {
        let service = Service::start().on(args[0], [say(answer.clone())]);
        let ended = service.run(args);
        assert_eq!(ended.code, 1, "{args:?}: {ended:?}");
        assert!(ended.stderr.contains("handover: not an"), "{args:?}: {ended:?}");
    }
}
