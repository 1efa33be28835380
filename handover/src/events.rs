//! What happens, for whoever wants to know: published once, read by each subscriber on its own.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use handover_proto::control::{Event, TimedEvent};

use crate::watch::{Seat, Watch};

/// The most events that wait for a subscriber. Of more, the oldest are dropped, and it is told how
/// many ([`Event::Missed`]).
pub const MAX_QUEUED_EVENTS: usize = 256;

/// Where events are published.
///
/// The newest ones are kept once, for all subscribers; each knows how far it has come. So it costs
/// the same to publish for one as for many, and one that never reads costs nothing more.
#[derive(Debug)]
pub(crate) struct Hub(Arc<Watch<Queue>>);

/// One subscriber to what happens from its making on: for threads [`wait`](Self::wait) and a loop
/// over it, for tasks [`next`](Self::next).
///
/// A subscriber that does not keep up misses the oldest of more than [`MAX_QUEUED_EVENTS`], and gets
/// [`Event::Missed`] in their place. It never holds up the service.
#[derive(Debug)]
pub struct Events {
    queue: Arc<Watch<Queue>>,
    /// How many events were published before the one that is to be read next.
    position: u64,
    seat: Seat,
}

impl Hub {
    pub(crate) fn new() -> Self {
        let queue = Queue { events: VecDeque::new(), published: 0, closed: false };
        Self(Arc::new(Watch::new(queue)))
    }

    /// Tells all subscribers, and stamps the time on it.
    pub(crate) fn publish(&self, event: Event) {
        self.0.update(|queue| {
            if queue.closed {
                return;
            }
            queue.published += 1;
            // Whoever has a position took it under this lock, and counts since before.
            let is_anybody_there = Arc::strong_count(&self.0) > 1;
            if !is_anybody_there {
                queue.events.clear();
                return;
            }
            if queue.events.len() == MAX_QUEUED_EVENTS {
                queue.events.pop_front();
            }
            queue.events.push_back(TimedEvent { at_ms: now_ms(), event });
        });
    }

    /// A subscriber to what is published from here on.
    pub(crate) fn subscribe(&self) -> Events {
        let queue = Arc::clone(&self.0);
        let position = queue.look(|queue| queue.published);
        Events { queue, position, seat: Seat::default() }
    }

    /// Nothing will happen any more: subscribers come to the end when they have read the rest.
    pub(crate) fn close(&self) {
        self.0.update(|queue| queue.closed = true);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close();
    }
}

impl Events {
    /// Waits for what happens next; `None` at the end, when this process has finished. Not to be
    /// called in the thread that is to call [`Running::wait`](crate::Running::wait).
    pub fn wait(&mut self) -> Option<TimedEvent> {
        let Self { queue, position, .. } = self;
        queue.wait(None, |queue| queue.next(position)).flatten()
    }

    /// Waits for what happens next, but not for longer; `None` if nothing has happened, or at the
    /// end ([`has_ended`](Self::has_ended)).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<TimedEvent> {
        let Self { queue, position, .. } = self;
        let deadline = Instant::now().checked_add(timeout);
        queue.wait(deadline, |queue| queue.next(position)).flatten()
    }

    /// What has happened and was not read yet, without waiting; `None` if there is nothing, or at
    /// the end ([`has_ended`](Self::has_ended)).
    pub fn try_next(&mut self) -> Option<TimedEvent> {
        let Self { queue, position, .. } = self;
        queue.look(|queue| queue.next(position)).flatten()
    }

    /// Whether everything was read, and nothing will happen any more.
    pub fn has_ended(&self) -> bool {
        self.queue.look(|queue| queue.closed && queue.published == self.position)
    }

    /// Waits in a task for what happens next; `None` at the end, when this process has finished.
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<TimedEvent> {
        let waiting = Waiting(self);
        poll_fn(|cx| waiting.0.poll(cx)).await
    }

    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<TimedEvent>> {
        let Self { queue, position, seat } = self;
        queue.poll(seat, cx, |queue| queue.next(position))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.queue.leave(&mut self.seat);
    }
}

/// A wait in a task that may be given up.
struct Waiting<'a>(&'a mut Events);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.queue.leave(&mut self.0.seat);
    }
}

impl IntoIterator for Events {
    type Item = TimedEvent;
    type IntoIter = EventsIntoIter;

    /// What happens, in a thread that waits for it as [`wait`](Self::wait) does.
    fn into_iter(self) -> EventsIntoIter {
        EventsIntoIter(self)
    }
}

/// What happens, in a thread that waits for it; made from [`Events`].
#[derive(Debug)]
#[must_use = "an iterator does nothing unless it is asked"]
pub struct EventsIntoIter(Events);

impl Iterator for EventsIntoIter {
    type Item = TimedEvent;

    fn next(&mut self) -> Option<TimedEvent> {
        self.0.wait()
    }
}

/// The newest events.
#[derive(Debug)]
struct Queue {
    /// Empty while nobody subscribes.
    events: VecDeque<TimedEvent>,
    /// How many there were, the last one of them being the last of `events`.
    published: u64,
    closed: bool,
}

impl Queue {
    /// What comes at a position, which moves on: `None` if it is not there yet, `Some(None)` at the
    /// end.
    fn next(&self, position: &mut u64) -> Option<Option<TimedEvent>> {
        let kept = self.events.len() as u64;
        let unread = self.published - *position;
        if unread > kept {
            let events = unread - kept;
            *position += events;
            // Times never go back: the next one to be read is the oldest.
            let at_ms = self.events.front().map_or_else(now_ms, |oldest| oldest.at_ms);
            return Some(Some(TimedEvent { at_ms, event: Event::Missed { events } }));
        }
        if unread == 0 {
            return self.closed.then_some(None);
        }
        *position += 1;
        Some(self.events.get((kept - unread) as usize).cloned())
    }
}

fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::thread;

    use super::*;

    fn gone(generation: u64) -> Event {
        Event::Gone { generation }
    }

    fn drained(events: &mut Events) -> Vec<Event> {
        std::iter::from_fn(|| events.try_next()).map(|timed| timed.event).collect()
    }

    #[test]
    fn a_subscriber_gets_what_is_published_since_in_order_and_then_the_end() {
        let hub = Hub::new();
        hub.publish(gone(0));
        let mut early = hub.subscribe();
        hub.publish(gone(1));
        let mut late = hub.subscribe();
        hub.publish(gone(2));

        assert_eq!(drained(&mut early), [gone(1), gone(2)]);
        assert_eq!(drained(&mut late), [gone(2)]);
        assert!(!early.has_ended());
        hub.publish(gone(3));
        hub.close();
        hub.publish(gone(4));
        assert!(!early.has_ended());
        assert_eq!(early.into_iter().map(|timed| timed.event).collect::<Vec<_>>(), [gone(3)]);
        assert_eq!(drained(&mut late), [gone(3)]);
        assert!(late.has_ended());
        assert_eq!(late.wait(), None);
        assert_eq!(hub.subscribe().wait(), None);
    }

    #[test]
    fn events_are_stamped_with_the_time_of_day() {
        let hub = Hub::new();
        let mut events = hub.subscribe();
        let before = now_ms();
        hub.publish(gone(1));
        let at_ms = events.wait().unwrap().at_ms;
        assert!((before..=now_ms()).contains(&at_ms));
    }

    #[test]
    fn whoever_does_not_keep_up_misses_the_oldest_and_is_told_how_many() {
        const KEPT: u64 = MAX_QUEUED_EVENTS as u64;
        let hub = Hub::new();
        let (mut slow, mut quick) = (hub.subscribe(), hub.subscribe());
        for number in 0..KEPT {
            hub.publish(gone(number));
            assert_eq!(quick.try_next().unwrap().event, gone(number));
        }
        assert_eq!(slow.try_next().unwrap().event, gone(0), "all of them fit");

        (KEPT..KEPT + 4).for_each(|number| hub.publish(gone(number)));
        assert_eq!(hub.0.look(|queue| queue.events.len()), MAX_QUEUED_EVENTS);
        let rest = drained(&mut slow);
        assert_eq!(rest[0], Event::Missed { events: 3 });
        assert!(rest[1..].iter().cloned().eq((4..KEPT + 4).map(gone)));
        assert!(drained(&mut quick).into_iter().eq((KEPT..KEPT + 4).map(gone)));
    }

    #[test]
    fn nothing_is_kept_for_a_subscriber_that_has_gone() {
        let hub = Hub::new();
        drop(hub.subscribe());
        (0..10).for_each(|number| hub.publish(gone(number)));
        assert_eq!(hub.0.look(|queue| queue.events.len()), 0);
        let mut events = hub.subscribe();
        hub.publish(gone(10));
        assert_eq!(drained(&mut events), [gone(10)]);
    }

    #[test]
    fn a_wait_with_a_timeout_ends_without_an_event() {
        let hub = Hub::new();
        let mut events = hub.subscribe();
        assert_eq!(events.wait_timeout(Duration::from_millis(1)), None);
        assert!(!events.has_ended());
        hub.publish(gone(1));
        assert_eq!(events.wait_timeout(Duration::MAX).unwrap().event, gone(1));
        drop(hub);
        assert_eq!(events.wait_timeout(Duration::MAX), None);
        assert!(events.has_ended());
    }

    #[test]
    fn subscribers_in_many_threads_get_all_that_many_threads_publish() {
        const THREADS: u64 = 4;
        // Together they fit, so that nothing is missed however the threads run.
        const EACH: u64 = MAX_QUEUED_EVENTS as u64 / THREADS;
        let hub = Hub::new();
        thread::scope(|scope| {
            let readers: Vec<_> = (0..THREADS)
                .map(|_| {
                    let events = hub.subscribe();
                    scope.spawn(move || events.into_iter().map(|timed| timed.event).collect())
                })
                .collect();
            let writers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let hub = &hub;
                    scope.spawn(move || {
                        for number in 0..EACH {
                            hub.publish(gone(thread * EACH + number));
                        }
                    })
                })
                .collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            hub.close();

            let read: Vec<Vec<Event>> =
                readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            assert!(read.iter().all(|events| *events == read[0]), "all see the same order");
            for thread in 0..THREADS {
                let own = |event: &&Event| matches!(event, Event::Gone { generation } if generation / EACH == thread);
                let expected: Vec<_> =
                    (0..EACH).map(|number| gone(thread * EACH + number)).collect();
                assert!(read[0].iter().filter(own).eq(&expected));
            }
        });
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_task_is_woken_by_an_event_and_by_the_end() {
        let (hub, count) = (Hub::new(), Arc::<Count>::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = &mut Context::from_waker(&waker);
        let mut events = hub.subscribe();
        {
            let mut next = pin!(events.next());
            assert!(next.as_mut().poll(cx).is_pending());
            hub.publish(gone(1));
            assert_eq!(count.0.load(Ordering::SeqCst), 1);
            let Poll::Ready(Some(timed)) = next.poll(cx) else { panic!("it is there") };
            assert_eq!(timed.event, gone(1));
        }
        let mut next = pin!(events.next());
        assert!(next.as_mut().poll(cx).is_pending());
        hub.close();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert_eq!(next.poll(cx), Poll::Ready(None));
    }

    #[test]
    fn a_task_that_gave_up_leaves_no_waker_and_misses_nothing() {
        let (hub, count) = (Hub::new(), Arc::<Count>::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = &mut Context::from_waker(&waker);
        let mut events = hub.subscribe();
        for _ in 0..1000 {
            assert!(pin!(events.next()).poll(cx).is_pending());
            assert!(pin!(hub.subscribe().next()).poll(cx).is_pending());
        }
        assert_eq!(Arc::strong_count(&count), 2, "ours and the waker's");
        hub.publish(gone(1));
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
        assert_eq!(drained(&mut events), [gone(1)]);
    }
}
