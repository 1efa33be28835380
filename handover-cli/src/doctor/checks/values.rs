//! Lines that systemd ignores, and so does everything else that is looked for.

use super::Findings;
use super::main_process::TYPES;
use crate::doctor::finding::Severity::Warning;
use crate::doctor::timespan::Span;
use crate::doctor::unit::{Unit, boolean};
use crate::doctor::unit_file::Assignment;

/// More of them say nothing new: it is no unit then.
const MAX_IGNORED: usize = 20;

const FLAGS: [&str; 6] =
    ["RemainAfterExit", "PrivatePIDs", "DynamicUser", "SendSIGHUP", "Accept", "FlushPending"];
const TIMES: [&str; 5] =
    ["TimeoutStartSec", "TimeoutStopSec", "TimeoutSec", "WatchdogSec", "RuntimeMaxSec"];
const CHOICES: [(&str, &[&str]); 5] = [
    ("Type", &TYPES),
    ("NotifyAccess", &["none", "main", "exec", "all"]),
    ("KillMode", &["control-group", "mixed", "process", "none"]),
    ("ExitType", &["main", "cgroup"]),
    (
        "Restart",
        &["no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always"],
    ),
];

pub(super) fn check(unit: &Unit, findings: &mut Findings) {
    for ignored in unit.ignored().iter().take(MAX_IGNORED) {
        let why = format!("systemd ignores the line: {}", ignored.why);
        let (text, place) = (ignored.text.clone(), ignored.place.clone());
        findings.push(Warning, "syntax", text, Some(place), why);
    }
    for (name, what, is_read) in settings() {
        let unread = unit.list(name).into_iter().filter(|at| !is_read(at));
        for at in unread.take(MAX_IGNORED) {
            let why = format!("systemd ignores the line, because this is no {what}");
            findings.warning(name, at, why);
        }
    }
}

type IsRead = Box<dyn Fn(&Assignment) -> bool>;

fn settings() -> Vec<(&'static str, &'static str, IsRead)> {
    let mut settings: Vec<(_, _, IsRead)> = Vec::new();
    for name in FLAGS {
        settings.push((name, "yes or no", Box::new(|at| boolean(&at.value).is_some())));
    }
    for name in TIMES {
        settings.push((name, "time", Box::new(|at| Span::parse(&at.value).is_some())));
    }
    for (name, choices) in CHOICES {
        let is_read = move |at: &Assignment| choices.contains(&&*at.value);
        settings.push((name, "word that it knows there", Box::new(is_read)));
    }
    let is_number = |at: &Assignment| at.value.parse::<u32>().is_ok();
    settings.push(("FileDescriptorStoreMax", "number", Box::new(is_number)));
    settings
}
