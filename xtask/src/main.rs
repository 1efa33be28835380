//! Development tasks of the workspace, run as `cargo xtask`.

mod bench;
mod cargo;
mod citations;
mod layers;
mod links;
mod metadata;
mod msrv;
mod package;
mod paths;
mod soak;
mod steps;
mod suite;
mod system;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{metadata::Metadata, steps::Workspace};

/// Development tasks of the handover workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Checks and tests everything, as the continuous integration does.
    ///
    /// Installs what is missing (cargo-deny), runs the steps one after the other, and ends with a
    /// table of what passed, failed or was skipped. Exits with 1 if a step failed.
    Test(suite::Arguments),
    /// Upgrades a service again and again under load and faults, and accounts for every request.
    Soak(soak::Arguments),
    /// Measures everything, beside peers and the floor, and writes docs/comparison.md.
    ///
    /// Installs what is missing (nginx, HAProxy, valgrind). For figures that count, nothing else should run.
    Bench(bench::Arguments),
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let root = workspace_root()?;
    env::set_current_dir(&root).with_context(|| format!("enter {}", root.display()))?;
    match arguments.task {
        Task::Test(arguments) => suite::run(&arguments, || {
            Ok(Workspace { metadata: Metadata::load()?, root: root.clone() })
        }),
        Task::Bench(arguments) => bench::bench(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Soak(arguments) => soak::soak(&arguments).map(|()| ExitCode::SUCCESS),
    }
}

/// Where the workspace lies, also if the task is started from one of its subdirectories.
fn workspace_root() -> Result<PathBuf> {
    // `cargo run` sets the variable; a binary started by hand falls back on where it was built.
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let root = package.parent().map(Path::to_path_buf);
    root.context("xtask has no directory above it")
}
