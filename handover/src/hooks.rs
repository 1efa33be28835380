//! What the application does when the service changes hands, beyond accepting.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// The hooks that were set. They are called one at a time, in the order of what has happened, in a
/// thread that lives for as long as there is something to tell.
#[derive(Default)]
pub(crate) struct Hooks {
    commit: Hook<Commit>,
    rollback: Hook<Rollback>,
    confirm: Hook<Confirm>,
    queue: Mutex<Queue>,
}

/// What the application is told.
#[derive(Debug)]
pub(crate) enum News {
    Commit(Commit),
    Rollback(Rollback),
    Confirm(Confirm),
}

#[derive(Debug, Default)]
struct Queue {
    news: VecDeque<(News, Arc<AtomicBool>)>,
    /// Somebody is telling.
    is_told: bool,
}

/// A call of a hook, and of all before it.
#[derive(Debug)]
pub(crate) struct Telling {
    done: Arc<AtomicBool>,
}

impl Telling {
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
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

    /// Has the application told; the waiter is woken when that is done.
    pub(crate) fn tell(self: &Arc<Self>, news: News, wake: &Arc<Wake>) -> Telling {
        let wanted = match &news {
            News::Commit(_) => self.commit.is_some(),
            News::Rollback(_) => self.rollback.is_some(),
            News::Confirm(_) => self.confirm.is_some(),
        };
        let done = Arc::new(AtomicBool::new(!wanted));
        if wanted {
            let mut queue = self.queue();
            queue.news.push_back((news, Arc::clone(&done)));
            if !queue.is_told {
                let (hooks, wake) = (Arc::clone(self), Arc::clone(wake));
                let tell = move || hooks.tell_all(&wake);
                let thread = std::thread::Builder::new().name("handover-hook".into()).spawn(tell);
                queue.is_told = thread.is_ok();
            }
        }
        Telling { done }
    }

    /// Tells here what no thread was to be had for: it must be told. Not to be called with the engine
    /// locked, as hooks may ask it something.
    pub(crate) fn tell_rest(&self, wake: &Wake) {
        let mut queue = self.queue();
        if !queue.is_told && !queue.news.is_empty() {
            queue.is_told = true;
            drop(queue);
            self.tell_all(wake);
        }
    }

    fn tell_all(&self, wake: &Wake) {
        loop {
            let mut queue = self.queue();
            let Some((news, done)) = queue.news.pop_front() else {
                queue.is_told = false;
                return;
            };
            drop(queue);
            match &news {
                News::Commit(commit) => call("on_commit", &self.commit, commit),
                News::Rollback(rollback) => call("on_rollback", &self.rollback, rollback),
                News::Confirm(confirm) => call("on_confirm", &self.confirm, confirm),
            }
            done.store(true, Ordering::SeqCst);
            wake.set();
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("queue", &self.queue).finish_non_exhaustive()
    }
}

fn call<E>(name: &'static str, hook: &Hook<E>, with: &E) {
    let Some(hook) = hook else { return };
    let mut hook = hook.lock().unwrap_or_else(PoisonError::into_inner);
    if catch_unwind(AssertUnwindSafe(|| hook(with))).is_err() {
        tracing::error!(hook = name, "the application's code panicked");
    }
}
