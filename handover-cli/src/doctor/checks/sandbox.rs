//! Whether the service may do what an upgrade takes.

use std::collections::BTreeSet;

use super::Findings;
use crate::doctor::unit::Unit;
use crate::doctor::unit_file::Assignment;

/// What can be taken out of `@system-service` again.
const SPARED: [&str; 2] = ["@privileged", "@resources"];

/// What no service of this library can do without. Denying one of them denies upgrades.
const NEEDED: [&str; 18] = [
    "@system-service",
    "@default",
    "@basic-io",
    "@file-system",
    "@io-event",
    "@ipc",
    "@network-io",
    "@process",
    "@signal",
    "@timer",
    "clone",
    "clone3",
    "execve",
    "kill",
    "memfd_create",
    "recvmsg",
    "sendmsg",
    "socketpair",
];

pub(super) fn check(unit: &Unit, findings: &mut Findings) {
    system_calls(unit, findings);
    address_families(unit, findings);
}

fn system_calls(unit: &Unit, findings: &mut Findings) {
    let filters = unit.list("SystemCallFilter");
    let Some(first) = filters.first() else { return };
    // The first one decides whether what is not named is allowed.
    let allows = !first.value.starts_with('~');
    let mut allowed = BTreeSet::new();
    for filter in &filters {
        let (denies, words) = words(filter);
        for word in words {
            if !denies {
                allowed.insert(word);
            } else if NEEDED.contains(&word) {
                let why = format!(
                    "the service cannot do without {word}, and an upgrade is killed or refused"
                );
                findings.error("SystemCallFilter", filter, why).write(&lines());
            }
        }
    }
    if allows && !allowed.contains("@system-service") && !allowed.contains("@known") {
        let why = "an upgrade starts a process and hands file descriptors to it, and not everything that \
            it takes is in this list";
        findings.error("SystemCallFilter", first, why).write(&["SystemCallFilter=@system-service"]);
    }
}

fn lines() -> [&'static str; 3] {
    [
        "SystemCallFilter=",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged @resources",
    ]
}

/// Whether it denies, and what; a word may have an error number behind a colon.
fn words(at: &Assignment) -> (bool, impl Iterator<Item = &str>) {
    let denied = at.value.strip_prefix('~');
    let words = denied.unwrap_or(&at.value).split_whitespace();
    let words = words.map(|word| word.split(':').next().unwrap_or(word));
    (denied.is_some(), words.filter(|word| !SPARED.contains(word)))
}

fn address_families(unit: &Unit, findings: &mut Findings) {
    let families = unit.list("RestrictAddressFamilies");
    let Some(first) = families.first() else { return };
    let mut has_unix = first.value.starts_with('~');
    let mut last = *first;
    for list in &families {
        let (denies, mut words) = words(list);
        if words.any(|word| word == "AF_UNIX") {
            (has_unix, last) = (!denies, *list);
        } else if list.value == "none" {
            (has_unix, last) = (false, *list);
        }
    }
    if !has_unix {
        let why = "systemd is told who serves over such a socket, and the control socket is one";
        let line = "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX";
        findings
            .error("RestrictAddressFamilies", last, why)
            .write(&["RestrictAddressFamilies=", line]);
    }
}
