//! `handover verify`: load, upgrades, and an account of every request.
//!
//! ```text
//!   pacer ──due──► clients (load) ──► wire ──► the service ◄── COMMAND ◄── upgrades
//!                      │ answered, lost                                       ▲
//!                      └─────────────────► tally ──── another answerer ───────┘
//!                                            └──► report
//! ```

mod args;
mod http2;
mod load;
mod loss;
mod open_files;
mod page;
pub(crate) mod report;
mod socket;
mod tally;
mod target;
mod timeline;
mod upgrades;
mod wire;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{anyhow, bail};
use tokio::time::timeout;

pub(crate) use args::Args;
use load::{Load, Plan};
use loss::{Kind, Loss};
pub(crate) use page::PageFile;
use page::Story;
use report::{Progress, Report};
use tally::{SETTLING_TIME, Tally};
use target::{Identity, Target};
use timeline::Timeline;
use upgrades::{Schedule, Upgrades};
use wire::Connection;

use crate::stop::Stop;

/// Puts the service under load, upgrades it, and prints what became of every request.
///
/// # Errors
///
/// If the test cannot be made: the service cannot be reached, or does not tell who answers. Or if its
/// page cannot be written, of which most causes are found before the test.
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let page = args.report.as_deref().map(PageFile::claim).transpose()?;
    let began = SystemTime::now();
    let mut stop = Stop::on_signals()?;
    let Verified { report, timeline, outcome } = tokio::select! {
        verified = verify(args, stop.clone()) => verified?,
        // 128 + SIGINT, as a shell reports a command ended by Ctrl-C.
        () = stop.insisted() => return Ok(ExitCode::from(130)),
    };
    let written = page.zip(timeline).map(|(page, timeline)| {
        let broke_off = outcome.as_ref().err().map(|error| format!("{error:#}"));
        let story = Story { args, report: &report, timeline: &timeline, began, broke_off };
        page.publish(&story.to_html()?)
    });
    outcome?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    written.transpose()?;
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A test that was begun.
struct Verified {
    report: Report,
    /// What its page shows, if there is to be one.
    timeline: Option<Timeline>,
    /// Why it could not go on.
    outcome: anyhow::Result<()>,
}

async fn verify(args: &Args, mut stop: Stop) -> anyhow::Result<Verified> {
    let open_files = open_files::raise();
    let (target, answerer) = reach(args).await?;
    let plan = plan(args, open_files.usable)?;
    let schedule = schedule(args, open_files.before);

    let started = Instant::now();
    let mut tally = Tally::new(&answerer);
    if args.report.is_some() {
        tally = tally.with_timeline(Timeline::new(started, &answerer));
    }
    let tally = Arc::new(tally);
    let load = Load::start(plan, Arc::new(target), Arc::clone(&tally))?;
    let progress = Progress::start(args.upgrades, Arc::clone(&tally));
    let mut upgrades = Upgrades::default();
    let asking = upgrades::run(&schedule, &tally, &mut stop, &mut upgrades, |so_far| {
        progress.upgrades(so_far);
    });
    let outcome = asking.await;
    if outcome.is_ok() && upgrades.asked > 0 {
        // The aftermath of the last upgrade belongs to the test.
        let aftermath = SETTLING_TIME.max(args.every.min(Duration::from_secs(1)));
        let _ = timeout(aftermath, stop.asked()).await;
    }
    load.finish().await;
    progress.finish();
    let mut counts = tally.close();
    let timeline = counts.timeline.take();
    let report = Report::new(args, &upgrades, counts, started.elapsed());
    Ok(Verified { report, timeline, outcome })
}

/// Finds an address of the service that answers, and who does.
async fn reach(args: &Args) -> anyhow::Result<(Target, String)> {
    let url = &args.url;
    if let Some(stream_url) = &args.stream_url
        && stream_url.authority != url.authority
    {
        bail!("--stream-url must be on the same host and port as --url: {}", url.authority);
    }
    let identity = args.identity_header.clone().map_or(Identity::LeadingNumber, Identity::Header);
    let unreachable = |why: &str| anyhow!("cannot reach {url}: {why}; is the service running?");

    let addresses = Target::resolve(url).await.map_err(|error| unreachable(&error.to_string()))?;
    let mut first_loss = None;
    for address in addresses {
        let target = Target::new(address, url, args.stream_url.as_ref(), identity.clone());
        match timeout(args.timeout, probe(&target)).await.unwrap_or_else(|_| Err(Loss::timed_out()))
        {
            Ok(answerer) => {
                if args.http2 > 0 {
                    speaks_http2(args, &target).await?;
                }
                return Ok((target, answerer));
            }
            Err(loss) if loss.kind == Kind::Wrong => {
                bail!("{url} answers, but not as needed: {}\n{}", loss.why, NEEDED)
            }
            Err(loss) => drop(first_loss.get_or_insert(loss)),
        }
    }
    Err(unreachable(&first_loss.map_or("the name has no address".into(), |loss| loss.why)))
}

const NEEDED: &str = "Each answer must have a 2xx status and tell which process gave it: \
    by its pid at the start of the body, or in a response header (--identity-header NAME).";

async fn probe(target: &Target) -> Result<String, Loss> {
    let stream = target.connect().await.map_err(|error| Loss::connecting(&error))?;
    let mut connection = Connection::open(stream).await?;
    let answer = connection.exchange(target.single_request(), &target.identity).await?;
    answer.verdict
}

/// Makes sure that a service which answers HTTP/1 answers HTTP/2 as well.
async fn speaks_http2(args: &Args, target: &Target) -> anyhow::Result<()> {
    let probe = async {
        let stream = target.connect().await.map_err(|error| Loss::connecting(&error))?;
        let (connection, driver) = http2::Connection::open(stream).await?;
        let request = target.http2_request();
        tokio::select! {
            answer = connection.exchange(request, &target.identity) => match answer {
                Ok(verdict) => verdict.map(drop),
                Err(http2::Failure::Lost(loss)) => Err(loss),
                Err(http2::Failure::Unsent | http2::Failure::Unprocessed) => {
                    Err(Loss::new(Kind::Other, "it did not take the request"))
                }
            },
            never = async { driver.run(drop).await; std::future::pending().await } => never,
        }
    };
    let answer = timeout(args.timeout, probe).await.unwrap_or_else(|_| Err(Loss::timed_out()));
    answer.map_err(|loss| {
        anyhow!(
            "{} answers HTTP/1, but not HTTP/2 without TLS and without asking first (h2c by prior \
             knowledge), which --http2 needs: {}",
            args.url,
            loss.why
        )
    })
}

fn plan(args: &Args, usable_files: Option<u64>) -> anyhow::Result<Plan> {
    // An HTTP/2 connection that ends with its last streams has a successor already.
    let lasting = u64::from(args.keep_alive) + 2 * u64::from(args.http2) + u64::from(args.streams);
    let left = usable_files.unwrap_or(u64::MAX).saturating_sub(lasting);
    let max_in_flight = args.max_in_flight.min(u32::try_from(left).unwrap_or(u32::MAX));
    if max_in_flight == 0 {
        bail!("the limit of open files is too low for {lasting} connections; raise it: ulimit -n");
    }
    Ok(Plan {
        rate: args.rate,
        keep_alive: args.keep_alive,
        http2: args.http2,
        http2_streams: args.streams_per_http2(),
        streams: args.streams,
        timeout: args.timeout,
        max_in_flight,
    })
}

fn schedule(args: &Args, open_files: Option<u64>) -> Schedule {
    Schedule {
        command: args.upgrade.clone(),
        upgrades: args.upgrades,
        every: args.every,
        timeout: args.upgrade_timeout,
        open_files,
    }
}
