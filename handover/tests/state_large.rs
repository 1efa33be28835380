//! Large states are mapped by the successor and copied by nobody.

mod control;

use std::time::{Duration, Instant};

use control::Subject;
use handover_testkit::process::Pid;
use handover_testkit::{recheck, skip, soon};

const GIB: u64 = 1 << 30;

/// What counts as small beside a state of 4 GiB.
const SMALL_BYTES: u64 = 64 << 20;

/// How long the writing of 4 GiB may take on a busy machine.
const WRITING_TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn a_state_of_4_gib_is_neither_copied_nor_kept_by_either_side() {
    const NEEDED: u64 = 8 * GIB;
    let available = meminfo("MemAvailable:");
    if available < NEEDED {
        skip!(
            "a_state_of_4_gib_is_neither_copied_nor_kept_by_either_side",
            &format!("8 GiB of free memory are needed, there are {}", available / GIB),
        );
    }
    let subject = Subject::start(["early=big:1:large4294967296"]);
    let mut old = subject.control();
    old.ask("guard");
    subject.service.signal(handover_testkit::Signal::HUP);

    let deadline = Instant::now() + WRITING_TIMEOUT;
    let taken = "early big 1 \"4294967296 bytes, 0 wrong\"";
    subject.service.wait_line(|line| line == taken, deadline).unwrap();
    subject.wait("serving 2");
    subject.wait("draining 1 HandedOver");
    let new = subject.control().pid;

    // Private memory is what a copy would be in, on either side; the peak of the successor tells
    // that it has never had the state resident as a whole.
    assert!(status(old.pid, "RssAnon:") < SMALL_BYTES);
    assert!(status(new, "RssAnon:") < SMALL_BYTES);
    assert!(status(new, "VmHWM:") < SMALL_BYTES);
    // Both have let go of it when the successor has dropped it.
    let freed = |pid| status(pid, "RssShmem:") < SMALL_BYTES && !maps_or_holds_memfd(pid);
    for pid in [old.pid, new] {
        assert!(recheck(soon(), || freed(pid).then_some(())).is_some(), "{pid} holds the state");
    }
}

#[test]
fn states_that_were_read_are_let_go_of() {
    let subject = Subject::start(["early=big:1:large8388608", "late=late:1:large8388608"]);
    for _ in 0..3 {
        subject.upgrade();
    }
    let new = subject.control();
    assert!(!maps_or_holds_memfd(new.pid));
    subject.stop();
}

fn maps_or_holds_memfd(pid: Pid) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let fds = handover_testkit::process::fds(pid);
    // What a process keeps of itself for a rollback is no state.
    let is_state = |name: &str| name.contains("/memfd:") && !name.contains("/memfd:handover:");
    maps.lines().any(is_state) || fds.values().any(|name| is_state(name))
}

fn status(pid: Pid, field: &str) -> u64 {
    kibibytes(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), field)
}

fn meminfo(field: &str) -> u64 {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").unwrap(), field)
}

fn kibibytes(text: &str, field: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}
