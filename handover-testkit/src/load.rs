//! Requests at a steady rate, each accounted for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::deadline::left;
use crate::outcome::{Lost, Outcome, Unanswered};
use crate::process::Pid;
use crate::request::Protocol;
use crate::target::Target;

/// Requests a second unless [`LoadSetup::rate`] says otherwise.
const RATE_DEFAULT: u32 = 200;

/// The time of one request unless [`LoadSetup::timeout`] says otherwise. Long: under test is
/// whether a request is answered, and a noisy machine is not a fault.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// How many requests can be under way at once: as many as come in two seconds at 500 a second.
/// More wait for their turn, and the time until then counts as theirs.
const IN_FLIGHT_MAX: usize = 1000;

/// The stack of the thread of a request, which holds one small buffer.
const STACK_BYTES: usize = 128 << 10;

/// How to load a service; a builder.
#[derive(Clone, Debug)]
#[must_use]
pub struct LoadSetup {
    target: Target,
    protocol: Protocol,
    rate: u32,
    timeout: Duration,
}

impl LoadSetup {
    fn new(target: Target, protocol: Protocol) -> Self {
        Self { target, protocol, rate: RATE_DEFAULT, timeout: TIMEOUT_DEFAULT }
    }

    /// Sets the number of requests per second; 200 by default.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn rate(mut self, per_second: u32) -> Self {
        assert!(per_second > 0, "a load of no requests");
        self.rate = per_second;
        self
    }

    /// Sets the path of the GET; `/` by default. Of no meaning to an echo service.
    pub fn path(mut self, path: &str) -> Self {
        if let Protocol::Http { path: current } = &mut self.protocol {
            path.clone_into(current);
        }
        self
    }

    /// Sets how long each request may take until its answer is complete; 10 seconds by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts to send.
    pub fn start(self) -> Load {
        let shared = Arc::new(Shared {
            setup: self,
            started_at: Instant::now(),
            state: Mutex::default(),
            work: Condvar::new(),
            news: Condvar::new(),
            halt: Condvar::new(),
        });
        let pacing = Arc::clone(&shared);
        let pacer = spawn("load", move || pace(&pacing));
        Load { shared, pacer: Some(pacer) }
    }
}

/// A load on a service, from background threads, until it is stopped or dropped.
///
/// The load is *open*: each request starts at its time on a connection of its own, whether or not
/// the ones before are answered, as the clients of a real service do. No request is tried again.
///
/// ```no_run
/// # fn upgrade() {}
/// # let (address, old) = ("127.0.0.1:80".parse::<std::net::SocketAddr>().unwrap(), 1);
/// use handover_testkit::{Load, soon};
///
/// let load = Load::http(address).rate(500).start();
/// load.wait_answers(100, soon()).unwrap();
/// upgrade();
/// load.wait_answered_by(|pid| pid != old, soon()).unwrap();
/// load.stop().assert_nothing_lost();
/// ```
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    /// Returns the threads that it has started. `None` once stopped.
    pacer: Option<JoinHandle<Vec<JoinHandle<()>>>>,
}

impl Load {
    /// Loads an HTTP service, one `GET` with `Connection: close` per connection.
    ///
    /// Right is a complete answer with status 200 and a known length; if its body begins with a
    /// number, that is the pid that answered.
    pub fn http(target: impl Into<Target>) -> LoadSetup {
        LoadSetup::new(target.into(), Protocol::Http { path: "/".to_owned() })
    }

    /// Loads a service that echoes lines, one line per connection.
    ///
    /// Right is the line that was sent. If a number and a space precede it, that is the pid that
    /// answered.
    pub fn echo(target: impl Into<Target>) -> LoadSetup {
        LoadSetup::new(target.into(), Protocol::Echo)
    }

    /// Returns the time since the start: the clock of [`Lost::when`].
    pub fn elapsed(&self) -> Duration {
        self.shared.started_at.elapsed()
    }

    /// Returns what is known so far.
    pub fn so_far(&self) -> Outcome {
        self.shared.outcome()
    }

    /// Waits until `count` requests that start after this call are answered.
    ///
    /// # Errors
    ///
    /// If they are not by `deadline`.
    pub fn wait_answers(&self, count: usize, deadline: Instant) -> Result<(), Unanswered> {
        let mut answered = 0;
        self.wait(deadline, |_| {
            answered += 1;
            (answered >= count).then_some(())
        })
    }

    /// Waits until a request that starts after this call is answered by a process that `matches`,
    /// and returns its pid.
    ///
    /// # Errors
    ///
    /// If none is by `deadline`.
    pub fn wait_answered_by(
        &self,
        mut matches: impl FnMut(Pid) -> bool,
        deadline: Instant,
    ) -> Result<Pid, Unanswered> {
        self.wait(deadline, |answer| answer.pid.filter(|&pid| matches(pid)))
    }

    /// Waits until `count` requests were lost, since the start.
    ///
    /// # Errors
    ///
    /// If they are not by `deadline`.
    pub fn wait_lost(&self, count: usize, deadline: Instant) -> Result<(), Unanswered> {
        let mut state = self.shared.state();
        while state.lost.len() < count {
            if left(deadline).is_zero() {
                drop(state);
                return Err(Unanswered { so_far: self.so_far() });
            }
            state = self.shared.news(state, deadline);
        }
        Ok(())
    }

    /// Stops to send, waits for the requests under way, each as long as its timeout, and returns
    /// what became of all.
    pub fn stop(mut self) -> Outcome {
        self.end();
        self.shared.outcome()
    }

    fn wait<T>(
        &self,
        deadline: Instant,
        mut probe: impl FnMut(&Answer) -> Option<T>,
    ) -> Result<T, Unanswered> {
        let mut state = self.shared.state();
        let first = state.scheduled;
        let mut seen = state.answers.len();
        loop {
            let later = state.answers[seen..].iter().filter(|answer| answer.number >= first);
            if let Some(found) = later.into_iter().find_map(&mut probe) {
                return Ok(found);
            }
            seen = state.answers.len();
            if left(deadline).is_zero() {
                drop(state);
                return Err(Unanswered { so_far: self.so_far() });
            }
            state = self.shared.news(state, deadline);
        }
    }

    fn end(&mut self) {
        self.shared.state().stopping = true;
        self.shared.work.notify_all();
        self.shared.halt.notify_all();
        if let Some(pacer) = self.pacer.take() {
            let workers = pacer.join().expect("the thread of the load does not panic");
            for worker in workers {
                worker.join().expect("the thread of a request does not panic");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Debug)]
struct Shared {
    setup: LoadSetup,
    started_at: Instant,
    state: Mutex<State>,
    /// There is a request to make, or the end has come.
    work: Condvar,
    /// A request has ended.
    news: Condvar,
    /// The end has come; for the pacer, which every answer would wake otherwise.
    halt: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    scheduled: usize,
    queue: VecDeque<Job>,
    idle_workers: usize,
    answers: Vec<Answer>,
    lost: Vec<Lost>,
}

#[derive(Debug)]
struct Job {
    number: usize,
    due: Instant,
}

#[derive(Debug)]
struct Answer {
    number: usize,
    pid: Option<Pid>,
    latency: Duration,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // The predicates of tests run under this lock and may panic, and the records are whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request has ended, or `deadline`.
    fn news<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> MutexGuard<'a, State> {
        let waited = self.news.wait_timeout(state, left(deadline));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn outcome(&self) -> Outcome {
        let state = self.state();
        let mut answered_by = BTreeMap::new();
        for pid in state.answers.iter().filter_map(|answer| answer.pid) {
            *answered_by.entry(pid).or_insert(0) += 1;
        }
        let mut latencies: Vec<_> = state.answers.iter().map(|answer| answer.latency).collect();
        latencies.sort_unstable();
        Outcome { ok: state.answers.len(), lost: state.lost.clone(), answered_by, latencies }
    }
}

/// Schedules a request whenever one is due, and sees that there is a thread for it.
fn pace(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut workers = Vec::new();
    let mut state = shared.state();
    while !state.stopping {
        // From the start, not from the last one, so that being late once does not lower the rate.
        let offset = state.scheduled as f64 / f64::from(shared.setup.rate);
        let due = shared.started_at + Duration::from_secs_f64(offset);
        let wait = left(due);
        if !wait.is_zero() {
            let waited = shared.halt.wait_timeout(state, wait);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let number = state.scheduled;
        state.scheduled += 1;
        state.queue.push_back(Job { number, due });
        if state.queue.len() > state.idle_workers && workers.len() < IN_FLIGHT_MAX {
            let working = Arc::clone(shared);
            workers.push(spawn("request", move || work(&working)));
        }
        shared.work.notify_one();
    }
    workers
}

/// Makes one request after the other, until the end has come and none is left.
fn work(shared: &Shared) {
    let LoadSetup { target, protocol, timeout, .. } = &shared.setup;
    let mut state = shared.state();
    loop {
        let Some(job) = state.queue.pop_front() else {
            if state.stopping {
                return;
            }
            state.idle_workers += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle_workers -= 1;
            continue;
        };
        drop(state);
        let result = protocol.request(target, job.number, Instant::now() + *timeout);
        state = shared.state();
        match result {
            Ok((pid, answered_at)) => {
                let latency = answered_at.saturating_duration_since(job.due);
                state.answers.push(Answer { number: job.number, pid, latency });
            }
            Err(what) => {
                let when = job.due.saturating_duration_since(shared.started_at);
                state.lost.push(Lost { when, what });
            }
        }
        shared.news.notify_all();
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let builder = thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
    builder.spawn(body).expect("a thread starts")
}
