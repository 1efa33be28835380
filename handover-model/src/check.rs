//! What must hold.

use handover_proto::Phase;

use crate::frames::Kind;
use crate::process::{Ask, Ending, Gate, Input, Process, Stage, SteppingBack};
use crate::world::{Action, Life, Model, PROCESSES, Told, World, has_listener};

/// An invariant, by its name, that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Broken {
    /// No two processes accept on the same listener: there is no moment at which a connection could go
    /// to either. A process that hangs counts, for it may wake.
    OneAccepts,
    /// No two processes believe that they are the serving one. It is a belief about what was said and
    /// not about what the other has heard: the predecessor has it until it says `commit`, the successor
    /// from when it hears that until it hears `rollback` or `abort`, the predecessor again from when it
    /// has heard `stopped`, or the end of the process. Between the two, while a word is on its way,
    /// nobody has it. With probation `serving` and `confirmed` move nothing.
    OneBelieves,
    /// A successor accepts nothing before its predecessor has said `commit` or is gone.
    NothingBeforeCommit,
    /// Whoever closes a listener by itself leaves it with somebody, unless the service stops: the kernel
    /// resets what is queued when the last one is closed.
    ListenerKept,
    /// A verdict is true: on success the successor has served and the predecessor never accepts again; on
    /// failure the predecessor accepts, and the successor, for as long as the predecessor lives, does not
    /// any more. A failure that is no rollback, in a phase before the commit, means that it never did.
    VerdictTrue,
    /// There is exactly one verdict on each upgrade that has begun, unless the process that owes it dies.
    OneVerdict,
    /// An upgrade that was asked for is remembered by somebody, until it begins.
    UpgradeKept,
    /// A stop that was asked for is remembered by somebody, until nobody serves.
    StopKept,
    /// When everything has come to rest somebody accepts, if there was anybody who could.
    SomebodyServes,
    /// Everything comes to rest by itself, and nobody waits for what does not come.
    Ends,
}

/// What is remembered beside the processes, to know whether the invariants hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Kept {
    pub(crate) commit_sent: [bool; PROCESSES],
    accepted: [bool; PROCESSES],
    verdict: [Option<Told>; PROCESSES],
    /// It has died by a fault.
    crashed: [bool; PROCESSES],
    stop_asked: bool,
    /// And has to be carried out: nobody has died who may have been the only one to know.
    stop_owed: bool,
    upgrade_asked: bool,
}

impl Model {
    /// Checks a step, and the state that it leads to.
    pub(crate) fn check_step(
        &self,
        before: &World,
        action: Action,
        after: &mut World,
        told: &[(u8, Told)],
    ) -> Result<(), Broken> {
        self.remember(action, after);
        self.check_who_accepts(after)?;
        self.check_listener(before, after)?;
        for (child, told) in told {
            self.check_verdict(after, *child, *told)?;
        }
        self.check_verdicts_kept(after)?;
        self.check_exit(before, action)?;
        // A driver that does not read in order forgets, and gives up, what it need not.
        self.check_requests(before, action, after)
            .or_else(|broken| if self.setup.orderly { Err(broken) } else { Ok(()) })
    }

    fn remember(&self, action: Action, after: &mut World) {
        for number in Self::there(after) {
            // What somebody else has to allow is checked before it is remembered.
            if number == 0 {
                after.kept.accepted[0] = true;
            }
        }
        let died = match action {
            Action::Crashes(number)
            | Action::CrashesUnheard(number)
            | Action::StepHalf(number, ..) => number,
            Action::Step(..)
            | Action::StepFull(..)
            | Action::Exits(_)
            | Action::Hangs(_)
            | Action::Wakes(_) => return,
        };
        after.kept.crashed[usize::from(died)] = true;
    }

    fn check_who_accepts(&self, after: &mut World) -> Result<(), Broken> {
        let (mut accepting, mut believing) = (0, 0);
        for number in Self::there(after) {
            let process = self.of(after, number);
            let index = usize::from(number);
            believing += u8::from(process.believes_it_serves());
            if !process.accepts() {
                continue;
            }
            accepting += 1;
            if !after.kept.accepted[index] {
                let parent = usize::from(after.parent[index]);
                if !after.kept.commit_sent[index] && after.life[parent] != Life::Dead {
                    return Err(Broken::NothingBeforeCommit);
                }
                after.kept.accepted[index] = true;
            }
        }
        if accepting > 1 {
            return Err(Broken::OneAccepts);
        }
        if believing > 1 {
            return Err(Broken::OneBelieves);
        }
        Ok(())
    }

    fn check_listener(&self, before: &World, after: &World) -> Result<(), Broken> {
        let is_held = Self::there(after).any(|number| {
            has_listener(self.of(after, number))
                || self.frames.any(&after.to_successor[usize::from(number)], Kind::DESCRIPTORS)
        });
        if is_held || after.kept.stop_asked {
            return Ok(());
        }
        for number in Self::there(before) {
            let process = self.of(before, number);
            if !has_listener(process) || after.kept.crashed[usize::from(number)] {
                continue;
            }
            // A process that has closed the last one, or has exited with it: then the one that it was
            // left to, or whose it was, has died.
            let other_died = after.kept.crashed.iter().any(|crashed| *crashed);
            if !other_died {
                return Err(Broken::ListenerKept);
            }
        }
        Ok(())
    }

    fn check_verdict(&self, after: &mut World, child: u8, told: Told) -> Result<(), Broken> {
        let index = usize::from(child);
        if after.kept.verdict[index].is_some() {
            return Err(Broken::OneVerdict);
        }
        let parent = self.of(after, after.parent[index]);
        let is_true = match told {
            Told::Success => after.kept.accepted[index] && !has_listener(parent),
            Told::RolledBack => after.kept.accepted[index] && has_listener(parent),
            Told::Failure => {
                (after.kept.commit_sent[index] || !after.kept.accepted[index])
                    && has_listener(parent)
            }
        };
        if !is_true {
            return Err(Broken::VerdictTrue);
        }
        after.kept.verdict[index] = Some(told);
        Ok(())
    }

    fn check_verdicts_kept(&self, after: &World) -> Result<(), Broken> {
        for child in 1..PROCESSES {
            let parent = after.parent[child];
            if !Self::there(after).any(|number| number == parent) {
                continue;
            }
            let accepts = |number: u8| {
                Self::there(after).any(|there| there == number) && self.of(after, number).accepts()
            };
            match after.kept.verdict[child] {
                Some(Told::Success) if accepts(parent) => return Err(Broken::VerdictTrue),
                Some(Told::Failure | Told::RolledBack) if accepts(child as u8) => {
                    return Err(Broken::VerdictTrue);
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    /// Who exits owes no verdict.
    fn check_exit(&self, before: &World, action: Action) -> Result<(), Broken> {
        let Action::Exits(number) = action else { return Ok(()) };
        let owes = self
            .of(before, number)
            .attempts()
            .any(|attempt| before.kept.verdict[usize::from(attempt.child)].is_none());
        if owes { Err(Broken::OneVerdict) } else { Ok(()) }
    }

    fn check_requests(
        &self,
        before: &World,
        action: Action,
        after: &mut World,
    ) -> Result<(), Broken> {
        let (stop, upgrade) = (self.knows_stop(after), self.knows_upgrade(after));
        let mut may_forget = false;
        match action {
            Action::Step(number, Input::Asked(ask))
            | Action::StepFull(number, Input::Asked(ask))
            | Action::StepHalf(number, Input::Asked(ask), _) => {
                may_forget = matches!(action, Action::StepHalf(..));
                after.kept.upgrade_asked |=
                    ask == Ask::Upgrade && self.is_here_to_stay(before, number) && upgrade;
                let is_of_the_service =
                    ask == Ask::Stop && self.is_of_the_service(before, number) && stop;
                after.kept.stop_asked |= is_of_the_service;
                after.kept.stop_owed |= is_of_the_service;
            }
            Action::Step(_, Input::Begins(_)) | Action::StepFull(_, Input::Begins(_)) => {
                after.kept.upgrade_asked = false;
            }
            Action::Crashes(_) | Action::CrashesUnheard(_) | Action::StepHalf(..) => {
                may_forget = true;
            }
            Action::Step(..)
            | Action::StepFull(..)
            | Action::Exits(_)
            | Action::Hangs(_)
            | Action::Wakes(_) => {}
        }
        // What a successor could not say, as the channel was full, is lost when it is killed.
        may_forget |= matches!(action, Action::Step(_, Input::Time { .. }))
            && (0..PROCESSES).any(|number| before.life[number] != after.life[number]);
        // "`serving` sent, no probation": the one that it went to has died.
        let is_lost = (0..PROCESSES).any(|number| {
            after.kept.crashed[number] && after.kept.verdict[number] == Some(Told::Success)
        });
        may_forget |= is_lost;
        // Who does not read drops a line whose other end is closed; if nobody who does has read it by
        // then, what is in it is lost.
        if let Action::Step(_, Input::Closed(channel)) = action
            && self.frames.any(&before.to_successor[usize::from(channel)], Kind::UPGRADE)
        {
            after.kept.upgrade_asked = false;
        }
        let somebody = Self::there(after).any(|number| self.could_serve(after, number));
        // Of three, one that dies may take a request with it of which others have, at the moment, a copy
        // that is none of theirs any more.
        let is_pair = self.setup.generations == 2;
        after.kept.stop_owed &= is_pair || !after.kept.crashed.contains(&true);
        after.kept.upgrade_asked &= is_pair || !after.kept.crashed.contains(&true);
        if after.kept.stop_owed && !stop {
            if somebody && !may_forget {
                return Err(Broken::StopKept);
            }
            after.kept.stop_owed &= !may_forget;
            after.kept.stop_asked &= !may_forget;
        }
        if after.kept.upgrade_asked && !upgrade {
            let was_to_stay = Self::there(before).any(|number| {
                self.knows_upgrade_itself(before, number) && self.is_here_to_stay(before, number)
            });
            // What it had passed on, and what then went on through a line to one that was replaced.
            let was_passed_on = !is_pair && before.kept.verdict != after.kept.verdict;
            let was_to_stay = was_to_stay && !was_passed_on;
            let was_kept = was_to_stay || self.is_on_its_way(before, Kind::UPGRADE);
            let is_moot = after.kept.stop_asked || stop || !somebody || !was_kept;
            if !may_forget && !is_moot {
                return Err(Broken::UpgradeKept);
            }
            after.kept.upgrade_asked = false;
        }
        Ok(())
    }

    /// Whether its predecessor does not take back over, nor is about to. What is asked of a successor
    /// that is replaced after that is lost with it: nothing that it could say would tell of it.
    fn is_here_to_stay(&self, world: &World, number: u8) -> bool {
        let parent = world.parent[usize::from(number)];
        let mut parents = Self::there(world).filter(|there| *there == parent && number != 0);
        let may_be_called_off = parents.any(|parent| {
            self.of(world, parent)
                .attempts()
                .any(|attempt| attempt.child == number && attempt.machine.phase() != Phase::Served)
        });
        self.of(world, number).confirmed && !may_be_called_off
    }

    /// Without a service manager a stop asked of the predecessor, on probation, is for it alone: it
    /// confirms the successor and goes. Who is being replaced passes it on, if somebody is there.
    fn is_of_the_service(&self, world: &World, number: u8) -> bool {
        let asked = self.of(world, number);
        let parent = world.life[usize::from(world.parent[usize::from(number)])];
        if asked.stepping_back.is_some() && parent == Life::Dead {
            return false;
        }
        let on_probation =
            asked.attempt.as_ref().is_some_and(|attempt| attempt.machine.probation_end().is_some());
        asked.stage == Stage::Serving && ((self.setup.supervised && asked.is_main) || !on_probation)
    }

    fn knows_stop(&self, world: &World) -> bool {
        let knows = |number| {
            let process = self.of(world, number);
            let is_its_own =
                process.stage <= Stage::Serving || matches!(process.ending, Some(Ending::Stopped));
            process.stop_requested && is_its_own && !self.is_replaced(world, number)
        };
        Self::there(world).any(knows) || self.is_on_its_way(world, Kind::STOP)
    }

    fn knows_upgrade(&self, world: &World) -> bool {
        Self::there(world).any(|number| self.knows_upgrade_itself(world, number))
            || self.is_on_its_way(world, Kind::UPGRADE)
    }

    fn knows_upgrade_itself(&self, world: &World, number: u8) -> bool {
        let process = self.of(world, number);
        let may_act = process.stage <= Stage::Serving;
        process.signalled && may_act && !self.is_replaced(world, number)
    }

    /// Whether its predecessor serves again, and it is about to hear it.
    fn is_replaced(&self, world: &World, number: u8) -> bool {
        let queue = &world.to_successor[usize::from(number)];
        self.of(world, number).stepping_back.is_some() && self.frames.any(queue, Kind::RESUMED)
    }

    fn is_on_its_way(&self, world: &World, kind: Kind) -> bool {
        let mut queues = world.to_predecessor.iter().chain(&world.to_successor);
        queues.any(|queue| self.frames.any(queue, kind)) || self.is_unsent(world, kind)
    }

    /// Whether a channel was full when it was to be sent.
    fn is_unsent(&self, world: &World, kind: Kind) -> bool {
        if self.setup.stalls == 0 {
            return false;
        }
        let word = if kind == Kind::STOP { "\"type\":\"stop\"" } else { "upgrade" };
        Self::there(world).any(|number| self.of(world, number).is_to_say(word))
    }

    /// What must hold when nothing happens by itself any more.
    pub(crate) fn check_rest(&self, world: &World) -> Result<(), Broken> {
        let is_hung = world.life.contains(&Life::Hung);
        for number in Self::alive(world) {
            let process = self.of(world, number);
            let waits = process.stage != Stage::Serving
                || process.resuming.is_some()
                || process.stepping_back.is_some()
                || process.attempts().any(|attempt| attempt.machine.phase() < Phase::Served);
            if waits && !is_hung {
                return Err(Broken::Ends);
            }
            let owes = |child: u8| world.kept.verdict[usize::from(child)].is_none();
            if process.attempts().any(|attempt| owes(attempt.child)) {
                return Err(Broken::OneVerdict);
            }
            if world.kept.stop_owed && process.gate == Gate::Open && !is_hung {
                return Err(Broken::StopKept);
            }
        }
        Ok(())
    }

    /// Whether it is in order that nobody accepts in this state of rest, or somebody does.
    pub(crate) fn is_served(&self, world: &World) -> bool {
        world.kept.stop_asked
            || Self::alive(world).any(|number| self.of(world, number).gate == Gate::Open)
    }

    /// Whether there is a process that serves, or has to take over, as docs/protocol.md has it under
    /// "Who serves after a crash" and "Who serves while one hangs".
    pub(crate) fn somebody_could(&self, world: &World) -> bool {
        Self::alive(world).any(|number| self.could_serve(world, number))
    }

    fn could_serve(&self, world: &World, number: u8) -> bool {
        let process = self.of(world, number);
        let index = usize::from(number);
        let parent = world.life[usize::from(world.parent[index])];
        let is_alone = parent == Life::Dead;
        let hears = |kind| self.frames.any(&world.to_successor[index], kind);
        if process.stop_requested {
            return false;
        }
        match process.stage {
            Stage::Adopting | Stage::Claiming | Stage::Committing => {
                is_alone && !hears(Kind::ABORT)
            }
            Stage::Serving => match process.stepping_back {
                Some(SteppingBack::Stopping | SteppingBack::Waiting) => {
                    is_alone && !hears(Kind::RESUMED)
                }
                // "`rollback` sent", and the predecessor hangs.
                None if parent == Life::Hung && (hears(Kind::ABORT) || hears(Kind::ROLLBACK)) => {
                    false
                }
                None => self.could_go_on(world, process),
            },
            Stage::Draining => {
                debug_assert_ne!(process.ending, None::<Ending>);
                false
            }
            Stage::Failed => false,
        }
    }

    /// Whether who serves, or has a successor that does, serves or can take back over.
    fn could_go_on(&self, world: &World, process: &Process) -> bool {
        let Some(attempt) = &process.attempt else { return true };
        let says = |kind| {
            attempt.connected
                && self.frames.any(&world.to_predecessor[usize::from(attempt.child)], kind)
        };
        let is_failing = attempt.machine.cause().is_some();
        match attempt.machine.phase() {
            // "`serving` sent, no probation": nobody watches the successor any more.
            Phase::Confirm => {
                let has_probation = attempt.machine.config().probation.is_some();
                let passes = says(Kind::HEALTHY) || says(Kind::STOP) || !has_probation;
                is_failing || !(says(Kind::SERVING) && passes)
            }
            // "Probation over", or "`stop` sent on probation"; and the known limit: a successor that
            // hangs after it has answered the last `ping` passes.
            Phase::Probation => {
                let child = usize::from(attempt.child);
                let passes = world.life[child] == Life::Hung
                    && !self.frames.any(&world.to_successor[child], Kind::PING);
                is_failing || !(says(Kind::HEALTHY) || says(Kind::STOP) || passes)
            }
            Phase::Hello | Phase::Transfer | Phase::Initialise | Phase::Commit | Phase::Failed => {
                true
            }
            _ => false,
        }
    }
}
