//! A value that threads and tasks wait on, without a runtime.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

/// Waits in this thread for a future that needs no runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park();
    }
}

/// A shared value; whoever waits for it to become something is woken at each change.
#[derive(Debug)]
pub(crate) struct Watch<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    value: T,
    wakers: BTreeMap<u64, Waker>,
    /// How many threads wait. To wake nobody is a system call all the same, and a service may have thousands of listeners
    /// that nobody blocks on.
    threads: usize,
    /// The number of the seat that was given out last.
    last_seat: u64,
}

/// A task's place among those that wait. Whoever waits gives it back with [`Watch::leave`]: a
/// service that waits anew in each connection would gather a waker, and with it the memory of a
/// task, for every connection that it ever had.
#[derive(Debug, Default)]
pub(crate) struct Seat(Option<u64>);

impl<T> Watch<T> {
    pub(crate) fn new(value: T) -> Self {
        let inner = Inner { value, wakers: BTreeMap::new(), threads: 0, last_seat: 0 };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Changes the value to one that nobody waits for: whoever waits is not woken.
    pub(crate) fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock().value);
    }

    /// Changes the value and wakes everybody.
    pub(crate) fn update(&self, change: impl FnOnce(&mut T)) {
        let (wakers, threads) = {
            let mut inner = self.lock();
            change(&mut inner.value);
            (std::mem::take(&mut inner.wakers), inner.threads)
        };
        if threads > 0 {
            self.changed.notify_all();
        }
        wakers.into_values().for_each(Waker::wake);
    }

    /// Looks at the value.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.lock().value)
    }

    /// Blocks until the value is what is looked for, or the deadline has passed.
    pub(crate) fn wait<R>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut(&T) -> Option<R>,
    ) -> Option<R> {
        let mut inner = self.lock();
        loop {
            if let Some(found) = look(&inner.value) {
                return Some(found);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            inner.threads += 1;
            inner = match left {
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            inner.threads -= 1;
        }
    }

    /// The same for a task.
    pub(crate) fn poll<R>(
        &self,
        seat: &mut Seat,
        cx: &Context<'_>,
        look: impl FnOnce(&T) -> Option<R>,
    ) -> Poll<R> {
        let mut inner = self.lock();
        if let Some(found) = look(&inner.value) {
            return Poll::Ready(found);
        }
        let number = *seat.0.get_or_insert_with(|| {
            inner.last_seat += 1;
            inner.last_seat
        });
        inner.wakers.insert(number, cx.waker().clone());
        Poll::Pending
    }

    /// Gives up a place.
    pub(crate) fn leave(&self, seat: &mut Seat) {
        if let Some(number) = seat.0.take() {
            // Dropped without the lock: it may be the last that holds a task, and so a waiter.
            let waker = self.lock().wakers.remove(&number);
            drop(waker);
        }
    }

    /// A panic of somebody who only looked leaves the value whole.
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(watch: &Watch<u32>, seat: &mut Seat, count: &Arc<Count>, wanted: u32) -> Poll<()> {
        let waker = Waker::from(Arc::clone(count));
        watch.poll(seat, &Context::from_waker(&waker), |now| (*now == wanted).then_some(()))
    }

    #[test]
    fn a_task_is_woken_at_each_change_that_it_waits_through() {
        let (watch, count, mut seat) = (Watch::new(0), Arc::default(), Seat::default());
        for change in 1..4 {
            assert!(poll(&watch, &mut seat, &count, 3).is_pending());
            assert!(poll(&watch, &mut seat, &count, 3).is_pending());
            watch.update(|now| *now = change);
            assert_eq!(count.0.load(Ordering::SeqCst), change as usize);
        }
        assert!(poll(&watch, &mut seat, &count, 3).is_ready());
    }

    #[test]
    fn a_task_that_moved_is_woken_where_it_is() {
        let (watch, mut seat) = (Watch::new(0), Seat::default());
        let (before, after) = (Arc::default(), Arc::default());
        assert!(poll(&watch, &mut seat, &before, 1).is_pending());
        assert!(poll(&watch, &mut seat, &after, 1).is_pending());
        watch.update(|now| *now = 1);
        assert_eq!(before.0.load(Ordering::SeqCst), 0);
        assert_eq!(after.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn whoever_left_is_not_woken_and_holds_nothing() {
        let (watch, count) = (Watch::new(0), Arc::default());
        for _ in 0..1000 {
            let mut seat = Seat::default();
            assert!(poll(&watch, &mut seat, &count, 1).is_pending());
            watch.leave(&mut seat);
        }
        assert_eq!(Arc::strong_count(&count), 1);
        watch.update(|now| *now = 1);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
    }
}
