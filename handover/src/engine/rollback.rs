//! Taking back over, from both ends.

use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::Instant;

use super::{Ending, Engine, Stage};
use crate::error::WhoServes;
use crate::gate::Stance;
use crate::hooks::{Job, Rollback};
use crate::state::{Writing, Written, write_all};
use crate::verdict::Verdict;

/// The predecessor is about to accept again: the application is told first.
#[derive(Debug)]
pub(super) struct Resuming {
    hook: Job,
    /// When to go on although the application is not done.
    deadline: Instant,
    /// What is to be told then.
    pub(super) verdict: Option<Verdict>,
}

impl Resuming {
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// How far the successor is with giving back what it had.
#[derive(Debug)]
pub(super) enum SteppingBack {
    /// Threads may still be on their way to accept.
    Stopping { reason: String },
    /// The application is told.
    Telling { hook: Option<Job> },
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
        if told_commit && self.config.hooks.has_rollback() {
            let hooks = Arc::clone(&self.config.hooks);
            let rollback = Rollback { generation, who_serves: WhoServes::ThisProcess, reason };
            let hook = Job::start(&self.wake, move || hooks.rollback(&rollback));
            let deadline = Instant::now() + self.config.commit_timeout;
            self.resuming = Some(Resuming { hook, deadline, verdict: None });
            self.step_resuming();
        } else {
            self.resume();
        }
    }

    pub(super) fn step_resuming(&mut self) {
        let Some(resuming) = &self.resuming else { return };
        let late = Instant::now() >= resuming.deadline;
        if !resuming.hook.is_done() && !late {
            return;
        }
        if late {
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
    }

    /// The predecessor takes back over.
    pub(super) fn begin_step_back(&mut self, reason: String) {
        tracing::warn!(reason, "the predecessor takes back over");
        // Paused, and not ended yet: should the predecessor die now, this process serves on.
        // One that is stopping finishes what is its own.
        let serves = self.stage == Stage::Serving;
        for endpoint in self.registry.endpoints().iter().filter(|e| serves || e.inherited) {
            endpoint.gate().turn(Stance::Paused);
        }
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
                    SteppingBack::Telling { hook: self.tell_step_back(reason) }
                }
                Some(SteppingBack::Telling { hook }) => {
                    if hook.as_ref().is_some_and(|hook| !hook.is_done()) {
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

    fn tell_step_back(&self, reason: String) -> Option<Job> {
        self.config.hooks.has_rollback().then(|| {
            let hooks = Arc::clone(&self.config.hooks);
            let generation = self.generation;
            let rollback = Rollback { generation, who_serves: WhoServes::Predecessor, reason };
            Job::start(&self.wake, move || hooks.rollback(&rollback))
        })
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
        if self.stage != Stage::Serving {
            return;
        }
        self.operators.rolled_back(self.generation);
        self.drain(Ending::RolledBack);
    }

    /// The predecessor is gone before it has taken back over: the application goes on.
    pub(super) fn serve_after_all(&mut self) {
        if self.stepping_back.take().is_some() && self.config.hooks.has_rollback() {
            let hooks = Arc::clone(&self.config.hooks);
            let (generation, who_serves) = (self.generation, WhoServes::ThisProcess);
            let reason = "the predecessor is gone".into();
            let rollback = Rollback { generation, who_serves, reason };
            // Nobody waits for it: there is nobody else to serve.
            let _ = Job::start(&self.wake, move || hooks.rollback(&rollback));
        }
    }

    /// The predecessor will not take back over. If this process was told to stop, nobody does, and
    /// it is not to wait for that.
    pub(super) fn predecessor_gone(&mut self) {
        tracing::info!("the predecessor is gone");
        if self.stepping_back.take().is_some() && self.stage == Stage::Draining {
            self.registry.endpoints().iter().filter(|e| e.inherited).for_each(|e| e.end());
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
        match write_all(|| (), providers, in_flight, self.config.max_state_bytes, wake) {
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
