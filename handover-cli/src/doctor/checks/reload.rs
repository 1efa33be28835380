//! What a reload does, and whether what it says is true.

use std::path::Path;
use std::time::Duration;

use super::main_process::{is_notify, kind};
use super::{Asked, Findings, longer_than};
use crate::doctor::command_line::CommandLine;
use crate::doctor::finding::Severity::{Error, Warning};
use crate::doctor::timespan::Span;
use crate::doctor::unit::{Found, Unit};

/// Where systemd looks for a program that is given by its name.
const SYSTEMD_PATH: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// How much longer systemd should wait than the program does.
const MARGIN: Duration = Duration::from_secs(30);

pub(super) fn check(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    let commands = unit.commands("ExecReload");
    match kind(unit) {
        "notify-reload" => by_signal(unit, &commands, findings),
        "notify" if commands.is_empty() => {
            let why = "`systemctl reload` is refused, so that upgrades have to be asked for in another \
                way";
            let lines = asked.upgrade_lines(unit);
            findings.missing(Warning, "ExecReload", "", why).write(&lines);
        }
        _ => commands.iter().for_each(|command| by_command(unit, asked, command, findings)),
    }
    a_reload_has_the_time_of_an_upgrade(unit, asked, !commands.is_empty(), findings);
}

fn by_signal(unit: &Unit, commands: &[Found<'_, CommandLine>], findings: &mut Findings) {
    if let Some(command) = commands.first() {
        let why = "with Type=notify-reload systemd sends SIGHUP as well, so that one reload asks for two \
            upgrades";
        // The one that has a verdict is the one to keep.
        let is_upgrade = command.value.name() == "handover";
        let line = if is_upgrade { "Type=notify" } else { "ExecReload=" };
        findings.error("ExecReload", command.at, why).write(&[line]);
    }
    if let Some(signal) = unit.text("ReloadSignal")
        && !is_signal(signal.value, "HUP", 1)
    {
        let why =
            "the service is upgraded by SIGHUP, and any other signal does nothing or kills it";
        findings.error("ReloadSignal", signal.at, why).write(&["ReloadSignal=SIGHUP"]);
    }
}

fn by_command(
    unit: &Unit,
    asked: &Asked,
    command: &Found<'_, CommandLine>,
    findings: &mut Findings,
) {
    let lines = asked.upgrade_lines(unit);
    if only_signals(&command.value) {
        let why = "it returns before the upgrade has begun, so that a reload succeeds whatever becomes \
            of it (without a control socket: Type=notify-reload and no ExecReload=)";
        findings.error("ExecReload", command.at, why).write(&lines);
    }
    if command.value.prefix.contains('-') {
        let why = "the `-` makes a success of every failure, so that a failed upgrade is a successful \
            reload";
        findings.error("ExecReload", command.at, why).write(&lines);
    }
    if command.value.name() == "handover" {
        is_found(command, &lines, findings);
        knows_the_socket(unit, asked, command, &lines, findings);
    }
}

/// `kill`, its like, and a shell that calls it.
pub(super) fn only_signals(command: &CommandLine) -> bool {
    let is_kill = |word: &str| ["kill", "pkill", "killall"].contains(&word);
    let is_shell = ["sh", "bash", "dash"].contains(&command.name());
    let in_shell = || {
        let scripts = command.words.iter().skip(1);
        scripts
            .flat_map(|script| script.split(|c: char| c.is_whitespace() || ";&|".contains(c)))
            .any(|word| is_kill(word.rsplit('/').next().unwrap_or(word)))
    };
    is_kill(command.name()) || (is_shell && in_shell())
}

fn is_found(command: &Found<'_, CommandLine>, lines: &[String], findings: &mut Findings) {
    let program = command.value.program();
    if program.starts_with('/') {
        return;
    }
    let is_there = |directory: &str| Path::new(directory).join(program).exists();
    if program.contains('/') || !SYSTEMD_PATH.iter().any(|directory| is_there(directory)) {
        let why = format!(
            "systemd looks for it in {} only, where it is not, so that a reload fails",
            SYSTEMD_PATH.join(", ")
        );
        findings.error("ExecReload", command.at, why).write(lines);
    }
}

fn knows_the_socket(
    unit: &Unit,
    asked: &Asked,
    command: &Found<'_, CommandLine>,
    lines: &[String],
    findings: &mut Findings,
) {
    let in_environment = || {
        let assigned =
            unit.list("Environment").into_iter().any(|at| at.value.contains("HANDOVER_SOCKET="));
        // What is in the files, and passed on, is not known.
        assigned || unit.text("EnvironmentFile").is_some() || unit.text("PassEnvironment").is_some()
    };
    match (command.value.option("--socket"), &asked.control) {
        (None, _) if !in_environment() => {
            let why = "it does not say which service: without --socket, and HANDOVER_SOCKET in its \
                environment, a reload fails";
            findings.error("ExecReload", command.at, why).write(lines);
        }
        (Some(path), Some(control)) if path != control && !path.contains('%') => {
            let why = format!("the control socket is {control}, so that a reload fails");
            findings.error("ExecReload", command.at, why).write(lines);
        }
        _ => {}
    }
}

fn a_reload_has_the_time_of_an_upgrade(
    unit: &Unit,
    asked: &Asked,
    has_command: bool,
    findings: &mut Findings,
) {
    if !is_notify(unit) {
        return;
    }
    let found = unit.span(&["TimeoutStartSec", "TimeoutSec"]);
    let timeout = found.as_ref().map_or(asked.start_timeout, |found| found.value);
    if timeout.zero_is_infinite() > Span::Of(asked.ready_timeout) {
        return;
    }
    let ready = Span::Of(asked.ready_timeout);
    let reloads = has_command || kind(unit) == "notify-reload";
    let (severity, why) = if reloads {
        (
            Error,
            format!(
                "the program may take {ready} to become ready, and a reload that is longer is \
            reported as failed while the upgrade goes on"
            ),
        )
    } else {
        (
            Warning,
            format!(
                "the program may take {ready} to become ready, and a start that is longer is \
            cut short"
            ),
        )
    };
    let line = format!("TimeoutStartSec={}", longer_than(asked.ready_timeout, MARGIN));
    let instead = format!("which is {timeout}");
    findings.either(severity, "TimeoutStartSec", found.as_ref(), &instead, why).write(&[&line]);
}

/// Whether it is this signal, however it is written.
pub(super) fn is_signal(text: &str, name: &str, number: u32) -> bool {
    text.strip_prefix("SIG").unwrap_or(text) == name || text.parse() == Ok(number)
}
