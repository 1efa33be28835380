//! What is broken on purpose, to see that it is found.

use handover_proto::Transmit;

use crate::process::text;

/// One thing that is done wrong: by the glue, or by a machine, whose events, inputs and frames are
/// altered where they pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// The predecessor goes on accepting when the successor is ready, and after the commit.
    KeepsAccepting,
    /// The machine commits before accepting has stopped.
    CommitsBeforeItStopped,
    /// The predecessor closes its listener when it commits.
    ClosesAtCommit,
    /// The predecessor closes its end of the channel when it commits.
    ClosesTheChannel,
    /// The machine takes the sending of `commit` for a success.
    SucceedsAtCommit,
    /// The machine resumes in confirm without knowing that the successor is gone.
    ResumesInConfirm,
    /// The machine resumes when it says `rollback`, and does not wait for `stopped`.
    ResumesWithTheRollback,
    /// Accepting is not resumed.
    NeverResumes,
    /// The verdict on a failure is that it succeeded.
    SuccessOfAFailure,
    /// A failure has no verdict.
    ForgetsTheVerdict,
    /// A verdict is given twice.
    SaysItTwice,
    /// The end of the successor's process is not reported.
    MissesTheEnd,
    /// A successor that has to go is not killed.
    DoesNotKill,
    /// The machine asks again at once when `pong` comes.
    PingsAtOnce,
    /// The machine takes no `stop` from a successor.
    OverhearsStop,
    /// The machine takes no `serving`.
    OverhearsServing,
    /// A stop is not passed on to the successor.
    KeepsStopToItself,
    /// The machine does not say `resumed`.
    DoesNotSayResumed,
    /// The successor accepts when it is ready.
    AcceptsAtReady,
    /// The successor does not act on the end of the channel.
    IgnoresTheEnd,
    /// The machine takes silence for the end of the channel.
    ServesWhenSilent,
    /// A successor that is alone when it is ready does not serve.
    GivesUpAlone,
    /// A successor that is rolled back goes on accepting.
    AcceptsInARollback,
    /// A successor that is rolled back closes its listener before the predecessor has it back.
    ClosesWhenStopped,
    /// A successor that was rolled back and stopped serves again when the predecessor is gone.
    ServesAfterAStop,
    /// The successor forgets the upgrade that came along with the commit.
    ForgetsPendingUpgrade,
    /// The successor forgets the stop that is passed on to it.
    ForgetsStop,
    /// Whoever serves forgets the upgrade that comes through a line.
    LineForgetsUpgrade,
    /// Who is being replaced by its predecessor reads what comes through the lines.
    ReadsLinesInARollback,
    /// A successor begins the next upgrade, and takes its link for a line, before its predecessor has said that it
    /// knows that it serves.
    BuildsOnWhatNobodyHasHeard,
}

impl Mutation {
    /// Whether what the predecessor says is lost.
    pub(crate) fn loses(self, transmit: &Transmit) -> bool {
        let says = |name: &str| text(transmit).contains(&format!("\"type\":\"{name}\""));
        match self {
            Self::DoesNotSayResumed => says("resumed"),
            _ => false,
        }
    }

    /// Whether the predecessor does not hear what the successor says.
    pub(crate) fn overhears(self, frame: &[u8]) -> bool {
        let frame = std::str::from_utf8(frame).unwrap_or_default();
        let says = |name: &str| frame.contains(&format!("\"type\":\"{name}\""));
        match self {
            Self::OverhearsStop => says("stop"),
            Self::OverhearsServing => says("serving"),
            _ => false,
        }
    }
}
