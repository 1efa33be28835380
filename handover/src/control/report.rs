//! What the library knows, as the control socket says it.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::{VerdictOutcome, VerdictReport};
use crate::verdict::{Failure, Reason, Timings, Verdict};

impl From<&Verdict> for VerdictReport {
    fn from(verdict: &Verdict) -> Self {
        let message = verdict.to_string();
        match verdict {
            Verdict::Succeeded(success) => Self {
                outcome: VerdictOutcome::Succeeded,
                generation: success.generation,
                pid: Some(success.pid),
                phase: None,
                reason: None,
                message,
                exit_code: None,
                signal: None,
                stderr: Vec::new(),
                timings_us: timings(&success.timings),
            },
            Verdict::Failed(failure) => of_failure(VerdictOutcome::Failed, failure, message),
            Verdict::RolledBack(failure) => {
                of_failure(VerdictOutcome::RolledBack, failure, message)
            }
        }
    }
}

fn of_failure(outcome: VerdictOutcome, failure: &Failure, mut message: String) -> VerdictReport {
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        message.push_str(&format!(": {error}"));
        cause = error.source();
    }
    VerdictReport {
        outcome,
        generation: failure.generation,
        pid: failure.pid,
        phase: Some(failure.phase.to_string()),
        reason: Some(failure.reason.code().to_owned()),
        message,
        exit_code: failure.exit_status.and_then(|status| status.code()),
        signal: failure.exit_status.and_then(|status| status.signal()),
        stderr: failure.stderr.clone(),
        timings_us: timings(&failure.timings),
    }
}

fn timings(timings: &Timings) -> BTreeMap<String, u64> {
    let Timings {
        preflight,
        spawn,
        hello,
        transfer,
        initialise,
        commit,
        confirm,
        probation,
        total,
    } = *timings;
    [
        ("preflight", preflight),
        ("spawn", spawn),
        ("hello", hello),
        ("transfer", transfer),
        ("initialise", initialise),
        ("commit", commit),
        ("confirm", confirm),
        ("probation", probation),
        ("total", total),
    ]
    .into_iter()
    .filter(|(_, took)| !took.is_zero())
    .map(|(phase, took)| (phase.to_owned(), microseconds(took)))
    .collect()
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Reason {
    /// A word for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Spawn(_) => "spawn",
            Self::CheckFailed(_) => "check-failed",
            Self::Exited => "exited",
            Self::TimedOut => "timed-out",
            Self::Refused { .. } => "refused",
            Self::PeerIncompatible { .. } => "incompatible",
            Self::PeerMisbehaved(_) => "misbehaved",
            Self::State { .. } => "state",
            Self::Stopping => "stopping",
            Self::Unhealthy { .. } => "unhealthy",
            Self::RollbackRequested { .. } => "rollback-requested",
            Self::Unresponsive => "unresponsive",
            Self::Busy { .. } => "busy",
            Self::TooManyGenerations { .. } => "too-many-generations",
            Self::NotServing => "not-serving",
            Self::Io { .. } => "io",
            Self::CalledOff { .. } => "called-off",
        }
    }
}
