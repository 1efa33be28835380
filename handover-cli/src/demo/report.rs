//! What the demo shows to somebody who sees a handover for the first time.

use std::fmt;

use serde::Serialize;

use super::chain::Verdict;
use crate::verify::report::{Micros, Report, Span};

/// What `--json` prints: the fields of `verify`, and what the service said itself.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DemoReport {
    #[serde(flatten)]
    pub(crate) verify: Report,
    /// From the successor's word that it is ready to the moment when the predecessor had stopped
    /// accepting, per upgrade, as the service measured it.
    commit_us: Span,
    /// From there to the successor's word that it accepts: new connections waited in the kernel for no
    /// longer than that.
    confirm_us: Span,
    verdicts: Verdicts,
}

/// How many upgrades the service itself calls a success.
#[derive(Clone, Debug, Serialize)]
struct Verdicts {
    succeeded: usize,
    failed: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
}

impl DemoReport {
    pub(crate) fn new(verify: Report, verdicts: Vec<Verdict>) -> Self {
        let (mut commits, mut confirms) = (Vec::new(), Vec::new());
        let mut failures = Vec::new();
        for verdict in verdicts {
            match verdict {
                Verdict::Succeeded { commit_us, confirm_us } => {
                    commits.push(commit_us);
                    confirms.push(confirm_us);
                }
                Verdict::Failed { reason } => failures.push(reason),
            }
        }
        let verdicts = Verdicts {
            succeeded: commits.len(),
            failed: failures.len(),
            reasons: failures.into_iter().flatten().collect(),
        };
        let commit_us = Span::of(commits.into_iter());
        let confirm_us = Span::of(confirms.into_iter());
        Self { verify, commit_us, confirm_us, verdicts }
    }

    fn write_success(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { upgrades_done, requests, requests_by_client: clients, .. } = &self.verify;
        writeln!(f, "A service replaced itself {} under load.\n", times(*upgrades_done))?;
        writeln!(f, "All of {requests} requests were answered, none was lost:")?;
        writeln!(f, "  {:>9}  each on a new connection", clients.new_connections)?;
        writeln!(f, "  {:>9}  on connections that were kept and reused", clients.keep_alive)?;
        self.write_closes(f)?;
        writeln!(f, "{} processes took part, one after the other.", self.verify.answerers)?;
        if self.verdicts.succeeded > 0 {
            let Span { p50, max } = self.commit_us;
            let (p50, max) = (Micros(p50), Micros(max));
            writeln!(
                f,
                "Each stopped accepting {p50} (at most {max}) after the next was ready, and had"
            )?;
            let Span { p50, max } = self.confirm_us;
            let (p50, max) = (Micros(p50), Micros(max));
            writeln!(
                f,
                "its word that it accepts {p50} (at most {max}) later; the kernel queued."
            )?;
        }
        writeln!(f, "\nHow long an answer took, from the instant its request was due:")?;
        self.verify.write_latencies(f)?;
        writeln!(f, "\nNow prove your own service: handover verify --help")
    }

    /// Kept connections that ended, which happens on purpose when a process leaves.
    fn write_closes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { announced_closes, idle_closed, .. } = self.verify;
        if announced_closes > 0 {
            writeln!(f, "{:13}{announced_closes} of these were told to reconnect", "")?;
        }
        if idle_closed > 0 {
            writeln!(f, "{:13}{idle_closed} were closed while idle, without a word", "")?;
        }
        Ok(())
    }
}

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.verify.passed {
            return self.write_success(f);
        }
        write!(f, "{}", self.verify)?;
        for reason in &self.verdicts.reasons {
            writeln!(f, "the service on a failed upgrade: {reason}")?;
        }
        Ok(())
    }
}

fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{count} times"),
    }
}
