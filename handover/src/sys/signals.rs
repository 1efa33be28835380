//! Signals that are counted and wake the waiter, and masks.
//!
//! signal-hook-registry owns the handlers, so that an application that listens for the same
//! signals, through tokio for example, gets them as well.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook_registry::SigId;

use super::poll::Wake;

pub(crate) use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// What an arriving signal does beyond being counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Nobody looks yet: a second stop signal has its default action.
    Starting,
    /// The waiter looks.
    Watched,
    /// The waiter has done its work and the process is to exit: a stop signal has its default
    /// action, for an upgrade it is too late.
    Finished,
    /// Nobody will ever look: every signal has its default action.
    Abandoned,
}

/// Handlers for a set of signals.
#[derive(Debug)]
pub(crate) struct Signals {
    shared: Arc<Shared>,
    ids: Vec<SigId>,
}

/// Handlers that were left to the process by [`Signals`] that are no more. They end it, so they go
/// when there are others.
static LEFT: Mutex<Vec<SigId>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Shared {
    wake: Wake,
    mode: AtomicU8,
    upgrades: AtomicU32,
    stops: AtomicU32,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a signal that cannot be caught.
    pub(crate) fn install(upgrade: &[i32], stop: &[i32]) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wake: Wake::new()?,
            mode: AtomicU8::new(Mode::Starting as u8),
            upgrades: AtomicU32::new(0),
            stops: AtomicU32::new(0),
        });
        let mut signals = Self { shared, ids: Vec::new() };
        for (signal, stops) in
            upgrade.iter().map(|s| (*s, false)).chain(stop.iter().map(|s| (*s, true)))
        {
            if signal_hook_registry::FORBIDDEN.contains(&signal) {
                let why = format!("signal {signal} cannot be caught");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            let shared = Arc::clone(&signals.shared);
            let action = move || shared.arrived(signal, stops);
            // SAFETY: the action only counts in atomics, writes to an eventfd and, in the end,
            // calls signal(2) and raise(3): all async-signal-safe (signal-safety(7)).
            let id = unsafe { signal_hook_registry::register(signal, action) }?;
            signals.ids.push(id);
        }
        // After the new ones stand: at no moment has the process none.
        for id in std::mem::take(&mut *LEFT.lock().unwrap_or_else(PoisonError::into_inner)) {
            signal_hook_registry::unregister(id);
        }
        Ok(signals)
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Says that nobody looks any more.
    ///
    /// The registry would leave a handler that does nothing, and the process deaf to SIGTERM.
    /// Instead the handlers stay and do what would happen without them.
    pub(crate) fn abandon(&mut self) {
        if self.shared.mode.load(Ordering::SeqCst) != Mode::Finished as u8 {
            self.set_mode(Mode::Abandoned);
        }
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.ids);
    }

    /// Takes the number of upgrade and of stop signals that came since the last call.
    pub(crate) fn take(&self) -> (u32, u32) {
        self.shared.wake.clear();
        (
            self.shared.upgrades.swap(0, Ordering::SeqCst),
            self.shared.stops.swap(0, Ordering::SeqCst),
        )
    }

    /// Leaves what came to a later call of [`take`](Self::take), without being woken for it again.
    pub(crate) fn leave(&self) {
        self.shared.wake.clear();
    }

    /// How many stop signals wait to be taken.
    pub(crate) fn stops(&self) -> u32 {
        self.shared.stops.load(Ordering::SeqCst)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Shared {
    fn arrived(&self, signal: i32, stops: bool) {
        // Looked at before anybody is woken, who may be done at once: a signal that the waiter has
        // acted upon must not be one that nobody looks at.
        let mode = self.mode.load(Ordering::SeqCst);
        let counter = if stops { &self.stops } else { &self.upgrades };
        let before = counter.fetch_add(1, Ordering::SeqCst);
        self.wake.set();
        let by_default = match mode {
            mode if mode == Mode::Abandoned as u8 => true,
            mode if mode == Mode::Finished as u8 => stops,
            mode if mode == Mode::Starting as u8 => stops && before > 0,
            _ => false,
        };
        if by_default {
            // SAFETY: signal(2) and raise(3) are async-signal-safe. The raised signal is blocked
            // while its handler runs and takes effect as it returns.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // SAFETY: as above.
            unsafe { libc::raise(signal) };
        }
    }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalSet")
    }
}

impl SignalSet {
    fn filled_by(fill: impl FnOnce(*mut libc::sigset_t)) -> Self {
        let mut set = MaybeUninit::zeroed();
        fill(set.as_mut_ptr());
        // SAFETY: sigset_t is an array of integers, for which zeroes are valid, and every caller
        // fills it by a call that initialises it.
        Self(unsafe { set.assume_init() })
    }

    /// Every signal.
    pub(crate) fn all() -> Self {
        Self::filled_by(|set| {
            // SAFETY: writes the set it is given.
            unsafe { libc::sigfillset(set) };
        })
    }

    /// What the calling thread blocks.
    pub(crate) fn blocked() -> Self {
        Self::filled_by(|set| {
            // SAFETY: with no new set the call only writes the old one.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set) };
        })
    }

    pub(crate) fn insert(&mut self, signal: i32) {
        // SAFETY: changes the set it is given; a number that is no signal is refused.
        unsafe { libc::sigaddset(&mut self.0, signal) };
    }

    pub(crate) fn remove(&mut self, signal: i32) {
        // SAFETY: as above.
        unsafe { libc::sigdelset(&mut self.0, signal) };
    }

    /// Makes this what the calling thread blocks, and returns what it was.
    pub(crate) fn block(&self) -> Self {
        Self::filled_by(|old| {
            // SAFETY: reads the new set, writes the old one.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, old) };
        })
    }
}

/// Lets these signals through in the calling thread.
pub(crate) fn unblock(signals: &[i32]) {
    let mut set = SignalSet::filled_by(|set| {
        // SAFETY: writes the set it is given.
        unsafe { libc::sigemptyset(set) };
    });
    signals.iter().for_each(|signal| set.insert(*signal));
    // SAFETY: reads the set.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set.0, std::ptr::null_mut()) };
}

/// Whether this process has threads beside the calling one.
pub(crate) fn has_other_threads() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_that_were_left_do_not_end_a_process_that_has_others() {
        drop(Signals::install(&[SIGUSR1], &[]).unwrap());
        let signals = Signals::install(&[SIGUSR1], &[]).unwrap();
        // SAFETY: raises a signal in this thread, for which a handler is installed.
        unsafe { libc::raise(SIGUSR1) };
        assert_eq!(signals.take(), (1, 0));
        // Nor is it left with a handler that does nothing when these go: the next ones find theirs.
        drop(signals);
        assert!(!LEFT.lock().unwrap().is_empty());
    }
}
