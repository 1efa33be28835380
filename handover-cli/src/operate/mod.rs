//! The commands that operate a running service, over its control socket.
//!
//! ```text
//!   upgrade, rollback ──► follow ──► aftermath (when the verdict is lost)
//!   stop, confirm, call ─► order        │
//!   status, events          │           │          render: what is said, for people
//!          └────────────────┴───────────┴──► conversation: one request, in a thread of its own
//! ```

mod aftermath;
mod conversation;
mod events;
mod exit;
mod failure;
mod follow;
mod live;
mod order;
mod output;
mod render;
mod status;
mod upgrade;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Subcommand, ValueHint};
use handover::control::Answer;

use crate::duration::positive_duration;
use crate::stop::Stop;
use conversation::{Line, Service};
pub(crate) use exit::{EXIT_CODES, Exit};
use failure::Failure;
pub(crate) use render::plain;

/// The variable that stands in for `--socket`.
const SOCKET_VARIABLE: &str = "HANDOVER_SOCKET";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Upgrade(Box<upgrade::Args>),
    Status(status::Args),
    Stop(order::StopArgs),
    Rollback(order::RollbackArgs),
    Confirm(order::ConfirmArgs),
    Events(events::Args),
    Call(order::CallArgs),
}

/// What all of them have.
#[derive(Debug, clap::Args)]
struct Common {
    /// The control socket of the service
    #[arg(
        long,
        value_name = "PATH",
        env = SOCKET_VARIABLE,
        hide_env_values = true,
        value_hint = ValueHint::FilePath
    )]
    socket: Option<PathBuf>,

    /// Print what the service answers as it is: JSON, one object a line
    #[arg(long)]
    json: bool,

    /// How long connecting may take, and then the first answer, such as 10s
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    timeout: Duration,
}

impl Command {
    /// What is wrong with the options, besides what clap finds.
    pub(crate) fn misuse(&self) -> Option<String> {
        let missing = self.common().path().is_none().then(|| {
            format!("which service? Give --socket PATH, or set {SOCKET_VARIABLE} to the path")
        });
        let conflict = match self {
            Self::Upgrade(args) => args.conflict(),
            _ => None,
        };
        missing.or(conflict)
    }

    /// What it is called by.
    pub(crate) fn name(&self) -> &'static str {
        self.parts().0
    }

    fn common(&self) -> &Common {
        self.parts().1
    }

    fn parts(&self) -> (&'static str, &Common) {
        match self {
            Self::Upgrade(args) => ("upgrade", &args.common),
            Self::Status(args) => ("status", &args.common),
            Self::Stop(args) => ("stop", &args.common),
            Self::Rollback(args) => ("rollback", &args.common),
            Self::Confirm(args) => ("confirm", &args.common),
            Self::Events(args) => ("events", &args.common),
            Self::Call(args) => ("call", &args.common),
        }
    }
}

impl Common {
    /// An empty variable is as good as none.
    fn path(&self) -> Option<&PathBuf> {
        self.socket.as_ref().filter(|path| !path.as_os_str().is_empty())
    }

    fn service(&self) -> Result<Service, Failure> {
        let path = self.path().context("no socket").map_err(|e| Failure::new(Exit::Failed, e))?;
        Ok(Service { path: path.clone(), timeout: self.timeout, json: self.json })
    }
}

/// Does it, and says on stderr what went wrong.
///
/// # Errors
///
/// If signals cannot be listened for.
pub(crate) async fn run(command: &Command) -> anyhow::Result<Exit> {
    let mut stop = Stop::on_signals()?;
    let outcome = tokio::select! {
        outcome = perform(command) => outcome,
        () = stop.asked() => return Ok(interrupted(command)),
    };
    Ok(outcome.unwrap_or_else(|Failure { exit, error, .. }| {
        if let Some(error) = error {
            live::complain(&format_args!("{error:#}"));
        }
        exit
    }))
}

async fn perform(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Upgrade(args) => upgrade::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Stop(args) => order::stop(args).await,
        Command::Rollback(args) => order::rollback(args).await,
        Command::Confirm(args) => order::confirm(args).await,
        Command::Events(args) => events::run(args).await,
        Command::Call(args) => order::call(args).await,
    }
}

/// Ctrl-C ends the command; it takes back nothing that was asked for.
fn interrupted(command: &Command) -> Exit {
    match command {
        Command::Events(_) => Exit::Done,
        Command::Status(args) if args.watch.is_some() => Exit::Done,
        Command::Status(_) => Exit::Interrupted,
        _ => {
            live::complain(&"interrupted; what was asked for may go on: see `handover status`");
            Exit::Interrupted
        }
    }
}

/// The failure that an answer is which was not asked for.
fn unexpected(line: &Line) -> Failure {
    match &line.answer {
        Answer::Error { code, message } => {
            let error = anyhow!("refused: {}", plain(message));
            Failure { line: Some(line.text.clone()), ..Failure::new(Exit::refused(*code), error) }
        }
        _ => Failure::new(Exit::Failed, anyhow!("not an answer to this: {}", line.text)),
    }
}

/// What a refusal says on stderr.
fn refusal(message: &str) -> String {
    format!("handover: refused: {}", plain(message))
}

/// Prints the refusal as it was received, if that is wanted, instead of telling it.
fn with_json(service: &Service, mut failure: Failure) -> Result<Exit, Failure> {
    match failure.line.take() {
        Some(line) if service.json => {
            output::print_line(&line)?;
            Ok(failure.exit)
        }
        _ => Err(failure),
    }
}

/// Whole milliseconds, rounded up: a time that was given is not none.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
