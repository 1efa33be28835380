//! What the application and the engine share of connections that change hands.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use handover_proto::Name;
use handover_proto::moving::{MAX_CONNECTION_BYTES, MAX_INLINE_BYTES, Moving};

use super::{Arrival, Baggage};
use crate::drain::{Guard, InFlight};
use crate::sys::memfd;
use crate::sys::poll::Wake;

/// How many connections may be on their way at a time. They stand still meanwhile: the more there are,
/// the longer each does, and the more wait if the successor hangs.
const WINDOW: usize = 256;

/// Who wants to leave, who may, and who has come.
#[derive(Debug)]
pub(crate) struct Desk {
    books: Mutex<Books>,
    wake: Arc<Wake>,
    in_flight: Arc<InFlight>,
}

#[derive(Debug, Default)]
struct Books {
    giving: Giving,
    taking: HashMap<Name, Taking>,
    /// Nothing arrives any more.
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Giving {
    outlook: Outlook,
    /// What the successor takes, and in which versions.
    takes: HashMap<Name, RangeInclusive<u32>>,
    /// How many slots are given out.
    away: usize,
    waiting: HashMap<Name, BTreeMap<u64, Waker>>,
    last_seat: u64,
    queue: VecDeque<Leaving>,
}

/// Whether connections can leave.
#[derive(Debug, Default)]
enum Outlook {
    #[default]
    NotYet,
    Open,
    Never(String),
}

#[derive(Debug)]
struct Taking {
    versions: RangeInclusive<u32>,
    queue: VecDeque<Arrival>,
    waker: Option<Waker>,
}

/// A place among those who wait for a slot.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<u64>);

/// A connection on its way out. It is this process's until the successor has it.
#[derive(Debug)]
pub(crate) struct Leaving {
    pub(crate) moving: Moving,
    pub(crate) fd: OwnedFd,
    /// The baggage, where it is too much for a frame.
    pub(crate) memory: Option<OwnedFd>,
    pub(crate) baggage: Baggage,
    guard: Guard,
    pub(crate) reply: Arc<Reply>,
}

/// A connection that stays.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) fd: OwnedFd,
    pub(crate) guard: Guard,
    pub(crate) baggage: Baggage,
    pub(crate) reason: String,
}

/// Where whoever has sent a connection hears what became of it.
#[derive(Debug, Default)]
pub(crate) struct Reply(Mutex<Answer>);

#[derive(Debug, Default)]
struct Answer {
    outcome: Option<Result<(), Kept>>,
    waker: Option<Waker>,
}

impl Reply {
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Result<(), Kept>> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match inner.outcome.take() {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                inner.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn give(&self, outcome: Result<(), Kept>) {
        let waker = {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            inner.outcome = Some(outcome);
            inner.waker.take()
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Leaving {
    /// Packs; gives back what cannot go.
    pub(crate) fn new(
        name: Name,
        version: u32,
        fd: OwnedFd,
        guard: Guard,
        baggage: Baggage,
    ) -> Result<Self, Box<Kept>> {
        let (unread, state) = (baggage.unread.len(), baggage.state.len());
        let bytes = unread + state;
        let apart = bytes > MAX_INLINE_BYTES;
        let memory = if bytes > MAX_CONNECTION_BYTES {
            Err(format!("{bytes} bytes are too many, {MAX_CONNECTION_BYTES} may go along"))
        } else if apart {
            let all = [&*baggage.unread, &*baggage.state].concat();
            memfd::of_bytes("handover connection", &all).map(Some).map_err(|e| e.to_string())
        } else {
            Ok(None)
        };
        let memory = match memory {
            Ok(memory) => memory,
            Err(reason) => return Err(Box::new(Kept { fd, guard, baggage, reason })),
        };
        // Both are below `MAX_CONNECTION_BYTES`.
        let (unread, state) = (u32::try_from(unread), u32::try_from(state));
        let (unread, state) = (unread.unwrap_or(u32::MAX), state.unwrap_or(u32::MAX));
        let moving = Moving { name, version, unread, state, apart };
        Ok(Self { moving, fd, memory, baggage, guard, reply: Arc::default() })
    }

    /// The successor has it.
    pub(crate) fn left(self) {
        self.guard.moved();
        drop(self.fd);
        self.reply.give(Ok(()));
    }

    /// The successor does not want it.
    pub(crate) fn stays(self, reason: String) {
        let Self { fd, guard, baggage, reply, .. } = self;
        reply.give(Err(Kept { fd, guard, baggage, reason }));
    }
}

impl Desk {
    pub(crate) fn new(wake: &Arc<Wake>, in_flight: &Arc<InFlight>) -> Self {
        let (wake, in_flight) = (Arc::clone(wake), Arc::clone(in_flight));
        Self { books: Mutex::default(), wake, in_flight }
    }

    /// Wakes the engine.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        &self.wake
    }

    pub(super) fn poll_slot(
        &self,
        name: &Name,
        version: u32,
        place: &mut Place,
        cx: &Context<'_>,
    ) -> Poll<Result<(), String>> {
        let mut books = self.lock();
        let giving = &mut books.giving;
        if let Outlook::Never(reason) = &giving.outlook {
            return Poll::Ready(Err(reason.clone()));
        }
        if matches!(giving.outlook, Outlook::Open)
            && let Some(versions) = giving.takes.get(name)
        {
            if !versions.contains(&version) {
                let (oldest, newest) = (versions.start(), versions.end());
                return Poll::Ready(Err(format!(
                    "the successor takes versions {oldest} to {newest} of \"{name}\", and not {version}"
                )));
            }
            if giving.away < WINDOW {
                giving.away += 1;
                if let Some(seat) = place.0.take() {
                    giving.forget(name, seat);
                }
                return Poll::Ready(Ok(()));
            }
        }
        let seat = *place.0.get_or_insert_with(|| {
            giving.last_seat += 1;
            giving.last_seat
        });
        giving.waiting.entry(name.clone()).or_default().insert(seat, cx.waker().clone());
        Poll::Pending
    }

    /// Gives up a place. If it was called already, the next one is.
    pub(super) fn leave(&self, name: &Name, place: &mut Place) {
        let Some(seat) = place.0.take() else { return };
        let (waker, next) = {
            let mut books = self.lock();
            match books.giving.forget(name, seat) {
                // Dropped without the lock, as it may be the last that holds a task.
                Some(waker) => (Some(waker), Vec::new()),
                None => (None, books.giving.next()),
            }
        };
        drop(waker);
        next.into_iter().for_each(Waker::wake);
    }

    pub(super) fn free_slots(&self, slots: usize) {
        let next = {
            let mut books = self.lock();
            books.giving.away -= slots;
            books.giving.next()
        };
        next.into_iter().for_each(Waker::wake);
    }

    pub(super) fn depart(&self, leaving: Leaving) {
        let mut books = self.lock();
        if let Outlook::Never(reason) = &books.giving.outlook {
            let reason = reason.clone();
            drop(books);
            self.free_slots(1);
            return leaving.stays(reason);
        }
        books.giving.queue.push_back(leaving);
        if books.giving.queue.len() == 1 {
            self.wake.set();
        }
    }

    /// What wants to leave, for as long as it fits.
    pub(super) fn board(&self, mut fits: impl FnMut(&Moving) -> bool) -> Option<Leaving> {
        let mut books = self.lock();
        let queue = &mut books.giving.queue;
        if fits(&queue.front()?.moving) { queue.pop_front() } else { None }
    }

    /// Connections can leave, as far as the successor says that it takes them.
    pub(super) fn open(&self) {
        self.lock().giving.outlook = Outlook::Open;
    }

    /// The successor takes these.
    pub(super) fn takes(&self, name: Name, versions: RangeInclusive<u32>) {
        let next = {
            let mut books = self.lock();
            books.giving.takes.insert(name.clone(), versions.clone());
            let mut next = books.giving.next();
            // They will be told that none of them can go, however many there are.
            let waiting = books.giving.waiting.get_mut(&name).map(std::mem::take);
            next.extend(waiting.unwrap_or_default().into_values());
            next
        };
        next.into_iter().for_each(Waker::wake);
    }

    /// No connection leaves, from here on. What waits to leave stays.
    pub(super) fn never(&self, reason: &str) {
        let (waiting, queue) = {
            let mut books = self.lock();
            if matches!(books.giving.outlook, Outlook::Never(_)) {
                return;
            }
            books.giving.outlook = Outlook::Never(reason.to_owned());
            (std::mem::take(&mut books.giving.waiting), std::mem::take(&mut books.giving.queue))
        };
        waiting.into_values().flat_map(BTreeMap::into_values).for_each(Waker::wake);
        self.free_slots(queue.len());
        queue.into_iter().for_each(|leaving| leaving.stays(reason.to_owned()));
    }

    /// Whether no connection leaves, from here on.
    #[cfg(feature = "http")]
    pub(super) fn is_over(&self) -> bool {
        matches!(self.lock().giving.outlook, Outlook::Never(_))
    }

    /// Takes connections of that name; not if somebody does already.
    pub(crate) fn subscribe(&self, name: &Name, versions: RangeInclusive<u32>) -> bool {
        let mut books = self.lock();
        if books.taking.contains_key(name) {
            return false;
        }
        let taking = Taking { versions, queue: VecDeque::new(), waker: None };
        books.taking.insert(name.clone(), taking);
        drop(books);
        self.wake.set();
        true
    }

    pub(super) fn unsubscribe(&self, name: &Name) {
        let taking = self.lock().taking.remove(name);
        drop(taking);
    }

    /// All that is taken here.
    pub(super) fn subscriptions(&self) -> Vec<(Name, RangeInclusive<u32>)> {
        let books = self.lock();
        books.taking.iter().map(|(name, taking)| (name.clone(), taking.versions.clone())).collect()
    }

    /// Whether somebody waits for this.
    ///
    /// # Errors
    ///
    /// Why it is refused, for people.
    pub(super) fn check(&self, moving: &Moving) -> Result<(), String> {
        let books = self.lock();
        let Some(taking) = books.taking.get(&moving.name) else {
            return Err(format!("nobody takes \"{}\" here", moving.name));
        };
        if taking.versions.contains(&moving.version) {
            Ok(())
        } else {
            Err(format!("version {} of \"{}\" cannot be read here", moving.version, moving.name))
        }
    }

    /// Gives arrivals to whoever takes them.
    pub(super) fn deliver(&self, arrivals: impl IntoIterator<Item = (Name, Arrival)>) {
        let mut wakers = Vec::new();
        let mut books = self.lock();
        for (name, arrival) in arrivals {
            // If nobody is there any more, it is closed: it was dropped with the service.
            let Some(taking) = books.taking.get_mut(&name) else { continue };
            taking.queue.push_back(arrival);
            wakers.extend(taking.waker.take());
        }
        drop(books);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn poll_arrival(&self, name: &Name, cx: &Context<'_>) -> Poll<Option<Arrival>> {
        let mut books = self.lock();
        let is_closed = books.is_closed;
        let Some(taking) = books.taking.get_mut(name) else { return Poll::Ready(None) };
        match taking.queue.pop_front() {
            Some(arrival) => Poll::Ready(Some(arrival)),
            None if is_closed => Poll::Ready(None),
            None => {
                taking.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Nothing arrives any more.
    pub(super) fn close(&self) {
        let wakers: Vec<_> = {
            let mut books = self.lock();
            if std::mem::replace(&mut books.is_closed, true) {
                return;
            }
            books.taking.values_mut().filter_map(|taking| taking.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Counts an arrival as in flight.
    pub(super) fn guard(&self) -> Guard {
        self.in_flight.guard()
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Giving {
    fn forget(&mut self, name: &Name, seat: u64) -> Option<Waker> {
        self.waiting.get_mut(name)?.remove(&seat)
    }

    /// Whoever may come forward, as there are free slots.
    fn next(&mut self) -> Vec<Waker> {
        if !matches!(self.outlook, Outlook::Open) {
            return Vec::new();
        }
        let mut free = WINDOW.saturating_sub(self.away);
        let mut next = Vec::new();
        for name in self.takes.keys() {
            let Some(waiting) = self.waiting.get_mut(name) else { continue };
            while free > 0
                && let Some((_, waker)) = waiting.pop_first()
            {
                next.push(waker);
                free -= 1;
            }
        }
        next
    }
}
