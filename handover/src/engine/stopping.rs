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

/// How long a process that drains may take when the one that serves has died and systemd clears up after
/// it: until all are gone nobody is started to serve.
const ORPHAN_DRAIN: Duration = Duration::from_secs(1);

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
                if !self.supervision.is_main() {
                    // It is this process that is to go, and the successor serves.
                    return attempt.confirm(now);
                }
                // It is the service: this is the process that systemd speaks to.
                self.stop_passed_on = true;
                attempt.forward_stop(self.drain_limit, now);
                return;
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
            if self.supervision.store().is_some() {
                // It is in the store, or its predecessor's is: what is queued is left to the next process.
                endpoint.end();
            } else {
                endpoint.retire();
            }
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
        match ending {
            Ending::HandedOver => self.exchange.open(self.generation, &self.poller),
            Ending::Stopped => self.exchange.never("the service stops"),
            Ending::RolledBack => self.exchange.never("this process was rolled back"),
        }
        self.set_drain_deadline();
        self.events.push(Event::Draining {
            generation: self.generation,
            ending: ending.to_string(),
            in_flight,
            timeout_ms: u64::try_from(self.drain_timeout().as_millis()).unwrap_or(u64::MAX),
        });
        self.give_up_queue();
        let timeout = self.drain_timeout();
        if ending == Ending::Stopped {
            self.supervision.stopping(in_flight, timeout);
        }
        self.operators.draining(ending, in_flight, timeout);
    }

    pub(super) fn step_drain(&mut self) {
        if self.stage != Stage::Draining {
            return;
        }
        if self.is_cleared_up() && self.drain_limit.is_none_or(|limit| limit > ORPHAN_DRAIN) {
            tracing::warn!(
                "who served is gone, and systemd waits for this process: draining no more"
            );
            self.want_stop(Some(ORPHAN_DRAIN));
        }
        let in_a_hurry = self.stops > 1;
        if in_a_hurry && self.ending == Some(Ending::Stopped) {
            self.stop_elders(Duration::ZERO);
        }
        let now = Instant::now();
        let late = self.drain_deadline.is_some_and(|deadline| now >= deadline);
        let told = self.confirming.as_ref().is_none_or(Telling::is_done);
        let is_idle = self.stepping_back.is_none() && told && self.in_flight.is_idle();
        let is_idle = is_idle && self.is_last();
        if !(late || in_a_hurry || is_idle) {
            return;
        }
        if self.drained.is_none() {
            let drained = self.in_flight.drained();
            let (finished, cut) = (drained.finished, drained.cut);
            tracing::info!(finished, cut, moved = drained.moved, "drained");
            if cut > 0 {
                self.in_flight.log_cut();
            }
            self.drained = Some(drained);
            self.events.push(Event::Drained { generation: self.generation, finished, cut });
            // Whoever asked for something is told the end of it.
            self.answer_status();
            self.flush_operators();
            self.answer_rest();
            let farewell = self.supervision.deadline().map(|at| at.saturating_duration_since(now));
            let farewell = farewell.unwrap_or_default().max(FAREWELL_TIMEOUT);
            self.drain_deadline = now.checked_add(farewell);
            if !self.has_taken_leave() && !in_a_hurry {
                return;
            }
        } else if !(in_a_hurry || self.has_taken_leave()) {
            if !late {
                return;
            }
            if !self.supervision.may_go() {
                self.drain_deadline = now.checked_add(FAREWELL_TIMEOUT);
                return;
            }
        }
        self.stage = Stage::Done;
        self.give_up_current();
        self.operators.close();
        if self.ending == Some(Ending::Stopped)
            && let Some(path) = &self.config.pid_file
        {
            PidFile::remove(path);
        }
        // From here one more stop signal kills: nothing of ours is left behind by then.
        self.signals.set_mode(Mode::Finished);
    }

    /// Whether this process may go as far as the others are concerned. When the main process of a
    /// service stops and goes, systemd tells what is left to stop once more, which cuts it: so the main
    /// process waits for the others.
    fn is_last(&self) -> bool {
        self.ending != Some(Ending::Stopped)
            || !self.supervision.is_main()
            || (self.link.is_none() && self.lines.is_empty() && self.departing.is_empty())
    }

    /// Whether this process is told to stop because nobody serves any more.
    fn is_cleared_up(&self) -> bool {
        self.ending == Some(Ending::HandedOver)
            && self.stops > 0
            && self.supervision.is_active()
            && self.attempt.as_ref().is_none_or(|attempt| !attempt.is_connected())
    }

    /// Whether operators and systemd have taken what they are told last.
    fn has_taken_leave(&self) -> bool {
        self.operators.is_flushed() && self.supervision.is_done()
    }
}
