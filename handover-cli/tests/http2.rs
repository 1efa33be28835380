//! `verify` keeps HTTP/2 connections, tells what becomes of each request on them, and can have every
//! close fail.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use handover_testkit::{Launch, example, soon};
use support::page::Page;
use support::{Asked, Reply, Service, Verified, verify};

#[test]
fn http2_loses_nothing_through_upgrades_of_a_real_service() {
    let args = ["--http2", "3", "--http2-streams", "8", "--upgrades", "4"];
    let verified = verify_example(&[], &args);
    verified.assert_nothing_lost();
    assert_eq!(verified.count("answerers"), 5, "{verified:#?}");
    assert!(verified.count("requests_by_client/http2") >= 3 * 8, "{verified:#?}");
    // Each process tells each of them to leave; that the last has done so before the end is not sure.
    assert!(verified.count("closes/http2/announced") >= 3 * 3, "{verified:#?}");
    assert_eq!(verified.count("closes/http2/unannounced"), 0, "{verified:#?}");
}

#[test]
fn connections_that_drain_fail_a_test_that_wants_them_to_last() {
    let verified = verify_example(&[], &["--no-idle-close"]);
    assert_eq!(verified.count("lost"), 0, "{verified:#?}");
    assert_eq!(verified.count("upgrades_done"), 3, "{verified:#?}");
    let closed = verified.count("closes/keep_alive/announced");
    assert!(closed > 0, "{verified:#?}");
    verified.assert_failed_for(&format!(
        "{closed} connections were closed by the service in spite of --no-idle-close \
         (kept alive: {closed} announced, 0 not; HTTP/2: 0 announced, 0 not)"
    ));
}

#[test]
fn connections_that_change_hands_pass_a_test_that_wants_them_to_last() {
    let verified = verify_example(&["--live"], &["--no-idle-close"]);
    verified.assert_nothing_lost();
    assert!(verified.count("requests_by_client/keep_alive") > 0, "{verified:#?}");
    assert_eq!(verified.report["closes"]["keep_alive"]["announced"], 0);
    assert_eq!(verified.report["failures"], serde_json::json!([]));
}

#[test]
fn requests_on_one_connection_are_under_way_at_once() {
    let probed = AtomicBool::new(false);
    // The first request comes from the look before the test, and alone.
    let verified = Service::start(move |asked| match asked.http2 {
        true if probed.swap(true, Ordering::Relaxed) => Reply::AnswerTogether(4),
        _ => Reply::Answer,
    })
    .verify(&["--http2", "1", "--http2-streams", "4"]);
    verified.assert_nothing_lost();
    assert!(verified.count("requests_by_client/http2") >= 8, "{verified:#?}");
    assert_eq!(verified.count("sent_again"), 0);
    assert_eq!(verified.count("closes/http2/unannounced"), 0);
}

#[test]
fn a_goaway_after_the_answer_is_an_announced_close() {
    let verified = third_request(Reply::AnswerAndAnnounceClose);
    verified.assert_nothing_lost();
    assert_closed(&verified, "announced");
    assert_eq!(verified.count("sent_again"), 0);
    assert_eq!(verified.count("announced_closes"), 0, "that is about HTTP/1");
}

#[test]
fn a_goaway_that_is_followed_by_a_reset_is_an_announced_close() {
    let verified = third_request(Reply::GoAwayAndReset);
    verified.assert_nothing_lost();
    assert_closed(&verified, "announced");
}

#[test]
fn a_request_that_goaway_disowns_is_sent_again() {
    let verified = third_request(Reply::GoAwayBelow);
    verified.assert_nothing_lost();
    assert_closed(&verified, "announced");
    assert_eq!(verified.count("sent_again"), verified.count("closes/http2/announced"));
}

#[test]
fn a_refused_stream_is_sent_again() {
    let verified = third_request(Reply::RefuseStream);
    verified.assert_nothing_lost();
    assert!(verified.count("sent_again") > 0, "{verified:#?}");
    assert_eq!(verified.count("closes/http2/announced"), 0);
}

#[test]
fn a_request_that_is_always_refused_is_lost() {
    let probed = AtomicBool::new(false);
    let verified = Service::start(move |asked| match asked.http2 {
        true if probed.swap(true, Ordering::Relaxed) => Reply::RefuseStream,
        _ => Reply::Answer,
    })
    .verify(&["--http2", "1"]);
    verified.assert_all_lost_as("other");
    assert_eq!(verified.count("sent_again"), verified.count("lost") * 9);
    let why = "the service took it in none of 10 attempts";
    assert_eq!(verified.report["first_reasons"]["other"], why);
}

#[test]
fn an_unannounced_close_of_an_idle_http2_connection_is_told_and_loses_nothing() {
    let verified = third_request(Reply::AnswerAndClose);
    verified.assert_nothing_lost();
    assert_closed(&verified, "unannounced");
}

#[test]
fn a_close_instead_of_an_answer_is_cut_and_unannounced() {
    let verified = third_request(Reply::CloseUnanswered);
    verified.assert_all_lost_as("cut");
    assert_closed(&verified, "unannounced");
}

#[test]
fn half_an_answer_and_an_end_is_cut_and_unannounced() {
    let verified = third_request(Reply::CutBody);
    verified.assert_all_lost_as("cut");
    assert_closed(&verified, "unannounced");
}

#[test]
fn a_reset_instead_of_an_answer_is_reset_and_unannounced() {
    let verified = third_request(Reply::ResetUnanswered);
    verified.assert_all_lost_as("reset");
    assert_closed(&verified, "unannounced");
}

#[test]
fn a_reset_stream_is_reset_and_its_connection_goes_on() {
    let verified = third_request(Reply::ResetStream);
    verified.assert_all_lost_as("reset");
    let why = "the stream was reset before the answer: INTERNAL_ERROR";
    assert_eq!(verified.report["first_reasons"]["reset"], why);
    assert_eq!(verified.count("closes/http2/unannounced"), 0);
}

#[test]
fn another_status_in_http2_is_wrong() {
    third_request(Reply::Unavailable).assert_all_lost_as("wrong");
}

#[test]
fn no_answer_in_http2_in_time_is_timed_out() {
    let verified = third_request_with(Reply::Silence, &["--timeout", "600ms"]);
    verified.assert_all_lost_as("timed_out");
    assert_eq!(verified.count("closes/http2/unannounced"), 0);
}

#[test]
fn any_close_of_an_http2_connection_fails_a_test_that_wants_it_to_last() {
    let verified = third_request_with(Reply::AnswerAndClose, &["--no-idle-close"]);
    assert_eq!(verified.count("lost"), 0, "{verified:#?}");
    let closed = verified.count("closes/http2/unannounced");
    verified.assert_failed_for(&format!("HTTP/2: 0 announced, {closed} not)"));
}

#[test]
fn a_kept_connection_that_breaks_on_a_request_is_an_unannounced_close() {
    let verified = Service::start(|asked| match asked {
        _ if asked.keeps && asked.nth == 2 => Reply::CloseUnanswered,
        _ => Reply::Answer,
    })
    .verify(&["--no-idle-close"]);
    verified.assert_all_lost_as("cut");
    let closed = verified.count("closes/keep_alive/unannounced");
    assert_eq!(closed, verified.count("lost"));
    assert_eq!(verified.count("idle_closed"), 0, "none was idle");
    verified.assert_failed_for(&format!("kept alive: 0 announced, {closed} not;"));
    verified.assert_failed_for(&format!("{closed} requests were lost"));
}

#[test]
fn a_service_without_http2_is_told_before_the_test() {
    let service = Service::start(|asked| match asked.http2 {
        true => Reply::Gibberish,
        false => Reply::Answer,
    });
    let verified = service.verify(&["--http2", "1"]);
    assert_eq!((verified.code, verified.stdout.as_str()), (1, ""));
    assert!(verified.stderr.contains("answers HTTP/1, but not HTTP/2"), "{}", verified.stderr);
    assert!(verified.stderr.contains("--http2 needs: not HTTP/2: "), "{}", verified.stderr);
}

#[test]
fn options_that_cannot_be_meant_are_refused() {
    for (args, complaint) in [
        (&["--http2-streams", "2"][..], "required arguments were not provided:\n  --http2 <N>"),
        (&["--http2", "0", "--http2-streams", "2"], "connections of --http2, of which there are 0"),
        (&["--http2", "1", "--http2-streams", "0"], "invalid value '0' for '--http2-streams <M>'"),
        (&["--http2=-1"], "invalid value '-1' for '--http2 <N>'"),
        (&["--http2", "many"], "invalid value 'many' for '--http2 <N>'"),
        (&["--no-idle-close", "--keep-alive", "0"], "add --keep-alive or --http2"),
    ] {
        // Nobody is asked: port 0 could not be.
        let fixed = ["--url", "http://127.0.0.1:0/", "--upgrade", "true"];
        let verified = verify(&[&fixed, args].concat());
        assert_eq!((verified.code, verified.stdout.as_str()), (2, ""), "{verified:#?}");
        assert!(verified.stderr.contains(complaint), "{}", verified.stderr);
    }
}

#[test]
fn the_page_tells_of_http2_and_of_closes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let args = ["--no-idle-close", "--report", path.to_str().unwrap()];
    let verified = third_request_with(Reply::GoAwayBelow, &args);
    let page = Page::read(&path);
    let closed = verified.count("closes/http2/announced");
    page.assert_tells("✗ failed");
    page.assert_tells("closed by the service in spite of --no-idle-close");
    page.assert_tells(&format!(
        "on HTTP/2 connections{}",
        verified.count("requests_by_client/http2")
    ));
    page.assert_tells(&format!("sent again, not processed before{closed}"));
    page.assert_tells(&format!("announced by GOAWAY{closed}"));
    page.assert_tells("--http2 2 \\\n  --http2-streams 1");
    page.assert_tells("--max-in-flight 10000 \\\n  --no-idle-close");
    page.assert_is_self_contained();
}

#[test]
fn the_text_tells_of_http2_and_of_closes() {
    let service = third_request_of(Reply::GoAwayBelow);
    let (url, upgrade) = (service.url(), service.upgrade());
    let fixed = ["--url", &url, "--upgrade", &upgrade, "--upgrades", "1", "--every", "500ms"];
    let verified = verify(&[&fixed[..], &["--http2", "1", "--no-idle-close"]].concat());
    assert_eq!(verified.code, 1, "{verified:#?}");
    for part in [
        "\n    HTTP/2  ",
        " sent again\n",
        "   HTTP/2 connections, as announced by GOAWAY\n",
        "0   HTTP/2 connections, unannounced\n",
        " requests, none lost, but ",
        " closed by the service in spite of --no-idle-close (kept alive: 0 announced, 0 not; HTTP/2: ",
    ] {
        assert!(verified.stdout.contains(part), "{part:?} is missing in:\n{}", verified.stdout);
    }
}

/// Verifies a service that treats the third request on each HTTP/2 connection so.
fn third_request(reply: Reply) -> Verified {
    third_request_with(reply, &[])
}

fn third_request_with(reply: Reply, args: &[&str]) -> Verified {
    third_request_of(reply).verify(&[&["--http2", "2"], args].concat())
}

fn third_request_of(reply: Reply) -> Service {
    let is_third = |asked: Asked| asked.http2 && asked.nth == 2;
    Service::start(move |asked| if is_third(asked) { reply } else { Reply::Answer })
}

fn assert_closed(verified: &Verified, how: &str) {
    let other = if how == "announced" { "unannounced" } else { "announced" };
    assert!(verified.count(&format!("closes/http2/{how}")) > 0, "{verified:#?}");
    assert_eq!(verified.count(&format!("closes/http2/{other}")), 0, "{verified:#?}");
}

/// Verifies the example `http`, with three upgrades unless told otherwise.
fn verify_example(options: &[&str], args: &[&str]) -> Verified {
    let service = Launch::of(example("http")).arg("127.0.0.1:0").args(options).start();
    let start = "listening on ";
    let line = service.wait_line(|line| line.starts_with(start), soon()).unwrap();
    let url = format!("http://{}/", &line[start.len()..]);
    let upgrade = "kill -HUP \"$HANDOVER_VERIFY_PID\"";
    let mut all = vec!["--json", "--url", &url, "--upgrade", upgrade, "--keep-alive", "4"];
    if !args.contains(&"--upgrades") {
        all.extend(["--upgrades", "3"]);
    }
    all.extend(["--every", "500ms", "--rate", "50"].iter().chain(args));
    verify(&all)
}
