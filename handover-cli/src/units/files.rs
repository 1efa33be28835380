//! Where the units go.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::Unit;

/// Prints them as `systemctl cat` does, so that it shows where one ends. A single one is its text.
pub(super) fn print(units: &[Unit]) -> anyhow::Result<()> {
    let all = match units {
        [unit] => unit.text.clone(),
        _ => units
            .iter()
            .map(|unit| format!("# /etc/systemd/system/{}\n{}", unit.name, unit.text))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(all.as_bytes()).and_then(|()| stdout.flush()).context("cannot print the unit")
}

/// Writes a file for each, and says on stderr what is to be done with them.
pub(super) fn write(directory: &Path, units: &[Unit], force: bool) -> anyhow::Result<()> {
    // All or nothing: a service without its sockets is not what was asked for.
    let taken = units.iter().map(|unit| directory.join(&unit.name)).find(|path| is_taken(path));
    if let Some(path) = taken.filter(|_| !force) {
        bail!("{} is there already; --force replaces it", path.display());
    }
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let mut written = String::new();
    for unit in units {
        let path = directory.join(&unit.name);
        put(directory, &path, &unit.text, force)
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push_str(&format!("{}\n", path.display()));
    }
    io::stdout().write_all(written.as_bytes()).context("cannot print what was written")?;
    let names = units.iter().rev().map(|unit| &*unit.name).collect::<Vec<_>>().join(" ");
    eprintln!("next: systemctl daemon-reload && systemctl enable --now {names}");
    Ok(())
}

/// Writes a file in one piece: what reads it meanwhile, or a full disk, leaves no half of a unit. A
/// link, as that of a masked unit, is replaced and not followed.
fn put(directory: &Path, path: &Path, text: &str, force: bool) -> io::Result<()> {
    let readable_by_all = Permissions::from_mode(0o644);
    let mut file = tempfile::Builder::new().permissions(readable_by_all).tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    // A file that has appeared in between is not overwritten.
    if force {
        file.persist(path)?
    } else {
        file.persist_noclobber(path)?
    };
    Ok(())
}

/// A link that leads nowhere counts: a masked unit is one.
fn is_taken(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
