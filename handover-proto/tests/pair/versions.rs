//! Releases that speak differently: every pair of them, in both directions, upgrades or is refused with
//! a reason that both can read, and then the old one serves on.

use std::time::Duration;

use handover_proto::*;

use crate::pair::Pair;
use crate::process::Script;
use crate::releases::*;

const RELEASES: [Release; 5] = [V1, V1_WITH_FIELDS, V1_WITH_MESSAGES, V2, V1_AND_V2];

#[test]
fn every_pair_of_releases_upgrades_or_leaves_the_old_one_serving_with_a_reason() {
    let mut upgraded = 0;
    for old in RELEASES {
        for new in RELEASES {
            let mut pair = Pair::new(Script { old, new, ..Script::default() });

            pair.settle();

            match expected(old, new) {
                Expected::Upgrade(version) => {
                    assert_eq!(pair.old.outcome, Some(Outcome::Succeeded), "{old:?} to {new:?}");
                    assert!(pair.new_serves() && !pair.old_serves());
                    assert_eq!(agreed(&pair), Some(version));
                    upgraded += 1;
                }
                Expected::Refused(reason) => {
                    let Some(Outcome::Failed { cause, .. }) = &pair.old.outcome else {
                        panic!("{old:?} to {new:?}: {:?}", pair.old.outcome)
                    };
                    assert!(cause.to_string().contains(&reason), "{cause}");
                    assert!(pair.old_serves() && !pair.new_serves());
                    assert!(!pair.old.paused, "it has never stopped");
                    let failure = pair.new.events.iter().find_map(|event| match event {
                        SuccessorEvent::Failed(failure) => Some(failure.to_string()),
                        _ => None,
                    });
                    assert!(failure.is_some(), "the new one knows why it exits");
                }
            }
        }
    }
    // Two that speak version 1 among each other, each with the one that speaks both, and that with the
    // one that speaks version 2 only: in both directions, and each with itself.
    assert_eq!(upgraded, 4 + 2 * 2 + 2 + 2);
}

#[test]
fn releases_without_a_common_version_tell_each_other_both() {
    for (old, new) in [(V1, V2), (V2, V1)] {
        let mut pair = Pair::new(Script { old, new, ..Script::default() });

        pair.settle();

        let (ours, theirs) = (old.versions, new.versions);
        let failed =
            Outcome::Failed { phase: Phase::Hello, cause: Cause::Incompatible { ours, theirs } };
        assert_eq!(pair.old.outcome, Some(failed));
        let told = Failure::Incompatible { ours: theirs, theirs: ours };
        assert!(pair.new.events.contains(&SuccessorEvent::Failed(told)), "{:?}", pair.new.events);
        assert!(pair.old_serves());
    }
}

#[test]
fn newest_common_version_is_spoken() {
    for (old, new, version) in [
        (release(1, 2, Accent::None), release(1, 3, Accent::None), 2),
        (release(1, 3, Accent::None), release(2, 4, Accent::None), 3),
        (release(2, 2, Accent::None), release(1, 9, Accent::None), 2),
    ] {
        let mut pair = Pair::new(Script { old, new, ..Script::default() });

        pair.settle();

        assert_eq!(agreed(&pair), Some(Version(version)));
        assert!(pair.new_serves());
    }
}

#[test]
fn unknown_fields_change_nothing_of_a_rollback() {
    for (old, new) in [(V1_WITH_FIELDS, V1), (V1, V1_WITH_FIELDS)] {
        let probation = Some(Duration::from_secs(30));
        let (states_back, states_given_back) = (2, 2);
        let script =
            Script { old, new, probation, states_back, states_given_back, ..Script::default() };
        let mut pair = Pair::new(script);
        while pair.old.machine.phase() != Phase::Probation {
            assert!(pair.step());
        }

        pair.ask_new("unhealthy", |machine| machine.unhealthy("test"));
        pair.settle();

        assert!(matches!(pair.old.outcome, Some(Outcome::RolledBack { .. })));
        assert!(pair.old_serves());
    }
}

#[test]
fn successor_that_serves_ignores_an_unknown_message_and_reports_it() {
    let old = release(1, 1, Accent::Message { before: &["confirmed"] });
    let probation = Some(Duration::from_secs(30));
    let mut pair = Pair::new(Script { old, probation, ..Script::default() });

    pair.settle();

    assert_eq!(pair.old.outcome, Some(Outcome::Succeeded));
    assert!(pair.new_serves());
    let ignored = Violation::UnknownMessage { name: UNKNOWN.into() };
    assert!(pair.new.events.contains(&SuccessorEvent::Ignored(ignored)));
}

#[test]
fn unknown_message_on_probation_is_a_rollback_with_its_name() {
    let new = release(1, 1, Accent::Message { before: &["pong"] });
    let probation = Some(Duration::from_secs(30));
    let mut pair = Pair::new(Script { new, probation, ..Script::default() });

    pair.settle();

    let Some(Outcome::RolledBack { cause }) = &pair.old.outcome else { panic!("{pair:#?}") };
    assert!(cause.to_string().contains(UNKNOWN), "{cause}");
    assert!(pair.old_serves());
}

enum Expected {
    Upgrade(Version),
    Refused(String),
}

fn expected(old: Release, new: Release) -> Expected {
    let Some(version) = old.versions.agree(new.versions) else {
        return Expected::Refused(format!(
            "the successor speaks protocol version {}, this process {}",
            new.versions, old.versions
        ));
    };
    if [old, new].contains(&V1_WITH_MESSAGES) {
        return Expected::Refused(format!("an unknown message \"{UNKNOWN}\""));
    }
    Expected::Upgrade(version)
}

/// The version that the predecessor has picked.
fn agreed(pair: &Pair) -> Option<Version> {
    pair.said.iter().find_map(|said| match decode(said.frame.as_bytes()) {
        Ok(ToSuccessor::Welcome { version, .. }) => Some(version),
        Ok(_) | Err(_) => None,
    })
}
