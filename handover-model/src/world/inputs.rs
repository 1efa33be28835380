//! What can come to a process next, and in which order it takes it.

use handover_proto::Phase;

use super::{Life, Model, Setup, World};
use crate::process::{Ask, Input, Process, Stage};

/// What is asked of a process again and again.
pub(super) struct Facts {
    pub(super) has_to_do: bool,
    pub(super) has_to_send: bool,
    pub(super) may_begin: bool,
    pub(super) may_exit: bool,
    pub(super) deadlines: Vec<(u8, bool)>,
    pub(super) asks: Vec<Ask>,
}

impl Model {
    pub(super) fn inputs(&self, world: &World, number: u8) -> Vec<Input> {
        let facts = self.facts(world, number);
        let (mut near, far) = (self.of_elders(world, number), self.of_children(world, number));
        // In one step the engine reads what has come from older generations, then does what was asked
        // for, then reads what has come from younger ones, and looks at the clock, and at what
        // applications and threads have done, after that.
        let is_orderly = self.setup.orderly;
        if is_orderly && !near.is_empty() {
            return near;
        }
        if world.asks > 0 {
            near.extend(facts.asks.iter().map(|ask| Input::Asked(*ask)));
        }
        if facts.may_begin
            && let Some(child) = (1..self.setup.generations)
                .find(|child| world.life[usize::from(*child)] == Life::Unborn)
        {
            near.push(Input::Begins(child));
        }
        if facts.has_to_send {
            near.push(Input::Sends);
        }
        if is_orderly && !far.is_empty() {
            // From one after the other: all is read before the next step.
            near.extend(far.first());
            return near;
        }
        near.extend(far);
        let deadlines = facts.deadlines.iter();
        near.extend(
            deadlines.map(|(channel, late)| Input::Time { channel: *channel, late: *late }),
        );
        if facts.has_to_do {
            near.push(Input::Does);
        }
        near
    }

    /// Whether it is to read something before it exits.
    pub(super) fn has_to_read(&self, world: &World, number: u8) -> bool {
        let of_elders = self.of_elders(world, number);
        let is_frame = |input: &Input| matches!(input, Input::Frame { .. });
        self.setup.orderly && of_elders.iter().chain(&self.of_children(world, number)).any(is_frame)
    }

    /// What comes through the link and the lines.
    fn of_elders(&self, world: &World, number: u8) -> Vec<Input> {
        let process = self.of(world, number);
        let link = process.link.as_ref().filter(|link| link.connected).map(|_| (number, true));
        // Who does not read sees only that the other end is closed.
        let lines =
            process.lines.iter().map(|(channel, _)| (*channel, process.is_reading(&self.setup)));
        link.into_iter()
            .chain(lines)
            .filter_map(|(channel, is_reading)| {
                let queue = &world.to_successor[usize::from(channel)];
                match queue.first().filter(|_| is_reading) {
                    Some(frame) => Some(Input::Frame { channel, frame }),
                    None => {
                        self.is_predecessor_gone(world, channel).then_some(Input::Closed(channel))
                    }
                }
            })
            .collect()
    }

    /// What comes from those that this process has started, those that were rolled back first.
    fn of_children(&self, world: &World, number: u8) -> Vec<Input> {
        let process = self.of(world, number);
        let mut inputs = Vec::new();
        for attempt in process.departing.iter().chain(&process.attempt) {
            let (channel, child) = (attempt.child, usize::from(attempt.child));
            match world.to_predecessor[child].first() {
                Some(frame) if attempt.connected => inputs.push(Input::Frame { channel, frame }),
                Some(_) | None => {
                    if attempt.connected && !self.is_held(world, channel) {
                        inputs.push(Input::Closed(channel));
                    }
                    if !attempt.exited && world.life[child] == Life::Dead {
                        inputs.push(Input::Exited(channel));
                    }
                }
            }
        }
        inputs
    }
}

impl Facts {
    pub(super) fn of(process: &Process, setup: &Setup) -> Self {
        let link = process.link.as_ref();
        let own =
            link.and_then(|link| link.machine.poll_timeout()).map(|_| (process.number, false));
        let deadlines = process
            .attempts()
            .flat_map(|attempt| attempt.deadlines().map(|late| (attempt.child, late)));
        Self {
            has_to_do: process.has_to_do(),
            has_to_send: process.has_to_send(),
            may_begin: process.may_begin(setup),
            may_exit: process.may_exit(setup),
            deadlines: own.into_iter().chain(deadlines).collect(),
            asks: asks(process, setup),
        }
    }
}

/// What can be asked of a process.
fn asks(process: &Process, setup: &Setup) -> Vec<Ask> {
    let serves = process.stage == Stage::Serving;
    let on_probation = process.link.as_ref().is_some_and(|link| link.machine.is_on_probation())
        || process.attempts().any(|attempt| attempt.machine.phase() == Phase::Probation);
    let mut asks = Vec::new();
    if matches!(process.stage, Stage::Committing | Stage::Serving | Stage::Draining)
        && !process.signalled
    {
        asks.push(Ask::Upgrade);
    }
    if matches!(process.stage, Stage::Committing | Stage::Serving) && !process.stop_requested {
        asks.push(Ask::Stop);
    }
    if serves && on_probation {
        asks.extend([Ask::Rollback, Ask::Confirm]);
    }
    let has_elders = process.link.is_some() || !process.lines.is_empty();
    if serves && process.is_reading(setup) && has_elders && !process.has_inquired {
        asks.push(Ask::Status);
    }
    if process.stage == Stage::Claiming {
        asks.push(Ask::Refuse);
    }
    asks
}
