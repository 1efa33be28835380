//! Machines in a given phase, and short ways to feed them and to read what they say.

use std::time::Duration;

use handover_proto::*;

pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const COMMIT_TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const PROBATION: Duration = Duration::from_secs(30);
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

pub(crate) fn at(seconds: u64) -> Time {
    Time::from_origin(Duration::from_secs(seconds))
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

pub(crate) fn item(text: &str) -> Item {
    Item::new(name(text))
}

/// One listener, one early state, probation.
pub(crate) fn predecessor() -> Predecessor {
    let inventory = Inventory { items: vec![item("http")], states: 1, stderr: false };
    Predecessor::new(predecessor_config(Some(PROBATION)), inventory, Time::ZERO)
}

pub(crate) fn predecessor_config(probation: Option<Duration>) -> PredecessorConfig {
    PredecessorConfig {
        versions: Versions::OURS,
        pid: 100,
        own_generation: 1,
        generation: 2,
        ready_timeout: READY_TIMEOUT,
        commit_timeout: COMMIT_TIMEOUT,
        probation,
        answer_timeout: ANSWER_TIMEOUT,
    }
}

pub(crate) const PREDECESSOR_PHASES: [Phase; 8] = [
    Phase::Hello,
    Phase::Transfer,
    Phase::Initialise,
    Phase::Commit,
    Phase::Confirm,
    Phase::Probation,
    Phase::Served,
    Phase::Failed,
];

/// A predecessor that came to the phase by itself at the origin of time; nothing waits to be read.
pub(crate) fn predecessor_in(phase: Phase) -> Predecessor {
    let mut machine = predecessor();
    if phase == Phase::Failed {
        machine.handle_exited(Time::ZERO);
    } else {
        for input in WAY {
            if machine.phase() == phase {
                break;
            }
            input(&mut machine);
        }
    }
    assert_eq!(machine.phase(), phase, "the way does not lead there");
    said(&mut machine);
    sent(&mut machine);
    machine
}

/// What leads a predecessor through all phases of a handover that succeeds.
const WAY: &[fn(&mut Predecessor)] = &[
    |machine| tell(machine, &hello()),
    |machine| machine.state(name("cache"), 1, 10, Time::ZERO),
    |machine| tell(machine, &ToPredecessor::Ack { frame: 1 }),
    |machine| tell(machine, &ToPredecessor::Ack { frame: 2 }),
    |machine| tell(machine, &ToPredecessor::Ready {}),
    |machine| machine.accepting_stopped(Time::ZERO),
    |machine| machine.late_states_complete(Time::ZERO),
    |machine| tell(machine, &ToPredecessor::Serving {}),
    |machine| tell(machine, &ToPredecessor::Healthy {}),
];

pub(crate) fn hello() -> ToPredecessor {
    ToPredecessor::Hello { versions: Versions::OURS, pid: 200, software: "test".into() }
}

/// Feeds a message at the origin of time.
pub(crate) fn tell(machine: &mut Predecessor, message: &ToPredecessor) {
    tell_at(machine, message, Time::ZERO);
}

pub(crate) fn tell_at(machine: &mut Predecessor, message: &ToPredecessor, now: Time) {
    let received = Received { descriptors: descriptors_from(message), truncated: false };
    machine.handle_frame(&encode(message).expect("a short message"), received, now);
}

pub(crate) fn descriptors_from(message: &ToPredecessor) -> usize {
    usize::from(matches!(message, ToPredecessor::State { .. }))
}

/// The events since the last look.
pub(crate) fn said(machine: &mut Predecessor) -> Vec<PredecessorEvent> {
    std::iter::from_fn(|| machine.poll_event()).collect()
}

/// The messages since the last look.
pub(crate) fn sent(machine: &mut Predecessor) -> Vec<ToSuccessor> {
    std::iter::from_fn(|| machine.poll_transmit())
        .map(|transmit| decode(&transmit.frame).expect("what we write can be read"))
        .collect()
}

/// Ends the successor's process, and says how the handover ended.
pub(crate) fn outcome(machine: &mut Predecessor) -> Option<Outcome> {
    machine.handle_exited(Time::ZERO);
    let outcomes: Vec<_> = said(machine)
        .into_iter()
        .filter_map(|event| match event {
            PredecessorEvent::Finished(outcome) => Some(outcome),
            PredecessorEvent::Greeted { .. }
            | PredecessorEvent::Entered(_)
            | PredecessorEvent::Progress { .. }
            | PredecessorEvent::StopAccepting { .. }
            | PredecessorEvent::ResumeAccepting
            | PredecessorEvent::Kill
            | PredecessorEvent::TakeState { .. }
            | PredecessorEvent::StopAsked { .. }
            | PredecessorEvent::Inquired { .. }
            | PredecessorEvent::Serving => None,
        })
        .collect();
    assert!(outcomes.len() <= 1, "finished more than once: {outcomes:?}");
    outcomes.into_iter().next()
}

/// Where a successor stands, as its driver can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Hello,
    Transfer,
    Initialise,
    Ready,
    /// On probation.
    Serving,
    /// Confirmed after probation.
    Confirmed,
    RollingBack,
    Stopped,
    Replaced,
    Failed,
}

pub(crate) const STAGES: [Stage; 10] = [
    Stage::Hello,
    Stage::Transfer,
    Stage::Initialise,
    Stage::Ready,
    Stage::Serving,
    Stage::Confirmed,
    Stage::RollingBack,
    Stage::Stopped,
    Stage::Replaced,
    Stage::Failed,
];

pub(crate) fn successor() -> Successor {
    let versions = Versions::OURS;
    Successor::new(SuccessorConfig { versions, pid: 200, software: "test".into() }, Time::ZERO)
}

/// A successor that came to the stage by itself at the origin of time; nothing waits to be read.
/// In `Transfer` it waits for two listeners and two states.
pub(crate) fn successor_in(stage: Stage) -> Successor {
    let mut machine = successor();
    let give = if stage == Stage::Transfer { 2 } else { 0 };
    let way: &[&dyn Fn(&mut Successor)] = &[
        &|machine| inform(machine, &welcome(give, give)),
        &|machine| machine.ready([], Time::ZERO),
        &|machine| inform(machine, &ToSuccessor::Commit { upgrade_pending: false }),
        &|machine| inform(machine, &ToSuccessor::Rollback { reason: "test".into() }),
        &|machine| machine.stopped(0),
        &|machine| inform(machine, &ToSuccessor::Resumed {}),
    ];
    let steps = match stage {
        Stage::Hello => 0,
        Stage::Transfer | Stage::Initialise => 1,
        Stage::Ready => 2,
        Stage::Serving | Stage::Confirmed => 3,
        Stage::RollingBack => 4,
        Stage::Stopped => 5,
        Stage::Replaced => 6,
        Stage::Failed => {
            machine.refuse("test");
            0
        }
    };
    for step in &way[..steps] {
        step(&mut machine);
    }
    if stage == Stage::Confirmed {
        inform(&mut machine, &ToSuccessor::Confirmed {});
    }
    noted(&mut machine);
    replied(&mut machine);
    machine
}

pub(crate) fn welcome(descriptors: u32, states: u32) -> ToSuccessor {
    ToSuccessor::Welcome {
        version: VERSION,
        generation: 2,
        pid: 100,
        predecessor: 1,
        descriptors,
        states,
        stderr: false,
        ready_timeout_ms: 60_000,
        commit_timeout_ms: 10_000,
        probation_ms: Some(30_000),
    }
}

/// Feeds a message at the origin of time, with as many descriptors as it says.
pub(crate) fn inform(machine: &mut Successor, message: &ToSuccessor) {
    inform_at(machine, message, Time::ZERO);
}

pub(crate) fn inform_at(machine: &mut Successor, message: &ToSuccessor, now: Time) {
    let received = Received { descriptors: descriptors_of(message), truncated: false };
    machine.handle_frame(&encode(message).expect("a short message"), received, now);
}

pub(crate) fn descriptors_of(message: &ToSuccessor) -> usize {
    match message {
        ToSuccessor::Welcome { stderr, .. } => usize::from(*stderr),
        ToSuccessor::Descriptors { items, .. } => items.len(),
        ToSuccessor::State { .. } => 1,
        ToSuccessor::Commit { .. }
        | ToSuccessor::Upgrade {}
        | ToSuccessor::Stop { .. }
        | ToSuccessor::Ping {}
        | ToSuccessor::Confirmed {}
        | ToSuccessor::Announced {}
        | ToSuccessor::Ack { .. }
        | ToSuccessor::Report { .. }
        | ToSuccessor::Rollback { .. }
        | ToSuccessor::Resumed {}
        | ToSuccessor::Abort { .. } => 0,
    }
}

/// The events since the last look.
pub(crate) fn noted(machine: &mut Successor) -> Vec<SuccessorEvent> {
    std::iter::from_fn(|| machine.poll_event()).collect()
}

/// The messages since the last look.
pub(crate) fn replied(machine: &mut Successor) -> Vec<ToPredecessor> {
    std::iter::from_fn(|| machine.poll_transmit())
        .map(|transmit| decode(&transmit.frame).expect("what we write can be read"))
        .collect()
}
