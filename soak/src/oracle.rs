//! What has become of everything.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use handover_testkit::process::Pid;

use crate::load::Failure;

/// A process ended that was not to, in the midst of its work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    pub(crate) pid: Pid,
    /// Between these two.
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

/// What has happened in all lives.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) lives: u32,
    /// How many upgrades of each kind there were.
    pub(crate) upgrades: BTreeMap<&'static str, u32>,
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    pub(crate) deaths: u32,
    /// Requests that a process had accepted which died; where connections change hands: or that was to have them.
    pub(crate) died_with: u64,
    /// Requests on connections that were open when a process died, and of which nobody had noted that he had
    /// accepted them: there is a moment between the two.
    pub(crate) unnoted: u64,
    pub(crate) problems: Vec<String>,
}

impl Account {
    /// Looks for a reason for each failure. `is_moving` says that connections change hands: one of which the owner has given
    /// it to a process that died is gone with that one.
    pub(crate) fn judge(&mut self, failures: Vec<Failure>, deaths: &[Death], is_moving: bool) {
        for failure in failures {
            let died = |death: &&Death| failure.opened <= death.to && failure.found >= death.from;
            let mut possible = deaths.iter().filter(died).peekable();
            let is_excused = failure.is_end && possible.peek().is_some();
            if is_excused && failure.owner.is_none() {
                self.unnoted += 1;
            } else if is_excused
                && possible.any(|death| is_moving || failure.owner == Some(death.pid))
            {
                self.died_with += 1;
            } else {
                let now = Instant::now();
                let ago = |moment: Instant| now.saturating_duration_since(moment);
                let deaths = deaths.iter().rev().take(3).map(|death| {
                    format!("{} {:.1?} to {:.1?} ago", death.pid, ago(death.from), ago(death.to))
                });
                self.problems.push(format!(
                    "lost: {}, on a connection of {:?}, {:.1?} to {:.1?} ago; deaths: {:?}",
                    failure.what,
                    failure.owner,
                    ago(failure.opened),
                    ago(failure.found),
                    deaths.collect::<Vec<_>>()
                ));
            }
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upgrades: u32 = self.upgrades.values().sum();
        writeln!(f, "lives         {:>12}", self.lives)?;
        writeln!(f, "upgrades      {upgrades:>12}")?;
        for (kind, count) in &self.upgrades {
            writeln!(f, "  {count:>9}   {kind}")?;
        }
        writeln!(f, "requests      {:>12}   on {} connections", self.requests, self.connections)?;
        writeln!(f, "deaths        {:>12}   of processes, in the midst of work", self.deaths)?;
        writeln!(
            f,
            "died with them{:>12}   requests that they had, or were to have",
            self.died_with
        )?;
        writeln!(f, "  or maybe    {:>12}   that they had no time to note", self.unnoted)?;
        writeln!(f, "lost          {:>12}", self.problems.len())?;
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        Ok(())
    }
}
