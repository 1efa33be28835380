//! What is started.

use std::path::Path;

use super::visible::TEMPORARY;
use super::{CommandLine, Findings};
use crate::doctor::unit::Unit;

pub(super) fn check(unit: &Unit, findings: &mut Findings) {
    let commands = unit.commands("ExecStart");
    let Some(command) = commands.last() else { return };
    let why = if leaves_a_shell(&command.value) {
        "the shell is the main process, and systemd does not listen to the program, so that the start \
            fails when its time is up"
    } else if is_relative(&command.value) {
        "systemd starts no relative path, and refuses the unit"
    } else {
        return stays(unit, findings);
    };
    let line = match command.value.script() {
        Some(script) => exec(script),
        None => Some(format!("ExecStart=/usr/local/bin/{}", command.value.name())),
    };
    let finding = findings.error("ExecStart", command.at, why);
    if let Some(line) = line {
        finding.write(&["ExecStart=", &line]);
    }
}

/// Whether it is one that calls the program, instead of becoming it.
fn leaves_a_shell(command: &CommandLine) -> bool {
    let script = command.script();
    script.is_some_and(|script| !script.split_whitespace().any(|word| word == "exec"))
}

/// The line in which the shell becomes the program. Where in a longer script that is, only its
/// author knows.
fn exec(script: &str) -> Option<String> {
    let is_one_command = script.starts_with('/') && !script.contains([';', '&', '|', '\'', '\n']);
    is_one_command.then(|| format!("ExecStart=/bin/sh -c 'exec {script}'"))
}

fn is_relative(command: &CommandLine) -> bool {
    let program = command.program();
    // A bare name is looked up by systemd, and what begins with a specifier is not known.
    program.contains('/') && !program.starts_with(['/', '%', '$'])
}

/// That it is hidden there is another finding.
fn stays(unit: &Unit, findings: &mut Findings) {
    for command in unit.commands("ExecStart") {
        let program = Path::new(command.value.program());
        let is_temporary = TEMPORARY.iter().any(|directory| program.starts_with(directory));
        if is_temporary && !super::visible::is_hidden(unit, command.value.program()) {
            let why = "files there are removed with time and by a start of the machine, and then there is \
                nothing to start";
            let line = format!("ExecStart=/usr/local/bin/{}", command.value.name());
            findings.warning("ExecStart", command.at, why).write(&["ExecStart=", &line]);
        }
    }
}
