//! Whether a stop lets what was accepted be finished.

use std::time::Duration;

use super::reload::{is_signal, only_signals};
use super::{Asked, Findings, longer_than};
use crate::doctor::finding::Severity::Warning;
use crate::doctor::timespan::Span;
use crate::doctor::unit::Unit;

/// How much longer systemd should wait than the program does.
const MARGIN: Duration = Duration::from_secs(15);

pub(super) fn check(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    all_are_reached(unit, findings);
    by_a_signal_that_drains(unit, findings);
    and_by_one_only(unit, findings);
    in_the_time_of_a_drain(unit, asked, findings);
}

fn all_are_reached(unit: &Unit, findings: &mut Findings) {
    let modes = ["control-group", "mixed", "process", "none"];
    let Some(mode) = unit.choice("KillMode", &modes) else { return };
    let why = match mode.value {
        "process" => {
            "processes that still drain after an upgrade outlive the stop, and hold on to ports \
            and memory"
        }
        "none" => "a stop stops nothing: all processes of the service outlive it",
        _ => return,
    };
    findings.error("KillMode", mode.at, why).write(&["KillMode=control-group"]);
}

fn by_a_signal_that_drains(unit: &Unit, findings: &mut Findings) {
    for setting in ["KillSignal", "RestartKillSignal"] {
        let Some(signal) = unit.text(setting) else { continue };
        if is_signal(signal.value, "TERM", 15) || is_signal(signal.value, "INT", 2) {
            continue;
        }
        let why = "the service drains on SIGTERM and SIGINT; any other signal kills it with its requests, \
            or means something else to it";
        findings.error(setting, signal.at, why).write(&[&format!("{setting}=SIGTERM")]);
    }
    if let Some(hup) = unit.flag("SendSIGHUP").filter(|it| it.value) {
        let why = "SIGHUP asks for an upgrade, in the middle of a stop";
        findings.warning("SendSIGHUP", hup.at, why).write(&["SendSIGHUP=no"]);
    }
}

fn and_by_one_only(unit: &Unit, findings: &mut Findings) {
    for command in unit.commands("ExecStop").iter().filter(|it| only_signals(&it.value)) {
        let why = "systemd sends its own signal as soon as this has returned, and a second one ends the \
            drain at once (unless the first has not arrived yet)";
        findings.error("ExecStop", command.at, why).write(&["ExecStop="]);
    }
}

fn in_the_time_of_a_drain(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    let found = unit.span(&["TimeoutStopSec", "TimeoutSec"]);
    let timeout = found.as_ref().map_or(asked.stop_timeout, |found| found.value);
    let drain = Span::Of(asked.drain_timeout);
    if timeout.zero_is_infinite() > drain {
        return;
    }
    let why = format!(
        "draining may take {drain}, and systemd kills it before that if the program's request for more \
        time does not arrive"
    );
    let line = format!("TimeoutStopSec={}", longer_than(asked.drain_timeout, MARGIN));
    let instead = format!("which is {timeout}");
    findings.either(Warning, "TimeoutStopSec", found.as_ref(), &instead, why).write(&[&line]);
}
