//! How a handover comes to nothing: the successor goes, and this process accepts again.

use std::time::Duration;

use crate::limits::bounded;
use crate::{
    ABORT_GRACE, Cause, MAX_STATES, Outcome, Phase, Time, ToPredecessor, ToSuccessor, Violation,
};

use super::{Event, Predecessor};

/// A handover that has failed and is not over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Failing {
    phase: Phase,
    cause: Cause,
    /// Whether accepting resumes when the successor is known to be gone, or has stopped.
    resume: bool,
    awaits: Awaits,
}

/// What is awaited of a successor that must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Awaits {
    /// That it ends, or stops, until then.
    End { by: Time },
    /// That it ends: it was killed.
    Death,
    /// It has stopped, and sends back what it knows, until then.
    States { by: Time, left: u32 },
}

impl Failing {
    pub(super) fn deadline(&self) -> Option<Time> {
        match self.awaits {
            Awaits::End { by } | Awaits::States { by, .. } => Some(by),
            Awaits::Death => None,
        }
    }
}

impl Predecessor {
    /// Begins to end the handover. It is over when the successor is known to be gone.
    pub(super) fn fail(&mut self, cause: Cause, now: Time) {
        if self.failing.is_some() || matches!(self.phase, Phase::Served | Phase::Failed) {
            return;
        }
        let phase = self.phase;
        // A successor that has not got Commit, or that refuses, accepts nothing: the predecessor
        // resumes at once. One that may have got Commit must have stopped or be dead before that,
        // so that never two serve; it may have accepted, so it is given the time to stop.
        let (resume, grace) = match (phase, &cause) {
            (Phase::Hello | Phase::Transfer | Phase::Initialise, _) => (false, ABORT_GRACE),
            (Phase::Commit, _) | (Phase::Confirm, Cause::Refused { .. }) => {
                self.events.push_back(Event::ResumeAccepting);
                (false, ABORT_GRACE)
            }
            (Phase::Confirm | Phase::Probation, Cause::Exited) => (true, Duration::ZERO),
            (Phase::Confirm | Phase::Probation | Phase::Served | Phase::Failed, _) => {
                (true, ABORT_GRACE)
            }
        };
        let reason = bounded(cause.to_string());
        let is_there = cause != Cause::Exited;
        let versions = match &cause {
            Cause::Incompatible { ours, .. } => Some(*ours),
            Cause::Exited
            | Cause::TimedOut
            | Cause::Refused { .. }
            | Cause::Unhealthy { .. }
            | Cause::RollbackRequested { .. }
            | Cause::Unresponsive
            | Cause::Misbehaved(_)
            | Cause::CalledOff { .. } => None,
        };
        let farewell = if phase == Phase::Probation {
            ToSuccessor::Rollback { reason }
        } else {
            ToSuccessor::Abort { reason, versions }
        };
        // What has not left is of no use to a successor that must go, a late `Commit` least of all.
        self.queue.clear();
        self.outbox.clear();
        self.cause = Some(cause.clone());
        let awaits = Awaits::End { by: now + grace };
        self.failing = Some(Failing { phase, cause, resume, awaits });
        if is_there {
            self.send(&farewell, vec![], now);
        }
    }

    /// Of a successor that must go, or has gone, it matters that it has stopped accepting, what it
    /// sends back, and that the service is to stop.
    pub(super) fn handle_while_failing(&mut self, message: ToPredecessor, now: Time) {
        let served = self.took_back || self.failing.as_ref().is_some_and(|failing| failing.resume);
        if !served {
            return;
        }
        match message {
            ToPredecessor::Stopped { states } => self.stopped(states, now),
            ToPredecessor::State { frame, name, version, bytes } => {
                if self.take_state() {
                    self.events.push_back(Event::TakeState { name, version, bytes });
                    self.send(&ToSuccessor::Ack { frame }, vec![], now);
                    self.end_states_if_complete(now);
                }
            }
            ToPredecessor::StatesComplete {} => self.end_states(now),
            // It was asked of the successor before the rollback had come to its end: whoever serves
            // then is to stop.
            ToPredecessor::Stop { drain_ms } => self.stop_asked(drain_ms),
            ToPredecessor::Hello { .. }
            | ToPredecessor::Ack { .. }
            | ToPredecessor::Progress { .. }
            | ToPredecessor::Claim { .. }
            | ToPredecessor::Ready {}
            | ToPredecessor::Refuse { .. }
            | ToPredecessor::Serving {}
            | ToPredecessor::Healthy {}
            | ToPredecessor::Unhealthy { .. }
            | ToPredecessor::Pong {}
            | ToPredecessor::Inquire { .. } => {}
        }
    }

    /// Takes a frame that is none.
    pub(super) fn handle_violation(&mut self, violation: Violation, now: Time) {
        self.fail(Cause::Misbehaved(violation), now);
        // A state may have been in it, which will not be acked: there is nothing to wait for.
        self.end_states(now);
    }

    /// Kills a successor that does not go; resumes without the states that do not come.
    pub(super) fn lose_patience(&mut self, now: Time) {
        let Some(failing) = &mut self.failing else { return };
        match failing.awaits {
            Awaits::End { .. } => {
                failing.awaits = Awaits::Death;
                self.events.push_back(Event::Kill);
            }
            Awaits::States { .. } => self.end_states(now),
            Awaits::Death => {}
        }
    }

    /// Resumes with the states that have come, if some are awaited.
    pub(super) fn end_states(&mut self, now: Time) {
        if let Some(Failing { awaits: Awaits::States { .. }, .. }) = self.failing {
            self.resume_after_stopped(now);
        }
    }

    pub(super) fn finish_failing(&mut self) {
        let Some(Failing { phase, cause, resume, .. }) = self.failing.take() else { return };
        if resume {
            self.took_back = true;
            self.events.push_back(Event::ResumeAccepting);
        }
        self.phase = Phase::Failed;
        self.events.push_back(Event::Finished(if phase == Phase::Probation {
            Outcome::RolledBack { cause }
        } else {
            Outcome::Failed { phase, cause }
        }));
    }

    /// The successor does not accept any more: it is not killed, and drains.
    fn stopped(&mut self, states: u32, now: Time) {
        let Some(failing) = &mut self.failing else { return };
        match failing.awaits {
            Awaits::End { .. } | Awaits::Death => {
                let by = now + self.config.commit_timeout;
                failing.awaits = Awaits::States { by, left: states.min(MAX_STATES) };
                self.end_states_if_complete(now);
            }
            Awaits::States { .. } => {}
        }
    }

    /// Counts a state that comes; returns whether it was awaited.
    fn take_state(&mut self) -> bool {
        match &mut self.failing {
            Some(Failing { awaits: Awaits::States { left, .. }, .. }) if *left > 0 => {
                *left -= 1;
                true
            }
            Some(_) | None => false,
        }
    }

    fn end_states_if_complete(&mut self, now: Time) {
        if let Some(Failing { awaits: Awaits::States { left: 0, .. }, .. }) = self.failing {
            self.resume_after_stopped(now);
        }
    }

    /// Resumes, and says so to a successor that lives.
    fn resume_after_stopped(&mut self, now: Time) {
        if self.connected {
            self.send(&ToSuccessor::Resumed {}, vec![], now);
        }
        self.finish_failing();
    }
}
