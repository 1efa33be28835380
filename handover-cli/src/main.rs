//! `handover`: operates services that replace themselves, and proves that they lose nothing.
//!
//! `handover upgrade` and its like speak to a running service. `handover verify` puts a service under
//! load, upgrades it again and again, and accounts for every request; `handover demo` does the same to
//! a service of its own.

mod demo;
mod duration;
mod generate;
mod operate;
mod stop;
mod verify;

use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

/// Upgrade a running service without losing a request, watch it, and prove it.
#[derive(Debug, Parser)]
#[command(name = "handover", version, after_help = afterword())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Operate(operate::Command),
    Verify(Box<verify::Args>),
    Demo(demo::Args),
    /// The service that `demo` upgrades.
    #[command(hide = true)]
    DemoService(demo::service::Args),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

fn afterword() -> String {
    format!(
        "\
Examples:
  export HANDOVER_SOCKET=/run/app/control
  handover upgrade --executable /srv/app/42/app
  handover status --watch
  handover demo

{}

verify and demo exit with 0 if nothing was lost, and with 1 if not.",
        operate::EXIT_CODES
    )
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Operate(command) => operate(&command),
        Command::Verify(args) => runtime().and_then(|runtime| runtime.block_on(verify::run(&args))),
        Command::Demo(args) => runtime().and_then(|runtime| runtime.block_on(demo::run(&args))),
        Command::DemoService(args) => demo::service::run(args),
        Command::Completions(args) => generate::completions(&args, Cli::command()),
        Command::Man(args) => generate::man(&args, Cli::command()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("handover: {error:#}");
        ExitCode::FAILURE
    })
}

fn operate(command: &operate::Command) -> anyhow::Result<ExitCode> {
    if let Some(misuse) = command.misuse() {
        let mut cli = Cli::command();
        cli.build();
        let usage = cli.find_subcommand_mut(command.name()).expect("it was called by this name");
        usage.error(ErrorKind::MissingRequiredArgument, misuse).exit();
    }
    Ok(runtime()?.block_on(operate::run(command))?.into())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that do the work")
}
