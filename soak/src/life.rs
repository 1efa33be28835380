//! One life of the service, from its start to its stop.

use std::error::Error;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use handover::control::{
    Answer, Client, GenerationState, Request, UpgradeRequest, VerdictOutcome, VerdictReport,
};
use handover_testkit::process::{Pid, exited, signal, try_signal};
use handover_testkit::{Folder, Launch, Service, Signal};

use crate::ledger::Ledger;
use crate::load::{Load, Volume};
use crate::oracle::{Account, Death};
use crate::samples::Samples;
use crate::service::{Life, PATIENCE, PLAN, Plan};
use crate::upgrades::{Fault, Outcome, Probation, Upgrade};

/// How long anything may take that has to happen.
const TIMEOUT: Duration = Duration::from_secs(20);

/// How long a successor may take to become ready; more than it does on a machine that is busy.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for one that never does.
const READY_TIMEOUT_HANGING: Duration = Duration::from_secs(1);

/// More than what is done on probation takes.
const PROBATION: Duration = Duration::from_secs(10);

/// For clients to have asked between two upgrades.
const BREATH_MS: u64 = 30;

/// How a life is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) number: u64,
    pub(crate) upgrades: u32,
    pub(crate) calm: bool,
    pub(crate) volume: Volume,
}

/// The service as it lives.
struct Subject {
    service: Service,
    folder: Folder,
    serves: Pid,
    deaths: Vec<Death>,
}

pub(crate) fn live(
    settings: Settings,
    mut rng: Rng,
    account: &mut Account,
    samples: &mut Samples,
) -> Result<(), Box<dyn Error>> {
    let life = Life {
        live: rng.bool(),
        listeners: if rng.u8(..4) == 0 { rng.usize(..200) } else { rng.usize(..4) },
        state: if rng.u8(..4) == 0 { rng.usize(..8 << 20) } else { rng.usize(..4096) },
    };
    let Settings { number, upgrades, calm, volume } = settings;
    println!("life {number}: {life:?}");
    let folder = Folder::create();
    Ledger::create(folder.path())?;
    let ledger = Ledger::open(folder.path())?;
    let program = std::env::current_exe()?;
    let launch = Launch::of(program).arg("serve").arg(folder.path()).args(life.arguments());
    let service = launch.start();
    let mut subject = Subject { serves: service.pid(), service, folder, deaths: Vec::new() };
    let address: SocketAddr = subject.wait(0, "listening on ")?.parse()?;
    subject.wait(0, "serving ")?;
    let load = Load::start(address, volume, &ledger, &mut rng)?;
    for _ in 0..upgrades {
        let upgrade = Upgrade::draw(&mut rng, calm);
        let outcome = subject.upgrade(upgrade);
        outcome.map_err(|problem| format!("{upgrade:?}: {problem}\n{}", subject.tail()))?;
        *account.upgrades.entry(upgrade.name).or_default() += 1;
        samples.take(&subject.service, subject.serves);
        account.judge(load.tally().take_failures(), &subject.deaths);
        if !account.problems.is_empty() {
            return Err(format!("after {upgrade:?}\n{}", subject.tail()).into());
        }
        thread::sleep(Duration::from_millis(rng.u64(..BREATH_MS)));
    }
    let tally = load.stop();
    account.judge(tally.take_failures(), &subject.deaths);
    account.requests += tally.requests.load(std::sync::atomic::Ordering::Relaxed);
    account.connections += tally.connections.load(std::sync::atomic::Ordering::Relaxed);
    account.deaths += u32::try_from(subject.deaths.len())?;
    account.lives += 1;
    subject.stop()
}

impl Subject {
    /// Upgrades, and finds out whether what became of it is what had to.
    fn upgrade(&mut self, upgrade: Upgrade) -> Result<(), Box<dyn Error>> {
        let printed = self.service.line_count();
        let old = self.serves;
        let mut client = Client::connect(self.folder.join("control"))?;
        client.send(&Request::Upgrade(request(upgrade)))?;
        let new: Pid = match self.wait(printed, "initialising ") {
            Ok(new) => new.parse()?,
            Err(problem) => return Err(format!("{problem}; {:?}", verdict(&mut client)).into()),
        };
        // It accepts nothing before.
        let initialising = Instant::now();
        let pause = |milliseconds| thread::sleep(Duration::from_millis(milliseconds));
        match upgrade.fault {
            Fault::None | Fault::Planned => {}
            Fault::KillSuccessor(after) => {
                pause(after);
                self.kill(new);
            }
            Fault::KillPredecessor(after) => {
                pause(after);
                self.kill(old);
            }
            Fault::PauseSuccessor(length) => stop_for(new, length),
            Fault::PausePredecessor(length) => stop_for(old, length),
        }
        let outcome = upgrade.outcome();
        if !matches!(outcome, Outcome::Failed) {
            self.wait(printed, "serving ")?;
        }
        match upgrade.probation {
            Probation::None => {}
            Probation::Confirm(after) => {
                pause(after);
                self.order(&Request::Confirm {})?;
            }
            Probation::RollBack(after) => {
                pause(after);
                self.order(&Request::Rollback { reason: None })?;
            }
            Probation::KillSuccessor(after) => {
                pause(after);
                self.kill(new);
            }
            Probation::KillPredecessor(after) => {
                pause(after);
                self.kill(old);
            }
            Probation::Freeze(after) => {
                pause(after);
                signal(new, Signal::STOP);
            }
            Probation::Planned => {}
        }
        let told = verdict(&mut client);
        let is_true = match (outcome, told.as_ref().map(|told| told.outcome)) {
            (Outcome::Succeeded, Some(VerdictOutcome::Succeeded))
            | (Outcome::Failed, Some(VerdictOutcome::Failed))
            | (Outcome::RolledBack, Some(VerdictOutcome::RolledBack)) => true,
            // It may have been told before it was killed.
            (Outcome::Inherited, told) => told.is_none_or(|told| told == VerdictOutcome::Succeeded),
            _ => false,
        };
        if !is_true {
            return Err(format!("it ended with {told:?}").into());
        }
        if matches!(outcome, Outcome::Failed | Outcome::RolledBack) {
            if !exited(new, Instant::now() + TIMEOUT) {
                return Err("the successor is still there".into());
            }
            let died = matches!(upgrade.probation, Probation::Planned | Probation::Freeze(_));
            if died {
                self.deaths.push(Death { pid: new, from: initialising, to: Instant::now() });
            }
        } else {
            self.serves = new;
        }
        self.who_serves()
    }

    /// Asks who serves, until the one that has to says so: a moment after a process was killed nobody may.
    fn who_serves(&self) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let mut client = Client::connect(self.folder.join("control"))?;
            client.send(&Request::Status {})?;
            let answer = client.next_answer_within(Some(PATIENCE * 4));
            if let Ok(Some(Answer::Status(status))) = &answer {
                let mut serving = status
                    .generations
                    .iter()
                    .filter(|generation| matches!(generation.state, GenerationState::Serving));
                if serving.next().is_some_and(|serving| serving.report.pid == self.serves) {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                return Err(format!("{} is to serve: {answer:?}", self.serves).into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn kill(&mut self, pid: Pid) {
        let from = Instant::now();
        let _ = try_signal(pid, Signal::KILL);
        // If not, that is found out.
        let _ = exited(pid, from + TIMEOUT);
        self.deaths.push(Death { pid, from, to: Instant::now() });
    }

    /// Has whoever serves do something.
    fn order(&self, request: &Request) -> Result<(), Box<dyn Error>> {
        let mut client = Client::connect(self.folder.join("control"))?;
        client.send(request)?;
        match client.next_answer_within(Some(TIMEOUT))? {
            Some(Answer::Done { .. }) => Ok(()),
            other => Err(format!("{request:?}: {other:?}").into()),
        }
    }

    /// Stops; nothing may have been cut.
    fn stop(self) -> Result<(), Box<dyn Error>> {
        let Self { service, serves, .. } = self;
        signal(serves, Signal::TERM);
        let finished = service.finish(Instant::now() + Duration::from_secs(60))?;
        let cut = finished
            .stdout()
            .lines()
            .find(|line| line.starts_with("drained ") && !line.ends_with(" 0 cut"))
            .map(str::to_owned);
        cut.map_or(Ok(()), |cut| Err(cut.into()))
    }

    /// Waits for a line that begins like this, and returns the rest of it.
    fn wait(&self, skip: usize, start: &str) -> Result<String, String> {
        let deadline = Instant::now() + TIMEOUT;
        let line = self.service.wait_line_after(skip, |line| line.starts_with(start), deadline);
        line.map(|line| line[start.len()..].to_owned()).map_err(|error| error.to_string())
    }

    /// What the service said last.
    fn tail(&self) -> String {
        let lines = self.service.lines();
        let lines = lines.iter().rev().take(60).rev().map(|line| format!("    {}\n", line.text));
        lines.collect()
    }
}

fn request(upgrade: Upgrade) -> UpgradeRequest {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let hangs = upgrade.plan == Plan::Hang && matches!(upgrade.fault, Fault::Planned);
    let ready = if hangs { READY_TIMEOUT_HANGING } else { READY_TIMEOUT };
    let has_probation = !matches!(upgrade.probation, Probation::None);
    let mut request = UpgradeRequest::default();
    request.environment.insert(PLAN.to_owned(), Some(upgrade.plan.text()));
    request.ready_timeout_ms = Some(millis(ready));
    request.probation_ms = Some(if has_probation { millis(PROBATION) } else { 0 });
    request.wait = true;
    request
}

/// Waits for the verdict; `None` if nobody is left to tell it.
fn verdict(client: &mut Client) -> Option<VerdictReport> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.next_answer_within(Some(left)) {
            Ok(Some(Answer::Verdict(verdict))) => return Some(verdict),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

fn stop_for(pid: Pid, milliseconds: u64) {
    let _ = try_signal(pid, Signal::STOP);
    thread::sleep(Duration::from_millis(milliseconds));
    let _ = try_signal(pid, Signal::CONT);
}
