//! `handover`: proves that a network service replaces itself without losing a request.
//!
//! `handover verify` puts a running service under load, upgrades it again and again, and accounts
//! for every request. `handover demo` does the same to a service of its own.

mod demo;
mod stop;
mod verify;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Prove that a network service upgrades itself without losing a request.
#[derive(Debug, Parser)]
#[command(name = "handover", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(Box<verify::Args>),
    Demo(demo::Args),
    /// The service that `demo` upgrades.
    #[command(hide = true)]
    DemoService(demo::service::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Verify(args) => runtime().and_then(|runtime| runtime.block_on(verify::run(&args))),
        Command::Demo(args) => runtime().and_then(|runtime| runtime.block_on(demo::run(&args))),
        Command::DemoService(args) => demo::service::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("handover: {error:#}");
        ExitCode::FAILURE
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that do the work")
}
