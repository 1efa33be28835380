//! The steps of `cargo xtask test`.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    cargo::{self, cargo, run},
    citations, layers, links,
    metadata::Metadata,
    msrv, package, soak, system,
};

/// The package whose features can be chosen.
const LIBRARY: &str = "handover";

/// What the benches hold the library against, in a workspace of its own.
const PEERS: &str = "bench/peers/Cargo.toml";

/// Names the file to which a test that cannot run here appends one line, `name: reason`.
const SKIP_LOG: &str = "HANDOVER_SKIP_LOG";

// Cheap steps stand first, so that a slip is told early.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Step {
    /// The code is formatted.
    Formatting,
    /// The layers import only what they may.
    Layers,
    /// No dependency asks for a newer Rust than we do.
    Msrv,
    /// The documents link to files and headings that exist, and name tests that do.
    Links,
    /// Dependencies: allowed licences, known sources, no wildcards.
    Dependencies,
    /// No dependency has a published security advisory.
    Advisories,
    /// Clippy has no complaint, with each set of features.
    Clippy,
    /// The documentation builds without a warning.
    Docs,
    /// The blocking example builds without Tokio.
    Examples,
    /// Unit and integration tests.
    Tests,
    /// The examples in the documentation and the README.
    DocTests,
    /// Five minutes of upgrades under load and faults.
    Soak,
    /// The published packages build from what would be uploaded.
    Package,
}

/// How a step ended that did not fail.
pub(crate) enum Outcome {
    Passed,
    /// Passed, but these parts of it could not run here.
    PassedWithout(Vec<String>),
    Skipped(String),
}

/// What the steps work on.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Step {
    pub(crate) fn run(self, workspace: &Workspace) -> Result<Outcome> {
        let Workspace { root, metadata } = workspace;
        match self {
            Self::Formatting => formatting(),
            Self::Layers => check_layers(root, metadata),
            Self::Msrv => passed(msrv::check(root, metadata)),
            Self::Links => passed(links::check(root).and_then(|()| citations::check(root))),
            Self::Dependencies => dependencies(),
            Self::Advisories => advisories(),
            Self::Clippy => clippy(metadata),
            Self::Docs => docs(),
            Self::Examples => examples(),
            Self::Tests => tests(metadata),
            Self::DocTests => doc_tests(),
            Self::Soak => passed(soak::test()),
            Self::Package => passed(package::check(root, metadata)),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

fn formatting() -> Result<Outcome> {
    cargo::require(&cargo::RUSTFMT)?;
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    passed(run(&mut cargo(&["fmt", "--all", "--check", "--manifest-path", PEERS])))
}

fn check_layers(root: &Path, metadata: &Metadata) -> Result<Outcome> {
    let idle = layers::check(root, metadata)?;
    if idle.is_empty() {
        return Ok(Outcome::Passed);
    }
    let parts = idle.iter().map(|place| format!("layers: no source file in {place}"));
    Ok(Outcome::PassedWithout(parts.collect()))
}

fn dependencies() -> Result<Outcome> {
    cargo::require(&cargo::DENY)?;
    passed(run(&mut cargo(&["deny", "check", "bans", "licenses", "sources"])))
}

fn advisories() -> Result<Outcome> {
    cargo::require(&cargo::DENY)?;
    // Fetched on its own, because a check that fails does not say whether it found something.
    let mut fetch = cargo(&["deny", "fetch", "db"]);
    // Without these a proxy that asks for a password, or a stalled one, would hang the suite.
    fetch.env("GIT_TERMINAL_PROMPT", "0");
    fetch.env("GIT_HTTP_LOW_SPEED_LIMIT", "1000").env("GIT_HTTP_LOW_SPEED_TIME", "30");
    if let Err(error) = cargo::read(&mut fetch) {
        let report = error.to_string();
        eprintln!("{report}");
        let cause = report.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        return Ok(Outcome::Skipped(format!("cannot fetch the advisory database: {cause}")));
    }
    passed(run(&mut cargo(&["deny", "check", "advisories"])))
}

fn clippy(metadata: &Metadata) -> Result<Outcome> {
    cargo::require(&cargo::CLIPPY)?;
    let strict = ["--", "-D", "warnings"];
    let all = ["clippy", "--workspace", "--all-targets", "--all-features"];
    run(cargo(&all).args(strict))?;
    // Examples name the features that they need, and so prove more than the library alone would.
    let bare = ["clippy", "-p", LIBRARY, "--lib", "--examples", "--no-default-features"];
    run(cargo(&bare).args(strict))?;
    for feature in metadata.member(LIBRARY)?.features.keys().filter(|name| *name != "default") {
        run(cargo(&bare).args(["--features", feature]).args(strict))?;
    }
    let peers = ["clippy", "--workspace", "--all-targets", "--manifest-path", PEERS];
    passed(run(cargo(&peers).args(strict)))
}

fn docs() -> Result<Outcome> {
    // The command is called as the library is, and its page would overwrite the library's.
    let arguments = ["doc", "--workspace", "--lib", "--no-deps", "--all-features"];
    passed(run(cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings")))
}

fn examples() -> Result<Outcome> {
    let arguments = ["build", "-p", LIBRARY, "--example", "echo_blocking", "--no-default-features"];
    passed(run(&mut cargo(&arguments)))
}

fn tests(metadata: &Metadata) -> Result<Outcome> {
    system::provide();
    let everything = ["--workspace", "--all-features"];
    let mut command = if cargo::NEXTEST.is_present() {
        let config = ["--config-file", "xtask/nextest.toml", "--no-tests", "pass"];
        let mut command = cargo(&["nextest", "run"]);
        command.args(everything).args(config);
        command
    } else {
        // Naming the targets leaves out the doc tests, which are a step of their own.
        let mut command = cargo(&["test", "--lib", "--bins", "--tests", "--examples"]);
        command.args(everything).arg("--no-fail-fast");
        command
    };
    let log = Path::new(&metadata.target_directory).join("xtask/skipped-tests");
    empty_skip_log(&log)?;
    let result = run(command.env(SKIP_LOG, &log));
    let skipped = read_skip_log(&log)?;
    if result.is_err() {
        skipped.iter().for_each(|test| eprintln!("SKIPPED: {test}"));
    }
    result?;
    Ok(if skipped.is_empty() { Outcome::Passed } else { Outcome::PassedWithout(skipped) })
}

fn empty_skip_log(log: &Path) -> Result<()> {
    let directory = log.parent().context("the skip log has no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    fs::write(log, "").with_context(|| format!("empty {}", log.display()))
}

fn read_skip_log(log: &Path) -> Result<Vec<String>> {
    let text = match fs::read_to_string(log) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", log.display())),
    };
    Ok(skipped_tests(&text))
}

/// The lines of a skip log, each once. They may carry the mark that tests print on stderr.
fn skipped_tests(log: &str) -> Vec<String> {
    let lines = log.lines().map(|line| line.trim().trim_start_matches("SKIPPED: "));
    let sorted: BTreeSet<&str> = lines.filter(|line| !line.is_empty()).collect();
    sorted.into_iter().map(str::to_owned).collect()
}

fn doc_tests() -> Result<Outcome> {
    passed(run(&mut cargo(&["test", "--doc", "--workspace", "--all-features"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skip_log_lines_count_once_with_or_without_their_mark() {
        let log = "SKIPPED: b: needs root\na: Linux only\n\nb: needs root\n";
        assert_eq!(skipped_tests(log), ["a: Linux only", "b: needs root"]);
    }

    #[test]
    fn steps_have_a_name_and_a_description() {
        for step in Step::value_variants() {
            assert!(!step.to_string().is_empty());
            assert!(step.to_possible_value().is_some_and(|value| value.get_help().is_some()));
        }
    }
}
