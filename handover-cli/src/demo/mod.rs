//! `handover demo`: `verify` on a service of its own.
//!
//! Three processes, as in real life: the service (and its successors), the load, and this one, which
//! starts both, and ends both whatever happens.

mod chain;
mod report;
pub(crate) mod service;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::stop::Stop;
use crate::verify::PageFile;
use crate::verify::report::Report;
use chain::Chain;
use report::DemoReport;

/// Watch a bundled service replace itself under load: the quickest way to see it work.
///
/// Starts a small HTTP service, keeps it under load with `handover verify`, tells it again and again
/// to replace itself with a new process, and says what became of every request. Nothing is left
/// behind, and nothing but the loopback is used.
///
/// Exits with 0 if no request was lost and every upgrade happened, and with 1 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many times to upgrade
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    upgrades: u32,

    /// The time from one upgrade to the next, and before the first
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    every: Duration,

    /// New connections per second, with one request each
    #[arg(long, value_name = "R", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,

    /// Connections that are kept alive; each asks every 100 ms
    #[arg(long, value_name = "K", default_value_t = 50, value_parser = clap::value_parser!(u32).range(..=100_000))]
    keep_alive: u32,

    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,

    /// Write the demo as a page for the browser: who answered over time, how fast, what was lost
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// Runs the demo, and prints what became of every request.
///
/// # Errors
///
/// If the service or the load cannot be run, or its page cannot be written.
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // The load claims it again; but then the service would run for nothing.
    args.report.as_deref().map(PageFile::claim).transpose()?;
    let mut stop = Stop::on_signals()?;
    let (report, load) = tokio::select! {
        report = demo(args, stop.clone()) => report?,
        // What runs is killed as it is dropped. 128 + SIGINT, as a shell reports Ctrl-C.
        () = stop.insisted() => return Ok(ExitCode::from(130)),
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    // It fails without losses if it cannot write its page, and has said why.
    let passed = report.verify.passed && load.success();
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn demo(args: &Args, mut stop: Stop) -> anyhow::Result<(DemoReport, ExitStatus)> {
    let folder = tempfile::Builder::new()
        .prefix("handover-demo-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let pid_file = folder.path().join("pid");
    let chain = Chain::start(&pid_file).await?;
    let verified = verify(args, chain.address(), &pid_file, &mut stop).await;
    let verdicts = chain.stop().await?;
    let (report, load) = verified?;
    Ok((DemoReport::new(report, verdicts), load))
}

/// Runs `handover verify` in a process of its own.
async fn verify(
    args: &Args,
    address: SocketAddr,
    pid_file: &Path,
    stop: &mut Stop,
) -> anyhow::Result<(Report, ExitStatus)> {
    // The path goes by the environment, so that no shell has to read it.
    const PID_FILE: &str = "HANDOVER_DEMO_PID_FILE";
    let mut command = this_command()?;
    command.args(["verify", "--json", "--url", &format!("http://{address}/")]);
    command.args(["--upgrade", &format!("kill -HUP \"$(cat \"${PID_FILE}\")\"")]);
    command.args(["--upgrades", &args.upgrades.to_string()]);
    command.args(["--every", &humantime::format_duration(args.every).to_string()]);
    command.args(["--rate", &args.rate.to_string()]);
    command.args(["--keep-alive", &args.keep_alive.to_string()]);
    if let Some(path) = &args.report {
        command.arg("--report").arg(path).args(["--demo-command", &command_line(args)]);
    }
    command.env(PID_FILE, pid_file).stdin(Stdio::null()).stdout(Stdio::piped());
    // A group of its own: Ctrl-C reaches this process, which passes it on once.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().context("cannot start the load")?;

    let mut stdout = child.stdout.take().expect("it was asked for");
    let mut read = pin!(async {
        let mut json = String::new();
        stdout.read_to_string(&mut json).await.context("cannot read the result of the load")?;
        anyhow::Ok(json)
    });
    let json = tokio::select! {
        json = &mut read => json?,
        () = stop.asked() => {
            terminate(&child);
            read.await?
        }
    };
    let status = child.wait().await.context("cannot wait for the load")?;
    if json.is_empty() {
        bail!("the load could not be run");
    }
    let report = serde_json::from_str(&json).context("cannot understand the result of the load")?;
    Ok((report, status))
}

/// The command that shows the same again.
fn command_line(args: &Args) -> String {
    let Args { upgrades, every, rate, keep_alive, .. } = args;
    let every = humantime::format_duration(*every).to_string().replace(' ', "");
    format!(
        "handover demo --upgrades {upgrades} --every {every} --rate {rate} --keep-alive {keep_alive}"
    )
}

/// This very executable, so that the parts of a demo are of one version.
fn this_command() -> anyhow::Result<Command> {
    let path = std::env::current_exe().context("cannot find the own executable")?;
    Ok(Command::new(path))
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // A process that has ended needs no telling.
    let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
}
