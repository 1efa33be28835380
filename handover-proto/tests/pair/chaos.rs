//! A thousand handovers with random programs, schedules, delays and faults. What must hold is
//! checked by [`Pair`] after each step and at the end.

use std::time::Duration;

use handover_proto::*;

use crate::channel::Unruly;
use crate::pair::Pair;
use crate::process::{Life, Script};
use crate::rng::Rng;

/// Enough for each outcome to be met in each phase. Raise it when a machine was changed.
const RUNS: u64 = 1_000;

#[test]
fn never_two_serve_and_who_lives_serves_whatever_fails() {
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut pair = any_pair(&mut rng);

        run(&mut pair, &mut rng);
    }
}

/// A socketpair does not drop, repeat or reorder. The machines do not rely on it: each message is
/// taken in one phase only, and nobody takes over before the other is known to have stopped.
#[test]
fn never_two_serve_even_over_a_channel_that_drops_repeats_and_reorders() {
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut pair = any_pair(&mut rng);
        pair.to_old.unruly = Some(Unruly(Rng::new(rng.next())));
        pair.to_new.unruly = Some(Unruly(Rng::new(rng.next())));

        run(&mut pair, &mut rng);
    }
}

#[test]
fn the_faults_lead_to_each_of_the_outcomes_in_each_of_the_phases() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..RUNS {
        let mut rng = Rng::new(seed);
        let mut pair = any_pair(&mut rng);
        run(&mut pair, &mut rng);
        seen.insert(match &pair.old.outcome {
            Some(Outcome::Succeeded) => "succeeded".to_owned(),
            Some(Outcome::Failed { phase, .. }) => format!("failed in {phase}"),
            Some(Outcome::RolledBack { cause }) => format!("rolled back: {cause}"),
            None => "predecessor died".to_owned(),
        });
    }

    let expected = [
        "failed in commit",
        "failed in confirm",
        "failed in hello",
        "failed in initialise",
        "failed in transfer",
        "predecessor died",
        "rolled back: a rollback was asked for: chaos",
        "rolled back: the successor does not answer",
        "rolled back: the successor ended",
        "rolled back: the successor is unhealthy: chaos",
        "succeeded",
    ];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

fn any_pair(rng: &mut Rng) -> Pair {
    let mut pair = Pair::new(Script {
        items: rng.pick(&[0, 1, 2, 65, 200]),
        early_states: rng.pick(&[0, 1, 3]),
        late_states: rng.pick(&[0, 1, 3]),
        progress: rng.below(4),
        refuses: rng.once_in(10),
        probation: rng.pick(&[None, Some(Duration::from_secs(5)), Some(Duration::from_secs(30))]),
        answer_timeout: rng.pick(&[1, 4, 12].map(Duration::from_secs)),
        states_back: rng.pick(&[0, 0, 1, 3]),
        states_given_back: rng.pick(&[0, 1, 3]),
        drains: rng.once_in(4),
        exits: rng.once_in(2),
        orderly: rng.once_in(2),
        ..Script::default()
    });
    let delays = [0, 0, 1, 100, 3_000].map(Duration::from_millis);
    pair.to_old.delay = rng.pick(&delays);
    pair.to_new.delay = rng.pick(&delays);
    pair
}

fn run(pair: &mut Pair, rng: &mut Rng) {
    let mut faults = rng.below(4);
    let often = 5 + rng.below(60);
    while pair.step_any(rng) {
        if faults > 0 && rng.once_in(often) {
            faults -= 1;
            fail_somehow(pair, rng);
        }
    }
    pair.settle();
}

fn fail_somehow(pair: &mut Pair, rng: &mut Rng) {
    let until = Some(pair.now + Duration::from_millis(rng.next() % 100_000));
    match rng.below(15) {
        0 => pair.crash_old(),
        1 => pair.crash_new(),
        2 => {
            pair.crash_old();
            pair.to_new.lose();
        }
        3 => {
            pair.crash_new();
            pair.to_old.lose();
        }
        4 if pair.old.life == Life::Alive => pair.old.life = Life::Hung(until),
        5 if pair.new.life == Life::Alive => pair.new.life = Life::Hung(until),
        6 => pair.close_new(),
        7 => pair.ask_old("abort", |machine, now| machine.abort("chaos", now)),
        8 => pair.ask_old("roll back", |machine, now| machine.roll_back("chaos", now)),
        9 => pair.ask_old("confirm", |machine, now| machine.confirm(now)),
        10 => pair.ask_new("unhealthy", |machine| machine.unhealthy("chaos")),
        11 => pair.ask_new("roll back", |machine| machine.request_rollback("chaos")),
        12 => pair.stop_new(),
        13 => pair.stop_old(),
        _ => pair.ask_new("healthy", Successor::healthy),
    }
}
