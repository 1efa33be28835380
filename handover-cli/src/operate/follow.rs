//! Following an upgrade from the request to the verdict.
//!
//! ```text
//!   status ──► who serves before      (so that it can be told who serves after)
//!   request ──► events ──► verdict
//!                  └─ the connection breaks ──► status, until it is known what became of it
//! ```

use std::io;
use std::time::Duration;

use anyhow::anyhow;
use handover::control::{Answer, Event, StatusReport, VerdictOutcome, VerdictReport};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::aftermath::{Ending, Finding, Known};
use super::conversation::{Line, Patience, RETRY_PAUSE, Service};
use super::exit::Exit;
use super::failure::{Failure, Trouble};
use super::live::{Live, TICK, complain};
use super::output::print_line;
use super::{aftermath, render, status};

/// The time from one status to the next while an upgrade goes on whose events are lost.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);

/// What is wanted of an upgrade.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// How long the first answer may take.
    pub(super) patience: Patience,
    /// Whether to wait for the end of probation.
    pub(super) awaits_probation: bool,
}

/// Sends the request, shows what happens, and prints the verdict.
pub(super) async fn follow(
    service: &Service,
    request: &Value,
    wish: Wish,
) -> Result<Exit, Failure> {
    let before = match status::ask(service).await {
        Ok((_, before)) => before,
        Err(failure) => return super::with_json(service, failure),
    };
    let follower = Follower {
        service,
        wish,
        live: Live::start(service.json),
        known: Known::new(&before),
        unwritten: None,
    };
    follower.run(request).await
}

struct Follower<'a> {
    service: &'a Service,
    wish: Wish,
    live: Live,
    known: Known,
    /// Why stdout could not be written to. The upgrade is followed even so: its exit code counts.
    unwritten: Option<io::Error>,
}

impl Follower<'_> {
    async fn run(mut self, request: &Value) -> Result<Exit, Failure> {
        let exit = match self.converse(request).await {
            Ok(exit) => exit,
            Err(trouble)
                if trouble.was_asked() && !matches!(trouble, Trouble::NotUnderstood(_)) =>
            {
                self.find_out(trouble).await?
            }
            Err(trouble) => return Err(trouble.of_order()),
        };
        match self.unwritten.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                drop(self.live);
                complain(&format_args!("cannot write the result: {error}"));
            }
            _ => {}
        }
        Ok(exit)
    }

    /// Shows events up to the answer.
    async fn converse(&mut self, request: &Value) -> Result<Exit, Trouble> {
        self.live.phase("asking".to_owned());
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let asking = self.service.ask(request, self.wish.patience);
        tokio::pin!(asking);
        let (mut line, mut conversation) = loop {
            tokio::select! {
                begun = &mut asking => break begun?,
                _ = ticks.tick() => self.live.tick(),
            }
        };
        loop {
            if let Some(exit) = self.hear(&line) {
                return Ok(exit);
            }
            line = loop {
                tokio::select! {
                    line = conversation.next() => break line?,
                    _ = ticks.tick() => self.live.tick(),
                }
            };
        }
    }

    /// Shows one line; returns how the command ends if it ends with it.
    fn hear(&mut self, line: &Line) -> Option<Exit> {
        if self.service.json {
            self.print(&line.text);
        }
        match &line.answer {
            Answer::Event(event) => self.event(&event.event),
            Answer::Verdict(verdict) => Some(self.verdict(verdict)),
            Answer::Done { message } => {
                self.conclude(&render::plain(message));
                Some(Exit::Done)
            }
            Answer::Error { code, message } => {
                if !self.service.json {
                    self.live.note(&super::refusal(message));
                }
                Some(Exit::refused(*code))
            }
            other => {
                self.live.note(&format!("handover: not an answer to this: {other:?}"));
                Some(Exit::Failed)
            }
        }
    }

    fn event(&mut self, event: &Event) -> Option<Exit> {
        self.known.note(event);
        if let Some(phase) = render::phase(event) {
            self.live.phase(phase);
        }
        let Event::Committed { probation_ms: Some(millis @ 1..), .. } = event else {
            if let Event::Confirmed { .. } | Event::RolledBack { .. } = event {
                self.live.probation(None);
            }
            return None;
        };
        self.live.probation(Some(Duration::from_millis(*millis)));
        if self.wish.awaits_probation {
            return None;
        }
        let left = render::Left(*millis);
        self.conclude(&format!("{} serves, on probation for {left}", self.successor()));
        Some(Exit::Done)
    }

    fn verdict(&mut self, verdict: &VerdictReport) -> Exit {
        if !self.service.json {
            self.finish_line();
            let text = render::verdict(verdict);
            self.print(text.trim_end());
        }
        match verdict.outcome {
            VerdictOutcome::Succeeded => Exit::Done,
            VerdictOutcome::Failed if verdict.reason.as_deref() == Some("busy") => Exit::Busy,
            VerdictOutcome::Failed => Exit::UpgradeFailed,
            VerdictOutcome::RolledBack => Exit::RolledBack,
        }
    }

    /// Asks whoever answers what became of the upgrade, until that is certain.
    async fn find_out(&mut self, trouble: Trouble) -> Result<Exit, Failure> {
        self.live.probation(None);
        self.live.note(&format!("handover: {:#}", anyhow!(trouble)));
        if let Some(ending) = self.known.ending() {
            return Ok(self.ended(&ending, None));
        }
        self.live.phase("asking what became of it".to_owned());
        let mut deadline = Instant::now() + self.service.timeout;
        loop {
            let (line, now) = match status::ask(self.service).await {
                Ok(answer) => answer,
                Err(_) if Instant::now() < deadline => {
                    sleep(RETRY_PAUSE).await;
                    continue;
                }
                Err(failure) => {
                    let why = failure.error.unwrap_or_else(|| anyhow!("nobody can be asked"));
                    let why = why.context("what became of the upgrade could not be found out");
                    return Err(Failure::new(Exit::Unknown, why));
                }
            };
            if aftermath::serving(&now).is_some() {
                // It answers and serves: only from here on is a silence too long.
                deadline = Instant::now() + self.service.timeout;
            }
            match self.known.judge(&now) {
                Finding::Ended(ending) => {
                    if self.service.json {
                        self.print(&line.text);
                    }
                    return Ok(self.ended(&ending, Some(&now)));
                }
                Finding::Undecided if Instant::now() < deadline => {
                    self.live.phase(render::in_one_line(&now));
                }
                Finding::Undecided | Finding::Unclear => {
                    if self.service.json {
                        self.print(&line.text);
                    }
                    let unclear = "what became of the upgrade is not known: by now there is";
                    let now = render::in_one_line(&now);
                    return Err(Failure::new(Exit::Unknown, anyhow!("{unclear} {now}")));
                }
            }
            sleep(STATUS_INTERVAL).await;
        }
    }

    fn ended(&mut self, ending: &Ending, now: Option<&StatusReport>) -> Exit {
        let successor = self.successor();
        let now = now.map(|now| format!(": {}", render::in_one_line(now))).unwrap_or_default();
        let (text, exit) = match ending {
            Ending::Serves => (format!("upgraded: {successor} serves{now}"), Exit::Done),
            Ending::Failed => (
                format!(
                    "upgrade failed: {successor} does not serve, the old process serves on{now}"
                ),
                Exit::UpgradeFailed,
            ),
            Ending::RolledBack => (
                format!("rolled back: {successor} has served, the old process serves again{now}"),
                Exit::RolledBack,
            ),
        };
        self.conclude(&text);
        exit
    }

    fn successor(&self) -> String {
        match self.known.successor() {
            Some((generation, Some(pid))) => format!("generation {generation} (pid {pid})"),
            Some((generation, None)) => format!("generation {generation}"),
            None => "the successor".to_owned(),
        }
    }

    /// Prints the last line, unless a program reads.
    fn conclude(&mut self, text: &str) {
        if !self.service.json {
            self.finish_line();
            self.print(text);
        }
    }

    /// Clears the live line: stdout is often the same terminal.
    fn finish_line(&mut self) {
        self.live = Live::Silent;
    }

    fn print(&mut self, line: &str) {
        if let Err(error) = print_line(line) {
            self.unwritten.get_or_insert(error);
        }
    }
}
