//! Connections that change hands.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use handover_testkit::process::{self, Pid, signal};
use handover_testkit::{
    Ending, Fault, KeepAlive, Launch, Load, Service, Signal, example, recheck, soon,
};

const CONNECTIONS: usize = 1000;

/// How long a thousand clients take to ask once, and more.
const PATIENCE: Duration = Duration::from_secs(2);

fn start(arguments: &[&str]) -> (Service, SocketAddr) {
    let launch = Launch::of(example("echo")).arg("127.0.0.1:0").arg("--live").args(arguments);
    let service = launch.start();
    let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
    let address = line["listening on ".len()..].parse().unwrap();
    (service, address)
}

fn kept(address: SocketAddr, every: u64) -> KeepAlive {
    let kept = KeepAlive::echo(address).connections(CONNECTIONS);
    let kept = kept.every(Duration::from_millis(every)).start();
    kept.wait_open(soon()).unwrap();
    kept
}

#[test]
fn a_thousand_echoes_live_through_fifty_upgrades() {
    const UPGRADES: usize = 50;
    let (service, address) = start(&[]);
    let kept = kept(address, 500);
    let load = Load::echo(address).rate(50).start();
    let mut pid = load.wait_answered_by(|_| true, soon()).unwrap();
    for _ in 0..UPGRADES {
        let old = pid;
        signal(old, Signal::HUP);
        pid = load.wait_answered_by(|pid| pid != old, soon()).unwrap();
        assert!(process::exited(old, soon()), "all have moved");
    }
    kept.wait_pings(2 * CONNECTIONS, soon()).unwrap();
    let outcome = kept.stop();
    assert_eq!(outcome.ends, []);
    assert!(outcome.answered_by.contains_key(&pid));
    load.stop().assert_nothing_lost();
    signal(pid, Signal::TERM);
    service.wait_all_gone(soon()).unwrap();
}

/// Kills one of the two that long after the successor has begun to initialise, which is moments
/// before the first connection moves and moments after the last one has. Returns whether some had moved and others
/// had not.
fn kill(victim_is_successor: bool, after: Duration) -> bool {
    let (service, address) = start(&[]);
    let kept = kept(address, 50);
    let old = service.pid();
    signal(old, Signal::HUP);
    service.wait_line_after(1, |line| line.starts_with("listening on "), soon()).unwrap();
    let new = *service.alive().iter().find(|pid| **pid != old).unwrap();
    // Not a wait: the moment is what is varied.
    thread::sleep(after);
    // What it has now is what it will have had, and at least that many connections.
    let _ = process::try_signal(new, Signal::STOP);
    assert!(process::wait_state_stopped(new, soon()));
    let taken = sockets(new).saturating_sub(SOCKETS);
    let (victim, survivor) = if victim_is_successor { (new, old) } else { (old, new) };
    let _ = process::try_signal(victim, Signal::KILL);
    assert!(process::exited(victim, soon()));
    let _ = process::try_signal(new, Signal::CONT);
    // Those that are left go on; who has ended is known once they have asked once more.
    let go_on = || {
        let left = CONNECTIONS - kept.so_far().ends.len();
        (left == 0 || kept.wait_pings(2 * left, Instant::now() + PATIENCE).is_ok()).then_some(())
    };
    recheck(soon(), go_on).unwrap();
    // What is under way is waited for: a client that hangs is found out here.
    let ends = kept.stop().ends;
    for end in &ends {
        // What a crash of the victim would have shown, and nothing else.
        let is_plain = matches!(end.how, Ending::Closed | Ending::Lost(Fault::Cut | Fault::Reset));
        assert!(is_plain, "{end:?}");
    }
    let is_midway = (1..CONNECTIONS).contains(&taken);
    if is_midway {
        // What the victim did not have is there, and so is what was on its way to it.
        let lost = if victim_is_successor { taken + SOCKETS } else { CONNECTIONS - taken };
        assert!(ends.len() <= lost, "{} of {lost} have ended", ends.len());
    }
    if process::is_alive(survivor) {
        let _ = process::try_signal(survivor, Signal::TERM);
    }
    service.wait_all_gone(soon()).unwrap();
    is_midway
}

/// How many sockets a process has besides connections, at most.
const SOCKETS: usize = 16;

fn sockets(pid: Pid) -> usize {
    process::fds(pid).values().filter(|file| file.starts_with("socket:")).count()
}

/// Kills at one moment after the other, until enough of them fell between the first and the last move.
fn kill_midway(victim_is_successor: bool) {
    let (mut midway, mut step) = (0, 0);
    while step < 8 || midway < 3 {
        assert!(step < 60, "{midway} of them were midway");
        midway += u32::from(kill(victim_is_successor, Duration::from_millis(4 * (step % 15))));
        step += 1;
    }
}

#[test]
fn no_client_hangs_or_hears_another_when_the_successor_is_killed() {
    kill_midway(true);
}

#[test]
fn no_client_hangs_or_hears_another_when_the_predecessor_is_killed() {
    kill_midway(false);
}
