//! Executables, and what it takes to build them.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use handover_testkit::{Finished, Folder, Launch};

use crate::sheet::{Row, Sheet};
use crate::{NONE, Peer};

pub(crate) const SIZE: Row = ("Executable, stripped", "KiB");

pub(crate) const CRATES: Row = ("Dependencies", "crates");

const TIME: Row = ("Time to compile what comes on top", "s");

const FIRST_TIME: Row = ("Time to compile the first from nothing", "s");

const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/Cargo.toml");

const LIBRARY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../handover/Cargo.toml");

/// How long one command may take.
const TIMEOUT: Duration = Duration::from_secs(240);

/// What it takes to build each of them with nothing but what it needs itself, and how large it is then.
pub(crate) fn alone(
    peers: &[Peer],
    sheet: &mut Sheet,
    notes: &mut Vec<String>,
) -> Result<(), Box<dyn Error>> {
    let folder = Folder::create();
    // Always at the same path: what is built contains it.
    let (target, saved) = (folder.join("target"), folder.join("saved"));
    let mut executables = Vec::new();
    for peer in peers {
        if peer.name != NONE {
            fs::remove_dir_all(&target)?;
            copy(&saved, &target)?;
        }
        let package = peer.package();
        let launch = cargo(&["build", "--release", "--manifest-path", PEERS]);
        let launch = launch.args(["--package", &package, "--target-dir"]).arg(&target);
        let begun = Instant::now();
        run(launch)?;
        let row = if peer.name == NONE { FIRST_TIME } else { TIME };
        sheet.add(row, peer.name, begun.elapsed().as_secs_f64());
        if peer.name == NONE {
            copy(&target, &saved)?;
        }
        let executable = folder.join(&package);
        fs::rename(target.join("release").join(&package), &executable)?;
        executables.push(Peer { name: peer.name, executable });
    }
    sizes(&executables, sheet, notes);
    Ok(())
}

/// Looks at executables without what is for debuggers.
pub(crate) fn sizes(peers: &[Peer], sheet: &mut Sheet, notes: &mut Vec<String>) {
    let folder = Folder::create();
    for peer in peers {
        let stripped = folder.join(peer.name);
        let launch = Launch::of("strip").arg("-o").args([&stripped, &peer.executable]);
        let size = run(launch).and_then(|_| Ok(fs::metadata(&stripped)?.len()));
        match size {
            Ok(size) => sheet.add(SIZE, peer.name, size as f64 / 1024.0),
            Err(error) => notes.push(format!("{} was not stripped: {error}.", peer.name)),
        }
    }
}

/// Counts what they depend on.
pub(crate) fn crates(
    peers: &[Peer],
    sheet: &mut Sheet,
    notes: &mut Vec<String>,
) -> Result<(), Box<dyn Error>> {
    let mut none = BTreeSet::new();
    for peer in peers {
        let all = match tree(PEERS, &peer.package(), &[]) {
            Ok(all) => all,
            Err(error) => {
                notes.push(format!("Crates were not counted: {error}."));
                return Ok(());
            }
        };
        sheet.add(CRATES, peer.name, all.len() as f64);
        if peer.name == NONE {
            none = names(&all);
        }
    }
    for features in ["tokio", "http"] {
        let all = tree(LIBRARY, "handover", &["--no-default-features", "--features", features])?;
        let more: Vec<String> = names(&all).difference(&none).cloned().collect();
        notes.push(format!(
            "Of that, the library with the feature `{features}` alone is {} crates that {NONE} does not have: itself, {}.",
            more.len() + 1,
            more.join(", ")
        ));
    }
    Ok(())
}

/// Names and versions of all crates that one needs in the end.
fn tree(
    manifest: &str,
    package: &str,
    features: &[&str],
) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let launch = cargo(&["tree", "--manifest-path", manifest, "--package", package]);
    let launch = launch.args(["--edges", "normal", "--prefix", "none"]).args(features);
    let printed = run(launch)?.stdout();
    let crates = printed.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?);
        (name != package).then(|| format!("{name} {version}"))
    });
    Ok(crates.collect())
}

fn names(crates: &BTreeSet<String>) -> BTreeSet<String> {
    let names = crates.iter().filter_map(|one| one.split(' ').next());
    names.map(str::to_owned).collect()
}

/// With its times, which tell cargo that nothing has changed.
fn copy(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    run(Launch::of("cp").arg("-a").args([from, to])).map(drop)
}

/// Nothing is fetched, which would be timed as well.
fn cargo(arguments: &[&str]) -> Launch {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Launch::of(cargo).args(arguments).args(["--locked", "--offline"])
}

fn run(launch: Launch) -> Result<Finished, Box<dyn Error>> {
    let finished = launch.try_start()?.finish(Instant::now() + TIMEOUT);
    let finished = finished.map_err(|error| error.to_string())?;
    if !finished.status.success() {
        let stderr = finished.stderr();
        let why = stderr.lines().find(|line| line.starts_with("error"));
        return Err(why.unwrap_or(&stderr).into());
    }
    Ok(finished)
}
