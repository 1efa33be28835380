//! How this process comes to its end: stops, and drains.

use std::time::{Duration, Instant};

use handover_proto::control::Event;

use super::{Ending, Engine, Stage};
use crate::hooks::Telling;
use crate::pidfile::PidFile;
use crate::sys::signals::Mode;
use crate::verdict::Reason;

/// How long a process that is done waits for operators to take what they are told last.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

impl Engine {
    /// A stop was asked for, with a drain that is limited to that time.
    pub(super) fn want_stop(&mut self, drain: Option<Duration>) {
        if let Some(drain) = drain {
            let limit = self.drain_limit.map_or(drain, |limit| limit.min(drain));
            self.drain_limit = Some(limit);
        }
        self.stop_requested = true;
        if drain.is_some_and(|drain| drain.is_zero()) {
            self.stops = self.stops.max(2);
        }
        // It may have come after the decision.
        self.wake.set();
        if self.stage == Stage::Draining {
            self.set_drain_deadline();
            if self.ending == Some(Ending::Stopped)
                && let Some(drain) = drain
            {
                self.stop_elders(drain);
            }
        }
    }

    pub(super) fn stop(&mut self) {
        let now = Instant::now();
        let in_a_hurry = self.stops > 1;
        if let Some(preflight) = &mut self.preflight {
            preflight.abort(Reason::Stopping);
            // Killed, it is gone in a moment.
            if !in_a_hurry {
                return;
            }
        }
        if let Some(attempt) = &mut self.attempt
            && attempt.is_under_way()
        {
            if attempt.probation_end().is_some() {
                // It is this process that is to go, and the successor serves.
                return attempt.confirm(now);
            }
            if attempt.is_before_commit() {
                attempt.abort(Reason::Stopping, now);
            } else if !std::mem::replace(&mut self.stop_passed_on, true) {
                attempt.forward_stop(self.drain_limit, now);
            }
            // The successor is on its way out, or about to serve: then there is nothing to stop.
            if !in_a_hurry {
                return;
            }
            attempt.kill();
            if !attempt.is_before_commit() {
                // It may name the successor, which is no more: to be removed it has to name us.
                self.restore_pid_file();
            }
        }
        if self.resuming.is_some() {
            if !in_a_hurry {
                return;
            }
            self.end_resuming();
        }
        let drain = self.drain_timeout();
        if !std::mem::replace(&mut self.stop_passed_on, true)
            && let Some(link) = &mut self.link
        {
            link.stop(Some(drain), &self.poller);
        }
        if self.stepping_back.is_some() && !in_a_hurry {
            // The predecessor serves in a moment, and then it stops.
            return;
        }
        self.stepping_back = None;
        self.lines.stop(drain, &self.poller);
        if in_a_hurry {
            self.stop_elders(Duration::ZERO);
        }
        for endpoint in self.registry.endpoints() {
            endpoint.retire();
        }
        self.drain(Ending::Stopped);
    }

    /// Gives all that are older that long to finish, the predecessor included.
    fn stop_elders(&mut self, drain: Duration) {
        if let Some(link) = &mut self.link {
            link.stop(Some(drain), &self.poller);
        }
        self.lines.stop(drain, &self.poller);
    }

    fn drain_timeout(&self) -> Duration {
        let usual = self.config.drain_timeout;
        self.drain_limit.map_or(usual, |limit| limit.min(usual))
    }

    fn set_drain_deadline(&mut self) {
        let deadline = Instant::now().checked_add(self.drain_timeout());
        self.drain_deadline = match (self.drain_deadline, deadline) {
            (Some(before), Some(now)) => Some(before.min(now)),
            (before, now) => before.or(now),
        };
    }

    pub(super) fn drain(&mut self, ending: Ending) {
        let in_flight = self.in_flight.active();
        tracing::info!(?ending, in_flight, "draining");
        self.stage = Stage::Draining;
        self.since = Instant::now();
        self.ending = Some(ending);
        self.in_flight.begin_drain();
        self.registry.forget_inherited();
        self.previous = None;
        self.set_drain_deadline();
        self.events.push(Event::Draining {
            generation: self.generation,
            ending: ending.to_string(),
            in_flight,
            timeout_ms: u64::try_from(self.drain_timeout().as_millis()).unwrap_or(u64::MAX),
        });
        self.give_up_queue();
        let timeout = self.drain_timeout();
        self.operators.draining(ending, in_flight, timeout);
    }

    pub(super) fn step_drain(&mut self) {
        if self.stage != Stage::Draining {
            return;
        }
        let in_a_hurry = self.stops > 1;
        if in_a_hurry && self.ending == Some(Ending::Stopped) {
            self.stop_elders(Duration::ZERO);
        }
        let now = Instant::now();
        let late = self.drain_deadline.is_some_and(|deadline| now >= deadline);
        let told = self.confirming.as_ref().is_none_or(Telling::is_done);
        let is_idle = self.stepping_back.is_none() && told && self.in_flight.is_idle();
        if !(late || in_a_hurry || is_idle) {
            return;
        }
        if self.drained.is_none() {
            let drained = self.in_flight.drained();
            let (finished, cut) = (drained.finished, drained.cut);
            tracing::info!(finished, cut, "drained");
            self.drained = Some(drained);
            self.events.push(Event::Drained { generation: self.generation, finished, cut });
            // Whoever asked for something is told the end of it.
            self.answer_status();
            self.flush_operators();
            self.answer_rest();
            self.drain_deadline = now.checked_add(FAREWELL_TIMEOUT);
            if !self.operators.is_flushed() && !in_a_hurry {
                return;
            }
        } else if !(late || in_a_hurry || self.operators.is_flushed()) {
            return;
        }
        self.stage = Stage::Done;
        self.give_up_current();
        self.signals.set_mode(Mode::Finished);
        self.operators.close();
        if self.ending == Some(Ending::Stopped)
            && let Some(path) = &self.config.pid_file
        {
            PidFile::remove(path);
        }
    }
}
