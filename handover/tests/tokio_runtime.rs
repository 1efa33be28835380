//! The runtime of a service is its own: nothing blocks it, and nothing panics without one.

use handover_testkit::process::signal;
use handover_testkit::{Folder, Launch, Load, Signal, example, soon};
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// The longest time without a tick that passes on a busy machine; a runtime that was blocked by the
/// state would not tick at all.
const WORST_TICK_MILLISECONDS: u64 = 2_000;

#[test]
fn the_runtime_ticks_on_while_an_upgrade_writes_a_slow_state() {
    for runtime in ["current", "multi"] {
        let folder = Folder::create();
        let launch = Launch::of(example("subject_tokio")).arg(folder.path());
        let service = launch.args([runtime, "loop"]).start();
        let listening = service.wait_line(|line| line.starts_with("listening"), soon()).unwrap();
        let address: std::net::SocketAddr = listening.split(' ').nth(2).unwrap().parse().unwrap();
        service.wait_line(|line| line == "serving 1", soon()).unwrap();
        let fifo = folder.join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();

        service.signal(Signal::HUP);
        service.wait_line(|line| line == "writing slow", soon()).unwrap();
        let load = Load::echo(address).rate(200).start();

        // 500 ticks, and requests, while the upgrade stands still.
        for _ in 0..5 {
            let printed = service.line_count();
            let tick = |line: &str| line.starts_with("100 ticks");
            let line = service.wait_line_after(printed, tick, soon()).unwrap();
            let worst: u64 = line.split(' ').nth(2).unwrap().parse().unwrap();
            assert!(worst < WORST_TICK_MILLISECONDS, "{runtime}: {line}");
        }
        load.wait_answered_by(|pid| pid == service.pid(), soon()).unwrap();

        std::fs::write(&fifo, "").unwrap();
        let new = load.wait_answered_by(|pid| pid != service.pid(), soon()).unwrap();
        load.stop().assert_nothing_lost();
        service.wait_line(|line| line == "ending 1 HandedOver", soon()).unwrap();
        service.wait_line(|line| line == "predecessor of 2 gone", soon()).unwrap();
        signal(new, Signal::TERM);
        service.wait_line(|line| line == "ending 2 Stopped", soon()).unwrap();
        service.wait_all_gone(soon()).unwrap();
    }
}

#[test]
fn verdicts_can_be_awaited_and_a_second_request_is_busy() {
    for runtime in ["current", "multi"] {
        let folder = Folder::create();
        let launch = Launch::of(example("subject_tokio")).arg(folder.path());
        let service = launch.args([runtime, "loop"]).start();
        service.wait_line(|line| line == "generation 1 takes SIGUSR1", soon()).unwrap();

        service.signal(Signal::USR1);

        let line = service.wait_line(|line| line.starts_with("first "), soon()).unwrap();
        assert!(line.starts_with("first generation 2 (pid "), "{line}");
        assert!(line.contains("second the upgrade failed"), "{line}");
        // It waits for its turn, or is under way already.
        let asked =
            ["busy: an upgrade asked for by the app", "busy: the upgrade to generation 2, "];
        assert!(asked.iter().any(|asked| line.contains(asked)), "{line}");
        assert!(line.ends_with("not draining true"), "{line}");
        service.wait_line(|line| line == "predecessor of 2 gone", soon()).unwrap();
    }
}

#[test]
fn listening_and_becoming_ready_without_a_runtime_are_errors() {
    let folder = Folder::create();
    let launch = Launch::of(example("subject_tokio")).arg(folder.path());
    let finished = launch.args(["none", "no-runtime"]).start().finish(soon()).unwrap();

    assert!(finished.status.success(), "{finished:?}");
    let lines: Vec<_> = finished.printed.iter().map(|line| &*line.text).collect();
    let no_runtime = ": there is no Tokio runtime here";
    assert!(lines[0].starts_with("listen: ") && lines[0].ends_with(no_runtime), "{lines:?}");
    assert!(lines[1].starts_with("ready: ") && lines[1].ends_with(no_runtime), "{lines:?}");
}
