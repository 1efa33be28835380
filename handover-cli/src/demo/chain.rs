//! The demo's service: one process after the other, seen as one.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::this_command;

/// The generations of the service, from the first start to the last one's end.
///
/// All of them share a process group, so that none can be forgotten, and their standard output, whose
/// end of file tells that all of them have ended. Their standard input is a pipe that ends with this
/// process, however it ends. Dropping the chain kills what is left of it.
pub(crate) struct Chain {
    first: Child,
    group: Pid,
    pid_file: PathBuf,
    address: SocketAddr,
    output: JoinHandle<Vec<Verdict>>,
    _input: Option<ChildStdin>,
}

/// What the service says of an upgrade, in one line of JSON on its standard output.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(crate) enum Verdict {
    Succeeded {
        /// From the successor's word that it is ready to the moment when the predecessor had stopped
        /// accepting, in microseconds.
        commit_us: u64,
        /// From there to the successor's word that it accepts.
        confirm_us: u64,
    },
    Failed {
        #[serde(default)]
        reason: Option<String>,
    },
}

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

impl Chain {
    /// Starts the first generation, and waits until it listens.
    pub(crate) async fn start(pid_file: &Path) -> anyhow::Result<Self> {
        let mut command = this_command()?;
        command.args(["demo-service", "--listen", "127.0.0.1:0", "--verdicts", "--pid-file"]);
        command.arg(pid_file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut first =
            command.process_group(0).spawn().context("cannot start the demo's service")?;
        let group = first.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let group = group.expect("a child that was not waited for has a pid");
        let stdout = first.stdout.take().expect("it was asked for");
        let input = first.stdin.take();

        let (listening, address) = oneshot::channel();
        let mut chain = Self {
            first,
            group,
            pid_file: pid_file.to_owned(),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            output: tokio::spawn(read(stdout, listening)),
            _input: input,
        };
        chain.address = timeout(START_TIMEOUT, address)
            .await
            .map_err(|_| anyhow!("the demo's service does not start within {START_TIMEOUT:?}"))?
            .map_err(|_| anyhow!("the demo's service ended while it started"))?;
        Ok(chain)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops whichever generation serves, waits until all have ended, and returns what they said.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Vec<Verdict>> {
        match self.serving() {
            // A service that ended by itself has shown in the losses.
            Some(pid) => drop(kill_process(pid, Signal::TERM)),
            None => drop(kill_process_group(self.group, Signal::TERM)),
        }
        let verdicts = match timeout(STOP_TIMEOUT, &mut self.output).await {
            Ok(verdicts) => verdicts.context("cannot read what the demo's service says")?,
            Err(_) => {
                return Err(anyhow!("the demo's service did not stop within {STOP_TIMEOUT:?}"));
            }
        };
        self.first.wait().await.context("cannot wait for the demo's service")?;
        Ok(verdicts)
    }

    fn serving(&self) -> Option<Pid> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        text.trim().parse().ok().and_then(Pid::from_raw)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if !self.output.is_finished() {
            // Whoever is gone already needs no killing.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }
}

/// Reads what all generations say, until the last has ended.
async fn read(stdout: ChildStdout, listening: oneshot::Sender<SocketAddr>) -> Vec<Verdict> {
    let mut listening = Some(listening);
    let mut verdicts = Vec::new();
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let address = line.strip_prefix("listening on ").and_then(|address| address.parse().ok());
        if let Some(address) = address {
            // The first to listen is waited for; the waiting may have timed out.
            let _ = listening.take().map(|listening| listening.send(address));
        }
        // Other lines are none of the demo's business.
        verdicts.extend(serde_json::from_str::<Verdict>(&line).ok());
    }
    verdicts
}
