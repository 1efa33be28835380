//! Asking for upgrades, one after the other, and seeing that they happen.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::tally::Tally;
use crate::stop::Stop;

/// How to ask, how often, and how long to wait.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) command: String,
    pub(crate) upgrades: u32,
    pub(crate) every: Duration,
    pub(crate) timeout: Duration,
    /// The soft limit of open files with which this command was called, for COMMAND to have again.
    pub(crate) open_files: Option<u64>,
}

/// What became of the upgrades.
#[derive(Debug, Default)]
pub(crate) struct Upgrades {
    pub(crate) asked: u32,
    /// From asking to the first answer of another process, of each that happened.
    pub(crate) took: Vec<Duration>,
    pub(crate) failed: Vec<FailedUpgrade>,
}

/// An upgrade that was asked for and did not happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FailedUpgrade {
    pub(crate) upgrade: u32,
    pub(crate) why: String,
}

/// Asks for every upgrade, until all are done or the user stops it, and notes what becomes of them.
///
/// The next is asked for when the one before was seen or given up, and `every` has passed.
///
/// # Errors
///
/// If upgrades cannot be told from the answers, or the shell cannot be started.
pub(crate) async fn run(
    schedule: &Schedule,
    tally: &Tally,
    stop: &mut Stop,
    upgrades: &mut Upgrades,
    mut report: impl FnMut(&Upgrades),
) -> anyhow::Result<()> {
    let mut next = Instant::now() + schedule.every;
    for upgrade in 1..=schedule.upgrades {
        if timeout_at(next.into(), stop.asked()).await.is_ok() {
            break;
        }
        if tally.names_no_process() {
            bail!(
                "nearly every answer tells of another process, so that no upgrade can be recognised; \
                 is it the pid that the answers begin with? --identity-header can name another place"
            );
        }
        upgrades.asked = upgrade;
        let asked = Instant::now();
        let outcome = tokio::select! {
            outcome = upgrade_once(schedule, tally) => outcome?,
            () = stop.asked() => Err("stopped before it was seen".to_owned()),
        };
        match outcome {
            Ok(seen) => upgrades.took.push(seen - asked),
            Err(why) => {
                tally.upgrade_given_up();
                upgrades.failed.push(FailedUpgrade { upgrade, why });
            }
        }
        report(upgrades);
        next = asked + schedule.every;
    }
    Ok(())
}

/// Asks for one upgrade, and returns when it was seen or why it was given up.
async fn upgrade_once(
    schedule: &Schedule,
    tally: &Tally,
) -> anyhow::Result<Result<Instant, String>> {
    // Noted first: once the command runs, a new process may answer at any moment.
    let mut changes = tally.upgrade_asked();
    let mut asking = Asking::start(schedule, tally.latest_answerer())?;
    let deadline = Instant::now() + schedule.timeout;
    let mut seen_at = None;
    let outcome = timeout_at(deadline.into(), async {
        let seen = async {
            seen_at = Some(seen(&mut changes).await);
            Ok(())
        };
        // A command that failed ends the waiting, one that succeeded does not.
        tokio::try_join!(seen, asking.succeeded())
    })
    .await;
    let limit = humantime::format_duration(schedule.timeout);
    let why = match (outcome, seen_at) {
        (Ok(Ok(_)), Some(seen)) => return Ok(Ok(seen)),
        (Ok(Err(AskError::Io(error))), _) => return Err(error).context("cannot wait for COMMAND"),
        (Ok(Err(AskError::Exit(status))), _) => format!("COMMAND failed ({status})"),
        (_, Some(_)) => format!("COMMAND was still running after {limit}"),
        (_, None) if asking.is_running() => {
            format!("no other process answered within {limit}, COMMAND was still running")
        }
        (_, None) => format!("no other process answered within {limit}"),
    };
    Ok(Err(asking.complaint(&why)))
}

async fn seen(changes: &mut watch::Receiver<u32>) -> Instant {
    // The tally outlives the upgrades, so that the channel is open.
    let _ = changes.changed().await;
    Instant::now()
}

enum AskError {
    Exit(ExitStatus),
    Io(io::Error),
}

/// The command that asks for an upgrade, while it runs.
struct Asking {
    child: tokio::process::Child,
    /// What it prints. A file, not a pipe: a service started by the command inherits it, and must not
    /// find a broken pipe there when this command is through.
    output: File,
}

impl Asking {
    fn start(schedule: &Schedule, answerer: Option<String>) -> anyhow::Result<Self> {
        let output = tempfile::tempfile().context("cannot make a temporary file")?;
        let copy = || output.try_clone().map(Stdio::from).context("cannot share a file");
        let mut command = Command::new("sh");
        command.arg("-c").arg(schedule.script()).stdin(Stdio::null());
        command.stdout(copy()?).stderr(copy()?).kill_on_drop(true);
        if let Some(answerer) = answerer {
            command.env("HANDOVER_VERIFY_PID", answerer);
        }
        let child = command.spawn().context("cannot start sh to run COMMAND")?;
        Ok(Self { child, output })
    }

    async fn succeeded(&mut self) -> Result<(), AskError> {
        let status = self.child.wait().await.map_err(AskError::Io)?;
        if status.success() { Ok(()) } else { Err(AskError::Exit(status)) }
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Adds the last of what the command printed.
    fn complaint(mut self, what: &str) -> String {
        match self.last_output() {
            Ok(text) if !text.is_empty() => format!("{what}: {text}"),
            Ok(_) | Err(_) => what.to_owned(),
        }
    }

    fn last_output(&mut self) -> io::Result<String> {
        const KEPT_BYTES: u64 = 2048;
        let length = self.output.metadata()?.len();
        self.output.seek(SeekFrom::Start(length.saturating_sub(KEPT_BYTES)))?;
        let mut bytes = Vec::new();
        (&self.output).take(KEPT_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

impl Schedule {
    /// The command, with the limit of open files that it would have without us.
    fn script(&self) -> String {
        match self.open_files {
            Some(limit) => format!("ulimit -S -n {limit}\n{}", self.command),
            None => self.command.clone(),
        }
    }
}
