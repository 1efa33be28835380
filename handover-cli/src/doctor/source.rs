//! Where units are read from.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, anyhow, bail, ensure};

use super::timespan::Span;
use super::unit::{Kind, Unit};
use super::unit_file::UnitFile;

/// Far more than any unit has: a bound against reading what is no unit.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Of one unit.
const MAX_DROP_INS: usize = 256;

/// systemd, and the files of the machine.
#[derive(Debug)]
pub(super) struct Source {
    /// It is the systemd of the user that is asked.
    pub(super) of_user: bool,
}

impl Source {
    /// Reads these units, and after each service its sockets, as far as there are some.
    pub(super) fn read_all(&self, units: &[String]) -> Vec<(String, anyhow::Result<Unit>)> {
        let mut seen: BTreeSet<String> = units.iter().cloned().collect();
        let mut all = Vec::new();
        for asked in units {
            let read = self.read(asked);
            let sockets = read.as_ref().map(|unit| sockets_of(asked, unit)).unwrap_or_default();
            all.push((asked.clone(), read));
            for socket in sockets.into_iter().filter(|socket| seen.insert(socket.clone())) {
                // Nobody has asked for it, and a service need not have one of its name.
                if let Ok(unit) = self.read(&socket) {
                    all.push((socket, Ok(unit)));
                }
            }
        }
        all
    }

    fn read(&self, asked: &str) -> anyhow::Result<Unit> {
        let (name, file) = if asked.contains('/') {
            let name = Path::new(asked).file_name().and_then(|name| name.to_str());
            (name.context("is no file")?.to_owned(), from_files(Path::new(asked))?)
        } else {
            let name = full_name(asked);
            let read = self.known_to_systemd(&name).map_err(|error| {
                let here = Path::new(asked).is_file();
                if here { error.context(format!("for the file write ./{asked}")) } else { error }
            })?;
            (name, read)
        };
        Unit::of(&name, file).context("has neither a section [Service] nor a section [Socket]")
    }

    fn known_to_systemd(&self, name: &str) -> anyhow::Result<UnitFile> {
        ensure!(!name.contains(['*', '?', '[']), "one unit at a time, not a pattern");
        let text = self.systemctl(&["cat", "--", name])?;
        let mut unit = UnitFile::default();
        for (file, text) in split(&text) {
            unit.read(file, text);
        }
        Ok(unit)
    }

    /// The major version.
    pub(super) fn version(&self) -> Option<u32> {
        let told = self.systemctl(&["--version"]).ok()?;
        major(&told)
    }

    /// `DefaultTimeoutStartSec=` and `DefaultTimeoutStopSec=`, if systemd runs and can be asked.
    pub(super) fn defaults(&self) -> Option<(Span, Span)> {
        let names = ["DefaultTimeoutStartUSec", "DefaultTimeoutStopUSec"];
        let told = self.systemctl(&["show", "--property", &names.join(",")]).ok()?;
        let of = |name| {
            told.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .and_then(Span::parse)
        };
        Some((of(names[0])?, of(names[1])?))
    }

    fn systemctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("systemctl");
        if self.of_user {
            command.arg("--user");
        }
        command.arg("--no-pager").args(arguments).stdin(Stdio::null());
        let output = command.env("LC_ALL", "C").env("SYSTEMD_COLORS", "0").output().context(
            "cannot run systemctl, to which units are known by their names; give a path",
        )?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or("systemctl has failed").trim();
            return Err(anyhow!("{}", crate::operate::plain(said)));
        }
        ensure!(output.stdout.len() as u64 <= MAX_FILE_BYTES, "is too large for a unit");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A name without a suffix is that of a service, as for systemctl.
fn full_name(name: &str) -> String {
    let suffixes = [".service", ".socket", ".timer", ".target", ".path", ".mount", ".slice"];
    let has_suffix = suffixes.iter().any(|suffix| name.ends_with(suffix));
    if has_suffix { name.to_owned() } else { format!("{name}.service") }
}

/// The units of the sockets of a service: those that it names, and the one of its own name; asked
/// for as the service was.
fn sockets_of(asked: &str, unit: &Unit) -> Vec<String> {
    if unit.kind != Kind::Service {
        return Vec::new();
    }
    let own = format!("{}.socket", unit.stem());
    let named = unit.words("Sockets").filter(|name| !name.contains(['/', '%'])).map(str::to_owned);
    let beside = |name: String| match asked.rsplit_once('/') {
        Some((directory, _)) => format!("{directory}/{name}"),
        None => name,
    };
    named.chain([own]).map(beside).collect()
}

fn from_files(path: &Path) -> anyhow::Result<UnitFile> {
    let mut unit = UnitFile::default();
    let mut add = |path: &Path| -> anyhow::Result<()> {
        unit.read(&path.to_string_lossy(), &read_file(path)?);
        Ok(())
    };
    add(path)?;
    for path in drop_ins(path)? {
        add(&path).with_context(|| format!("{}", path.display()))?;
    }
    Ok(unit)
}

/// The `*.conf` of `NAME.d` beside the file, in the order that systemd reads them in.
fn drop_ins(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let Ok(entries) = fs::read_dir(Path::new(&directory)) else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.context("cannot read the directory of its drop-ins")?.path();
        if path.extension().is_some_and(|extension| extension == "conf") {
            ensure!(paths.len() < MAX_DROP_INS, "has more than {MAX_DROP_INS} drop-ins");
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    // Before it is opened: opening a FIFO waits for somebody to write to it.
    if !fs::metadata(path).context("cannot be read")?.is_file() {
        bail!("is not a file");
    }
    let mut bytes = Vec::new();
    let file = File::open(path).context("cannot be read")?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).context("cannot be read")?;
    ensure!(bytes.len() as u64 <= MAX_FILE_BYTES, "is too large for a unit");
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Splits what `systemctl cat` prints: before each file there is its path, as a comment, and before
/// each but the first an empty line.
fn split(text: &str) -> Vec<(&str, &str)> {
    let mut starts = Vec::new();
    let mut at = 0;
    let mut follows_gap = true;
    for line in text.split_inclusive('\n') {
        if follows_gap && let Some(path) = path_in(line) {
            starts.push((path, at, at + line.len()));
        }
        follows_gap = line.trim().is_empty();
        at += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, start, _)| *start).chain([text.len()]);
    starts.iter().zip(ends).map(|((path, _, start), end)| (*path, &text[*start..end])).collect()
}

fn path_in(line: &str) -> Option<&str> {
    let path = line.trim_end().strip_prefix("# ")?;
    let is_unit = |suffix| path.ends_with(suffix);
    let is_drop_in = path.ends_with(".conf") && path.contains(".d/");
    let is_path = path.starts_with('/') && !path.contains(char::is_whitespace);
    (is_path && (is_drop_in || [".service", ".socket"].into_iter().any(is_unit))).then_some(path)
}

fn major(told: &str) -> Option<u32> {
    let word = told.split_ascii_whitespace().nth(1)?;
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    word[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_prints_is_split_into_files_with_their_lines() {
        let text = "# /etc/systemd/system/a.service\n# a comment\n[Service]\nA=1\n\n# /not a path\n\
            \n# /etc/systemd/system/a.service.d/x.conf\n[Service]\nA=2\n";
        let files = split(text);
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].0, "/etc/systemd/system/a.service");
        assert!(files[0].1.starts_with("# a comment\n[Service]"));
        assert_eq!(files[1], ("/etc/systemd/system/a.service.d/x.conf", "[Service]\nA=2\n"));
        assert_eq!(split("no header\n"), []);
    }

    #[test]
    fn releases_are_read_however_they_are_called() {
        assert_eq!(major("systemd 257 (257.13-1~deb13u1)\n+PAM"), Some(257));
        assert_eq!(major("systemd 262~rc1 (262~rc1-1)"), Some(262));
        assert_eq!(major("systemd"), None);
    }

    #[test]
    fn a_name_without_a_suffix_is_a_service() {
        assert_eq!(full_name("app"), "app.service");
        assert_eq!(full_name("app-1.2"), "app-1.2.service");
        assert_eq!(full_name("app.socket"), "app.socket");
    }
}
