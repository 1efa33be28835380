//! What operators ask over the control socket, and what they are told.

use std::time::{Duration, Instant};

use handover_proto::Report;
use handover_proto::control::{GenerationReport, GenerationState, StatusReport, UpgradeReport};

use super::{Ending, Engine, Stage};
use crate::attempt::Attempt;
use crate::control::ClientId;
use crate::link::Link;
use crate::sys::process::{resident_memory, resident_memory_of};
use crate::verdict::Verdict;

#[derive(Debug, Default)]
pub(super) struct Operators {}

impl Operators {
    pub(super) fn deadline(&self) -> Option<Instant> {
        None
    }
    pub(super) fn is_flushed(&self) -> bool {
        true
    }
    pub(super) fn verdict(&mut self, _client: ClientId, _verdict: &Verdict) {}
    pub(super) fn draining(&mut self, _ending: Ending, _in_flight: u64) {}
    pub(super) fn stepped_back(&mut self, _generation: u64) {}
    pub(super) fn confirmed(&mut self, _generation: u64) {}
    pub(super) fn close(&mut self, _poller: &crate::sys::poll::Poller) {}
}

impl Engine {
    pub(super) fn step_operators(&mut self) {}

    /// Passes on what has happened, and what there is to say.
    pub(super) fn flush_operators(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        self.told.append(&mut events);
    }

    /// How this process is.
    pub(super) fn report(&self) -> Report {
        let now = Instant::now();
        let left = self.drain_deadline.map(|deadline| deadline.saturating_duration_since(now));
        Report {
            generation: self.generation,
            pid: std::process::id(),
            version: self.config.version.clone(),
            in_flight: self.in_flight.active(),
            drain_left_ms: left.filter(|_| self.stage >= Stage::Draining).map(millis),
            age_ms: millis(now - self.since),
            memory_bytes: resident_memory(),
        }
    }

    /// How long this process, or its successor, is still on probation.
    pub(super) fn probation_left(&self) -> Option<Duration> {
        let end = match &self.attempt {
            Some(attempt) => attempt.probation_end(),
            None => self.probation_end,
        };
        end.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// What runs, as far as it is known.
    pub(crate) fn status_report(&self) -> StatusReport {
        let on_probation = self.link.as_ref().is_some_and(Link::is_on_probation);
        let own = GenerationReport {
            state: match self.stage {
                Stage::Adopting | Stage::Claiming | Stage::Committing | Stage::Failed => {
                    GenerationState::Initialising
                }
                Stage::Serving if self.stands_by() => GenerationState::Standby,
                Stage::Serving if on_probation => GenerationState::OnProbation,
                Stage::Serving => GenerationState::Serving,
                Stage::Draining | Stage::Done => GenerationState::Draining,
            },
            report: self.report(),
            probation_left_ms: self.probation_left().filter(|_| on_probation).map(millis),
            answers: true,
        };
        let mut generations = Vec::new();
        generations.extend(self.departing.iter().map(|attempt| {
            of_process(GenerationState::Draining, attempt.generation(), attempt.pid())
        }));
        if let Some(attempt) = &self.attempt {
            let state = if attempt.is_on_probation() {
                GenerationState::OnProbation
            } else if attempt.is_under_way() {
                GenerationState::Initialising
            } else {
                GenerationState::Serving
            };
            let mut report = of_process(state, attempt.generation(), attempt.pid());
            report.report.age_ms = millis(attempt.age());
            report.probation_left_ms =
                attempt.probation_end().and(self.probation_left()).map(millis);
            generations.push(report);
        }
        generations.push(own);
        if let Some(link) = self.link.as_ref().filter(|link| link.is_connected())
            && self.stage >= Stage::Serving
        {
            let state = if self.ending == Some(Ending::RolledBack) {
                GenerationState::Serving
            } else {
                GenerationState::Standby
            };
            generations.push(of_process(state, link.predecessor(), link.predecessor_pid()));
        }
        generations.extend(self.lines.reports());
        let upgrade = self.attempt.as_ref().filter(|attempt| attempt.is_under_way());
        StatusReport {
            generations,
            listeners: self.registry.endpoints().iter().map(|e| e.report()).collect(),
            upgrade: upgrade.map(|attempt| self.upgrade_report(attempt)),
            previous_executable: self.previous.as_ref().map(|previous| previous.path.clone()),
        }
    }

    fn upgrade_report(&self, attempt: &Attempt) -> UpgradeReport {
        UpgradeReport {
            generation: attempt.generation(),
            pid: Some(attempt.pid()),
            phase: attempt.phase().to_string(),
            age_ms: millis(attempt.age()),
            asked_by: self.current.as_ref().map_or_else(String::new, |w| w.asked_by.clone()),
        }
    }
}

/// What is known of a process that is not asked.
fn of_process(state: GenerationState, generation: u64, pid: u32) -> GenerationReport {
    let memory_bytes = resident_memory_of(pid);
    let report = Report { generation, pid, memory_bytes, ..Report::default() };
    GenerationReport { state, report, probation_left_ms: None, answers: true }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
