//! Probation: what a successor that serves has to say of itself.

use std::time::Duration;

use crate::ToPredecessor;
use crate::limits::bounded;
use crate::time::millis;

use super::{Event, Phase, Successor};

impl Successor {
    /// Whether this process serves and the predecessor can take back over.
    pub fn is_on_probation(&self) -> bool {
        self.phase == Phase::Serving && !self.confirmed
    }

    /// Whether the predecessor knows that this process serves, or is gone. Until then it can still call
    /// this process off, also without probation: whoever begins another handover before could be
    /// outlived by it.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// On probation: says that all is well. The first word counts, this,
    /// [`unhealthy`](Self::unhealthy), [`request_rollback`](Self::request_rollback) or
    /// [`stop`](Self::stop).
    pub fn healthy(&mut self) {
        self.judge(&ToPredecessor::Healthy {});
    }

    /// On probation: asks the predecessor to take back over. Answered by [`Event::RollBack`],
    /// or by [`Event::Confirmed`] if that has crossed it.
    pub fn unhealthy(&mut self, reason: impl Into<String>) {
        let reason = bounded(reason.into());
        self.judge(&ToPredecessor::Unhealthy { reason, requested: false });
    }

    /// Like [`unhealthy`](Self::unhealthy), because somebody asked for it and not by this process's
    /// own judgement.
    pub fn request_rollback(&mut self, reason: impl Into<String>) {
        let reason = bounded(reason.into());
        self.judge(&ToPredecessor::Unhealthy { reason, requested: true });
    }

    /// Says that the service is to stop: the predecessor does not take back over when this process
    /// exits, and finishes as well.
    ///
    /// A rollback may cross it, or have begun. Then [`Event::RollBack`] is to be carried out as ever,
    /// by [`stopped`](Self::stopped) once nothing is accepted, so that this process is not killed
    /// while it drains; and the predecessor, which takes back over, knows that it is to stop. From
    /// here this process does not serve again, whatever comes. The last word counts.
    pub fn stop(&mut self, drain: Option<Duration>) {
        match self.phase {
            Phase::Serving | Phase::RollingBack | Phase::Stopped | Phase::Replaced => {
                self.judged = true;
                self.stopping = true;
                self.send_latest(&ToPredecessor::Stop { drain_ms: drain.map(millis) });
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Failed => {}
        }
    }

    /// The predecessor cannot take back over any more.
    pub(super) fn confirmed(&mut self) {
        if !std::mem::replace(&mut self.confirmed, true) {
            self.events.push_back(Event::Confirmed);
        }
    }

    fn judge(&mut self, word: &ToPredecessor) {
        if self.is_on_probation() && !self.judged {
            self.judged = true;
            self.send(word);
        }
    }
}
