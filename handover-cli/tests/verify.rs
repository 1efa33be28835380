//! `verify` tells each fate of a request from the others, and what is lost from what is not.

mod support;

use std::time::Duration;

use support::{OnUpgrade, Reply, Service};

#[test]
fn a_faithful_service_loses_nothing() {
    let verified = Service::start(|_| Reply::Answer).verify(&[]);
    verified.assert_nothing_lost();
    assert_eq!(verified.count("upgrades_asked"), 2);
    assert_eq!(verified.count("answerers"), 3);
    assert_eq!(verified.count("idle_closed"), 0);
    assert_eq!(verified.count("announced_closes"), 0);
    assert!(verified.count("requests_by_client/new_connections") > 0);
    assert!(verified.count("requests_by_client/keep_alive") > 0);
}

#[test]
fn an_announced_close_loses_nothing() {
    let verified = Service::start(|asked| match asked {
        _ if asked.keeps && asked.nth == 2 => Reply::AnswerAndAnnounceClose,
        _ => Reply::Answer,
    })
    .verify(&[]);
    verified.assert_nothing_lost();
    assert!(verified.count("announced_closes") > 0);
    assert_eq!(verified.count("idle_closed"), 0);
}

#[test]
fn a_body_that_ends_with_the_connection_announces_the_close() {
    let verified = Service::start(|_| Reply::AnswerUntilClose).verify(&[]);
    verified.assert_nothing_lost();
    assert!(verified.count("announced_closes") > 0);
    assert_eq!(verified.count("idle_closed"), 0);
}

#[test]
fn an_unannounced_close_of_an_idle_connection_is_told_and_loses_nothing() {
    let verified = Service::start(|asked| match asked {
        _ if asked.keeps && asked.nth == 2 => Reply::AnswerAndClose,
        _ => Reply::Answer,
    })
    .verify(&[]);
    verified.assert_nothing_lost();
    assert!(verified.count("idle_closed") > 0);
    assert_eq!(verified.count("announced_closes"), 0);
}

#[test]
fn a_request_that_crosses_with_an_idle_close_is_lost_as_idle_race() {
    let verified = Service::start(|asked| match asked {
        _ if asked.keeps && asked.nth == 2 => Reply::CloseThenReset,
        _ => Reply::Answer,
    })
    .verify(&[]);
    verified.assert_all_lost_as("idle_race");
    assert_eq!(verified.count("idle_closed"), 0);
}

#[test]
fn a_kept_connection_closed_on_a_request_that_was_read_is_cut() {
    let verified = Service::start(|asked| match asked {
        _ if asked.keeps && asked.nth == 2 => Reply::CloseUnanswered,
        _ => Reply::Answer,
    })
    .verify(&[]);
    verified.assert_all_lost_as("cut");
}

#[test]
fn a_kept_connection_reset_on_a_request_is_reset() {
    let verified = Service::start(|asked| match asked {
        _ if asked.keeps && asked.nth == 2 => Reply::ResetUnanswered,
        _ => Reply::Answer,
    })
    .verify(&[]);
    verified.assert_all_lost_as("reset");
}

#[test]
fn a_new_connection_closed_without_an_answer_is_cut() {
    after_first_upgrade(Reply::CloseUnanswered).assert_all_lost_as("cut");
}

#[test]
fn half_an_answer_and_an_end_of_file_is_cut() {
    after_first_upgrade(Reply::CutBody).assert_all_lost_as("cut");
}

#[test]
fn half_an_answer_and_a_reset_is_cut() {
    after_first_upgrade(Reply::ResetInBody).assert_all_lost_as("cut");
}

#[test]
fn a_new_connection_reset_without_an_answer_is_reset() {
    after_first_upgrade(Reply::ResetUnanswered).assert_all_lost_as("reset");
}

#[test]
fn a_new_connection_is_never_an_idle_race() {
    after_first_upgrade(Reply::CloseThenReset).assert_all_lost_as("cut");
}

#[test]
fn another_status_is_wrong() {
    let verified = after_first_upgrade(Reply::Unavailable);
    verified.assert_all_lost_as("wrong");
    assert_eq!(verified.report["first_reasons"]["wrong"], "status 503 Service Unavailable");
}

#[test]
fn an_answer_that_names_no_process_is_wrong() {
    after_first_upgrade(Reply::Anonymous).assert_all_lost_as("wrong");
}

#[test]
fn what_is_not_http_is_wrong() {
    after_first_upgrade(Reply::Gibberish).assert_all_lost_as("wrong");
}

#[test]
fn no_answer_in_time_is_timed_out() {
    let verified = Service::start(|asked| match asked {
        _ if asked.upgrades == 1 && asked.since_upgrade == 5 => Reply::Silence,
        _ => Reply::Answer,
    })
    .verify(&["--timeout", "600ms"]);
    verified.assert_all_lost_as("timed_out");
}

#[test]
fn a_gap_between_two_listeners_is_refused() {
    let outage = Duration::from_millis(100);
    let verified =
        Service::start_with(OnUpgrade::StopListening(outage), |_| Reply::Answer).verify(&[]);
    assert!(verified.count("lost_by_kind/refused") > 0, "{verified:#?}");
    // Whoever was queued in the listener that was closed is reset.
    let (refused, reset) =
        (verified.count("lost_by_kind/refused"), verified.count("lost_by_kind/reset"));
    assert_eq!(verified.count("lost"), refused + reset, "{verified:#?}");
    assert_eq!(verified.code, 1);
    verified.assert_sums();
}

#[test]
fn more_requests_than_may_be_under_way_are_lost_as_other() {
    let verified = Service::start(|asked| match asked {
        _ if asked.upgrades == 1 && asked.since_upgrade <= 4 => Reply::Silence,
        _ => Reply::Answer,
    })
    .verify(&["--max-in-flight", "4", "--timeout", "500ms", "--keep-alive", "0"]);
    assert!(verified.count("lost_by_kind/other") > 0, "{verified:#?}");
    let why = verified.report["first_reasons"]["other"].as_str().unwrap();
    assert!(why.contains("4 requests were under way"), "{why}");
    assert_eq!(verified.code, 1);
    verified.assert_sums();
}

#[test]
fn a_stall_counts_for_every_request_that_was_due_meanwhile() {
    let stall = Duration::from_millis(300);
    let verified = Service::start_with(OnUpgrade::Stall(stall), |_| Reply::Answer).verify(&[
        "--rate",
        "200",
        "--upgrades",
        "1",
    ]);
    verified.assert_nothing_lost();
    // Due every 5 ms through a stall of 300 ms in a window of 800: over a third of the requests are
    // slowed. A load that waited for its answers would see a handful, far above the 99th percentile.
    assert!(verified.count("latency_us_upgrade/max") >= 250_000, "{verified:#?}");
    assert!(verified.count("latency_us_upgrade/p99") >= 200_000, "{verified:#?}");
    assert!(verified.count("latency_us_rest/p50") < verified.count("latency_us_upgrade/p99"));
}

#[test]
fn a_service_that_leaves_closing_to_the_client_loses_nothing() {
    Service::start(|_| Reply::AnswerAndStayOpen).verify(&[]).assert_nothing_lost();
}

#[test]
fn a_service_that_leaves_closing_to_the_client_does_not_use_up_the_ports() {
    if !in_a_network_of_few_ports(
        "a_service_that_leaves_closing_to_the_client_does_not_use_up_the_ports",
    ) {
        return;
    }
    // Four times as many connections as one address has ports.
    Service::start(|_| Reply::AnswerAndStayOpen)
        .verify(&["--rate", "200", "--upgrades", "10", "--every", "1s"])
        .assert_nothing_lost();
}

#[test]
fn a_stream_that_ends_properly_is_opened_again() {
    let verified = streaming(Reply::Chunks);
    verified.assert_nothing_lost();
    assert!(verified.count("requests_by_client/streams") > 2, "{verified:#?}");
}

#[test]
fn a_stream_that_ends_without_its_end_is_cut() {
    streaming(Reply::CutChunks).assert_all_lost_as("cut");
}

#[test]
fn a_stream_that_outlasts_the_test_is_not_lost() {
    let verified = streaming(Reply::EndlessChunks);
    verified.assert_nothing_lost();
    assert_eq!(verified.count("requests_by_client/streams"), 2);
    assert_eq!(verified.count("streams_open_at_end"), 2);
}

#[test]
fn a_header_can_name_the_process() {
    Service::start(|_| Reply::NamedInHeader)
        .verify(&["--identity-header", "x-pid"])
        .assert_nothing_lost();
}

/// Has the test run again in a network namespace whose addresses have 500 ports each for clients.
/// Returns whether this is that run.
fn in_a_network_of_few_ports(test: &str) -> bool {
    const INSIDE: &str = "INSIDE_A_NETWORK_OF_FEW_PORTS";
    const SET_UP: &str = "ip link set lo up &&
        echo 40000 40499 >/proc/sys/net/ipv4/ip_local_port_range && exec \"$@\"";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !handover_testkit::can_make_network_namespace() {
        handover_testkit::skipped_test(test, "no network namespace can be made");
        return false;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--net", "sh", "-c", SET_UP, "sh"]).arg(std::env::current_exe().unwrap());
    let output = command.args([test, "--exact"]).env(INSIDE, "").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("1 passed"), "{output:#?}");
    false
}

/// Verifies a service that, once upgraded, treats every fifth request so.
fn after_first_upgrade(reply: Reply) -> support::Verified {
    let is_fit =
        |asked: support::Asked| asked.upgrades == 0 || !asked.since_upgrade.is_multiple_of(5);
    Service::start(move |asked| if is_fit(asked) { Reply::Answer } else { reply })
        .verify(&["--keep-alive", "0"])
}

fn streaming(reply: Reply) -> support::Verified {
    let service = Service::start(move |asked| if asked.streams { reply } else { Reply::Answer });
    let stream_url = format!("{}stream", service.url());
    service.verify(&["--streams", "2", "--stream-url", &stream_url])
}
