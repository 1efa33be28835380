//! `handover doctor`: says what in a unit would bite.
//!
//! ```text
//!   systemctl cat, files ──► source ──► unit_file ──► unit ──► checks ──► findings ──► render
//! ```

mod checks;
mod command_line;
mod finding;
mod render;
mod source;
mod timespan;
mod unit;
mod unit_file;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use crate::duration::positive_duration;
use crate::operate::Exit;
use checks::Asked;
use source::Source;
use timespan::Span;

/// Say what in a unit of systemd would lose requests, or lie about it.
///
/// Each finding names the setting, why it bites, and the line to write instead. An error is that an
/// upgrade, a reload, a stop or a crash loses something or is reported wrongly; a warning is that it
/// can, or that less is known than could be. The .socket units of a service are looked at with it.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTERWORD)]
pub(crate) struct Args {
    /// The name of a unit that systemd knows, or the path of a file (with a `/` in it)
    #[arg(value_name = "UNIT|FILE", required = true)]
    units: Vec<String>,

    /// How long the program may drain
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = positive_duration)]
    drain_timeout: Duration,

    /// How long the program may take to become ready, and its probation added to that
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = positive_duration)]
    ready_timeout: Duration,

    /// The program keeps sockets and states in systemd's fd store; N is how many fds that are
    #[arg(
        long,
        value_name = "N",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    fd_store: Option<u32>,

    /// The service is to be restarted when it hangs
    #[arg(long)]
    watchdog: bool,

    /// The control socket of the program [default: the one that ExecReload= speaks to]
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    control: Option<String>,

    /// The release of systemd that it is for, such as 257 [default: the one that is here]
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..))]
    systemd: Option<u32>,

    /// Ask the systemd of the user instead of that of the machine
    #[arg(long)]
    user: bool,

    /// Print one JSON object for each unit, one a line
    #[arg(long)]
    json: bool,
}

const AFTERWORD: &str = "\
Examples:
  handover doctor app.service
  handover doctor --fd-store=8 --watchdog --drain-timeout 2m app
  handover doctor --systemd 252 ./debian/app.service

Exit codes:
    0  no errors; there may be warnings
    1  at least one error
    2  called wrongly
    6  a unit cannot be read

The lines that are to be written belong below [Service], or [Socket]; `systemctl edit UNIT` puts
them into a drop-in. `handover unit` writes a unit in which nothing is found.";

/// Judges the units.
///
/// # Errors
///
/// If the findings cannot be printed.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let source = Source { of_user: args.user };
    let asked = args.asked(&source);
    let mut exit = Exit::Done;
    let mut printed = String::new();
    for (name, read) in source.read_all(&args.units) {
        match read {
            Ok(unit) => {
                let findings = checks::check(&unit, &asked);
                if findings.iter().any(|finding| finding.is_error()) && exit == Exit::Done {
                    exit = Exit::Failed;
                }
                let render = if args.json { render::json } else { render::people };
                printed.push_str(&render(&unit, asked.systemd, &findings));
            }
            Err(error) => {
                // What was not read may hold any error: that is worth more than one that was found.
                exit = Exit::Unreachable;
                if args.json {
                    printed.push_str(&render::unreadable(&name, &error));
                } else {
                    eprintln!("handover: {}: {error:#}", crate::operate::plain(&name));
                }
            }
        }
    }
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(printed.as_bytes()).and_then(|()| stdout.flush());
    written.context("cannot print the findings")?;
    Ok(exit.into())
}

impl Args {
    fn asked(&self, source: &Source) -> Asked {
        // Another release has other defaults, and is on another machine.
        let defaults = if self.systemd.is_none() { source.defaults() } else { None };
        let (start_timeout, stop_timeout) = defaults.unwrap_or((DEFAULT_TIMEOUT, DEFAULT_TIMEOUT));
        Asked {
            drain_timeout: self.drain_timeout,
            ready_timeout: self.ready_timeout,
            fd_store: self.fd_store,
            watchdog: self.watchdog,
            control: self.control.clone(),
            systemd: self.systemd.or_else(|| source.version()),
            start_timeout,
            stop_timeout,
            command: std::env::current_exe().ok().and_then(|path| path.to_str().map(str::to_owned)),
        }
    }
}

/// `DefaultTimeoutStartSec=` and `DefaultTimeoutStopSec=`, unless the machine has others.
const DEFAULT_TIMEOUT: Span = Span::Of(Duration::from_secs(90));
