//! Whether a listener may be accepted from: decided by the handover, asked before every accept.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;
#[cfg(feature = "tokio")]
use std::{
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use crate::sys::poll::Wake;
#[cfg(feature = "tokio")]
use crate::watch::Seat;
use crate::watch::Watch;

/// What may be done with a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stance {
    /// Not yet, or not at this moment: the kernel queues.
    Paused,
    /// Accept.
    Open,
    /// Accept what is queued, nothing new comes.
    Retiring,
    /// Never again.
    Ended,
}

impl Stance {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Paused,
            1 => Self::Open,
            2 => Self::Retiring,
            _ => Self::Ended,
        }
    }
}

/// The stance of one listener, and those who wait for it to change.
#[derive(Debug)]
pub(crate) struct Gate {
    stance: AtomicU8,
    /// How many are between their look at the stance and what they do then.
    passing: AtomicU64,
    /// Changed under its lock together with the stance.
    turned: Watch<Stance>,
    /// Readable while not open. Made for threads that block; tasks need none.
    not_open: OnceLock<Wake>,
}

impl Gate {
    pub(crate) fn new(stance: Stance) -> Self {
        Self {
            stance: AtomicU8::new(stance as u8),
            passing: AtomicU64::new(0),
            turned: Watch::new(stance),
            not_open: OnceLock::new(),
        }
    }

    pub(crate) fn stance(&self) -> Stance {
        Stance::from_u8(self.stance.load(Ordering::SeqCst))
    }

    /// Announces a look at the stance and what is done then. `left` is called at the end of it if
    /// the gate was paused meanwhile: somebody may wait for [`is_passed`](Self::is_passed) to end.
    pub(crate) fn pass<L: Fn()>(&self, left: L) -> Pass<'_, L> {
        self.passing.fetch_add(1, Ordering::SeqCst);
        Pass { gate: self, left }
    }

    /// Whether somebody may still act upon a stance from before it was turned.
    pub(crate) fn is_passed(&self) -> bool {
        self.passing.load(Ordering::SeqCst) > 0
    }

    /// Turns the gate. What has ended stays so, and what retires does not open again.
    pub(crate) fn turn(&self, to: Stance) {
        let turn = |now: &mut Stance| {
            if *now == Stance::Ended || (*now == Stance::Retiring && to == Stance::Open) {
                return;
            }
            *now = to;
            self.stance.store(to as u8, Ordering::SeqCst);
            if let Some(wake) = self.not_open.get() {
                signal(wake, to);
            }
        };
        if to == Stance::Paused {
            // Who waits for something to come needs no word of it until something does. A thousand tasks that
            // are woken to look at their gates would hold up the successor, which waits until nobody does.
            self.turned.change(turn);
        } else {
            self.turned.update(turn);
        }
    }

    /// A descriptor that is readable while the gate is not open.
    pub(crate) fn not_open(&self) -> std::io::Result<&Wake> {
        if self.not_open.get().is_none() {
            let wake = Wake::new()?;
            self.turned.look(|now| {
                signal(&wake, *now);
                // Another thread may have been faster; its wake is as good.
                let _ = self.not_open.set(wake);
            });
        }
        self.not_open.get().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Blocks until the stance is another one than this, or the deadline has passed.
    pub(crate) fn wait_turned(&self, from: Stance, deadline: Option<Instant>) {
        self.turned.wait(deadline, |now| (*now != from).then_some(()));
    }
}

/// A look at the stance and what is done then.
pub(crate) struct Pass<'a, L: Fn()> {
    gate: &'a Gate,
    left: L,
}

impl<L: Fn()> Drop for Pass<'_, L> {
    fn drop(&mut self) {
        self.gate.passing.fetch_sub(1, Ordering::SeqCst);
        if self.gate.stance() == Stance::Paused {
            (self.left)();
        }
    }
}

/// Waits in a task until the stance is one that is wanted.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) struct Turned<G: Deref<Target = Gate>, W> {
    gate: G,
    wanted: W,
    seat: Seat,
}

#[cfg(feature = "tokio")]
impl<G: Deref<Target = Gate>, W: Fn(Stance) -> bool> Turned<G, W> {
    pub(crate) fn new(gate: G, wanted: W) -> Self {
        Self { gate, wanted, seat: Seat::default() }
    }
}

#[cfg(feature = "tokio")]
impl<G: Deref<Target = Gate> + Unpin, W: Fn(Stance) -> bool + Unpin> Future for Turned<G, W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { gate, wanted, seat } = &mut *self;
        gate.turned.poll(seat, cx, |now| wanted(*now).then_some(()))
    }
}

#[cfg(feature = "tokio")]
impl<G: Deref<Target = Gate>, W> Drop for Turned<G, W> {
    fn drop(&mut self) {
        self.gate.turned.leave(&mut self.seat);
    }
}

fn signal(wake: &Wake, stance: Stance) {
    if stance == Stance::Open {
        wake.clear();
    } else {
        wake.set();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn whoever_saw_the_gate_open_is_seen_until_it_has_passed() {
        let (gate, told) = (Gate::new(Stance::Open), Cell::new(0));
        let left = || told.set(told.get() + 1);
        drop(gate.pass(left));
        assert_eq!(told.get(), 0, "nobody waits while it is open");

        let (first, second) = (gate.pass(left), gate.pass(left));
        gate.turn(Stance::Paused);
        drop(first);
        assert!(gate.is_passed());
        drop(second);
        assert!(!gate.is_passed());
        assert_eq!(told.get(), 2);
    }

    #[test]
    #[cfg(feature = "tokio")]
    fn a_pause_wakes_nobody_and_its_end_does() {
        use std::sync::Arc;
        use std::sync::atomic::AtomicUsize;
        use std::task::Waker;

        #[derive(Default)]
        struct Count(AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }

        let (gate, count) = (Gate::new(Stance::Open), Arc::new(Count::default()));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut turned = Turned::new(&gate, |now| now != Stance::Open);
        assert!(Pin::new(&mut turned).poll(&mut cx).is_pending());
        gate.turn(Stance::Paused);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        assert!(Pin::new(&mut turned).poll(&mut cx).is_ready(), "whoever looks is told");
        drop(turned);
        let mut turned = Turned::new(&gate, |now| now != Stance::Paused);
        assert!(Pin::new(&mut turned).poll(&mut cx).is_pending());
        gate.turn(Stance::Open);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(Pin::new(&mut turned).poll(&mut cx).is_ready());
    }
}
