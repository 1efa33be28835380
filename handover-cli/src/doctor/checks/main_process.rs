//! Which process is the service, and what its end means.

use super::{Asked, Findings};
use crate::doctor::finding::Severity::{Error, Warning};
use crate::doctor::timespan::Span;
use crate::doctor::unit::Unit;

/// Those that systemd knows.
pub(super) const TYPES: [&str; 8] =
    ["simple", "exec", "forking", "oneshot", "dbus", "notify", "notify-reload", "idle"];

/// The release that has `Type=notify-reload`.
const NOTIFY_RELOAD: u32 = 253;

/// Whether the unit is of a type that lets the main process change.
pub(super) fn is_notify(unit: &Unit) -> bool {
    matches!(kind(unit), "notify" | "notify-reload")
}

/// `Type=`, or what it is without.
pub(super) fn kind(unit: &Unit) -> &str {
    unit.choice("Type", &TYPES).map_or("simple", |found| found.value)
}

pub(super) fn check(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    kind_lets_it_change(unit, asked, findings);
    messages_are_heard(unit, findings);
    its_end_is_the_end(unit, findings);
    a_crash_restarts(unit, findings);
    memory_ends_one_alone(unit, findings);
}

fn kind_lets_it_change(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    let found = unit.choice("Type", &TYPES);
    if !is_notify(unit) {
        let why = "systemd does not listen to who the main process is, so the first upgrade ends the \
            service when the old process leaves";
        findings
            .either(Error, "Type", found.as_ref(), "which is simple", why)
            .write(&["Type=notify"]);
    }
    if let Some(found) = found.filter(|it| it.value == "notify-reload")
        && asked.is_before(NOTIFY_RELOAD)
    {
        let release = asked.systemd.unwrap_or_default();
        let why = format!(
            "systemd {release} has no such type, which came with {NOTIFY_RELOAD}, ignores the line, \
            and takes the service for Type=simple"
        );
        let finding = findings.error("Type", found.at, why).write(&["Type=notify"]);
        finding.write(&asked.upgrade_lines(unit));
    }
    if let Some(file) = unit.text("PIDFile").filter(|_| is_notify(unit)) {
        let why = "systemd follows the messages of the service and not this file, which is wrong from \
            the first upgrade on unless the program writes it";
        findings.warning("PIDFile", file.at, why).write(&["PIDFile="]);
    }
}

fn messages_are_heard(unit: &Unit, findings: &mut Findings) {
    let Some(access) = unit.choice("NotifyAccess", &["none", "main", "exec", "all"]) else {
        return;
    };
    match access.value {
        "all" => {
            let why = "systemd believes any process of the service: a STOPPING=1 of one that drains, or \
                of a tool that it calls, stops the unit, and its WATCHDOG=1 hides a main process that \
                hangs";
            findings.error("NotifyAccess", access.at, why).write(&["NotifyAccess=main"]);
        }
        "exec" => {
            let why = "systemd believes the commands of ExecReload= and its like as well, which have \
                nothing to say about who serves";
            findings.warning("NotifyAccess", access.at, why).write(&["NotifyAccess=main"]);
        }
        "none" if is_notify(unit) => {
            let why = "a service of this type is heard or it does not start: systemd takes it for \
                `main`, and whoever reads the unit does not";
            findings.warning("NotifyAccess", access.at, why).write(&["NotifyAccess=main"]);
        }
        _ => {}
    }
}

fn its_end_is_the_end(unit: &Unit, findings: &mut Findings) {
    if let Some(exit) = unit.choice("ExitType", &["main", "cgroup"])
        && exit.value == "cgroup"
    {
        let why = "a crash of the main process goes unnoticed as long as any other one is alive, such \
            as one that drains";
        findings.error("ExitType", exit.at, why).write(&["ExitType=main"]);
    }
    if let Some(remain) = unit.flag("RemainAfterExit").filter(|it| it.value) {
        let why = "the unit stays `active` when no process is left, so that nothing restarts it";
        findings.error("RemainAfterExit", remain.at, why).write(&["RemainAfterExit=no"]);
    }
    if let Some(max) = unit.span(&["RuntimeMaxSec"]).filter(|max| max.value != Span::Infinite) {
        let why = "the service is ended after that time, whichever version serves, and nobody serves \
            until it has started anew";
        findings.warning("RuntimeMaxSec", max.at, why).write(&["RuntimeMaxSec=infinity"]);
    }
    if let Some(pids) = unit.flag("PrivatePIDs").filter(|it| it.value) {
        let why = "the first process is PID 1 of a namespace, and when it leaves after an upgrade the \
            kernel kills all others";
        findings.error("PrivatePIDs", pids.at, why).write(&["PrivatePIDs=no"]);
    }
}

fn memory_ends_one_alone(unit: &Unit, findings: &mut Findings) {
    let found = unit.choice("OOMPolicy", &["continue", "stop", "kill"]);
    if found.as_ref().is_some_and(|found| found.value == "continue") {
        return;
    }
    let why = "if the kernel ends one process for want of memory, a new version that is too large or an \
        old one that drains, systemd stops the whole service";
    findings
        .either(Warning, "OOMPolicy", found.as_ref(), "which is stop", why)
        .write(&["OOMPolicy=continue"]);
}

fn a_crash_restarts(unit: &Unit, findings: &mut Findings) {
    let words =
        ["no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always"];
    let found = unit.choice("Restart", &words);
    let why = match found.as_ref().map_or("no", |found| found.value) {
        "always" => return,
        "on-failure" => {
            "a crash in the instant in which a new version takes over can look like a success, and is \
            not restarted"
        }
        "no" => "a crash is the end of the service",
        _ => "some crashes are the end of the service",
    };
    findings.either(Warning, "Restart", found.as_ref(), "", why).write(&["Restart=always"]);
}
