//! `cargo xtask bench`: every question of speed, and its answers as a document.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cargo::{cargo, run};
use crate::system;

/// The programs of `bench/`, each of which answers one question, in the order of the document.
const PROGRAMS: [&str; 9] =
    ["spawn", "latency", "loss", "accept", "state", "moving", "rollback", "footprint", "growth"];

/// Where the answers are kept, and where those of a quick run are written.
const FIGURES: &str = "target/bench";

/// The document that has them.
const DOCUMENT: &str = "docs/comparison.md";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Takes fewer rounds, leaves out what is large, and writes target/bench/quick/comparison.md instead of
    /// docs/comparison.md. Less than ten minutes.
    #[arg(long)]
    quick: bool,
    /// The programs to run; all, unless given.
    #[arg(value_parser = PROGRAMS)]
    programs: Vec<String>,
}

/// Builds everything, runs the programs one after the other, and writes the document.
pub(crate) fn bench(arguments: &Arguments) -> Result<()> {
    system::provide_for_bench();
    let package = ["--package", "handover-bench", "--bins"];
    run(cargo(&["build", "--release", "--package", "handover-cli"]).args(package))?;
    run(&mut cargo(&["build", "--release", "--manifest-path", "bench/peers/Cargo.toml"]))?;
    // A full run's answers are not mixed with those of a quick one.
    let kind = if arguments.quick { "quick" } else { "full" };
    let figures = Path::new(FIGURES).join(kind);
    fs::create_dir_all(&figures).with_context(|| format!("make {}", figures.display()))?;
    for program in PROGRAMS {
        if !arguments.programs.is_empty() && !arguments.programs.iter().any(|it| it == program) {
            continue;
        }
        let begun = Instant::now();
        let json = figures.join(program).with_extension("json");
        let package = ["--package", "handover-bench", "--bin", program];
        let mut command = cargo(&["run", "--release", "--quiet"]);
        command.args(package).arg("--").arg("--json").arg(&json);
        run(command.args(arguments.quick.then_some("--quick")))?;
        println!("{program}: {:.0?}", begun.elapsed());
    }
    let out = if arguments.quick { figures.join("comparison.md") } else { DOCUMENT.into() };
    let package = ["--package", "handover-bench", "--bin", "figures", "--", DOCUMENT];
    let mut command = cargo(&["run", "--release", "--quiet"]);
    run(command.args(package).arg(&figures).arg(&out))?;
    println!("written: {}", out.display());
    Ok(())
}
