//! Each target with its corpus, and with a number of inputs that are made from it.

use std::path::PathBuf;

use handover_testkit::feed;

/// How many inputs are made for each target: a second or two of work without optimisation.
const MADE: usize = 1_000;

#[test]
fn frames_are_read_as_they_are_written_or_refused() {
    feed(&corpus("frames"), MADE, handover_fuzz::frames);
}

#[test]
fn bytes_of_moving_connections_are_as_many_as_the_frame_says() {
    feed(&corpus("moving"), MADE, handover_fuzz::moving);
}

#[test]
fn predecessor_gives_one_verdict_and_one_commit_whatever_comes() {
    feed(&corpus("predecessor"), MADE, handover_fuzz::predecessor);
}

#[test]
fn successor_serves_only_when_it_may_whatever_comes() {
    feed(&corpus("successor"), MADE, handover_fuzz::successor);
}

#[test]
fn line_is_bounded_whatever_comes() {
    feed(&corpus("line"), MADE, handover_fuzz::line);
}

#[test]
fn lines_of_the_control_socket_are_read_as_they_are_written() {
    feed(&corpus("control"), MADE, handover_fuzz::control);
}

fn corpus(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus", target].iter().collect()
}
