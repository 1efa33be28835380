//! What is explored.

use handover_proto::{Received, Time};

use crate::check::Broken;
use crate::explore::explore;
use crate::mutation::Mutation as M;
use crate::process::Process;
use crate::world::{Model, Setup};

const PAIR: Setup = Setup {
    probation: false,
    early_states: 0,
    late_states: 0,
    states_back: 0,
    supervised: false,
    generations: 2,
    crashes: 2,
    hangs: 2,
    asks: 3,
    stalls: 0,
    loses: false,
    orderly: true,
    unkillable: false,
    mutation: None,
};

const STATES: Setup = Setup { early_states: 1, late_states: 1, states_back: 2, ..PAIR };

const THREE: Setup = Setup { generations: 3, crashes: 1, hangs: 1, ..PAIR };

/// Explores everything, with probation and without.
fn holds(setup: Setup) {
    for probation in [false, true] {
        let setup = Setup { probation, ..setup };
        match explore(setup) {
            Ok((explored, _)) => println!("{setup:?}:\n{explored}"),
            Err(found) => panic!("{setup:?}: {found:?}"),
        }
    }
}

#[test]
fn a_pair_keeps_every_promise() {
    holds(PAIR);
}

#[test]
fn a_pair_with_states_keeps_every_promise() {
    holds(STATES);
}

#[test]
fn a_supervised_pair_keeps_every_promise() {
    holds(Setup { supervised: true, ..STATES });
}

#[test]
fn a_pair_whose_channel_is_full_keeps_every_promise() {
    holds(Setup { stalls: 2, late_states: 1, ..PAIR });
}

#[test]
fn a_pair_keeps_every_promise_if_what_the_dead_have_said_is_lost() {
    holds(Setup { loses: true, ..STATES });
}

#[test]
fn three_generations_keep_every_promise() {
    holds(THREE);
}

#[test]
fn three_supervised_generations_keep_every_promise() {
    holds(Setup { supervised: true, ..THREE });
}

#[test]
fn three_generations_with_two_crashes_keep_every_promise() {
    holds(Setup { crashes: 2, hangs: 0, ..THREE });
}

#[test]
fn three_generations_with_more_to_do_keep_every_promise() {
    holds(Setup { crashes: 1, hangs: 0, asks: 5, ..THREE });
}

#[test]
fn a_pair_that_looks_at_the_clock_first_is_safe() {
    holds(Setup { orderly: false, ..STATES });
}

#[test]
fn three_generations_that_look_at_the_clock_first_are_safe() {
    holds(Setup { orderly: false, ..THREE });
}

/// What was broken on purpose, where it shows, and by what.
const MUTATIONS: [(M, Setup, Broken); 30] = {
    const PROBATION: Setup = Setup { probation: true, ..PAIR };
    const SUPERVISED: Setup = Setup { supervised: true, ..THREE };
    [
        (M::KeepsAccepting, PAIR, Broken::OneAccepts),
        (M::BuildsOnWhatNobodyHasHeard, Setup { orderly: false, ..THREE }, Broken::OneBelieves),
        (M::CommitsBeforeItStopped, PAIR, Broken::OneAccepts),
        (M::ClosesAtCommit, PAIR, Broken::ListenerKept),
        (M::ClosesTheChannel, PAIR, Broken::NothingBeforeCommit),
        (M::SucceedsAtCommit, PAIR, Broken::VerdictTrue),
        (M::ResumesInConfirm, PAIR, Broken::OneAccepts),
        (M::ResumesWithTheRollback, PROBATION, Broken::OneAccepts),
        (M::NeverResumes, PAIR, Broken::SomebodyServes),
        (M::SuccessOfAFailure, PAIR, Broken::VerdictTrue),
        (M::ForgetsTheVerdict, PAIR, Broken::OneVerdict),
        (M::SaysItTwice, PAIR, Broken::OneVerdict),
        (M::MissesTheEnd, PAIR, Broken::Ends),
        (M::DoesNotKill, PAIR, Broken::OneVerdict),
        (M::PingsAtOnce, PROBATION, Broken::Ends),
        (M::OverhearsStop, PROBATION, Broken::StopKept),
        (M::OverhearsServing, PAIR, Broken::StopKept),
        (M::KeepsStopToItself, PAIR, Broken::StopKept),
        (M::DoesNotSayResumed, PAIR, Broken::StopKept),
        (M::AcceptsAtReady, PAIR, Broken::NothingBeforeCommit),
        (M::IgnoresTheEnd, PAIR, Broken::Ends),
        (M::ServesWhenSilent, PAIR, Broken::NothingBeforeCommit),
        (M::GivesUpAlone, PAIR, Broken::SomebodyServes),
        (M::AcceptsInARollback, PROBATION, Broken::OneAccepts),
        (M::ClosesWhenStopped, PROBATION, Broken::SomebodyServes),
        (M::ServesAfterAStop, PROBATION, Broken::StopKept),
        (M::ForgetsPendingUpgrade, PAIR, Broken::UpgradeKept),
        (M::ForgetsStop, PAIR, Broken::StopKept),
        (M::LineForgetsUpgrade, SUPERVISED, Broken::UpgradeKept),
        (M::ReadsLinesInARollback, SUPERVISED, Broken::UpgradeKept),
    ]
};

#[test]
fn everything_that_is_broken_on_purpose_is_found() {
    for (mutation, setup, expected) in MUTATIONS {
        let found = explore(Setup { mutation: Some(mutation), ..setup });
        let found = found.err().map(|found| (found.broken, found.trace.len()));
        println!("{mutation:?}: {found:?}");
        assert_eq!(found.map(|(broken, _)| broken), Some(expected), "{mutation:?}");
    }
}

/// The known limits, each of which the exploration finds, so that one that is mended is noticed.
mod limits {
    use super::*;

    fn is_found(setup: Setup, expected: Broken) {
        let found = explore(setup).err().map(|found| found.broken);
        assert_eq!(found, Some(expected), "{setup:?}");
    }

    /// A successor that cannot be killed is taken for dead, and can be in the midst of accepting when its
    /// predecessor goes on.
    #[test]
    fn a_successor_that_cannot_be_killed_can_wake_and_accept() {
        is_found(Setup { unkillable: true, ..PAIR }, Broken::OneBelieves);
    }

    /// What a process had said before it died has to arrive: without `resumed` both of those that it has
    /// started serve.
    #[test]
    fn what_the_dead_have_said_has_to_arrive() {
        is_found(Setup { loses: true, probation: true, ..THREE }, Broken::OneAccepts);
    }
}

/// The states of processes that come up in one exploration, for each the machines that it has, and
/// every message in each of them, with the descriptors that belong to it and with others.
#[test]
fn no_frame_makes_a_machine_panic() {
    let mut taken = 0_usize;
    for setup in [Setup { probation: true, ..STATES }, Setup { supervised: true, ..THREE }] {
        let Ok((_, model)) = explore(setup) else { panic!("{setup:?}") };
        for process in &model.processes {
            taken += all_frames(process, &model);
        }
    }
    println!("{taken} frames taken");
}

fn all_frames(process: &Process, model: &Model) -> usize {
    let golden = [
        include_str!("../../handover-proto/tests/golden/v1-to-predecessor.jsonl"),
        include_str!("../../handover-proto/tests/golden/v1-to-successor.jsonl"),
    ];
    let garbage = ["", "{}", "[]", "{\"type\":7}", "{\"type\":\"moon\"}", "\0\u{7f}"];
    let known = (0..model.frames.len()).map(|frame| model.frames.bytes(frame as u16).0);
    let frames = golden.iter().flat_map(|text| text.lines()).chain(garbage).map(str::as_bytes);
    let mut taken = 0;
    for frame in frames.chain(known) {
        for (descriptors, truncated) in [(0, false), (1, false), (3, false), (1, true)] {
            let received = Received { descriptors, truncated };
            if let Some(link) = &process.link {
                let mut machine = link.machine.clone();
                machine.handle_frame(frame, received, Time::ZERO);
                while machine.poll_event().is_some() || machine.poll_transmit().is_some() {}
                taken += 1;
            }
            for attempt in process.attempts() {
                let mut machine = attempt.machine.clone();
                machine.handle_frame(frame, received, Time::ZERO);
                while machine.poll_event().is_some() || machine.poll_transmit().is_some() {}
                taken += 1;
            }
            for (_, line) in &process.lines {
                let mut machine = line.clone();
                machine.handle_frame(frame, received);
                while machine.poll_event().is_some() || machine.poll_transmit().is_some() {}
                taken += 1;
            }
        }
    }
    taken
}
