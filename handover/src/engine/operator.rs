//! What operators ask over the control socket, and what they are told.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handover_proto::control::{
    Answer, ErrorCode, GenerationReport, GenerationState, Request, StatusReport, TimedEvent,
    UpgradeReport, UpgradeRequest, VerdictReport,
};
use handover_proto::{Preamble, Report};
use serde_json::Value;

use super::{Ending, Engine, Stage, Taker};
use crate::attempt::Attempt;
use crate::control::{Asked, ClientId, Incoming, Peer, Server, bind_how, permit};
use crate::drain::InFlight;
use crate::error::{ClaimErrorKind, Error, ErrorKind};
use crate::link::Link;
use crate::listener::Kind;
use crate::request::{Asker, UpgradeOptions, Wanted};
use crate::sys::channel::Channel;
use crate::sys::file;
use crate::sys::process::{resident_memory, resident_memory_of};
use crate::verdict::{Reason, Verdict};

/// The name of the control socket, among what is handed over.
const NAME: &str = "handover:control";

/// How long older generations may take to say how they are.
const INQUIRY_TIMEOUT: Duration = Duration::from_millis(250);

/// How long the peer of a rollback has to begin it, before whoever asked is told that it does not.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(5);

/// The most commands of the application's own that run at a time.
const MAX_CONTROL_COMMANDS: usize = 64;

/// Those who have asked for something, and wait.
#[derive(Debug, Default)]
pub(super) struct Operators {
    server: Option<Server>,
    /// For the status, when older generations have answered, or at that time.
    inquiry: Option<(Instant, Vec<ClientId>)>,
    /// For a drain to begin.
    stops: Vec<ClientId>,
    /// For this process, or its successor, to be confirmed.
    confirms: Vec<ClientId>,
    /// For a rollback, and until when it has to begin.
    rollbacks: Vec<(Option<Instant>, ClientId)>,
    /// For commands of the application.
    commands: Vec<(ClientId, Receiver<Result<Value, String>>)>,
}

impl Operators {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let server = self.server.as_ref().and_then(Server::deadline);
        let inquiry = self.inquiry.as_ref().map(|(deadline, _)| *deadline);
        let rollback = self.rollbacks.iter().filter_map(|(deadline, _)| *deadline).min();
        [server, inquiry, rollback].into_iter().flatten().min()
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.server.as_ref().is_none_or(Server::is_flushed)
    }

    /// Nobody will be answered any more.
    pub(super) fn close(&mut self) {
        self.server = None;
    }

    fn answer(&mut self, client: ClientId, answer: &Answer) {
        if let Some(server) = &mut self.server {
            server.answer(client, answer);
        }
    }

    fn done(&mut self, client: ClientId, message: impl Into<String>) {
        self.answer(client, &Answer::Done { message: message.into() });
    }

    fn fail(&mut self, client: ClientId, code: ErrorCode, message: impl Into<String>) {
        self.answer(client, &Answer::Error { code, message: message.into() });
    }

    /// Tells what became of an upgrade.
    pub(super) fn verdict(&mut self, client: ClientId, verdict: &Verdict) {
        if let Verdict::Failed(failure) = verdict
            && let Some(code) = refusal_code(&failure.reason)
        {
            return self.fail(client, code, failure.reason.to_string());
        }
        self.answer(client, &Answer::Verdict(VerdictReport::from(verdict)));
    }

    /// A drain begins: who waited for that has what was asked for, others never will.
    pub(super) fn draining(&mut self, ending: Ending, in_flight: u64, timeout: Duration) {
        for client in std::mem::take(&mut self.stops) {
            let message = match in_flight {
                0 => "nothing more is accepted, and nothing is in flight".into(),
                _ => format!(
                    "nothing more is accepted; {in_flight} in flight may take {:.1} s",
                    timeout.as_secs_f64()
                ),
            };
            self.done(client, message);
        }
        if let Some(server) = &mut self.server
            && ending != Ending::Stopped
        {
            server.finish();
        }
    }

    /// A generation cannot be rolled back any more.
    pub(super) fn confirmed(&mut self, generation: u64) {
        for client in std::mem::take(&mut self.confirms) {
            self.done(client, format!("generation {generation} is confirmed"));
        }
        for (_, client) in std::mem::take(&mut self.rollbacks) {
            let message = format!(
                "generation {generation} was confirmed meanwhile: ask again for an upgrade to the \
                 previous executable"
            );
            self.fail(client, ErrorCode::NotOnProbation, message);
        }
    }

    /// A rollback has begun: it comes to an end.
    pub(super) fn rollback_begins(&mut self) {
        self.rollbacks.iter_mut().for_each(|(deadline, _)| *deadline = None);
    }

    /// A generation is rolled back.
    pub(super) fn rolled_back(&mut self, generation: u64) {
        for (_, client) in std::mem::take(&mut self.rollbacks) {
            self.done(client, format!("generation {generation} is rolled back"));
        }
        for client in std::mem::take(&mut self.confirms) {
            let message = format!("generation {generation} was rolled back meanwhile");
            self.fail(client, ErrorCode::NotOnProbation, message);
        }
    }

    fn forget(&mut self, gone: ClientId) {
        if let Some((_, clients)) = &mut self.inquiry {
            clients.retain(|client| *client != gone);
        }
        self.stops.retain(|client| *client != gone);
        self.confirms.retain(|client| *client != gone);
        self.rollbacks.retain(|(_, client)| *client != gone);
    }
}

impl Engine {
    /// Claims or binds the control socket.
    pub(crate) fn open_control(&mut self) -> Result<(), Error> {
        let Some(path) = self.config.control.clone() else { return Ok(()) };
        self.bind_control(&path).map_err(|source| {
            let error = ErrorKind::Control { path, source: Box::new(source) };
            self.refuse(error.to_string());
            self.error(error)
        })
    }

    fn bind_control(&mut self, path: &std::path::Path) -> Result<(), ClaimErrorKind> {
        let (stance, bind) = (self.stance(), bind_how(path));
        // No drain waits for operators, or counts them.
        let in_flight = Arc::new(InFlight::new(Arc::clone(&self.wake)));
        let endpoint =
            self.registry.claim(Some(NAME), Kind::UnixStream, bind, stance, &in_flight)?;
        let policy = self.config.control_policy;
        if !endpoint.inherited {
            let address = endpoint.local_address();
            permit(
                &address.map_err(|source| ClaimErrorKind::Io { doing: "its address", source })?,
                policy,
            )?;
        }
        let poller = Arc::clone(&self.poller);
        self.operators.server = Some(Server::new(endpoint, policy, poller));
        Ok(())
    }

    /// The control socket is this process's now, and so is who may use it.
    pub(super) fn permit_operators(&self) {
        let endpoint = self.registry.endpoints().into_iter().find(|e| e.name.as_str() == NAME);
        let Some(address) = endpoint.and_then(|endpoint| endpoint.local_address().ok()) else {
            return;
        };
        if let Err(error) = permit(&address, self.config.control_policy) {
            tracing::error!(%error, "the control socket has another mode or group than it should");
        }
    }

    pub(super) fn step_operators(&mut self) {
        let now = Instant::now();
        let Some(server) = &mut self.operators.server else { return };
        for incoming in server.step(now) {
            match incoming {
                Incoming::Request { client, request, peer } => match request {
                    Asked::Ours(request) => self.asked(client, request, peer, now),
                    Asked::Command { name, arguments } => self.command(client, &name, arguments),
                },
                Incoming::Gone { client } => self.client_gone(client),
            }
        }
        self.answer_commands();
        self.answer_status();
        let late = |(deadline, _): &mut (Option<Instant>, ClientId)| {
            deadline.is_some_and(|deadline| now >= deadline)
        };
        for (_, client) in self.operators.rollbacks.extract_if(.., late).collect::<Vec<_>>() {
            let message = "the predecessor does not answer: nothing is rolled back";
            self.operators.fail(client, ErrorCode::Failed, message);
        }
    }

    /// Passes on what has happened.
    pub(super) fn flush_operators(&mut self) {
        for event in std::mem::take(&mut self.events) {
            if let Some(server) = &mut self.operators.server {
                server.publish(&TimedEvent { at_ms: unix_time(), event: event.clone() });
            }
            self.supervision.follow(&event);
            self.told.push(event);
        }
    }

    /// The upgrade that somebody has asked for begins: a client is told of it from here on, and not
    /// of what had its turn before.
    pub(super) fn tell_of_upgrade(&mut self, asker: Option<&Asker>) {
        self.flush_operators();
        if let Some(server) = &mut self.operators.server
            && let Some(Asker::Client(client)) = asker
        {
            server.follow(*client);
        }
    }

    fn client_gone(&mut self, client: ClientId) {
        self.operators.forget(client);
        // What was asked for is done all the same, unless it has not had its turn.
        let is_theirs =
            |wanted: &Wanted| matches!(wanted.asker, Some(Asker::Client(c)) if c == client);
        self.queue.retain(|wanted| !is_theirs(wanted));
        if let Some(current) = &mut self.current
            && is_theirs(current)
        {
            current.asker = None;
        }
    }

    fn asked(&mut self, client: ClientId, request: Request, peer: Peer, now: Instant) {
        match request {
            Request::Status {} => {
                self.settle_link();
                self.lines.inquire(&self.poller);
                let (_, clients) = self
                    .operators
                    .inquiry
                    .get_or_insert_with(|| (now + INQUIRY_TIMEOUT, Vec::new()));
                clients.push(client);
            }
            Request::Upgrade(request) => self.asked_upgrade(client, request, peer),
            Request::Stop { drain_timeout_ms } => {
                self.asked_stop(client, drain_timeout_ms.map(Duration::from_millis), now);
            }
            Request::Rollback { reason } => {
                let reason = reason.unwrap_or_else(|| format!("asked for by {peer}"));
                self.asked_rollback(client, &reason, peer, now);
            }
            Request::Confirm {} => {
                if self.stands_by() || self.link.as_ref().is_some_and(Link::is_on_probation) {
                    self.operators.confirms.push(client);
                    self.confirm();
                } else {
                    let message = "there is no probation to end: the generation that serves does so \
                                   for good";
                    self.operators.fail(client, ErrorCode::NotOnProbation, message);
                }
            }
            // The server has subscribed it.
            Request::Events {} => {}
            Request::TakeOver {} => self.asked_take_over(client, peer),
        }
    }

    fn asked_upgrade(&mut self, client: ClientId, request: UpgradeRequest, peer: Peer) {
        let wait = request.wait;
        let options = UpgradeOptions::from(request);
        if let Err(invalid) = options.overrides.validate() {
            return self.operators.fail(client, ErrorCode::BadRequest, invalid.to_string());
        }
        self.want(client, options, None, wait, peer);
    }

    /// Has a client wait for an upgrade, or tells it why there is none.
    fn want(
        &mut self,
        client: ClientId,
        options: UpgradeOptions,
        executable: Option<std::os::fd::OwnedFd>,
        wait: bool,
        peer: Peer,
    ) {
        match self.refusal() {
            Some(reason) if !wait || matches!(reason, Reason::NotServing) => {
                let verdict = Verdict::Failed(self.not_begun(reason));
                return self.operators.verdict(client, &verdict);
            }
            Some(_) | None => {}
        }
        let (asked_by, asker) = (peer.to_string(), Some(Asker::Client(client)));
        self.queue.push_back(Wanted { options, asked_by, asker, executable, taker: None });
    }

    fn asked_stop(&mut self, client: ClientId, drain: Option<Duration>, now: Instant) {
        if self.stands_by()
            && let Some(attempt) = &mut self.attempt
            && attempt.forward_stop(drain, now)
        {
            return self.operators.done(client, "passed on to the successor, which serves");
        }
        if self.stage >= Stage::Draining && self.ending != Some(Ending::Stopped) {
            let message = "this process does not serve any more: connect again";
            return self.operators.fail(client, ErrorCode::NotServing, message);
        }
        if self.stage >= Stage::Draining {
            self.want_stop(drain);
            return self.operators.done(client, "the service is stopping");
        }
        self.operators.stops.push(client);
        self.want_stop(drain);
    }

    fn asked_rollback(&mut self, client: ClientId, reason: &str, peer: Peer, now: Instant) {
        if self.stepping_back.is_some() {
            return self.operators.rollbacks.push((None, client));
        }
        let on_probation = self.link.as_ref().is_some_and(Link::is_on_probation);
        if self.stands_by() || on_probation {
            let mut deadline = None;
            if let Some(attempt) = self.attempt.as_mut().filter(|a| a.is_on_probation()) {
                attempt.roll_back(reason, now);
            } else if let Some(link) = &mut self.link {
                link.unhealthy(reason, true, &self.poller);
                deadline = Some(now + ROLLBACK_TIMEOUT);
            }
            return self.operators.rollbacks.push((deadline, client));
        }
        let executable =
            self.previous.as_ref().and_then(|p| p.executable.as_ref()?.try_clone().ok());
        let (Some(previous), Some(executable)) = (&self.previous, executable) else {
            let message = "there is no generation to go back to: this one had no predecessor";
            return self.operators.fail(client, ErrorCode::NothingToRollBack, message);
        };
        tracing::warn!(reason, executable = previous.path, "going back to the previous executable");
        let mut options = UpgradeOptions::default().executable(&previous.path);
        if let Some(arguments) = &previous.arguments {
            options = options.arguments(arguments.iter().skip(1).cloned());
        }
        self.want(client, options, Some(executable), false, peer);
    }

    fn asked_take_over(&mut self, client: ClientId, peer: Peer) {
        if let Some(reason) = self.refusal() {
            let verdict = Verdict::Failed(self.not_begun(reason));
            return self.operators.verdict(client, &verdict);
        }
        let generation = self.next_generation();
        match self.channel_for(client, generation) {
            Ok((taker, theirs, token)) => {
                let answer = Answer::Channel { token, generation };
                if let Some(server) = &mut self.operators.server {
                    server.answer_with(client, &answer, theirs.into_fd());
                }
                let asked_by = format!("{peer}, to take over");
                let (options, taker) = (UpgradeOptions::default(), Some(taker));
                let wanted = Wanted { options, asked_by, asker: None, executable: None, taker };
                self.queue.push_front(wanted);
            }
            Err(error) => {
                let message = format!("cannot hand over to this process: {error}");
                self.operators.fail(client, ErrorCode::Failed, message);
            }
        }
    }

    fn channel_for(
        &self,
        client: ClientId,
        generation: u64,
    ) -> std::io::Result<(Taker, Channel, String)> {
        let server = self.operators.server.as_ref().ok_or(std::io::ErrorKind::NotFound)?;
        let process = server.process(client)?;
        let (channel, theirs) = Channel::pair()?;
        let token = file::token()?;
        channel.send(&Preamble { token: token.clone(), generation }.encode(), &[])?;
        Ok((Taker { process, channel }, theirs, token))
    }

    fn command(&mut self, client: ClientId, name: &str, arguments: Value) {
        let Some(command) = self.config.commands.0.get(name) else {
            let own: Vec<_> = self.config.commands.0.keys().map(String::as_str).collect();
            let known = [Request::NAMES, &own].concat().join(", ");
            let message = format!("there is no request \"{name}\": there are {known}");
            return self.operators.fail(client, ErrorCode::UnknownRequest, message);
        };
        // Those of clients that are gone run on.
        if self.operators.commands.len() >= MAX_CONTROL_COMMANDS {
            let message = format!("{MAX_CONTROL_COMMANDS} commands are running: try later");
            return self.operators.fail(client, ErrorCode::Busy, message);
        }
        let (command, wake) = (Arc::clone(command), Arc::clone(&self.wake));
        let (sender, result) = mpsc::channel();
        let run = move || {
            let run = std::panic::AssertUnwindSafe(|| command(&arguments));
            let result = std::panic::catch_unwind(run)
                .unwrap_or_else(|_| Err("the application's code panicked".into()));
            // Nobody is told if the client is gone.
            let _ = sender.send(result);
            wake.set();
        };
        match std::thread::Builder::new().name("handover-command".into()).spawn(run) {
            Ok(_) => self.operators.commands.push((client, result)),
            Err(error) => {
                let message = format!("no thread for the command: {error}");
                self.operators.fail(client, ErrorCode::Failed, message);
            }
        }
    }

    fn answer_commands(&mut self) {
        let mut results = Vec::new();
        self.operators.commands.retain(|(client, result)| match result.try_recv() {
            Ok(result) => {
                results.push((*client, result));
                false
            }
            Err(mpsc::TryRecvError::Empty) => true,
            Err(mpsc::TryRecvError::Disconnected) => {
                results.push((*client, Err("the command has ended without a result".into())));
                false
            }
        });
        for (client, result) in results {
            match result {
                Ok(value) => self.operators.answer(client, &Answer::Result { value }),
                Err(message) => self.operators.fail(client, ErrorCode::Failed, message),
            }
        }
    }

    /// Tells how all are, if that is known or not waited for any more.
    pub(super) fn answer_status(&mut self) {
        let is_known = self.drained.is_some() || self.lines.have_answered();
        let due =
            |(deadline, _): &mut (Instant, Vec<ClientId>)| is_known || Instant::now() >= *deadline;
        if let Some((_, clients)) = self.operators.inquiry.take_if(due) {
            let status = Answer::Status(self.status_report());
            for client in clients {
                self.operators.answer(client, &status);
            }
        }
    }

    /// Answers all who wait still: this process is about to exit.
    pub(super) fn answer_rest(&mut self) {
        let rollbacks = std::mem::take(&mut self.operators.rollbacks).into_iter().map(|(_, c)| c);
        let commands = std::mem::take(&mut self.operators.commands).into_iter().map(|(c, _)| c);
        let confirms = std::mem::take(&mut self.operators.confirms);
        for client in rollbacks.chain(commands).chain(confirms).collect::<Vec<_>>() {
            let message = "this process exits before it has come to that: connect again";
            self.operators.fail(client, ErrorCode::NotServing, message);
        }
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
                Stage::Serving if self.stepping_back.is_some() => GenerationState::Draining,
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

/// Why an upgrade was not even begun, for who has asked for it.
fn refusal_code(reason: &Reason) -> Option<ErrorCode> {
    match reason {
        Reason::Busy { .. } | Reason::TooManyGenerations { .. } => Some(ErrorCode::Busy),
        Reason::NotServing => Some(ErrorCode::NotServing),
        _ => None,
    }
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
