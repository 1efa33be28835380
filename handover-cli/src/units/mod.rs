//! `handover unit`: writes the units of a service that systemd runs.
//!
//! ```text
//!   Args ──► plan: what can be meant ──► service, socket: the text ──► printed, or files
//! ```

mod files;
mod listen;
mod plan;
mod quote;
mod service;
mod socket;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ValueEnum, ValueHint};

use crate::duration::positive_duration;
use listen::Listen;
use plan::Plan;

/// Write the systemd unit of a service, and those of its sockets.
///
/// A reload of the unit upgrades the service, a stop drains it, and a crash restarts it. The service
/// may do little else than serve. Each line whose reason does not show has a comment that says it.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTERWORD)]
pub(crate) struct Args {
    /// The program, as an absolute path: where each new version is put in place of the old one
    #[arg(value_name = "BINARY", value_hint = ValueHint::FilePath)]
    binary: String,

    /// The name of the unit, without `.service` [default: the file name of the program]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// What systemd calls the service in its messages [default: the name]
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,

    /// How `systemctl reload` upgrades
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Reload::Upgrade)]
    reload: Reload,

    /// The control socket that the program opens [default: /run/NAME/control; none with `--reload
    /// signal`]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    control: Option<String>,

    /// A socket that systemd opens, such as http=0.0.0.0:80 or dns=udp:53; can be repeated
    ///
    /// The address is one that ListenStream= takes. `udp:`, `seqpacket:` or `fifo:` before it makes
    /// another kind of socket of it. Those of one name share a unit.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = Listen::read)]
    listen: Vec<Listen>,

    /// How many file descriptors systemd keeps through a crash: one for each socket, the control
    /// socket included, and three for each state that is stored
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_STORED))]
    fd_store: Option<u32>,

    /// Kill and restart a service that has hung for so long, such as 30s
    #[arg(long, value_name = "TIME", value_parser = span)]
    watchdog: Option<Duration>,

    /// How long the program may drain
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    drain_timeout: Duration,

    /// How long the program may take to become ready, and its probation added to that
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = span)]
    ready_timeout: Duration,

    /// The user it runs as [default: one that exists only while it runs]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,

    /// Give it a directory that stays, /var/lib/NAME
    #[arg(long)]
    state_directory: bool,

    /// A variable of its environment; can be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = quote::assignment)]
    env: Vec<(String, String)>,

    /// Let it listen at ports below 1024, which it need not if systemd opens the sockets
    #[arg(long)]
    allow_low_ports: bool,

    /// Where this command is on the machine of the service [default: where it is on this one]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    handover: Option<String>,

    /// Write the units into this directory instead of printing them
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    output: Option<PathBuf>,

    /// Replace units that are there already
    #[arg(long, requires = "output")]
    force: bool,

    /// The arguments of the program
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

const AFTERWORD: &str = "\
Examples:
  handover unit /srv/app/current/app -- --config /etc/app.toml
  handover unit --listen http=80 --fd-store 8 --watchdog 30s /srv/app/current/app
  handover unit --reload signal --user app --output /etc/systemd/system /srv/app/app

`handover doctor` says what would bite in a unit that you have changed or written yourself.";

/// The most that systemd keeps for a unit without being told more of it: a bound against typos.
const MAX_STORED: i64 = 4096;

/// Longer than any of the times can be meant, and far from where microseconds overflow.
const MAX_SPAN: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a reload becomes an upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reload {
    /// By this command over the control socket: a failed upgrade is a failed reload, at once, and
    /// the journal says why
    Upgrade,
    /// By a signal: needs no control socket, but a failed upgrade is known only when the time is up
    Signal,
}

/// A unit and its file name.
#[derive(Debug)]
pub(crate) struct Unit {
    name: String,
    text: String,
}

impl Args {
    /// The units, the service first.
    ///
    /// # Errors
    ///
    /// What is wrong with the options, besides what clap finds.
    pub(crate) fn units(&self) -> Result<Vec<Unit>, String> {
        let plan = Plan::of(self)?;
        let service = Unit { name: plan.service(), text: service::text(&plan) };
        let sockets = plan
            .sockets
            .iter()
            .map(|socket| Unit { name: socket.unit.clone(), text: socket::text(&plan, socket) });
        Ok(std::iter::once(service).chain(sockets).collect())
    }
}

/// Prints the units, or writes their files.
///
/// # Errors
///
/// If they cannot be written, or there are files of their names.
pub(crate) fn run(args: &Args, units: &[Unit]) -> anyhow::Result<ExitCode> {
    match &args.output {
        Some(directory) => files::write(directory, units, args.force)?,
        None => files::print(units)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn span(text: &str) -> Result<Duration, String> {
    let span = positive_duration(text)?;
    if span > MAX_SPAN {
        return Err("is longer than a year".to_owned());
    }
    if span.subsec_nanos() % 1_000_000 != 0 {
        return Err("has a part below a millisecond".to_owned());
    }
    Ok(span)
}
