//! What has become of everything.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use handover_testkit::process::Pid;

use crate::ledger::Owner;
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
    /// Requests on connections of a process that died.
    pub(crate) died_with: u64,
    /// Requests on connections that were on their way from one process to another when one died.
    pub(crate) on_their_way: u64,
    /// Requests on connections that were open when a process died, and of which nobody had noted that he had
    /// accepted them: there is a moment between the two.
    pub(crate) unnoted: u64,
    pub(crate) problems: Vec<String>,
}

impl Account {
    /// Looks for a reason for each failure.
    pub(crate) fn judge(&mut self, failures: Vec<Failure>, deaths: &[Death]) {
        for failure in failures {
            let died = |death: &&Death| failure.since <= death.to && failure.found >= death.from;
            let mut possible = deaths.iter().filter(died);
            let excuse = match failure.owner {
                _ if !failure.is_end => None,
                // Who has answered has noted it.
                None if failure.was_answered => None,
                None => possible.next().map(|_| &mut self.unnoted),
                Some(Owner::Gives(_)) => possible.next().map(|_| &mut self.on_their_way),
                Some(Owner::Has(pid)) => {
                    possible.find(|death| death.pid == pid).map(|_| &mut self.died_with)
                }
            };
            if let Some(excused) = excuse {
                *excused += 1;
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
                    ago(failure.since),
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
            "died with them{:>12}   requests, on connections that they had",
            self.died_with
        )?;
        writeln!(f, "              {:>12}   on connections on their way", self.on_their_way)?;
        writeln!(f, "              {:>12}   on ones that nobody had noted", self.unnoted)?;
        writeln!(f, "lost          {:>12}", self.problems.len())?;
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DEAD: u32 = 7;
    const OTHER: u32 = 8;

    /// What becomes of a failure on a connection of this owner, which was last known to be well at second 2 and found to be
    /// lost at second 4.
    fn judged(owner: Option<Owner>, is_end: bool, died: (u64, u64)) -> &'static str {
        judge(owner, is_end, false, died)
    }

    fn judge(
        owner: Option<Owner>,
        is_end: bool,
        was_answered: bool,
        died: (u64, u64),
    ) -> &'static str {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let (since, found, what) = (at(2), at(4), "an end".to_owned());
        let failure = Failure { since, was_answered, found, owner, what, is_end };
        let death = Death { pid: DEAD, from: at(died.0), to: at(died.1) };
        let mut account = Account::default();
        account.judge(vec![failure], &[death]);
        match (account.died_with, account.on_their_way, account.unnoted, account.problems.len()) {
            (1, 0, 0, 0) => "died with its process",
            (0, 1, 0, 0) => "died on its way",
            (0, 0, 1, 0) => "nobody had noted it",
            (0, 0, 0, 1) => "lost",
            other => panic!("counted as {other:?}"),
        }
    }

    #[test]
    fn a_failure_is_excused_by_the_death_of_the_owner_only() {
        assert_eq!(judged(Some(Owner::Has(DEAD)), true, (3, 3)), "died with its process");
        assert_eq!(judged(Some(Owner::Has(OTHER)), true, (3, 3)), "lost");
        assert_eq!(judged(Some(Owner::Gives(OTHER)), true, (3, 3)), "died on its way");
        assert_eq!(judged(None, true, (3, 3)), "nobody had noted it");
    }

    #[test]
    fn whoever_has_answered_has_noted_that_the_connection_is_his() {
        assert_eq!(judge(None, true, true, (3, 3)), "lost");
        assert_eq!(judge(Some(Owner::Has(DEAD)), true, true, (3, 3)), "died with its process");
    }

    #[test]
    fn a_death_excuses_nothing_before_or_after_it() {
        for owner in [Some(Owner::Has(DEAD)), Some(Owner::Gives(DEAD)), None] {
            assert_eq!(judged(owner, true, (0, 1)), "lost");
            assert_eq!(judged(owner, true, (5, 6)), "lost");
            assert_ne!(judged(owner, true, (1, 2)), "lost");
            assert_ne!(judged(owner, true, (4, 5)), "lost");
        }
    }

    #[test]
    fn a_wrong_answer_is_excused_by_nothing() {
        for owner in [Some(Owner::Has(DEAD)), Some(Owner::Gives(DEAD)), None] {
            assert_eq!(judged(owner, false, (3, 3)), "lost");
        }
    }
}
