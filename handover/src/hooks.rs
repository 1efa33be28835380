//! What the application does when the service changes hands, beyond accepting.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::WhoServes;
use crate::sys::poll::Wake;

/// A successor is ready, this process has stopped accepting for it, and the commit follows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// The number of the successor.
    pub generation: u64,
}

/// A commit is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rollback {
    /// The number of the successor.
    pub generation: u64,
    /// Who serves from here on: [`WhoServes::ThisProcess`] in the predecessor,
    /// [`WhoServes::Predecessor`] in the successor, which is to stop what it does.
    pub who_serves: WhoServes,
    /// Why.
    pub reason: String,
}

/// A commit cannot be taken back any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confirm {
    /// The number of the successor.
    pub generation: u64,
    /// Who serves for good: [`WhoServes::Successor`] in the predecessor,
    /// [`WhoServes::ThisProcess`] in the successor.
    pub who_serves: WhoServes,
}

type Call<E> = Box<dyn FnMut(&E) + Send>;
type Hook<E> = Option<Mutex<Call<E>>>;

/// The hooks that were set. Each runs in a thread that is not the waiter, one call at a time.
#[derive(Default)]
pub(crate) struct Hooks {
    commit: Hook<Commit>,
    rollback: Hook<Rollback>,
    confirm: Hook<Confirm>,
}

impl Hooks {
    pub(crate) fn set_commit(&mut self, hook: Call<Commit>) {
        self.commit = Some(Mutex::new(hook));
    }

    pub(crate) fn set_rollback(&mut self, hook: Call<Rollback>) {
        self.rollback = Some(Mutex::new(hook));
    }

    pub(crate) fn set_confirm(&mut self, hook: Call<Confirm>) {
        self.confirm = Some(Mutex::new(hook));
    }

    pub(crate) fn has_commit(&self) -> bool {
        self.commit.is_some()
    }

    pub(crate) fn has_rollback(&self) -> bool {
        self.rollback.is_some()
    }

    pub(crate) fn has_confirm(&self) -> bool {
        self.confirm.is_some()
    }

    pub(crate) fn commit(&self, commit: &Commit) {
        call("on_commit", &self.commit, commit);
    }

    pub(crate) fn rollback(&self, rollback: &Rollback) {
        call("on_rollback", &self.rollback, rollback);
    }

    pub(crate) fn confirm(&self, confirm: &Confirm) {
        call("on_confirm", &self.confirm, confirm);
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

fn call<E>(name: &'static str, hook: &Hook<E>, with: &E) {
    let Some(hook) = hook else { return };
    let mut hook = hook.lock().unwrap_or_else(PoisonError::into_inner);
    if catch_unwind(AssertUnwindSafe(|| hook(with))).is_err() {
        tracing::error!(hook = name, "the application's code panicked");
    }
}

/// Work of the application's, in a thread of its own.
#[derive(Debug)]
pub(crate) struct Job {
    done: Arc<AtomicBool>,
}

impl Job {
    /// Starts it; the waiter is woken when it is done. If there is no thread to be had it is done
    /// here, for it must be done.
    pub(crate) fn start(wake: &Arc<Wake>, work: impl FnOnce() + Send + 'static) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (told, wake) = (Arc::clone(&done), Arc::clone(wake));
        let work = Arc::new(Mutex::new(Some(move || {
            work();
            told.store(true, Ordering::SeqCst);
            wake.set();
        })));
        let theirs = Arc::clone(&work);
        let started =
            std::thread::Builder::new().name("handover-hook".into()).spawn(move || run(&theirs));
        if started.is_err() {
            run(&work);
        }
        Self { done }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

fn run(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        work();
    }
}
