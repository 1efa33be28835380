//! What became of an upgrade.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use console::style;
use handover::control::{VerdictOutcome, VerdictReport};

use super::{Took, plain};

/// The phases in their order; others come after them, by name.
const PHASES: &[&str] =
    &["preflight", "spawn", "hello", "transfer", "initialise", "commit", "confirm", "probation"];

/// The verdict, in full lines. One if it succeeded.
pub(in crate::operate) fn verdict(verdict: &VerdictReport) -> String {
    let VerdictReport { generation, pid, timings_us, .. } = verdict;
    match verdict.outcome {
        VerdictOutcome::Succeeded => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let upgraded = style("upgraded:").green().bold();
            let spent = match timings_us.is_empty() {
                true => String::new(),
                false => format!(" after {}", Spent(timings_us)),
            };
            format!("{upgraded} generation {generation}{pid} serves{spent}\n")
        }
        VerdictOutcome::Failed => {
            let headline = style("upgrade failed:").red().bold();
            format!(
                "{headline} {}\n{}the old process serves on\n",
                plain(&verdict.message),
                Details(verdict)
            )
        }
        VerdictOutcome::RolledBack => {
            let headline = style("rolled back:").red().bold();
            format!(
                "{headline} {}\n{}the old process serves again\n",
                plain(&verdict.message),
                Details(verdict)
            )
        }
    }
}

/// The timings: the total, and then by phase.
struct Spent<'a>(&'a BTreeMap<String, u64>);

impl fmt::Display for Spent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TOTAL: &str = "total";
        let rank = |name: &str| PHASES.iter().position(|phase| *phase == name);
        let mut phases: Vec<_> = self.0.iter().filter(|(name, _)| *name != TOTAL).collect();
        phases.sort_by_key(|(name, _)| rank(name).unwrap_or(PHASES.len()));
        let phases: Vec<_> = phases
            .into_iter()
            .map(|(name, micros)| format!("{} {}", plain(name), Took(*micros)))
            .collect();
        let phases = phases.join(", ");
        match self.0.get(TOTAL) {
            Some(total) if phases.is_empty() => Took(*total).fmt(f),
            Some(total) => write!(f, "{} ({phases})", Took(*total)),
            None => f.write_str(&phases),
        }
    }
}

/// What is known of a successor that does not serve.
struct Details<'a>(&'a VerdictReport);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VerdictReport { generation, pid, phase, reason, exit_code, signal, .. } = self.0;
        let mut line = |name: &str, value: &dyn fmt::Display| {
            writeln!(f, "  {} {value}", style(format!("{name:<10}")).dim())
        };
        match pid {
            Some(pid) => line("successor", &format_args!("generation {generation}, pid {pid}"))?,
            None => line("successor", &format_args!("generation {generation}, not started"))?,
        }
        if let Some(phase) = phase {
            line("phase", &plain(phase))?;
        }
        if let Some(reason) = reason {
            line("reason", &plain(reason))?;
        }
        if let Some(status) = status(*exit_code, *signal) {
            line("ended", &status)?;
        }
        if !self.0.timings_us.is_empty() {
            line("took", &Spent(&self.0.timings_us))?;
        }
        let stderr = &self.0.stderr;
        if !stderr.is_empty() {
            writeln!(f, "  {}", style("its last lines on stderr:").dim())?;
            for text in stderr {
                writeln!(f, "    {}", plain(text))?;
            }
        }
        Ok(())
    }
}

/// How a process ended, in the words of the standard library: with the signal's name.
fn status(exit_code: Option<i32>, signal: Option<i32>) -> Option<ExitStatus> {
    // The encoding of wait(2): the code in the second byte, the signal in the first.
    let code = exit_code.map(|code| (code & 0xff) << 8);
    let signal = signal.map(|signal| signal & 0x7f);
    signal.or(code).map(ExitStatus::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn succeeded() -> VerdictReport {
        VerdictReport {
            outcome: VerdictOutcome::Succeeded,
            generation: 2,
            pid: Some(456),
            phase: None,
            reason: None,
            message: String::new(),
            exit_code: None,
            signal: None,
            stderr: Vec::new(),
            timings_us: BTreeMap::new(),
        }
    }

    #[test]
    fn a_success_is_one_line_with_the_timings_in_order() {
        console::set_colors_enabled(false);
        let timings = [("total", 1_250_000), ("hello", 4_000), ("commit", 200), ("spawn", 300)];
        let timings_us = timings.map(|(name, micros)| (name.to_owned(), micros)).into();
        assert_eq!(
            verdict(&VerdictReport { timings_us, ..succeeded() }),
            "upgraded: generation 2 (pid 456) serves after 1.25 s \
             (spawn 300 µs, hello 4.0 ms, commit 200 µs)\n"
        );
        assert_eq!(verdict(&succeeded()), "upgraded: generation 2 (pid 456) serves\n");
    }

    #[test]
    fn a_failure_tells_all_that_is_known() {
        console::set_colors_enabled(false);
        let failed = VerdictReport {
            outcome: VerdictOutcome::Failed,
            phase: Some("initialise".into()),
            reason: Some("exited".into()),
            message: "the successor ended before it served".into(),
            exit_code: Some(3),
            stderr: vec!["\u{1b}[31mERROR\u{1b}[0m no configuration".into(), "bye".into()],
            timings_us: [("total".to_owned(), 12_000)].into(),
            ..succeeded()
        };
        assert_eq!(
            verdict(&failed),
            "upgrade failed: the successor ended before it served
  successor  generation 2, pid 456
  phase      initialise
  reason     exited
  ended      exit status: 3
  took       12.0 ms
  its last lines on stderr:
    ERROR no configuration
    bye
the old process serves on
"
        );
    }

    #[test]
    fn a_signal_is_named() {
        assert_eq!(status(None, Some(11)).unwrap().to_string(), "signal: 11 (SIGSEGV)");
        assert_eq!(status(Some(3), None).unwrap().to_string(), "exit status: 3");
        assert_eq!(status(None, None), None);
    }
}
