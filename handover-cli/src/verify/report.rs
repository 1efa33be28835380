//! The result, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::args::Args;
use super::loss::{Kind, LostByKind};
use super::tally::{Closes, Counts, Tally};
use super::upgrades::{FailedUpgrade, Upgrades};

/// What `--json` prints. `requests` is always `answered` and `lost` together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Nothing was lost, every upgrade happened, and no connection was closed that was not to be.
    pub(crate) passed: bool,
    /// Why not, one sentence for each reason.
    #[serde(default)]
    pub(crate) failures: Vec<String>,
    pub(crate) url: String,
    pub(crate) duration_ms: u64,
    pub(crate) upgrades_wanted: u32,
    pub(crate) upgrades_asked: u32,
    pub(crate) upgrades_done: u32,
    /// From asking to the first answer of another process.
    pub(crate) upgrade_us: Span,
    pub(crate) failed_upgrades: Vec<FailedUpgrade>,
    /// How many different processes answered.
    pub(crate) answerers: u64,
    pub(crate) requests: u64,
    pub(crate) requests_by_client: RequestsByClient,
    pub(crate) answered: u64,
    pub(crate) lost: u64,
    pub(crate) lost_by_kind: LostByKind,
    pub(crate) first_reasons: BTreeMap<Kind, String>,
    /// How often a request was sent again that the service had not processed.
    #[serde(default)]
    pub(crate) sent_again: u64,
    /// Of `closes.keep_alive.unannounced`, those that had no request under way.
    pub(crate) idle_closed: u64,
    /// The same as `closes.keep_alive.announced`.
    pub(crate) announced_closes: u64,
    /// Connections that were meant to last and did not.
    #[serde(default)]
    pub(crate) closes: Closes,
    /// Such a connection fails the test.
    #[serde(default)]
    pub(crate) no_idle_close: bool,
    pub(crate) streams_open_at_end: u64,
    pub(crate) latency_us: Quantiles,
    /// Of requests under way at any moment from the asking of an upgrade until half a second after
    /// its first answer.
    pub(crate) latency_us_upgrade: Quantiles,
    pub(crate) latency_us_rest: Quantiles,
}

/// Who asked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RequestsByClient {
    pub(crate) new_connections: u64,
    pub(crate) keep_alive: u64,
    #[serde(default)]
    pub(crate) http2: u64,
    pub(crate) streams: u64,
}

/// Latencies in microseconds; all are 0 if there were no answers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
    pub(crate) max: u64,
}

/// The median and the largest of a few durations in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) p50: u64,
    pub(crate) max: u64,
}

impl Report {
    pub(crate) fn new(args: &Args, upgrades: &Upgrades, counts: Counts, took: Duration) -> Self {
        let lost = counts.lost.sum();
        let upgrades_done = upgrades.took.len() as u32;
        let mut report = Self {
            passed: false,
            failures: Vec::new(),
            url: args.url.to_string(),
            duration_ms: took.as_millis() as u64,
            upgrades_wanted: args.upgrades,
            upgrades_asked: upgrades.asked,
            upgrades_done,
            upgrade_us: Span::of(upgrades.took.iter().map(|took| took.as_micros() as u64)),
            failed_upgrades: upgrades.failed.clone(),
            answerers: counts.answerers.len() as u64,
            requests: counts.requests.sum(),
            requests_by_client: RequestsByClient {
                new_connections: counts.requests.new_connection,
                keep_alive: counts.requests.keep_alive,
                http2: counts.requests.http2,
                streams: counts.requests.stream,
            },
            answered: counts.answered,
            lost,
            lost_by_kind: counts.lost,
            first_reasons: counts.first_reasons,
            sent_again: counts.sent_again,
            idle_closed: counts.idle_closed,
            announced_closes: counts.closes.keep_alive.announced,
            closes: counts.closes,
            no_idle_close: args.no_idle_close,
            streams_open_at_end: counts.streams_open_at_end,
            latency_us: Quantiles::of(&counts.latency.total),
            latency_us_upgrade: Quantiles::of(&counts.latency.upgrade),
            latency_us_rest: Quantiles::of(&counts.latency.rest),
        };
        report.failures = report.find_failures();
        report.passed = report.failures.is_empty();
        report
    }

    fn find_failures(&self) -> Vec<String> {
        let (done, wanted) = (self.upgrades_done, self.upgrades_wanted);
        let losses = match self.lost {
            0 => None,
            1 => Some("1 request was lost".to_owned()),
            lost => Some(format!("{lost} requests were lost")),
        };
        let upgrades =
            (done != wanted).then(|| format!("only {done} of {wanted} upgrades happened"));
        [losses, upgrades, self.forbidden_closes()].into_iter().flatten().collect()
    }

    /// Says which connections were closed, if none was to be.
    pub(crate) fn forbidden_closes(&self) -> Option<String> {
        let Closes { keep_alive, http2 } = self.closes;
        let closes = self.closes.sum();
        let connections = if closes == 1 { "connection was" } else { "connections were" };
        (self.no_idle_close && closes > 0).then(|| {
            format!(
                "{closes} {connections} closed by the service in spite of --no-idle-close \
                 (kept alive: {} announced, {} not; HTTP/2: {} announced, {} not)",
                keep_alive.announced, keep_alive.unannounced, http2.announced, http2.unannounced
            )
        })
    }

    /// Connections of HTTP/1 that ended unannounced while a request was under way.
    pub(crate) fn busy_closed(&self) -> u64 {
        self.closes.keep_alive.unannounced.saturating_sub(self.idle_closed)
    }

    pub(crate) fn has_http2(&self) -> bool {
        self.requests_by_client.http2 > 0
    }

    /// One line that says it all.
    pub(crate) fn verdict(&self) -> String {
        let Self { upgrades_done: done, upgrades_wanted: wanted, lost, requests, .. } = self;
        let upgrades = if done == wanted {
            format!("{done} upgrades")
        } else {
            format!("only {done} of {wanted} upgrades happened")
        };
        let losses = match lost {
            0 => format!("{upgrades}, {requests} requests, none lost"),
            _ => format!("{upgrades}, {requests} requests, {lost} LOST"),
        };
        match self.forbidden_closes() {
            Some(closes) => format!("{losses}, but {closes}"),
            None => losses,
        }
    }

    fn write_losses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in Kind::ALL {
            let count = self.lost_by_kind.of(kind);
            if count > 0 {
                let why = self.first_reasons.get(&kind).map_or("", String::as_str);
                writeln!(f, "    {:<12}{count:>10}   {why}", kind.name())?;
            }
        }
        Ok(())
    }

    fn write_closes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Closes { keep_alive, http2 } = self.closes;
        writeln!(
            f,
            "closed          {:>10}   kept connections, as announced",
            keep_alive.announced
        )?;
        let mut line = |count: u64, what| writeln!(f, "                {count:>10}   {what}");
        line(self.idle_closed, "kept connections, idle, unannounced")?;
        if self.busy_closed() > 0 {
            line(self.busy_closed(), "kept connections, with a request, unannounced")?;
        }
        if self.has_http2() {
            line(http2.announced, "HTTP/2 connections, as announced by GOAWAY")?;
            line(http2.unannounced, "HTTP/2 connections, unannounced")?;
        }
        Ok(())
    }

    pub(crate) fn write_latencies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "latency         {:>10}{:>10}{:>10}{:>10}", "p50", "p99", "p99.9", "max")?;
        for (name, quantiles) in [
            ("in total", self.latency_us),
            ("in upgrades", self.latency_us_upgrade),
            ("at rest", self.latency_us_rest),
        ] {
            let Quantiles { p50, p99, p999, max } = quantiles;
            write!(f, "    {name:<12}")?;
            for micros in [p50, p99, p999, max] {
                write!(f, "{:>10}", Micros(micros).to_string())?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = self.requests_by_client;
        writeln!(
            f,
            "upgrades        {:>10}   of {} asked",
            self.upgrades_done, self.upgrades_asked
        )?;
        if self.upgrades_done > 0 {
            let Span { p50, max } = self.upgrade_us;
            let (p50, max) = (Micros(p50), Micros(max));
            writeln!(f, "    until seen  {:>10}   at most {max}", p50.to_string())?;
        }
        for FailedUpgrade { upgrade, why } in &self.failed_upgrades {
            writeln!(f, "    number {upgrade} failed: {why}")?;
        }
        writeln!(f, "requests        {:>10}", self.requests)?;
        writeln!(f, "    new conns.  {:>10}", clients.new_connections)?;
        writeln!(f, "    kept alive  {:>10}", clients.keep_alive)?;
        if self.has_http2() {
            let again = self.sent_again;
            writeln!(f, "    HTTP/2      {:>10}   {again} sent again", clients.http2)?;
        }
        if clients.streams > 0 {
            let open = self.streams_open_at_end;
            writeln!(f, "    streams     {:>10}   {open} still open at the end", clients.streams)?;
        }
        writeln!(f, "answered        {:>10}   by {} processes", self.answered, self.answerers)?;
        writeln!(f, "lost            {:>10}", self.lost)?;
        self.write_losses(f)?;
        self.write_closes(f)?;
        self.write_latencies(f)?;
        writeln!(f, "\n{}", self.verdict())
    }
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl Span {
    pub(crate) fn of(micros: impl Iterator<Item = u64>) -> Self {
        let mut micros: Vec<_> = micros.collect();
        micros.sort_unstable();
        let max = micros.last().copied().unwrap_or_default();
        Self { p50: micros.get(micros.len() / 2).copied().unwrap_or_default(), max }
    }
}

/// Microseconds as people read them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Micros(pub(crate) u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros @ ..1_000 => write!(f, "{micros} µs"),
            micros @ 1_000..1_000_000 => write!(f, "{:.1} ms", micros as f64 / 1e3),
            micros => write!(f, "{:.2} s", micros as f64 / 1e6),
        }
    }
}

/// The progress bar, where there is a terminal to show it.
pub(crate) struct Progress {
    bar: ProgressBar,
    updates: tokio::task::JoinHandle<()>,
}

impl Progress {
    pub(crate) fn start(upgrades: u32, tally: Arc<Tally>) -> Self {
        let bar =
            ProgressBar::with_draw_target(Some(upgrades.into()), ProgressDrawTarget::hidden());
        let is_shown = std::io::stderr().is_terminal();
        if is_shown {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let style =
            ProgressStyle::with_template("[{elapsed}] {wide_bar} upgrade {pos} of {len}, {msg}");
        bar.set_style(style.expect("the template is valid"));
        let updates = tokio::spawn(update(is_shown.then(|| bar.clone()), tally));
        Self { bar, updates }
    }

    pub(crate) fn upgrades(&self, upgrades: &Upgrades) {
        self.bar.set_position(upgrades.took.len() as u64);
        let last_failed = upgrades.failed.last().filter(|last| last.upgrade == upgrades.asked);
        if let Some(FailedUpgrade { upgrade, why }) = last_failed {
            self.bar.println(format!("upgrade {upgrade} failed: {why}"));
        }
    }

    pub(crate) fn finish(self) {
        self.updates.abort();
        self.bar.finish_and_clear();
    }
}

async fn update(bar: Option<ProgressBar>, tally: Arc<Tally>) {
    let Some(bar) = bar else { return };
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let (answered, lost) = tally.progress();
        bar.set_message(format!("{answered} answered, {lost} lost"));
    }
}
