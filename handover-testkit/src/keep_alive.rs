//! Connections that stay open, and how each one ends.

use std::collections::BTreeMap;
use std::io::{PipeReader, PipeWriter, pipe};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::deadline::{left, wait_readable};
use crate::process::Pid;
use crate::request::{Fault, echo, wrong};
use crate::target::{Connection, Target};

/// How many connections unless [`KeepAliveSetup::connections`] says otherwise.
const CONNECTIONS_DEFAULT: usize = 10;

/// The time between two pings unless [`KeepAliveSetup::every`] says otherwise.
const INTERVAL_DEFAULT: Duration = Duration::from_millis(20);

/// The time of one ping unless [`KeepAliveSetup::timeout`] says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// How to hold connections open; a builder.
#[derive(Clone, Debug)]
#[must_use]
pub struct KeepAliveSetup {
    target: Target,
    connections: usize,
    interval: Duration,
    timeout: Duration,
}

impl KeepAliveSetup {
    /// Sets the number of connections; 10 by default.
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count;
        self
    }

    /// Sets the time between the pings of a connection; 20 ms by default.
    pub fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how long connecting and each ping may take; 10 seconds by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts to connect. [`KeepAlive::wait_open`] tells when all have.
    pub fn start(self) -> KeepAlive {
        let (stopped, stop) = pipe().expect("there are fds for a pipe");
        let connections = self.connections;
        let shared = Arc::new(Shared {
            setup: self,
            started_at: Instant::now(),
            stopped,
            record: Mutex::default(),
            changed: Condvar::new(),
        });
        let threads = (0..connections).map(|number| {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name(format!("connection {number}"));
            builder.spawn(move || shared.hold(number)).expect("a thread starts")
        });
        let threads = threads.collect();
        KeepAlive { shared, stop: Some(stop), threads }
    }
}

/// Connections to a service that echoes lines, each of which sends a line now and then and expects
/// it back, as [`Load::echo`](crate::Load::echo) does.
///
/// A connection that has ended is not opened again: that, when and how it ended is the result.
#[derive(Debug)]
pub struct KeepAlive {
    shared: Arc<Shared>,
    /// Dropped to stop: all threads wait for the end of this pipe, too.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl KeepAlive {
    /// Holds connections to a service that echoes lines.
    pub fn echo(target: impl Into<Target>) -> KeepAliveSetup {
        KeepAliveSetup {
            target: target.into(),
            connections: CONNECTIONS_DEFAULT,
            interval: INTERVAL_DEFAULT,
            timeout: TIMEOUT_DEFAULT,
        }
    }

    /// Returns the time since the start: the clock of [`End::when`].
    pub fn elapsed(&self) -> Duration {
        self.shared.started_at.elapsed()
    }

    /// Returns what is known so far.
    pub fn so_far(&self) -> KeepAliveOutcome {
        self.shared.record().outcome.clone()
    }

    /// Waits until every connection is open and its first ping is answered.
    ///
    /// # Errors
    ///
    /// If one cannot be opened, or is not by `deadline`.
    pub fn wait_open(&self, deadline: Instant) -> Result<(), KeepAliveOutcome> {
        let all = self.shared.setup.connections;
        self.wait(deadline, |record| record.opened + record.unopened == all)?;
        let record = self.shared.record();
        if record.unopened == 0 { Ok(()) } else { Err(record.outcome.clone()) }
    }

    /// Waits until `count` more pings are answered, on whichever connections.
    ///
    /// # Errors
    ///
    /// If they are not by `deadline`.
    pub fn wait_pings(&self, count: usize, deadline: Instant) -> Result<(), KeepAliveOutcome> {
        let enough = self.so_far().pings + count;
        self.wait(deadline, |record| record.outcome.pings >= enough)
    }

    /// Waits until `count` connections have ended, since the start.
    ///
    /// # Errors
    ///
    /// If they have not by `deadline`.
    pub fn wait_ends(&self, count: usize, deadline: Instant) -> Result<(), KeepAliveOutcome> {
        self.wait(deadline, |record| record.outcome.ends.len() >= count)
    }

    /// Waits for the pings under way, closes what is open, and returns what became of all.
    pub fn stop(mut self) -> KeepAliveOutcome {
        self.end();
        self.so_far()
    }

    fn wait(
        &self,
        deadline: Instant,
        mut is_reached: impl FnMut(&Record) -> bool,
    ) -> Result<(), KeepAliveOutcome> {
        let mut record = self.shared.record();
        while !is_reached(&record) {
            if left(deadline).is_zero() {
                return Err(record.outcome.clone());
            }
            let waited = self.shared.changed.wait_timeout(record, left(deadline));
            record = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn end(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            thread.join().expect("the thread of a connection does not panic");
        }
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.end();
    }
}

/// What became of connections that were to stay open.
#[derive(Clone, Debug, Default)]
pub struct KeepAliveOutcome {
    /// How many pings were answered.
    pub pings: usize,
    /// How many pings each process answered, as far as the answers tell.
    pub answered_by: BTreeMap<Pid, usize>,
    /// The connections that ended, or never began, in the order of that.
    pub ends: Vec<End>,
}

impl KeepAliveOutcome {
    /// Returns the ends with which a ping was lost: all but the orderly ones between two pings.
    pub fn lost(&self) -> impl Iterator<Item = &End> {
        self.ends.iter().filter(|end| end.how != Ending::Closed)
    }
}

/// The end of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Which connection, counted from zero.
    pub connection: usize,
    /// When it ended, since the start.
    pub when: Duration,
    /// How it ended.
    pub how: Ending,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The service closed it while no ping was under way.
    Closed,
    /// It could not be opened, was reset, or a ping on it was not answered as it should be.
    Lost(Fault),
}

#[derive(Debug)]
struct Shared {
    setup: KeepAliveSetup,
    started_at: Instant,
    stopped: PipeReader,
    record: Mutex<Record>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Record {
    /// Connections of which a ping was answered, whether or not they are open still.
    opened: usize,
    /// Connections that ended before.
    unopened: usize,
    outcome: KeepAliveOutcome,
}

impl Shared {
    /// Holds one connection until it ends or the end has come, and records which.
    fn hold(&self, connection: usize) {
        let mut answered = 0;
        if let Err(how) = self.ping(connection, &mut answered) {
            let end = End { connection, when: self.started_at.elapsed(), how };
            let mut record = self.record();
            record.unopened += usize::from(answered == 0);
            record.outcome.ends.push(end);
            self.changed.notify_all();
        }
    }

    /// Pings over and over, counting; returns when the end has come.
    fn ping(&self, number: usize, answered: &mut usize) -> Result<(), Ending> {
        let connection = Connection::open(&self.setup.target, self.timeout())?;
        loop {
            // No other connection ever says the same.
            let text = number * 1_000_000 + *answered;
            let pid = echo(&connection, text, self.timeout())?;
            self.count(*answered == 0, pid);
            *answered += 1;
            if self.pause(&connection)? {
                return Ok(());
            }
        }
    }

    /// Waits until the next ping is due; true if the end has come.
    fn pause(&self, connection: &Connection) -> Result<bool, Ending> {
        let due = Instant::now() + self.setup.interval;
        if !wait_readable(&[connection.as_fd(), self.stopped.as_fd()], due) {
            return Ok(false);
        }
        if wait_readable(&[&self.stopped], Instant::now()) {
            return Ok(true);
        }
        let mut unasked = Vec::new();
        match connection.receive(&mut unasked, due)? {
            true => Err(wrong(&unasked).into()),
            false => Err(Ending::Closed),
        }
    }

    fn count(&self, is_first: bool, pid: Option<Pid>) {
        let mut record = self.record();
        record.outcome.pings += 1;
        record.opened += usize::from(is_first);
        if let Some(pid) = pid {
            *record.outcome.answered_by.entry(pid).or_insert(0) += 1;
        }
        self.changed.notify_all();
    }

    fn timeout(&self) -> Instant {
        Instant::now() + self.setup.timeout
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // No panic under this lock leaves a record half made.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Fault> for Ending {
    fn from(fault: Fault) -> Self {
        Self::Lost(fault)
    }
}
