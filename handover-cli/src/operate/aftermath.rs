//! What became of an upgrade whose verdict was lost.

use handover::control::{Event, GenerationReport, GenerationState, StatusReport};

/// What the events told before the connection broke.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Who served before: its number and its process.
    pub(super) before: Option<(u64, u32)>,
    /// The number of the successor.
    successor: Option<u64>,
    /// Its process.
    pid: Option<u32>,
    was_committed: bool,
    ending: Option<Ending>,
}

/// How an upgrade ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The successor serves.
    Serves,
    /// The old process serves on.
    Failed,
    /// The old process serves again.
    RolledBack,
}

/// What can be told of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Ended(Ending),
    /// It is under way, or on probation.
    Undecided,
    Unclear,
}

impl Known {
    /// Who served before the upgrade was asked for.
    pub(super) fn new(before: &StatusReport) -> Self {
        let before = serving(before).map(|it| (it.report.generation, it.report.pid));
        Self { before, ..Self::default() }
    }

    pub(super) fn note(&mut self, event: &Event) {
        match event {
            Event::UpgradeBegun { generation, .. } => self.successor = Some(*generation),
            Event::Spawned { generation, pid } => {
                self.successor = Some(*generation);
                self.pid = Some(*pid);
            }
            Event::Committed { generation, .. } if self.is_successor(*generation) => {
                self.was_committed = true;
            }
            Event::Confirmed { generation } if self.is_successor(*generation) => {
                self.ending = Some(Ending::Serves);
            }
            Event::RolledBack { generation, .. } if self.is_successor(*generation) => {
                self.ending = Some(Ending::RolledBack);
            }
            Event::UpgradeFailed { generation, .. } if self.is_successor(*generation) => {
                self.ending = Some(Ending::Failed);
            }
            _ => {}
        }
    }

    fn is_successor(&self, generation: u64) -> bool {
        self.successor == Some(generation)
    }

    /// What the events told of the end, if they did.
    pub(super) fn ending(&self) -> Option<Ending> {
        self.ending.clone()
    }

    /// The number and the process of the successor, if they are known.
    pub(super) fn successor(&self) -> Option<(u64, Option<u32>)> {
        Some((self.successor?, self.pid))
    }

    /// What the status tells about the upgrade.
    ///
    /// A process is recognised by its number and its pid: a supervisor may have started the service
    /// anew, and then it counts from 1 again.
    pub(super) fn judge(&self, status: &StatusReport) -> Finding {
        let Some(successor) = self.successor else { return Finding::Unclear };
        let Some(serving) = serving(status) else { return Finding::Undecided };
        let who = (serving.report.generation, serving.report.pid);
        if who.0 == successor && self.pid.is_none_or(|pid| pid == who.1) {
            return match serving.state {
                GenerationState::OnProbation => Finding::Undecided,
                _ => Finding::Ended(Ending::Serves),
            };
        }
        if self.before != Some(who) {
            return Finding::Unclear;
        }
        let goes_on = status.upgrade.as_ref().is_some_and(|it| it.generation == successor);
        match self.was_committed {
            _ if goes_on => Finding::Undecided,
            true => Finding::Ended(Ending::RolledBack),
            false => Finding::Ended(Ending::Failed),
        }
    }
}

/// The generation that serves.
pub(super) fn serving(status: &StatusReport) -> Option<&GenerationReport> {
    use GenerationState::{OnProbation, Serving};
    status.generations.iter().find(|generation| matches!(generation.state, Serving | OnProbation))
}

#[cfg(test)]
mod tests {
    use handover::control::{Report, UpgradeReport};

    use super::*;

    fn status(generations: &[(u64, u32, GenerationState)]) -> StatusReport {
        let of_one = |&(generation, pid, state)| GenerationReport {
            state,
            report: Report { generation, pid, ..Report::default() },
            probation_left_ms: None,
            answers: true,
        };
        StatusReport {
            generations: generations.iter().map(of_one).collect(),
            ..StatusReport::default()
        }
    }

    fn known(events: &[Event]) -> Known {
        let mut known = Known::new(&status(&[(1, 100, GenerationState::Serving)]));
        events.iter().for_each(|event| known.note(event));
        known
    }

    const SPAWNED: Event = Event::Spawned { generation: 2, pid: 200 };
    const COMMITTED: Event = Event::Committed { generation: 2, probation_ms: None };

    #[test]
    fn a_successor_that_serves_has_succeeded() {
        let now = status(&[(2, 200, GenerationState::Serving)]);
        assert_eq!(known(&[SPAWNED]).judge(&now), Finding::Ended(Ending::Serves));
        let now = status(&[(2, 200, GenerationState::OnProbation)]);
        assert_eq!(known(&[SPAWNED]).judge(&now), Finding::Undecided);
    }

    #[test]
    fn an_old_process_that_serves_tells_that_it_failed_or_was_rolled_back() {
        let mut now = status(&[(1, 100, GenerationState::Serving)]);
        assert_eq!(known(&[SPAWNED]).judge(&now), Finding::Ended(Ending::Failed));
        let rolled_back = known(&[SPAWNED, COMMITTED]);
        assert_eq!(rolled_back.judge(&now), Finding::Ended(Ending::RolledBack));
        now.upgrade = Some(UpgradeReport {
            generation: 2,
            pid: Some(200),
            phase: "initialise".into(),
            age_ms: 0,
            asked_by: String::new(),
        });
        assert_eq!(known(&[SPAWNED]).judge(&now), Finding::Undecided, "it goes on");
    }

    #[test]
    fn a_service_that_was_started_anew_tells_nothing() {
        let now = status(&[(1, 300, GenerationState::Serving)]);
        assert_eq!(known(&[SPAWNED]).judge(&now), Finding::Unclear);
        let now = status(&[(2, 300, GenerationState::Serving)]);
        assert_eq!(known(&[SPAWNED]).judge(&now), Finding::Unclear);
        assert_eq!(known(&[]).judge(&now), Finding::Unclear, "not even begun, as far as is known");
        assert_eq!(known(&[SPAWNED]).judge(&status(&[])), Finding::Undecided);
    }

    #[test]
    fn events_that_tell_the_end_are_believed() {
        let confirmed = Event::Confirmed { generation: 2 };
        assert_eq!(known(&[SPAWNED, COMMITTED, confirmed]).ending(), Some(Ending::Serves));
        let other = Event::Confirmed { generation: 1 };
        assert_eq!(known(&[SPAWNED, other]).ending(), None);
    }
}
