//! `handover`: operates services that replace themselves, and proves that they lose nothing.
//!
//! `handover upgrade` and its like speak to a running service. `handover verify` puts a service under
//! load, upgrades it again and again, and accounts for every request; `handover demo` does the same to
//! a service of its own. `handover unit` writes the units of a service for systemd, and `handover
//! doctor` judges those that somebody else has written.

mod demo;
mod doctor;
mod duration;
mod generate;
mod operate;
mod stop;
mod units;
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
    Unit(Box<units::Args>),
    Doctor(doctor::Args),
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
  handover unit --listen http=80 /srv/app/current/app
  handover doctor app.service

{}

verify and demo exit with 0 if nothing was lost, and with 1 if not; doctor, if no error was found.",
        operate::EXIT_CODES
    )
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Operate(command) => operate(&command),
        Command::Verify(args) => verify(&args),
        Command::Demo(args) => runtime().and_then(|runtime| runtime.block_on(demo::run(&args))),
        Command::Unit(args) => unit(&args),
        Command::Doctor(args) => doctor::run(&args),
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
        refuse(command.name(), ErrorKind::MissingRequiredArgument, &misuse);
    }
    Ok(runtime()?.block_on(operate::run(command))?.into())
}

fn verify(args: &verify::Args) -> anyhow::Result<ExitCode> {
    if let Some(misuse) = args.misuse() {
        refuse("verify", ErrorKind::ArgumentConflict, &misuse);
    }
    runtime()?.block_on(verify::run(args))
}

fn unit(args: &units::Args) -> anyhow::Result<ExitCode> {
    match args.units() {
        Ok(units) => units::run(args, &units),
        Err(misuse) => refuse("unit", ErrorKind::ValueValidation, &misuse),
    }
}

/// Exits as clap does when a command is called wrongly.
fn refuse(command: &str, kind: ErrorKind, misuse: &str) -> ! {
    let mut cli = Cli::command();
    cli.build();
    let usage = cli.find_subcommand_mut(command).expect("it was called by this name");
    usage.error(kind, misuse).exit()
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that do the work")
}
