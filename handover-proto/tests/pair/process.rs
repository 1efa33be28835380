//! The two processes: what their programs have to do, and what has become of them.

use std::collections::VecDeque;
use std::time::Duration;

use handover_proto::*;

use crate::releases::{Release, V1};

/// What the two programs have to do, besides what the machines ask for.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// What the two ends speak.
    pub(crate) old: Release,
    pub(crate) new: Release,
    pub(crate) items: usize,
    pub(crate) early_states: u32,
    pub(crate) late_states: u32,
    pub(crate) progress: usize,
    pub(crate) refuses: bool,
    pub(crate) probation: Option<Duration>,
    pub(crate) answer_timeout: Duration,
    /// How many states a successor that is rolled back says to send back, and how many it sends.
    pub(crate) states_back: u32,
    pub(crate) states_given_back: u32,
    /// Whether a successor that has stopped has something in flight for ever.
    pub(crate) drains: bool,
    /// Whether the predecessor exits when it is replaced.
    pub(crate) exits: bool,
    /// Whether a driver reads what has arrived before it looks at the clock and at processes.
    pub(crate) orderly: bool,
}

impl Default for Script {
    fn default() -> Self {
        let probation = None;
        Self {
            old: V1,
            new: V1,
            items: 2,
            early_states: 1,
            late_states: 1,
            progress: 1,
            refuses: false,
            probation,
            answer_timeout: Duration::from_secs(12),
            states_back: 0,
            states_given_back: 0,
            drains: false,
            exits: false,
            orderly: true,
        }
    }
}

/// What can happen to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    /// Stopped (SIGSTOP), until then if not for ever.
    Hung(Option<Time>),
    Dead,
}

/// What the predecessor's program has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OldTask {
    GiveState,
    StopAccepting,
    GiveLateState,
    CompleteLateStates,
    Stop,
    Exit,
}

/// What the successor's program has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewTask {
    Progress,
    BeReady,
    Refuse,
    StopAccepting,
    GiveStateBack,
    CompleteStates,
    Exit,
}

#[derive(Clone, Debug)]
pub(crate) struct Old {
    pub(crate) machine: Predecessor,
    pub(crate) life: Life,
    pub(crate) accepts: bool,
    /// Whether it has ever stopped accepting.
    pub(crate) paused: bool,
    /// Whether the service is to stop.
    pub(crate) stopping: bool,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) events: Vec<PredecessorEvent>,
    pub(crate) tasks: VecDeque<OldTask>,
    pub(crate) knows_closed: bool,
    pub(crate) knows_exited: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct New {
    pub(crate) machine: Successor,
    pub(crate) life: Life,
    pub(crate) accepts: bool,
    pub(crate) events: Vec<SuccessorEvent>,
    pub(crate) tasks: VecDeque<NewTask>,
    /// Whether its end of the channel is closed although it lives.
    pub(crate) closed: bool,
    pub(crate) knows_closed: bool,
    /// Whether the service is to stop.
    pub(crate) stopping: bool,
    pub(crate) was_ready: bool,
    pub(crate) got_commit: bool,
}

impl Old {
    pub(crate) fn started(script: &Script) -> Self {
        let item = |n| Item::new(name(&format!("listener-{n}")));
        let inventory = Inventory {
            items: (0..script.items).map(item).collect(),
            states: script.early_states,
            stderr: true,
        };
        let config = PredecessorConfig {
            versions: script.old.versions,
            pid: 100,
            own_generation: 1,
            generation: 2,
            ready_timeout: Duration::from_secs(60),
            commit_timeout: Duration::from_secs(10),
            probation: script.probation,
            answer_timeout: script.answer_timeout,
        };
        Self {
            machine: Predecessor::new(config, inventory, Time::ZERO),
            life: Life::Alive,
            accepts: true,
            paused: false,
            stopping: false,
            outcome: None,
            events: Vec::new(),
            tasks: vec![OldTask::GiveState; script.early_states as usize].into(),
            knows_closed: false,
            knows_exited: false,
        }
    }
}

impl New {
    pub(crate) fn started(script: &Script) -> Self {
        let versions = script.new.versions;
        let itself = SuccessorConfig { versions, pid: 200, software: "test".into() };
        Self {
            machine: Successor::new(itself, Time::ZERO),
            life: Life::Alive,
            accepts: false,
            events: Vec::new(),
            tasks: VecDeque::new(),
            closed: false,
            knows_closed: false,
            stopping: false,
            was_ready: false,
            got_commit: false,
        }
    }

    /// Stops accepting, gives states back if there is who takes them, and exits.
    pub(crate) fn go(&mut self, script: &Script) {
        self.tasks.clear();
        self.tasks.push_back(NewTask::StopAccepting);
        for _ in 0..script.states_given_back {
            self.tasks.push_back(NewTask::GiveStateBack);
        }
        self.tasks.push_back(NewTask::CompleteStates);
        if !script.drains {
            self.tasks.push_back(NewTask::Exit);
        }
    }

    /// Whether it can do what is next: it does not exit while its states are waited for.
    pub(crate) fn has_to_do(&self) -> bool {
        match self.tasks.front() {
            None => false,
            Some(NewTask::Exit) => self.closed || !self.machine.is_returning_states(),
            Some(
                NewTask::Progress
                | NewTask::BeReady
                | NewTask::Refuse
                | NewTask::StopAccepting
                | NewTask::GiveStateBack
                | NewTask::CompleteStates,
            ) => true,
        }
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}
