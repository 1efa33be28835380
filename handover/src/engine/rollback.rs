//! Taking back over, from both ends.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use super::{Ending, Engine, Stage};
use crate::error::WhoServes;
use crate::gate::Stance;
use crate::hooks::{News, Rollback, Telling};
use crate::state::{Writing, Written, write_all};
use crate::verdict::Verdict;

/// The predecessor is about to accept again: the application is told first.
#[derive(Debug)]
pub(super) struct Resuming {
    telling: Telling,
    /// When to go on although the application is not done, if ever.
    deadline: Option<Instant>,
    /// What is to be told then.
    pub(super) verdict: Option<Verdict>,
}

impl Resuming {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

/// How far the successor is with giving back what it had.
#[derive(Debug)]
pub(super) enum SteppingBack {
    /// Threads may still be on their way to accept.
    Stopping { reason: String },
    /// The application is told.
    Telling(Telling),
    /// The states that go back are written.
    Writing(Writing),
    /// The predecessor takes what it was given. Should it die before it serves, this process does.
    Waiting,
}

impl Engine {
    /// All is well with this process, or with its successor, that is on probation.
    pub(crate) fn confirm(&mut self) {
        if let Some(link) = &mut self.link {
            link.healthy(&self.poller);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.confirm(Instant::now());
        }
    }

    /// This process, on probation, should not serve.
    pub(crate) fn unhealthy(&mut self, reason: &str) {
        if let Some(link) = &mut self.link {
            link.unhealthy(reason, false, &self.poller);
        }
    }

    /// Accepts again, after the application was told.
    pub(super) fn begin_resume(&mut self, told_commit: bool, reason: String) {
        let Some(attempt) = &self.attempt else { return };
        let generation = attempt.generation();
        if told_commit {
            let telling = self.tell_rollback(generation, WhoServes::ThisProcess, reason);
            let deadline = Instant::now().checked_add(self.config.commit_timeout);
            self.resuming = Some(Resuming { telling, deadline, verdict: None });
            self.step_resuming();
        } else {
            self.resume();
        }
    }

    pub(super) fn step_resuming(&mut self) {
        let Some(resuming) = &self.resuming else { return };
        let is_done = resuming.telling.is_done();
        if !is_done && resuming.deadline.is_none_or(|deadline| Instant::now() < deadline) {
            return;
        }
        if !is_done {
            tracing::error!("on_rollback takes too long: accepting without waiting for it");
        }
        self.end_resuming();
    }

    /// Accepts again, whatever the application does.
    pub(super) fn end_resuming(&mut self) {
        let verdict = self.resuming.take().and_then(|resuming| resuming.verdict);
        self.resume();
        if let Some(verdict) = verdict {
            self.conclude(verdict);
        }
        self.put_away_attempt();
    }

    fn resume(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            attempt.resume(&self.poller);
        }
        self.stop_passed_on = false;
        // It was the successor's to say who may use it.
        self.permit_operators();
    }

    /// The predecessor takes back over.
    pub(super) fn begin_step_back(&mut self, reason: String) {
        tracing::warn!(reason, "the predecessor takes back over");
        let serves = self.stage == Stage::Serving;
        // Paused, and not ended yet: should the predecessor die now, this process goes on.
        for endpoint in self.registry.endpoints().iter().filter(|e| e.inherited || serves) {
            endpoint.gate().turn(Stance::Paused);
        }
        self.operators.rollback_begins();
        self.stepping_back = Some(SteppingBack::Stopping { reason });
    }

    pub(super) fn step_back(&mut self) {
        loop {
            let next = match &mut self.stepping_back {
                None => return,
                Some(SteppingBack::Stopping { reason }) => {
                    if self.registry.endpoints().iter().any(|e| e.gate().is_passed()) {
                        return;
                    }
                    let reason = std::mem::take(reason);
                    let who_serves = WhoServes::Predecessor;
                    SteppingBack::Telling(self.tell_rollback(self.generation, who_serves, reason))
                }
                Some(SteppingBack::Telling(telling)) => {
                    if !telling.is_done() {
                        return;
                    }
                    self.stop_serving().map_or(SteppingBack::Waiting, SteppingBack::Writing)
                }
                Some(SteppingBack::Writing(writing)) => match writing.next() {
                    Ok(Written::State(sealed)) => {
                        if let Some(link) = &mut self.link {
                            link.return_state(sealed, &self.poller);
                        }
                        continue;
                    }
                    Ok(Written::Failed { name, error }) => {
                        tracing::error!(%name, error, "a state does not go back");
                        continue;
                    }
                    Ok(Written::Complete) | Err(TryRecvError::Disconnected) => {
                        if let Some(link) = &mut self.link {
                            link.states_complete(&self.poller);
                        }
                        SteppingBack::Waiting
                    }
                    Err(TryRecvError::Empty) => return,
                },
                Some(SteppingBack::Waiting) => return,
            };
            self.stepping_back = Some(next);
        }
    }

    fn tell_rollback(&self, generation: u64, who_serves: WhoServes, reason: String) -> Telling {
        let rollback = News::Rollback(Rollback { generation, who_serves, reason });
        self.config.hooks.tell(rollback, &self.wake)
    }

    /// The predecessor serves. What is queued is its own again; what only this process has is served
    /// to its end.
    pub(super) fn replaced(&mut self) {
        self.stepping_back = None;
        for endpoint in self.registry.endpoints() {
            if endpoint.inherited {
                endpoint.end();
            } else {
                endpoint.retire();
            }
        }
        // Unless a stop has begun the drain before.
        if self.stage != Stage::Serving {
            return;
        }
        self.operators.rolled_back(self.generation);
        self.drain(Ending::RolledBack);
    }

    /// Nobody takes back over any more. If this process was about to give way it serves again, or
    /// goes on to stop.
    pub(super) fn predecessor_gone(&mut self) {
        tracing::info!("the predecessor is gone");
        self.announced();
        if self.stepping_back.take().is_some() && self.stage == Stage::Draining {
            for endpoint in self.registry.endpoints().iter().filter(|e| e.inherited) {
                endpoint.gate().turn(Stance::Retiring);
            }
        }
    }

    /// The predecessor is gone before it has taken back over: the application goes on.
    pub(super) fn serve_after_all(&mut self) {
        if self.stepping_back.take().is_some() {
            let reason = "the predecessor is gone".into();
            // Nobody waits for it: there is nobody else to serve.
            let _ = self.tell_rollback(self.generation, WhoServes::ThisProcess, reason);
        }
    }

    /// Tells the predecessor that nothing is accepted any more. Returns the states that go back, if
    /// there are any.
    fn stop_serving(&mut self) -> Option<Writing> {
        let providers = self.late.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(link) = &mut self.link {
            link.stopped(providers.len(), &self.poller);
        }
        if providers.is_empty() {
            return None;
        }
        let (in_flight, wake) = (Arc::clone(&self.in_flight), Arc::clone(&self.wake));
        match write_all(providers, in_flight, self.config.max_state_bytes, wake) {
            Ok(writing) => Some(writing),
            Err(error) => {
                tracing::error!(%error, "no thread for the states that go back");
                if let Some(link) = &mut self.link {
                    link.states_complete(&self.poller);
                }
                None
            }
        }
    }
}
