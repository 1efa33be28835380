//! The ways in which a request is lost.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};

/// A request that was due and got no proper answer.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) kind: Kind,
    pub(crate) why: Cow<'static, str>,
}

impl Loss {
    pub(crate) fn new(kind: Kind, why: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, why: why.into() }
    }

    pub(crate) fn timed_out() -> Self {
        Self::new(Kind::TimedOut, "no complete answer in time")
    }

    /// Says what a failed connect means.
    pub(crate) fn connecting(error: &io::Error) -> Self {
        use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, ConnectionReset, TimedOut};
        match error.kind() {
            ConnectionRefused => Self::new(Kind::Refused, "the connection was refused"),
            ConnectionReset => Self::new(Kind::Reset, "the connection was reset while opening"),
            TimedOut => Self::timed_out(),
            AddrNotAvailable => Self::new(
                Kind::Other,
                "no free local port: the service leaves closing to the client; lower --rate",
            ),
            _ => Self::new(Kind::Other, format!("cannot connect: {error}")),
        }
    }
}

/// What a lost request is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Refused,
    Reset,
    Cut,
    TimedOut,
    Wrong,
    IdleRace,
    Other,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Refused,
        Self::Reset,
        Self::Cut,
        Self::TimedOut,
        Self::Wrong,
        Self::IdleRace,
        Self::Other,
    ];

    /// The kind as a person reads it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::TimedOut => "timed out",
            Self::Wrong => "wrong",
            Self::IdleRace => "idle race",
            Self::Other => "other",
        }
    }
}

/// How many were lost, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostByKind {
    pub(crate) refused: u64,
    pub(crate) reset: u64,
    pub(crate) cut: u64,
    pub(crate) timed_out: u64,
    pub(crate) wrong: u64,
    pub(crate) idle_race: u64,
    pub(crate) other: u64,
}

impl LostByKind {
    pub(crate) fn add(&mut self, kind: Kind, count: u64) {
        *self.slot(kind) += count;
    }

    pub(crate) fn of(mut self, kind: Kind) -> u64 {
        *self.slot(kind)
    }

    pub(crate) fn sum(self) -> u64 {
        Kind::ALL.into_iter().map(|kind| self.of(kind)).sum()
    }

    fn slot(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Refused => &mut self.refused,
            Kind::Reset => &mut self.reset,
            Kind::Cut => &mut self.cut,
            Kind::TimedOut => &mut self.timed_out,
            Kind::Wrong => &mut self.wrong,
            Kind::IdleRace => &mut self.idle_race,
            Kind::Other => &mut self.other,
        }
    }
}
