//! How the commands that operate a service end.

use std::process::ExitCode;

use handover::control::ErrorCode;

/// The exit codes. A wrong call exits with 2, which is clap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// What was asked for was done.
    Done = 0,
    /// Something went wrong that has no code of its own.
    Failed = 1,
    /// The upgrade failed, and the old process serves, as it did all the time.
    UpgradeFailed = 3,
    /// The successor served for a while; its predecessor serves again.
    RolledBack = 4,
    /// The service is busy with another upgrade, or too much of it is alive: try again later.
    Busy = 5,
    /// Nobody was reached, so that nothing was asked for.
    Unreachable = 6,
    /// It was asked for, and what became of it could not be found out.
    Unknown = 7,
    /// The service has refused, or its own command has failed.
    Refused = 8,
    /// The user has pressed Ctrl-C: 128 + SIGINT, as a shell reports it.
    Interrupted = 130,
}

/// For `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  something else went wrong
    2  called wrongly
    3  the upgrade failed, and the old process serves on
    4  the upgrade was rolled back, and the old process serves again
    5  busy: an upgrade is under way or on probation, or too much is alive
    6  not reachable: no socket, nobody listens, or it may not be spoken to
    7  outcome unknown: asked for, but the answer was lost
    8  refused by the service, or the application's own command failed
  130  interrupted by Ctrl-C";

impl Exit {
    /// How a command ends that the service did not do.
    pub(super) fn refused(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Busy | ErrorCode::TooManyClients => Self::Busy,
            // Nobody who serves was found, however often it was tried.
            ErrorCode::NotServing => Self::Unreachable,
            _ => Self::Refused,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_code() {
        use Exit::*;
        for exit in [
            Done,
            Failed,
            UpgradeFailed,
            RolledBack,
            Busy,
            Unreachable,
            Unknown,
            Refused,
            Interrupted,
        ] {
            let code = format!("{:>5}  ", exit as u8);
            assert!(EXIT_CODES.lines().any(|line| line.starts_with(&code)), "{exit:?}");
        }
    }
}
