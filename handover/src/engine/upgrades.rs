//! Whose turn it is to be upgraded, and what becomes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::control::Event;
use handover_proto::{Item, ToSuccessor, encode};

use super::{Ending, Engine, Stage, Ticket};
use crate::attempt::{self, Attempt, Plan};
use crate::error::WhoServes;
use crate::link::Link;
use crate::pidfile::PidFile;
use crate::preflight::{Executable, Preflight};
use crate::previous::Own;
use crate::registry::Held;
use crate::request::{Asker, UpgradeOptions, Wanted};
use crate::sys::channel::Channel;
use crate::sys::process::Process;
use crate::verdict::{Failure, Phase, Reason, Verdict};

/// Who wants to take over: its process, and this end of the channel to it.
#[derive(Debug)]
pub(crate) struct Taker {
    pub(crate) process: Process,
    pub(crate) channel: Channel,
}

impl Taker {
    /// Says that it is not to serve. It would take the mere end of the channel for the end of this
    /// process.
    fn refuse(self, reason: &Reason) {
        let abort = ToSuccessor::Abort { reason: reason.to_string(), versions: None };
        if let Err(error) = encode(&abort)
            .map_err(std::io::Error::other)
            .and_then(|frame| self.channel.send(&frame, &[]))
        {
            tracing::warn!(pid = self.process.pid(), %error, "cannot refuse who takes over");
        }
    }
}

impl Engine {
    /// An upgrade was asked for: it is remembered until somebody has done it. While another one is
    /// under way, the machine passes it on with the commit; if there is none, it is done here.
    pub(super) fn want_upgrade(&mut self) {
        self.signalled = true;
        if let Some(attempt) = &mut self.attempt
            && attempt.forward_upgrade(Instant::now())
        {
            tracing::info!("a request for an upgrade is passed on to the successor");
        } else if self.stage >= Stage::Draining {
            tracing::warn!("an upgrade was asked of a process that does not serve any more");
        }
    }

    /// Why an upgrade cannot be asked for now, unless the asker waits for its turn.
    pub(super) fn refusal(&self) -> Option<Reason> {
        if self.stage != Stage::Serving || self.stop_requested {
            Some(Reason::NotServing)
        } else if let Some(with) = self.busy_with() {
            Some(Reason::Busy { with })
        } else {
            self.too_many()
        }
    }

    /// What stands in the way of an upgrade, for people.
    fn busy_with(&self) -> Option<String> {
        if let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.is_under_way()) {
            return Some(format!(
                "the upgrade to generation {}, asked for by {} {} ago, is in phase {}",
                attempt.generation(),
                self.current.as_ref().map_or("nobody", |wanted| &wanted.asked_by),
                seconds(attempt.age()),
                attempt.phase(),
            ));
        }
        if self.preflight.is_some() {
            return Some(format!(
                "the executable of generation {} is being checked, asked for by {}",
                self.next_generation(),
                self.current.as_ref().map_or("nobody", |wanted| &wanted.asked_by),
            ));
        }
        if self.resuming.is_some() || self.stepping_back.is_some() {
            return Some("the last upgrade is being rolled back".into());
        }
        if self.link.as_ref().is_some_and(Link::is_on_probation) {
            let left = self
                .probation_left()
                .map_or_else(String::new, |left| format!(" for another {}", seconds(left)));
            return Some(format!(
                "generation {} is on probation{left}: confirm it or roll it back",
                self.generation
            ));
        }
        if let Some(wanted) = self.queue.front() {
            return Some(format!("an upgrade asked for by {} comes first", wanted.asked_by));
        }
        self.signalled.then(|| "an upgrade asked for by a signal comes first".into())
    }

    fn too_many(&self) -> Option<Reason> {
        let alive = u32::try_from(self.alive()).unwrap_or(u32::MAX);
        let full = alive >= self.config.max_generations && !self.config.cut_oldest;
        full.then_some(Reason::TooManyGenerations { alive })
    }

    /// Begins what has its turn, if there is anything and nothing is in the way.
    pub(super) fn begin_next(&mut self) {
        if (self.queue.is_empty() && !self.signalled)
            // The tie to a successor that serves, or is rolled back, is kept elsewhere.
            || self.preflight.is_some()
            || self.attempt.is_some()
            || self.resuming.is_some()
            || !self.confirmed
            // It could still be called off, and outlived by whom it starts.
            || self.link.as_ref().is_some_and(|link| !link.is_known())
            || self.stepping_back.is_some()
            // Nobody would hear who comes next.
            || self.supervision.is_awaiting()
        {
            return;
        }
        self.settle_link();
        if !self.make_room() {
            return;
        }
        let wanted = self.queue.pop_front().unwrap_or_else(|| {
            self.signalled = false;
            Wanted {
                options: UpgradeOptions::default(),
                asked_by: "a signal".into(),
                asker: None,
                executable: None,
                taker: None,
            }
        });
        self.upgrade(wanted);
    }

    /// How many generations are alive.
    fn alive(&self) -> usize {
        1 + usize::from(self.link.is_some()) + self.lines.len() + self.departing.len()
    }

    /// Returns whether there may be another generation.
    fn make_room(&mut self) -> bool {
        let alive = self.alive();
        if u32::try_from(alive).is_ok_and(|alive| alive < self.config.max_generations) {
            self.told_too_many = false;
            return true;
        }
        if !std::mem::replace(&mut self.told_too_many, true) {
            tracing::warn!(alive, "as many generations as there may be: the upgrade waits");
            if self.config.cut_oldest {
                if let Some(generation) = self.lines.cut_oldest(&self.poller) {
                    tracing::warn!(generation, "its drain is cut short");
                } else if let Some(attempt) = self.departing.first() {
                    attempt.kill();
                }
            }
        }
        false
    }

    fn upgrade(&mut self, mut wanted: Wanted) {
        let generation = self.next_generation();
        let (asked_by, taker) = (wanted.asked_by.clone(), wanted.taker.take());
        self.tell_of_upgrade(wanted.asker.as_ref());
        self.events.push(Event::UpgradeBegun { generation, asked_by });
        let overrides = &wanted.options.overrides;
        let program = self.config.program.with(overrides);
        let pinned = wanted.executable.take();
        self.current = Some(wanted);
        if let Some(taker) = taker {
            return self.replace_by(taker);
        }
        match Preflight::begin(&self.config, program, pinned, generation, &self.poller) {
            Ok(preflight) => {
                if preflight.deadline().is_some() {
                    self.events.push(Event::Checking { generation });
                }
                self.preflight = Some(preflight);
            }
            Err(failure) => self.conclude(Verdict::Failed(failure)),
        }
    }

    pub(super) fn step_preflight(&mut self) {
        let Some(preflight) = &mut self.preflight else { return };
        if self.stage > Stage::Serving {
            preflight.abort(Reason::NotServing);
        }
        let Some(result) = preflight.step(&self.poller) else { return };
        self.preflight = None;
        match result {
            Ok(executable) => self.replace(&executable),
            Err(failure) => self.conclude(Verdict::Failed(failure)),
        }
    }

    /// Starts the successor from an executable that has passed.
    fn replace(&mut self, executable: &Executable) {
        let (plan, inventory) = (self.plan(), self.inventory());
        let (generation, poller) = (self.next_generation(), Arc::clone(&self.poller));
        let begun = Attempt::begin(plan, executable, generation, inventory, &poller, self.clock);
        self.attempted(begun);
    }

    /// Hands over to a process that was started by somebody else.
    fn replace_by(&mut self, Taker { process, channel }: Taker) {
        let (plan, inventory) = (self.plan(), self.inventory());
        let (generation, poller) = (self.next_generation(), Arc::clone(&self.poller));
        let clock = self.clock;
        let begun = Attempt::adopt(plan, generation, inventory, process, channel, &poller, clock);
        self.attempted(begun);
    }

    fn inventory(&mut self) -> Vec<(Item, Held)> {
        let mut inventory = self.registry.inventory();
        inventory.extend(self.lines.inventory());
        inventory.extend(self.exchange.inventory(self.generation));
        inventory.extend(self.own.iter().flat_map(Own::inventory));
        inventory.extend(self.supervision.store().and_then(|store| store.inventory()));
        inventory
    }

    fn attempted(&mut self, begun: Result<Attempt, Box<Failure>>) {
        match begun {
            Ok(mut attempt) => {
                let (generation, pid) = (attempt.generation(), attempt.pid());
                self.events.push(Event::Spawned { generation, pid });
                // Asked for during the check: it is about what comes after what was checked.
                if self.signalled {
                    attempt.forward_upgrade(Instant::now());
                }
                self.attempt = Some(attempt);
            }
            Err(failure) => self.conclude(Verdict::Failed(failure)),
        }
    }

    pub(super) fn step_attempt(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let mut effects = Vec::new();
        attempt.step(&self.poller, &mut effects);
        for effect in effects {
            match effect {
                attempt::Effect::Event(event) => self.events.push(event),
                attempt::Effect::Committing => {
                    self.last_generation = self.next_generation();
                    // What the predecessor has left is older than what may come back.
                    self.late_states.clear();
                }
                attempt::Effect::Served => {
                    let generation = self.attempt.as_ref().map_or(0, Attempt::generation);
                    self.events.push(Event::Confirmed { generation });
                    self.tell_confirmed(generation, WhoServes::Successor);
                    self.operators.confirmed(generation);
                    self.announce();
                    self.drain(Ending::HandedOver);
                }
                attempt::Effect::Returned(state) => {
                    self.late_states.push(state);
                }
                attempt::Effect::Resume { told_commit, reason } => {
                    self.begin_resume(told_commit, reason);
                }
                attempt::Effect::StopAsked(drain) => self.want_stop(drain),
                attempt::Effect::Inquired(number) => {
                    let report = self.report();
                    if let Some(attempt) = &mut self.attempt {
                        attempt.report(number, report, &self.poller);
                    }
                }
                attempt::Effect::Finished(verdict) => self.finish(verdict),
            }
        }
        self.put_away_attempt();
    }

    /// Keeps the tie to a successor where it belongs once it is decided what it is.
    pub(super) fn put_away_attempt(&mut self) {
        if self.resuming.is_some() {
            return;
        }
        if let Some(mut attempt) = self.attempt.take_if(|attempt| attempt.is_over()) {
            attempt.detach(&self.poller);
        }
        // It was rolled back, and drains.
        if let Some(attempt) = self.attempt.take_if(|attempt| attempt.has_failed()) {
            self.departing.push(attempt);
        }
    }

    /// Waits for the ends of those that were rolled back.
    pub(super) fn step_departing(&mut self) {
        let (poller, events) = (&self.poller, &mut self.events);
        let (before, mut effects) = (self.departing.len(), Vec::new());
        self.departing.retain_mut(|attempt| {
            attempt.step(poller, &mut effects);
            if attempt.is_over() {
                attempt.detach(poller);
                events.push(Event::Gone { generation: attempt.generation() });
            }
            !attempt.is_over()
        });
        if self.departing.len() < before {
            self.told_too_many = false;
        }
        for effect in effects {
            // It was stopped before it had heard that it is rolled back.
            if let attempt::Effect::StopAsked(drain) = effect {
                self.want_stop(drain);
            }
        }
    }

    fn finish(&mut self, verdict: Verdict) {
        match &mut self.resuming {
            // Told when this process serves again.
            Some(resuming) => resuming.verdict = Some(verdict),
            None => self.conclude(verdict),
        }
    }

    pub(super) fn conclude(&mut self, verdict: Verdict) {
        match &verdict {
            Verdict::Succeeded(success) => {
                tracing::info!(generation = success.generation, pid = success.pid, "handed over");
                // It went along with the commit.
                self.signalled = false;
            }
            Verdict::Failed(failure) => {
                let source = std::error::Error::source(failure).map(ToString::to_string);
                tracing::error!(%failure, source, "upgrade failed, this process serves on");
                self.events.push(Event::UpgradeFailed {
                    generation: failure.generation,
                    phase: failure.phase.to_string(),
                    reason: failure.reason.to_string(),
                });
                if failure.phase == Phase::Confirm {
                    self.restore_pid_file();
                }
            }
            Verdict::RolledBack(failure) => {
                tracing::error!(%verdict, "rolled back, this process serves again");
                self.events.push(Event::RolledBack {
                    generation: failure.generation,
                    reason: failure.reason.to_string(),
                });
                self.restore_pid_file();
                self.operators.rolled_back(failure.generation);
                let (generation, pid) = (self.generation, std::process::id());
                self.events.push(Event::Serving { generation, pid });
            }
        }
        if !matches!(verdict, Verdict::Succeeded(_)) {
            self.exchange.withdraw();
        }
        let asker = self.current.take().and_then(|wanted| wanted.asker);
        self.tell_asker(asker, verdict);
        // If an upgrade or a stop was asked for meanwhile, it is done now and not at the next
        // occasion.
        self.wake.set();
    }

    /// Tells who has asked, and the application.
    fn tell_asker(&mut self, asker: Option<Asker>, verdict: Verdict) {
        // Who follows has seen everything by then.
        self.flush_operators();
        let mut tickets = Vec::new();
        match asker {
            Some(Asker::Ticket(ticket)) => tickets.push(ticket),
            Some(Asker::Client(client)) => self.operators.verdict(client, &verdict),
            None => {}
        }
        self.verdicts.push((verdict, tickets));
    }

    /// The successor may have come as far as putting its own name there.
    pub(super) fn restore_pid_file(&self) {
        if let Some(path) = self.config.pid_file.as_deref()
            // Who is done has removed it.
            && self.stage < Stage::Done
        {
            PidFile::restore(path);
        }
    }

    /// Asks for an upgrade on behalf of the application; the ticket is told the verdict.
    ///
    /// # Errors
    ///
    /// Why it is not begun.
    pub(super) fn ask(
        &mut self,
        options: UpgradeOptions,
        ticket: Ticket,
    ) -> Result<(), Box<Failure>> {
        if let Err(invalid) = options.overrides.validate() {
            let reason = Reason::CalledOff { reason: invalid.to_string() };
            return Err(self.not_begun(reason));
        }
        if let Some(reason) = self.refusal() {
            return Err(self.not_begun(reason));
        }
        let asker = Some(Asker::Ticket(ticket));
        let asked_by = "the application".into();
        self.queue.push_back(Wanted { options, asked_by, asker, executable: None, taker: None });
        Ok(())
    }

    /// This process does not serve any more: who waits for a turn has to ask another.
    pub(super) fn give_up_queue(&mut self) {
        for wanted in std::mem::take(&mut self.queue) {
            let verdict = Verdict::Failed(self.not_begun(Reason::NotServing));
            match wanted.asker {
                Some(Asker::Ticket(ticket)) => self.verdicts.push((verdict, vec![ticket])),
                Some(Asker::Client(client)) => self.operators.verdict(client, &verdict),
                None => {}
            }
            if let Some(taker) = wanted.taker {
                taker.refuse(&Reason::NotServing);
            }
        }
    }

    /// Nobody waits for the upgrade under way: whoever has asked for it is told so.
    pub(super) fn give_up_current(&mut self) {
        let Some(wanted) = self.current.take() else { return };
        let verdict = self.resuming.take().and_then(|resuming| resuming.verdict);
        let stopping = || Verdict::Failed(self.not_begun(Reason::Stopping));
        let verdict = verdict.unwrap_or_else(stopping);
        self.tell_asker(wanted.asker, verdict);
    }

    fn plan(&self) -> Plan {
        Plan {
            config: Arc::clone(&self.config),
            options: self.current.as_ref().map(|w| w.options.clone()).unwrap_or_default(),
            parent: self.config.parent.unwrap_or_else(|| self.successor_parent()),
            own_generation: self.generation,
            early: Arc::clone(&self.early),
            late: Arc::clone(&self.late),
            in_flight: Arc::clone(&self.in_flight),
            wake: Arc::clone(&self.wake),
        }
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.last_generation.saturating_add(1)
    }

    pub(super) fn not_begun(&self, reason: Reason) -> Box<Failure> {
        Failure::before_spawn(self.next_generation(), reason, Duration::ZERO)
    }
}

/// A duration in whole seconds, for people.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}
