//! All generations, the channels between them, and what can happen next.

mod inputs;

use std::collections::HashMap;
use std::rc::Rc;

use handover_proto::{Outcome, Received};

use crate::check::{Broken, Kept};
use crate::frames::{Frames, Kind, Queue};
use crate::mutation::Mutation;
use crate::process::{Gate, Input, Output, Process};

use inputs::Facts;

/// Three generations at most: the one that drains, the one that serves, and the next.
pub(crate) const PROCESSES: usize = 3;
const NUMBERS: [u8; PROCESSES] = [0, 1, 2];

/// What is explored: which handovers, and what may go wrong how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) probation: bool,
    pub(crate) early_states: u32,
    pub(crate) late_states: u32,
    pub(crate) states_back: u32,
    /// A service manager is there: a stop is one of the service, and the main process leaves last.
    pub(crate) supervised: bool,
    /// How many processes are started, the first one included.
    pub(crate) generations: u8,
    pub(crate) crashes: u8,
    pub(crate) hangs: u8,
    /// How often something is asked for, by operators or the application.
    pub(crate) asks: u8,
    /// How often a channel is full.
    pub(crate) stalls: u8,
    /// What a process that dies had sent may be lost.
    pub(crate) loses: bool,
    /// A driver reads what has arrived before it looks at the clock.
    pub(crate) orderly: bool,
    /// A successor cannot be killed.
    pub(crate) unkillable: bool,
    pub(crate) mutation: Option<Mutation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    Unborn,
    Alive,
    Hung,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    Success,
    Failure,
    RolledBack,
}

/// One state of everything. Processes and frames are numbers; [`Model`] knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) process: [u32; PROCESSES],
    pub(crate) life: [Life; PROCESSES],
    /// Who has started it.
    pub(crate) parent: [u8; PROCESSES],
    /// What is on its way, by channel.
    pub(crate) to_predecessor: [Queue; PROCESSES],
    pub(crate) to_successor: [Queue; PROCESSES],
    pub(crate) crashes: u8,
    pub(crate) hangs: u8,
    pub(crate) asks: u8,
    pub(crate) stalls: u8,
    pub(crate) kept: Kept,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Step(u8, Input),
    /// A step for whose words a channel has no room.
    StepFull(u8, Input),
    /// A process dies in a step, after so many frames.
    StepHalf(u8, Input, u8),
    Exits(u8),
    Crashes(u8),
    /// It dies, and what it had sent is lost.
    CrashesUnheard(u8),
    Hangs(u8),
    Wakes(u8),
}

/// A way out of a state.
pub(crate) struct Way {
    pub(crate) action: Action,
    pub(crate) world: World,
    /// It happens by itself: no fault, nothing that somebody asks for.
    pub(crate) by_itself: bool,
}

/// What a step comes to; the same for the same process and input.
struct Stepped {
    process: u32,
    outputs: Vec<Effect>,
}

#[derive(Clone, Copy)]
enum Effect {
    Send { channel: u8, to_predecessor: bool, frame: u16 },
    Kill(u8),
    Verdict(u8, Told),
}

/// The processes and frames that are known, and the setup.
pub(crate) struct Model {
    pub(crate) setup: Setup,
    pub(crate) processes: Vec<Rc<Process>>,
    facts: Vec<Rc<Facts>>,
    numbers: HashMap<Rc<Process>, u32>,
    pub(crate) frames: Frames,
    steps: HashMap<(u32, Input, bool), Rc<Stepped>>,
}

impl Model {
    pub(crate) fn new(setup: Setup) -> Self {
        let (processes, facts, numbers) = (Vec::new(), Vec::new(), HashMap::new());
        Self { setup, processes, facts, numbers, frames: Frames::default(), steps: HashMap::new() }
    }

    /// The first generation serves, and nothing was asked for.
    pub(crate) fn beginning(&mut self) -> World {
        let first = self.number(Process::first());
        World {
            process: [first; PROCESSES],
            life: [Life::Alive, Life::Unborn, Life::Unborn],
            parent: [0; PROCESSES],
            to_predecessor: [Queue::default(); PROCESSES],
            to_successor: [Queue::default(); PROCESSES],
            crashes: self.setup.crashes,
            hangs: self.setup.hangs,
            asks: self.setup.asks,
            stalls: self.setup.stalls,
            kept: Kept::default(),
        }
    }

    pub(crate) fn of(&self, world: &World, number: u8) -> &Process {
        &self.processes[world.process[usize::from(number)] as usize]
    }

    /// Those that are there, hung or not.
    pub(crate) fn there(world: &World) -> impl Iterator<Item = u8> + use<> {
        let life = world.life;
        NUMBERS
            .into_iter()
            .filter(move |number| matches!(life[usize::from(*number)], Life::Alive | Life::Hung))
    }

    pub(crate) fn alive(world: &World) -> impl Iterator<Item = u8> + use<> {
        let life = world.life;
        NUMBERS.into_iter().filter(move |number| life[usize::from(*number)] == Life::Alive)
    }

    /// Everything that can happen in this state.
    pub(crate) fn ways(&mut self, world: &World) -> Result<Vec<Way>, (Action, Broken)> {
        let mut ways = Vec::new();
        for number in NUMBERS {
            match world.life[usize::from(number)] {
                Life::Unborn | Life::Dead => {}
                Life::Hung => {
                    self.fault(world, Action::Wakes(number), &mut ways)?;
                    self.crash(world, number, &mut ways)?;
                }
                Life::Alive => {
                    for input in self.inputs(world, number) {
                        self.step(world, number, input, &mut ways)?;
                    }
                    if self.facts(world, number).may_exit && !self.has_to_read(world, number) {
                        self.fault(world, Action::Exits(number), &mut ways)?;
                    }
                    if world.hangs > 0 {
                        self.fault(world, Action::Hangs(number), &mut ways)?;
                    }
                    self.crash(world, number, &mut ways)?;
                }
            }
        }
        Ok(ways)
    }

    fn facts(&self, world: &World, number: u8) -> Rc<Facts> {
        Rc::clone(&self.facts[world.process[usize::from(number)] as usize])
    }

    /// Whether the end of the channel that its predecessor has is closed.
    fn is_predecessor_gone(&self, world: &World, channel: u8) -> bool {
        let parent = world.parent[usize::from(channel)];
        world.life[usize::from(parent)] == Life::Dead
            || !self
                .of(world, parent)
                .attempts()
                .any(|attempt| attempt.child == channel && attempt.connected)
    }

    /// Whether somebody has the successor's end of that channel, or is about to get it.
    fn is_held(&self, world: &World, channel: u8) -> bool {
        Self::there(world).any(|number| {
            self.of(world, number).holds_line(channel)
                || world.to_successor[usize::from(number)]
                    .iter()
                    .any(|frame| self.frames.lines(frame).contains(&channel))
        })
    }

    fn step(
        &mut self,
        world: &World,
        number: u8,
        input: Input,
        ways: &mut Vec<Way>,
    ) -> Result<(), (Action, Broken)> {
        let stepped = self.stepped(world, number, input, false);
        let sends = |effect: &&Effect| matches!(effect, Effect::Send { .. });
        let frames = stepped.outputs.iter().filter(sends).count();
        let action = Action::Step(number, input);
        let after = self.after_step(world, number, input, &stepped, None);
        let by_itself = !matches!(input, Input::Asked(_)) && !self.asks_again(world, &after, input);
        // What changes nothing is no step.
        if after != *world {
            self.go(world, action, after, by_itself, &stepped.outputs, ways)?;
        }
        if world.crashes > 0 {
            for sent in 0..frames {
                let action = Action::StepHalf(number, input, sent as u8);
                let mut after = self.after_step(world, number, input, &stepped, Some(sent));
                after.crashes -= 1;
                self.die(&mut after, number);
                self.go(world, action, after, false, &[], ways)?;
            }
        }
        if world.stalls > 0 && frames > 0 {
            let stepped = self.stepped(world, number, input, true);
            let mut after = self.after_step(world, number, input, &stepped, None);
            after.stalls -= 1;
            let action = Action::StepFull(number, input);
            self.go(world, action, after, false, &stepped.outputs, ways)?;
        }
        Ok(())
    }

    /// Whether only time has passed on probation, which it does for as long as that lasts.
    fn asks_again(&self, before: &World, after: &World, input: Input) -> bool {
        let Input::Time { channel, .. } = input else { return false };
        let goes_on = |world: &World| {
            Self::alive(world).any(|number| {
                self.of(world, number).attempts().any(|attempt| {
                    attempt.child == channel && attempt.machine.probation_end().is_some()
                })
            })
        };
        goes_on(before) && goes_on(after)
    }

    fn stepped(&mut self, world: &World, number: u8, input: Input, full: bool) -> Rc<Stepped> {
        let before = world.process[usize::from(number)];
        if let Some(stepped) = self.steps.get(&(before, input, full)) {
            return Rc::clone(stepped);
        }
        let mut process = Process::clone(&self.processes[before as usize]);
        let frame = match input {
            Input::Frame { frame, .. } => Some(self.frames.bytes(frame)),
            _ => None,
        };
        let frame =
            frame.map(|(bytes, descriptors)| (bytes, Received { descriptors, truncated: false }));
        let outputs = process.step(input, frame, full, &self.setup);
        let outputs = outputs.into_iter().map(|output| self.effect(output)).collect();
        let stepped = Rc::new(Stepped { process: self.number(process), outputs });
        self.steps.insert((before, input, full), Rc::clone(&stepped));
        stepped
    }

    fn effect(&mut self, output: Output) -> Effect {
        match output {
            Output::Send { channel, to_predecessor, transmit } => {
                let frame = self.frames.number(transmit);
                Effect::Send { channel, to_predecessor, frame }
            }
            Output::Kill(child) => Effect::Kill(child),
            Output::Verdict { child, outcome } => Effect::Verdict(
                child,
                match outcome {
                    Outcome::Succeeded => Told::Success,
                    Outcome::Failed { .. } => Told::Failure,
                    Outcome::RolledBack { .. } => Told::RolledBack,
                },
            ),
        }
    }

    fn number(&mut self, process: Process) -> u32 {
        if let Some(number) = self.numbers.get(&process) {
            return *number;
        }
        let number = u32::try_from(self.processes.len()).expect("fewer processes");
        let process = Rc::new(process);
        self.facts.push(Rc::new(Facts::of(&process, &self.setup)));
        self.numbers.insert(Rc::clone(&process), number);
        self.processes.push(process);
        number
    }

    /// The world after a step; with a limit, after so many frames of it.
    fn after_step(
        &mut self,
        world: &World,
        number: u8,
        input: Input,
        stepped: &Stepped,
        limit: Option<usize>,
    ) -> World {
        let mut after = *world;
        after.process[usize::from(number)] = stepped.process;
        match input {
            Input::Frame { channel, .. } if self.is_upwards(world, number, channel) => {
                after.to_predecessor[usize::from(channel)].pop();
            }
            Input::Frame { channel, .. } => after.to_successor[usize::from(channel)].pop(),
            Input::Begins(child) => {
                let started = self.number(Process::started(child));
                after.process[usize::from(child)] = started;
                after.life[usize::from(child)] = Life::Alive;
                after.parent[usize::from(child)] = number;
            }
            Input::Asked(_) => after.asks -= 1,
            Input::Closed(_)
            | Input::Exited(_)
            | Input::Time { .. }
            | Input::Does
            | Input::Sends => {}
        }
        let mut left = limit.unwrap_or(usize::MAX);
        for effect in &stepped.outputs {
            match *effect {
                Effect::Kill(child) if limit.is_none() => self.die(&mut after, child),
                Effect::Kill(_) | Effect::Verdict(..) => {}
                Effect::Send { .. } if left == 0 => {}
                Effect::Send { channel, to_predecessor, frame } => {
                    left -= 1;
                    self.send(&mut after, channel, to_predecessor, frame);
                }
            }
        }
        self.forget_unread(&mut after);
        after
    }

    fn is_upwards(&self, world: &World, number: u8, channel: u8) -> bool {
        channel != number && world.parent[usize::from(channel)] == number
    }

    fn send(&self, world: &mut World, channel: u8, to_predecessor: bool, frame: u16) {
        let index = usize::from(channel);
        if to_predecessor {
            if !self.is_predecessor_gone(world, channel) {
                world.to_predecessor[index].push(frame);
            }
        } else {
            if self.frames.is(frame, Kind::COMMIT) {
                world.kept.commit_sent[index] = true;
            }
            if self.is_held(world, channel) {
                world.to_successor[index].push(frame);
            }
        }
    }

    /// Empties what nobody will read.
    fn forget_unread(&self, world: &mut World) {
        for channel in 1..PROCESSES {
            if world.life[channel] == Life::Unborn {
                continue;
            }
            if !self.is_held(world, channel as u8) {
                world.to_successor[channel] = Queue::default();
            }
            if self.is_predecessor_gone(world, channel as u8) {
                world.to_predecessor[channel] = Queue::default();
            }
        }
    }

    /// A process is gone; of those that are, nothing is kept apart.
    fn die(&self, world: &mut World, number: u8) {
        world.life[usize::from(number)] = Life::Dead;
        world.process[usize::from(number)] = 0;
        // Twice, for what was on its way to it may have carried the end of another channel.
        self.forget_unread(world);
        self.forget_unread(world);
    }

    fn crash(
        &mut self,
        world: &World,
        number: u8,
        ways: &mut Vec<Way>,
    ) -> Result<(), (Action, Broken)> {
        if world.crashes == 0 {
            return Ok(());
        }
        self.fault(world, Action::Crashes(number), ways)?;
        if self.setup.loses {
            self.fault(world, Action::CrashesUnheard(number), ways)?;
        }
        Ok(())
    }

    fn fault(
        &mut self,
        world: &World,
        action: Action,
        ways: &mut Vec<Way>,
    ) -> Result<(), (Action, Broken)> {
        let mut after = *world;
        match action {
            Action::Exits(number) => self.die(&mut after, number),
            Action::Crashes(number) => {
                after.crashes -= 1;
                self.die(&mut after, number);
            }
            Action::CrashesUnheard(number) => {
                after.crashes -= 1;
                for channel in 1..PROCESSES {
                    if world.parent[channel] == number {
                        after.to_successor[channel] = Queue::default();
                    }
                }
                after.to_predecessor[usize::from(number)] = Queue::default();
                self.die(&mut after, number);
                if after.to_predecessor == world.to_predecessor
                    && after.to_successor == world.to_successor
                {
                    return Ok(());
                }
            }
            Action::Hangs(number) => {
                after.hangs -= 1;
                after.life[usize::from(number)] = Life::Hung;
            }
            Action::Wakes(number) => after.life[usize::from(number)] = Life::Alive,
            Action::Step(..) | Action::StepFull(..) | Action::StepHalf(..) => {
                unreachable!("no fault")
            }
        }
        self.go(world, action, after, matches!(action, Action::Exits(_)), &[], ways)
    }

    fn go(
        &mut self,
        before: &World,
        action: Action,
        mut world: World,
        by_itself: bool,
        effects: &[Effect],
        ways: &mut Vec<Way>,
    ) -> Result<(), (Action, Broken)> {
        let told: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Verdict(child, told) => Some((*child, *told)),
                Effect::Send { .. } | Effect::Kill(_) => None,
            })
            .collect();
        self.check_step(before, action, &mut world, &told).map_err(|broken| (action, broken))?;
        ways.push(Way { action, world, by_itself });
        Ok(())
    }
}

/// Whether a listener of this process is open.
pub(crate) fn has_listener(process: &Process) -> bool {
    process.gate != Gate::Closed
}
