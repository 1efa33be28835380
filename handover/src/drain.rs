//! What is in flight: counted while it is served, waited for when it is not to grow any more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::sys::poll::Wake;
use crate::watch::Watch;

/// Counts one thing in flight, a connection or a request or a job, for as long as it lives.
///
/// A drain waits until all guards are dropped, or for its timeout.
#[derive(Debug)]
#[must_use = "what is in flight is counted for as long as the guard lives"]
pub struct Guard(Arc<InFlight>);

/// How a drain ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// What was in flight when the drain began, or was accepted by a listener that was retired,
    /// and came to its end.
    pub finished: u64,
    /// Connections that the successor goes on with; see [`live`](crate::live).
    pub moved: u64,
    /// What was still in flight when time was up, or when a second stop signal came: it ends with
    /// this process.
    pub cut: u64,
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} finished, ", self.finished)?;
        if self.moved > 0 {
            write!(f, "{} moved, ", self.moved)?;
        }
        write!(f, "{} cut", self.cut)
    }
}

/// Says what it is, for people.
pub(crate) trait Describe: fmt::Debug + Send + Sync {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

struct Described<'a>(&'a dyn Describe);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

/// A place in the list of what is in flight.
#[cfg(feature = "http")]
#[derive(Debug)]
pub(crate) struct Listed {
    in_flight: Arc<InFlight>,
    number: u64,
}

#[cfg(feature = "http")]
impl Drop for Listed {
    fn drop(&mut self) {
        // Dropped without the lock.
        let what = self.in_flight.listed().remove(&self.number);
        drop(what);
    }
}

/// How many of those that are cut are told one by one.
const MAX_LOGGED: usize = 100;

/// The counters of this process.
pub(crate) struct InFlight {
    /// Attempts to accept that are under way. Without them a connection could slip in between the
    /// last look at `active` and the end of the process.
    entering: AtomicU64,
    active: AtomicU64,
    /// What ended since the drain began, or moved.
    ended: AtomicU64,
    moved: AtomicU64,
    draining: AtomicBool,
    /// How many late states wait for idleness.
    waiting: AtomicU64,
    /// What can be told apart of what is in flight.
    listed: Mutex<BTreeMap<u64, Arc<dyn Describe>>>,
    #[cfg(feature = "http")]
    last_listed: AtomicU64,
    /// Wakes the waiter, when nothing is left.
    wake: Arc<Wake>,
    /// Wakes those who wait for idleness otherwise.
    idle: Watch<()>,
}

impl InFlight {
    pub(crate) fn new(wake: Arc<Wake>) -> Self {
        Self {
            entering: AtomicU64::new(0),
            active: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            listed: Mutex::default(),
            #[cfg(feature = "http")]
            last_listed: AtomicU64::new(0),
            wake,
            idle: Watch::new(()),
        }
    }

    pub(crate) fn guard(self: &Arc<Self>) -> Guard {
        self.active.fetch_add(1, Ordering::SeqCst);
        Guard(Arc::clone(self))
    }

    /// Lists something of which it is to be told if it is cut.
    #[cfg(feature = "http")]
    pub(crate) fn list(self: &Arc<Self>, what: Arc<dyn Describe>) -> Listed {
        let number = self.last_listed.fetch_add(1, Ordering::Relaxed);
        self.listed().insert(number, what);
        Listed { in_flight: Arc::clone(self), number }
    }

    /// Tells in the log what is cut, as far as it is listed.
    pub(crate) fn log_cut(&self) {
        // Not under the lock: whoever logs may end something.
        let listed: Vec<_> = self.listed().values().take(MAX_LOGGED).cloned().collect();
        for what in &listed {
            tracing::warn!(what = %Described(&**what), "cut by the end of the drain");
        }
        let more = self.listed().len().saturating_sub(listed.len());
        if more > 0 {
            tracing::warn!(more, "cut by the end of the drain");
        }
    }

    fn listed(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<dyn Describe>>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces an attempt to accept. The gate has to be looked at afterwards.
    pub(crate) fn enter(self: &Arc<Self>) -> Entry {
        self.entering.fetch_add(1, Ordering::SeqCst);
        Entry(Arc::clone(self))
    }

    /// Has the waiter look again.
    pub(crate) fn wake(&self) {
        self.wake.set();
    }

    pub(crate) fn active(&self) -> u64 {
        self.active.load(Ordering::SeqCst)
    }

    /// From here on, ends are counted and idleness is told.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether nothing is in flight and nothing can be any more. Only to be asked once the gates
    /// are shut: then who enters turns back, and who has entered is seen here.
    pub(crate) fn is_idle(&self) -> bool {
        // In this order: an entry becomes a guard before it is given up.
        self.entering.load(Ordering::SeqCst) == 0 && self.active.load(Ordering::SeqCst) == 0
    }

    /// Waits for idleness before a drain, or beside one: what ends meanwhile is not of the drain.
    pub(crate) fn wait_idle(&self, deadline: Option<Instant>) -> bool {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let idle = self.idle.wait(deadline, |()| self.is_idle().then_some(())).is_some();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        idle
    }

    pub(crate) fn drained(&self) -> Drained {
        let moved = self.moved.load(Ordering::SeqCst);
        let ended = self.ended.load(Ordering::SeqCst);
        Drained { finished: ended.saturating_sub(moved), moved, cut: self.active() }
    }

    fn left(&self) {
        if self.draining.load(Ordering::SeqCst) && self.is_idle() {
            self.wake.set();
        }
        if self.waiting.load(Ordering::SeqCst) > 0 && self.is_idle() {
            self.idle.update(|()| ());
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight").field("active", &self.active()).finish_non_exhaustive()
    }
}

impl Guard {
    /// What it counts goes on in another process.
    pub(crate) fn moved(self) {
        self.0.moved.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.0.draining.load(Ordering::SeqCst) {
            self.0.ended.fetch_add(1, Ordering::SeqCst);
        }
        self.0.active.fetch_sub(1, Ordering::SeqCst);
        self.0.left();
    }
}

/// An attempt to accept.
#[derive(Debug)]
pub(crate) struct Entry(Arc<InFlight>);

impl Entry {
    /// The attempt has brought something.
    pub(crate) fn guard(&self) -> Guard {
        self.0.guard()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.entering.fetch_sub(1, Ordering::SeqCst);
        self.0.left();
    }
}
