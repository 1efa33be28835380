//! What a successor knows goes back with a rollback, or is given up in time.

#![allow(clippy::unwrap_used)]

mod common;
mod trial;

use common::assert_only_accepted_lost;
use handover::control::{Answer, Client, ErrorCode, Request};
use handover_testkit::process::{self, Signal};
use handover_testkit::{Folder, Launch, Load, Pid, Service, example, soon};
use trial::{Trial, answer, assert_refused};

/// How many requests one process may have accepted that is killed.
const ACCEPTED_MAX: usize = 4;

/// The counting subject under load.
struct Counter {
    folder: Folder,
    service: Service,
    load: Load,
    old: Pid,
}

impl Counter {
    fn start() -> Self {
        let folder = Folder::create();
        let service = Launch::of(example("subject_counter")).arg(folder.path()).start();
        let line = service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let address: std::net::SocketAddr = line["listening on ".len()..].parse().unwrap();
        service.wait_line(|line| line.starts_with("serving "), soon()).unwrap();
        let (load, old) = (Load::http(address).rate(500).start(), service.pid());
        Self { folder, service, load, old }
    }

    /// Upgrades, has the successor rolled back once it has counted, and returns what the
    /// predecessor then says of the count.
    fn round(&self) -> String {
        let printed = self.service.line_count();
        let wait = |start: &str| {
            self.service.wait_line_after(printed, |line| line.starts_with(start), soon()).unwrap()
        };
        process::signal(self.old, Signal::HUP);
        let new: Pid = wait("serving ")["serving ".len()..].parse().unwrap();
        self.load.wait_answered_by(|pid| pid == new, soon()).unwrap();
        let mut client = Client::connect(self.folder.join("control")).unwrap();
        let done = answer(&mut client, &Request::Rollback { reason: None });
        assert!(matches!(done, Answer::Done { .. }), "{done:?}");
        wait("verdict rolled back: ");
        assert!(process::exited(new, soon()), "it drains and exits");
        self.load.wait_answered_by(|pid| pid == self.old, soon()).unwrap();
        wait("back ")["back ".len()..].to_owned()
    }

    /// Ends the load, and then the service, and returns the last number that was counted and how
    /// many were answered.
    fn finish(self) -> (u64, u64) {
        let address_line =
            self.service.wait_line(|line| line.starts_with("listening on "), soon()).unwrap();
        let outcome = self.load.stop();
        outcome.assert_nothing_lost();
        let address: std::net::SocketAddr = address_line["listening on ".len()..].parse().unwrap();
        let last = trial::get(address);
        let count: u64 = last.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap();
        (count, u64::try_from(outcome.ok).unwrap() + 1)
    }
}

#[test]
fn what_successors_have_counted_is_known_after_each_rollback() {
    let counter = Counter::start();
    let counts: Vec<u64> = (0..20).map(|_| counter.round().parse().unwrap()).collect();
    assert!(counts.is_sorted());
    let (counted, answered) = counter.finish();
    assert_eq!(counted, answered);
}

#[test]
fn state_that_fails_on_its_way_back_is_gone_without() {
    for how in ["error", "panic"] {
        let counter = Counter::start();
        counter.folder.write("returning", how);
        assert_eq!(counter.round(), "without a count");
        std::fs::remove_file(counter.folder.join("returning")).unwrap();
        assert!(counter.round().parse::<u64>().is_ok(), "the next one comes back");
        let (counted, answered) = counter.finish();
        assert!(counted < answered);
    }
}

/// Has a successor rolled back, and its state wait at the gate on its way back.
fn returning<'a>(trial: &'a Trial) -> (trial::Tried<'a>, common::Gate, Client) {
    let tried = trial.upgrade("");
    let gate = trial.stage.gate("late");
    let mut client = trial.client();
    client.send(&Request::Rollback { reason: Some("too slow".into()) }).unwrap();
    assert_eq!(tried.asked.waiting("late"), tried.pid);
    (tried, gate, client)
}

#[test]
fn state_that_hangs_on_its_way_back_is_gone_without() {
    let trial = Trial::new(&["--commit-timeout", "300"]);
    let (tried, gate, _client) = returning(&trial);
    tried.rolled_back(&["too slow"]);
    trial.assert_old_serves();
    tried.left();
    gate.open();
    trial.finish().assert_nothing_lost();
}

#[test]
fn successor_killed_while_its_state_goes_back_is_rolled_back() {
    let trial = Trial::new(&[]);
    let (tried, gate, _client) = returning(&trial);
    process::signal(tried.pid, Signal::KILL);
    tried.rolled_back(&["too slow"]);
    gate.open();
    assert_only_accepted_lost(&trial.finish(), ACCEPTED_MAX);
}

#[test]
fn predecessor_killed_while_states_go_back_leaves_the_successor_serving() {
    let trial = Trial::new(&[]);
    let (tried, gate, mut client) = returning(&trial);
    process::signal(trial.old, Signal::KILL);
    trial.stage.load.wait_answered_by(|pid| pid == tried.pid, soon()).unwrap();
    gate.open();
    let told = client.next_answer_within(Some(std::time::Duration::from_secs(20))).unwrap();
    assert_refused(&told.unwrap(), ErrorCode::NotOnProbation, &["was confirmed meanwhile"]);
    assert_eq!(trial.named(), Some(tried.pid));

    let next = trial.stage.ask_of(tried.pid).serving();
    trial.stage.load.wait_answered_by(|pid| pid == next, soon()).unwrap();
    assert_only_accepted_lost(&trial.stage.load.stop(), ACCEPTED_MAX);
}

#[test]
fn stop_signal_to_the_successor_while_states_go_back_stops_the_service() {
    let trial = Trial::new(&[]);
    let (tried, gate, _client) = returning(&trial);
    process::signal(tried.pid, Signal::TERM);
    gate.open();
    tried.asked.line(&format!("draining {} Stopped", trial.old));
    trial.stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(trial.named(), None);
}

#[test]
fn predecessor_killed_while_a_stopping_successor_gives_its_states_back_leaves_nobody() {
    let trial = Trial::new(&[]);
    let (tried, gate, _client) = returning(&trial);
    process::signal(tried.pid, Signal::TERM);
    trial::wait_taken(tried.pid);
    process::signal(trial.old, Signal::KILL);
    gate.open();
    trial.stage.service.wait_all_gone(soon()).unwrap();
}

#[test]
fn stop_signal_to_the_predecessor_while_states_come_back_stops_the_service() {
    let trial = Trial::new(&[]);
    let (tried, gate, _client) = returning(&trial);
    process::signal(trial.old, Signal::TERM);
    gate.open();
    tried.asked.line(&format!("draining {} Stopped", trial.old));
    trial.stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(trial.named(), None);
}

#[test]
fn second_stop_signal_to_the_predecessor_does_not_wait_for_states_that_come_back() {
    let trial = Trial::new(&["--commit-timeout", "600000"]);
    let (_tried, gate, _client) = returning(&trial);
    process::signal(trial.old, Signal::TERM);
    trial::wait_taken(trial.old);
    process::signal(trial.old, Signal::TERM);
    trial.stage.service.wait_all_gone(soon()).unwrap();
    assert_eq!(trial.named(), None);
    drop(gate);
}
