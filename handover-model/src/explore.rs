//! Breadth first through everything that can happen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;

use crate::check::Broken;
use crate::world::{Action, Model, Setup, World};

/// What was explored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// States in which nothing happens by itself any more.
    pub(crate) rests: usize,
    /// Processes, with what their machines know, that differ.
    pub(crate) processes: usize,
    pub(crate) frames: usize,
}

/// An invariant that does not hold, and how one comes there.
pub(crate) struct Found {
    pub(crate) broken: Broken,
    pub(crate) trace: Vec<String>,
}

struct Exploration {
    model: Model,
    worlds: Vec<World>,
    numbers: HashMap<World, u32>,
    /// Where each state was found first, and by what.
    found: Vec<Option<(u32, Action)>>,
    /// What happens by itself, from and to.
    by_itself: Vec<(u32, u32)>,
    steps: usize,
}

/// Explores everything, and returns the model for whoever wants to look at what there was.
pub(crate) fn explore(setup: Setup) -> Result<(Explored, Model), Found> {
    let model = Model::new(setup);
    let (worlds, numbers, found) = (Vec::new(), HashMap::new(), Vec::new());
    let mut exploration =
        Exploration { model, worlds, numbers, found, by_itself: Vec::new(), steps: 0 };
    let beginning = exploration.model.beginning();
    exploration.add(beginning, None);
    let mut next = 0;
    while let Some(world) = exploration.worlds.get(next).copied() {
        exploration.expand(next as u32, &world)?;
        next += 1;
    }
    let rests = exploration.check_ends()?;
    let explored = Explored {
        states: exploration.worlds.len(),
        steps: exploration.steps,
        rests,
        processes: exploration.model.processes.len(),
        frames: exploration.model.frames.len(),
    };
    Ok((explored, exploration.model))
}

impl Exploration {
    fn add(&mut self, world: World, from: Option<(u32, Action)>) -> u32 {
        let number = u32::try_from(self.worlds.len()).expect("fewer states");
        match self.numbers.entry(world) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                new.insert(number);
                self.worlds.push(world);
                self.found.push(from);
                number
            }
        }
    }

    fn expand(&mut self, from: u32, world: &World) -> Result<(), Found> {
        let ways = self.model.ways(world).map_err(|(action, broken)| {
            let mut trace = self.trace(from);
            trace.push(self.describe(world, action));
            Found { broken, trace }
        })?;
        self.steps += ways.len();
        for way in ways {
            let to = self.add(way.world, Some((from, way.action)));
            if way.by_itself {
                self.by_itself.push((from, to));
            }
        }
        Ok(())
    }

    /// Checks that everything comes to rest, and who serves then; returns how many such states there
    /// are.
    fn check_ends(&self) -> Result<usize, Found> {
        let states = self.worlds.len();
        let mut outgoing = vec![0_u32; states];
        let mut into = vec![0_u32; states + 1];
        for (from, to) in &self.by_itself {
            outgoing[*from as usize] += 1;
            into[*to as usize + 1] += 1;
        }
        for state in 0..states {
            into[state + 1] += into[state];
        }
        let mut sources = vec![0_u32; self.by_itself.len()];
        let mut place = into.clone();
        for (from, to) in &self.by_itself {
            sources[place[*to as usize] as usize] = *from;
            place[*to as usize] += 1;
        }
        // From the states of rest backwards, each when all that follows it is done; what is left is on
        // a way round, or leads to one.
        let mut unserved = vec![false; states];
        let mut done: Vec<u32> =
            (0..states as u32).filter(|s| outgoing[*s as usize] == 0).collect();
        let rests = done.len();
        // A driver that looks at the clock before it reads gives up what it need not: then it counts
        // that nothing worse happens.
        let is_orderly = self.model.setup.orderly;
        for rest in done.iter().filter(|_| is_orderly) {
            let world = &self.worlds[*rest as usize];
            self.model.check_rest(world).map_err(|broken| self.found(broken, *rest))?;
            unserved[*rest as usize] = !self.model.is_served(world);
        }
        let mut next = 0;
        while let Some(state) = done.get(next).copied() {
            next += 1;
            let index = state as usize;
            if unserved[index] && self.model.somebody_could(&self.worlds[index]) {
                return Err(self.found_unserved(state, &unserved));
            }
            for source in &sources[into[index] as usize..into[index + 1] as usize] {
                let source = *source as usize;
                unserved[source] |= unserved[index];
                outgoing[source] -= 1;
                if outgoing[source] == 0 {
                    done.push(source as u32);
                }
            }
        }
        match outgoing.iter().position(|left| *left > 0) {
            Some(circling) => Err(self.found(Broken::Ends, circling as u32)),
            None => Ok(rests),
        }
    }

    fn found(&self, broken: Broken, at: u32) -> Found {
        Found { broken, trace: self.trace(at) }
    }

    /// The way to a state in which somebody could serve, and from there to one of rest in which nobody
    /// does.
    fn found_unserved(&self, at: u32, unserved: &[bool]) -> Found {
        let mut trace = self.trace(at);
        trace.push("and from here by itself:".to_owned());
        let mut at = at;
        while let Some((_, to)) =
            self.by_itself.iter().find(|(from, to)| *from == at && unserved[*to as usize])
        {
            trace.push(self.state(&self.worlds[*to as usize]));
            at = *to;
        }
        Found { broken: Broken::SomebodyServes, trace }
    }

    fn trace(&self, mut at: u32) -> Vec<String> {
        let mut trace = vec![self.state(&self.worlds[at as usize])];
        while let Some((from, action)) = self.found[at as usize] {
            trace.push(self.describe(&self.worlds[from as usize], action));
            at = from;
        }
        trace.reverse();
        trace
    }

    fn describe(&self, world: &World, action: Action) -> String {
        format!("{}\n      {action:?}", self.state(world))
    }

    fn state(&self, world: &World) -> String {
        let mut text = String::new();
        for number in Model::there(world) {
            let process = self.model.of(world, number);
            let attempts: Vec<_> = process
                .attempts()
                .map(|it| (it.child, it.machine.phase(), it.machine.cause().is_some()))
                .collect();
            let index = usize::from(number);
            text += &format!(
                "  [{number} {:?} {:?} {:?} {:?} stop={} upgrade={} attempts={attempts:?} \
                 resuming={} back={:?} lines={:?} in={:?} out={:?}]",
                world.life[index],
                process.stage,
                process.ending,
                process.gate,
                process.stop_requested,
                process.signalled,
                process.resuming.is_some(),
                process.stepping_back,
                process.lines.iter().map(|(line, _)| line).collect::<Vec<_>>(),
                self.model.frames.names(&world.to_successor[index]),
                self.model.frames.names(&world.to_predecessor[index]),
            );
        }
        text
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?} does not hold:", self.broken)?;
        self.trace.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, rests, processes, frames } = self;
        write!(
            f,
            "{states} states, {steps} steps, {rests} of them at rest, {processes} states of a process, \
             {frames} frames"
        )
    }
}
