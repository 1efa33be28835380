//! What was written is what is read.

mod control;

use control::Subject;
use handover_testkit::{Load, soon};

/// Every way of writing, twice.
const EVERY_WAY: [&str; 12] = [
    "early=a:1:write",
    "early=b:2:place",
    "early=c:3:mixed",
    "early=d:4:json",
    "early=e:5:empty",
    "early=f:6:long1000000",
    "late=a:11:write",
    "late=b:12:place",
    "late=c:13:mixed",
    "late=d:14:json",
    "late=e:15:empty",
    "late=g:16:large8388608",
];

#[test]
fn early_and_late_states_of_every_kind_arrive_by_name_and_version() {
    let subject = Subject::start(EVERY_WAY);

    for generation in 1..4 {
        subject.upgrade();
        for (helping, name, version) in [
            ("early", 'a', 1),
            ("early", 'b', 2),
            ("early", 'c', 3),
            ("early", 'd', 4),
            ("late", 'a', 11),
            ("late", 'b', 12),
            ("late", 'c', 13),
            ("late", 'd', 14),
        ] {
            let line = format!("{helping} {name} {version} \"{name} of generation {generation}\"");
            subject.wait(&line);
        }
    }

    subject.wait("serving 4");
    let count = |line| subject.service.lines().iter().filter(|l| l.text == line).count();
    assert_eq!(count("early e 5 \"\""), 3);
    assert_eq!(count("late e 15 \"\""), 3);
    assert_eq!(count("early f 6 \"1003520 bytes, 0 wrong\""), 3);
    assert_eq!(count("late g 16 \"8388608 bytes, 0 wrong\""), 3);
    subject.stop();
}

#[test]
fn states_are_handed_on_under_load_without_a_lost_request() {
    let subject = Subject::start(EVERY_WAY);
    let load = Load::echo(subject.address).rate(300).start();

    for _ in 0..5 {
        let new = subject.upgrade().pid;
        load.wait_answered_by(|pid| pid == new, soon()).unwrap();
    }

    load.stop().assert_nothing_lost();
    subject.stop();
}

#[test]
fn a_hundred_states_of_each_helping_arrive() {
    let settings: Vec<String> = (0..100)
        .flat_map(|n| [format!("early=e{n}:{n}:write"), format!("late=l{n}:{n}:place")])
        .collect();
    let subject = Subject::start(settings.iter().map(String::as_str));

    subject.upgrade();

    for n in 0..100 {
        subject.wait(&format!("early e{n} {n} \"e{n} of generation 1\""));
        subject.wait(&format!("late l{n} {n} \"l{n} of generation 1\""));
    }
    subject.stop();
}
