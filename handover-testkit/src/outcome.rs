//! What became of the requests of a load, all of them.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{error, fmt};

use crate::process::Pid;
use crate::request::Fault;

/// What became of the requests of a load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How many were answered as they should be.
    pub ok: usize,
    /// The others, in the order in which they ended.
    pub lost: Vec<Lost>,
    /// How many each process answered, as far as the answers tell.
    pub answered_by: BTreeMap<Pid, usize>,
    /// The time from when each answered request was due until its answer was complete, shortest
    /// first.
    pub latencies: Vec<Duration>,
}

/// One request that was not answered as it should be.
#[derive(Clone, Debug)]
pub struct Lost {
    /// When it was due, since the start of the load.
    pub when: Duration,
    /// What became of it.
    pub what: Fault,
}

impl Outcome {
    /// Returns how many requests have come to an end.
    pub fn ended(&self) -> usize {
        self.ok + self.lost.len()
    }

    /// Returns the latency that `share` of the answered requests do not exceed: the median for
    /// 0.5, the worst for 1.0. Zero if none was answered.
    pub fn latency(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let index = (last as f64 * share.clamp(0.0, 1.0)).round() as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }

    /// Asserts that every request was answered, and that there was one.
    ///
    /// # Panics
    ///
    /// If not; says what was lost, and when.
    #[track_caller]
    pub fn assert_nothing_lost(&self) {
        assert!(self.lost.is_empty() && self.ok > 0, "requests were lost: {self}");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LOST_SHOWN_MAX: usize = 20;
        write!(f, "{} ok, {} lost, answered by {:?}", self.ok, self.lost.len(), self.answered_by)?;
        for lost in self.lost.iter().take(LOST_SHOWN_MAX) {
            write!(f, "\n  after {:.3?}: {}", lost.when, lost.what)?;
        }
        let hidden = self.lost.len().saturating_sub(LOST_SHOWN_MAX);
        if hidden > 0 { write!(f, "\n  and {hidden} more") } else { Ok(()) }
    }
}

/// What was waited for did not come. Shows what did.
#[derive(Clone)]
pub struct Unanswered {
    /// What became of all requests until then.
    pub so_far: Outcome,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the deadline has passed; so far: {}", self.so_far)
    }
}

// For `unwrap` and `expect`, which show nothing else.
impl fmt::Debug for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for Unanswered {}
