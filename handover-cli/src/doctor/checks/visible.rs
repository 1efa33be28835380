//! Whether the service sees its programs, and others its control socket.

use std::path::Path;

use super::{Asked, Findings};
use crate::doctor::finding::Severity::{Error, Warning};
use crate::doctor::unit::{Unit, boolean};
use crate::doctor::unit_file::Assignment;

/// What a service with `PrivateTmp=` has for itself.
pub(super) const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// What a service with `ProtectHome=` sees nothing of.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

pub(super) fn check(unit: &Unit, asked: &Asked, findings: &mut Findings) {
    programs(unit, findings);
    if let Some(control) = asked.control(unit).filter(|path| is_known(path)) {
        match hidden(unit, &control) {
            Some(hiding) => {
                let why = format!(
                    "the control socket {control} is where only the service sees it, and nobody can \
                    ask it for anything"
                );
                let finding = findings.warning(hiding.about, hiding.at, why);
                finding.write(&runtime_lines(unit.stem()));
            }
            None => directory(unit, &control, findings),
        }
    }
}

fn programs(unit: &Unit, findings: &mut Findings) {
    for setting in ["ExecStart", "ExecReload"] {
        for command in unit.commands(setting) {
            let program = command.value.program();
            let Some(hiding) = hidden(unit, program).filter(|_| is_known(program)) else {
                continue;
            };
            let why = format!(
                "the service does not see {program}, so that {setting}= fails with 203/EXEC"
            );
            let line = if HOMES[..2].iter().any(|home| Path::new(program).starts_with(home)) {
                "ProtectHome=read-only".to_owned()
            } else {
                let elsewhere = format!("/usr/local/bin/{}", command.value.name());
                format!("{setting}={}", command.at.value.replacen(program, &elsewhere, 1))
            };
            let reset = format!("{setting}=");
            let finding = findings.error(hiding.about, hiding.at, why);
            if line.starts_with(setting) {
                finding.write(&[&reset]);
            }
            finding.write(&[&line]);
        }
    }
}

/// Whether the service does not see this path.
pub(super) fn is_hidden(unit: &Unit, path: &str) -> bool {
    hidden(unit, path).is_some()
}

/// A path that has no specifier or variable in it.
fn is_known(path: &str) -> bool {
    path.starts_with('/') && !path.contains(['%', '$'])
}

/// What hides a path.
struct Hiding<'a> {
    about: &'static str,
    at: &'a Assignment,
}

fn hidden<'a>(unit: &'a Unit, path: &str) -> Option<Hiding<'a>> {
    let is_below = |directories: &[&str]| {
        directories.iter().any(|directory| Path::new(path).starts_with(directory))
    };
    let is_bound = ["BindPaths", "BindReadOnlyPaths"].into_iter().any(|setting| {
        unit.words(setting).any(|word| {
            let (source, rest) = word.split_once(':').unwrap_or((word, word));
            let target = rest.split(':').next().unwrap_or(source);
            Path::new(path).starts_with(target)
        })
    });
    if is_bound {
        return None;
    }
    if is_below(&TEMPORARY) {
        let private = unit.text("PrivateTmp").filter(|tmp| boolean(tmp.value) != Some(false));
        let dynamic = unit.flag("DynamicUser").filter(|it| it.value);
        let private = private.map(|tmp| Hiding { about: "PrivateTmp", at: tmp.at });
        return private.or(dynamic.map(|user| Hiding { about: "DynamicUser", at: user.at }));
    }
    if is_below(&HOMES) {
        let home = unit.text("ProtectHome");
        let hides = |value| boolean(value) == Some(true) || value == "tmpfs";
        return home
            .filter(|home| hides(home.value))
            .map(|home| Hiding { about: "ProtectHome", at: home.at });
    }
    None
}

/// Whether the control socket has a directory in which it can be made.
fn directory(unit: &Unit, control: &str, findings: &mut Findings) {
    let Some(directory) = Path::new(control).parent().and_then(Path::to_str) else { return };
    if let Some(below) = directory.strip_prefix("/run/")
        && runtime_directories(unit).any(|made| made == below)
    {
        return stays(unit, findings);
    }
    if is_writable(unit, directory) {
        return;
    }
    let strict = unit.text("ProtectSystem").is_some_and(|it| it.value == "strict");
    let dynamic = unit.flag("DynamicUser").is_some_and(|it| it.value);
    let severity = match strict || dynamic {
        true => Error,
        false if directory.starts_with("/run/") => Warning,
        // Somebody makes it, and who may write there is not known.
        false => return,
    };
    let why = format!("nothing lets the service write to {directory}, where the control socket is");
    let finding = findings.missing(severity, "RuntimeDirectory", "", why);
    match directory.strip_prefix("/run/") {
        Some(below) => finding.write(&runtime_lines(below)),
        None => finding.write(&[format!("ReadWritePaths={directory}")]),
    };
}

pub(super) fn runtime_lines(directory: &str) -> [String; 2] {
    [format!("RuntimeDirectory={directory}"), "RuntimeDirectoryPreserve=restart".to_owned()]
}

/// A colon is followed by a link to it.
fn runtime_directories(unit: &Unit) -> impl Iterator<Item = &str> {
    unit.words("RuntimeDirectory").map(|word| word.split(':').next().unwrap_or(word))
}

fn is_writable(unit: &Unit, directory: &str) -> bool {
    let made = [
        ("RuntimeDirectory", "/run"),
        ("StateDirectory", "/var/lib"),
        ("CacheDirectory", "/var/cache"),
        ("LogsDirectory", "/var/log"),
    ];
    let in_made = made.into_iter().any(|(setting, root)| {
        unit.words(setting).any(|word| {
            let name = word.split(':').next().unwrap_or(word);
            Path::new(directory).starts_with(Path::new(root).join(name))
        })
    });
    let paths = unit.words("ReadWritePaths").map(|path| path.trim_start_matches(['-', '+']));
    in_made
        || paths
            .into_iter()
            .any(|path| path.contains('%') || Path::new(directory).starts_with(path))
}

fn stays(unit: &Unit, findings: &mut Findings) {
    let preserve = unit.text("RuntimeDirectoryPreserve");
    let is_kept = preserve.as_ref().is_some_and(|found| boolean(found.value) != Some(false));
    let restarts = unit.text("Restart").is_some_and(|restart| restart.value != "no");
    if !restarts || is_kept {
        return;
    }
    let why = "a restart removes the directory of the control socket for a moment, and whoever watches \
        or waits there loses it";
    let line = "RuntimeDirectoryPreserve=restart";
    let about = "RuntimeDirectoryPreserve";
    findings.either(Warning, about, preserve.as_ref(), "which is no", why).write(&[line]);
}
