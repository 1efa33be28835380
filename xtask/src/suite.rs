//! `cargo xtask test`: runs the steps one after the other and says how each ended.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::ValueEnum;

use crate::steps::{Outcome, Step, Workspace};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The steps to run, in the order given; all of them by default.
    #[arg(value_enum, value_name = "STEP")]
    steps: Vec<Step>,
    /// Lists the steps and runs nothing.
    #[arg(long)]
    list: bool,
    /// Stops at the first step that fails.
    #[arg(long)]
    fail_fast: bool,
}

pub(crate) fn run(
    arguments: &Arguments,
    workspace: impl FnOnce() -> Result<Workspace>,
) -> Result<ExitCode> {
    if arguments.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let steps =
        if arguments.steps.is_empty() { Step::value_variants() } else { &arguments.steps[..] };
    let ran = run_steps(steps, &workspace()?, arguments.fail_fast);
    summarise(steps, &ran);
    let failed = ran.iter().any(|ran| ran.outcome.is_err());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn list() {
    for value in Step::value_variants().iter().filter_map(Step::to_possible_value) {
        println!("{:<14}{}", value.get_name(), value.get_help().cloned().unwrap_or_default());
    }
}

/// A step that was run.
struct Ran {
    step: Step,
    took: Duration,
    outcome: Result<Outcome>,
}

fn run_steps(steps: &[Step], workspace: &Workspace, fail_fast: bool) -> Vec<Ran> {
    let mut ran = Vec::with_capacity(steps.len());
    for (index, &step) in steps.iter().enumerate() {
        eprintln!("\n=== [{}/{}] {step} ===", index + 1, steps.len());
        let start = Instant::now();
        let outcome = step.run(workspace);
        let took = start.elapsed();
        match &outcome {
            Ok(Outcome::Passed | Outcome::PassedWithout(_)) => {
                eprintln!("--- {step} passed in {}", seconds(took));
            }
            Ok(Outcome::Skipped(reason)) => eprintln!("--- {step} SKIPPED: {reason}"),
            Err(error) => eprintln!("--- {step} FAILED in {}: {error:#}", seconds(took)),
        }
        let stop = fail_fast && outcome.is_err();
        ran.push(Ran { step, took, outcome });
        if stop {
            break;
        }
    }
    ran
}

fn summarise(steps: &[Step], ran: &[Ran]) {
    println!("\n{:<14}{:<10}{:>9}", "step", "result", "time");
    for Ran { step, took, outcome } in ran {
        let (result, remark) = match outcome {
            Ok(Outcome::Passed) => ("passed", String::new()),
            Ok(Outcome::PassedWithout(parts)) => {
                ("passed", format!("but {} SKIPPED, see below", counted(parts.len())))
            }
            Ok(Outcome::Skipped(reason)) => ("SKIPPED", reason.clone()),
            // The rest of a long report stands in the step's own output.
            Err(error) => {
                ("FAILED", format!("{error:#}").lines().next().unwrap_or_default().to_owned())
            }
        };
        let line = format!("{:<14}{result:<10}{:>9}  {remark}", step.to_string(), seconds(*took));
        println!("{}", line.trim_end());
    }
    for step in &steps[ran.len()..] {
        println!("{:<14}not run", step.to_string());
    }
    let total = ran.iter().map(|ran| ran.took).sum();
    println!("{:<24}{:>9}", "total", seconds(total));
    for part in ran.iter().flat_map(|ran| match &ran.outcome {
        Ok(Outcome::PassedWithout(parts)) => &parts[..],
        Ok(Outcome::Passed | Outcome::Skipped(_)) | Err(_) => &[],
    }) {
        println!("SKIPPED: {part}");
    }
}

fn counted(parts: usize) -> String {
    if parts == 1 { "1 part".to_owned() } else { format!("{parts} parts") }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
