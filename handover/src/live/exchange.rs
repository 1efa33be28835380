//! The sockets through which connections change hands, as the engine steps them.
//!
//! There is a pair for each handover. One end stays with the predecessor, the other goes to the
//! successor beside the listeners, and on to whoever serves next for as long as somebody has the first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::moving::{
    Batch, MAX_CONNECTIONS_PER_FRAME, Moving, Refused, ToGiver, ToTaker, decode_for_taker,
};
use handover_proto::{Item, MAX_FRAME_BYTES, Name, Violation, decode, encode};

use super::desk::{Desk, Leaving};
use super::{Arrival, Baggage};
use crate::registry::Held;
use crate::sys::channel::{Channel, FRAMES_PER_STEP, Received};
use crate::sys::memfd;
use crate::sys::poll::{Interest, Poller};

/// What the names of the successor's ends begin with, among what is handed over.
const PREFIX: &str = "handover:moving:";

/// The longest frame: a message, and what comes after it.
const MAX_BYTES: usize = 2 * MAX_FRAME_BYTES;

const MAX_DESCRIPTORS: usize = 2 * MAX_CONNECTIONS_PER_FRAME;

/// How long to leave the kernel alone that has too many descriptors of this user in flight.
const QUOTA_PAUSE: Duration = Duration::from_millis(10);

/// Both directions of this process.
#[derive(Debug)]
pub(crate) struct Exchange {
    desk: Arc<Desk>,
    /// Our end of a pair of which the other one is offered to a successor that does not serve yet.
    offer: Option<Channel>,
    giver: Option<Giver>,
    takers: Vec<Taker>,
    buffer: Vec<u8>,
}

/// The way to the successor.
#[derive(Debug)]
struct Giver {
    channel: Channel,
    generation: u64,
    last_frame: u32,
    /// A frame that did not fit.
    unsent: Option<u32>,
    /// What the successor has not said that it has; the frames that are not sent are made of it.
    away: BTreeMap<u32, Vec<Leaving>>,
    retry: Option<Instant>,
    interest: Interest,
}

/// The way from an older generation.
#[derive(Debug)]
struct Taker {
    generation: u64,
    channel: Arc<Channel>,
    told: BTreeSet<Name>,
    unsent: VecDeque<Word>,
    /// What the poller tells of; nothing while there is nothing to do about it: the end of the giver would be
    /// told over and over.
    interest: Option<Interest>,
    is_closed: bool,
}

/// What is to be said.
#[derive(Debug)]
struct Word {
    frame: Vec<u8>,
    /// What is this process's own once it is said.
    arrivals: Vec<(Name, Arrival)>,
}

impl Exchange {
    pub(crate) fn new(desk: &Arc<Desk>) -> Self {
        let (offer, giver, takers) = (None, None, Vec::new());
        Self { desk: Arc::clone(desk), offer, giver, takers, buffer: Vec::new() }
    }

    /// What a successor gets: an end of a new pair, and the ends of older ones.
    pub(crate) fn inventory(&mut self, own_generation: u64) -> Vec<(Item, Held)> {
        self.offer = None;
        let item = |generation, channel| {
            let name = Name::new(format!("{PREFIX}{generation}")).ok()?;
            Some((Item::new(name), Held::Channel(channel)))
        };
        let mut inventory = Vec::new();
        match Channel::pair() {
            Ok((ours, theirs)) => {
                inventory.extend(item(own_generation, Arc::new(theirs)));
                self.offer = Some(ours);
            }
            Err(error) => tracing::warn!(%error, "connections will not change hands"),
        }
        let older = self.takers.iter().filter(|taker| !taker.is_closed);
        inventory.extend(older.filter_map(|t| item(t.generation, Arc::clone(&t.channel))));
        inventory
    }

    /// Takes over what a predecessor handed over, if it is an end.
    pub(crate) fn inherit(&mut self, item: &Item, fd: OwnedFd) -> Option<OwnedFd> {
        let Some(generation) = generation_of(&item.name) else { return Some(fd) };
        let taker = Taker {
            generation,
            channel: Arc::new(Channel::received(fd)),
            told: BTreeSet::new(),
            unsent: VecDeque::new(),
            interest: None,
            is_closed: false,
        };
        self.takers.push(taker);
        None
    }

    /// Has the memory ready that the first frame needs.
    pub(crate) fn reserve(&mut self) {
        self.buffer.resize(MAX_BYTES, 0);
    }

    /// The successor serves for good: connections may go there.
    pub(crate) fn open(&mut self, generation: u64, poller: &Poller) {
        let Some(channel) = self.offer.take() else {
            return self.desk.never("there is no way to the successor");
        };
        let interest = Interest::Read;
        if let Err(error) = poller.add(&channel, interest) {
            tracing::warn!(%error, "connections do not go to the successor");
            return self.desk.never("the kernel refused to watch the way to the successor");
        }
        let (last_frame, unsent, retry) = (0, None, None);
        let away = BTreeMap::new();
        self.giver = Some(Giver { channel, generation, last_frame, unsent, away, retry, interest });
        self.desk.open();
    }

    /// The successor to which it was offered does not come to serve.
    pub(crate) fn withdraw(&mut self) {
        self.offer = None;
    }

    /// No connection goes to another process: there is none that serves.
    pub(crate) fn never(&mut self, reason: &str) {
        self.offer = None;
        self.desk.never(reason);
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.giver.as_ref().and_then(|giver| giver.retry)
    }

    /// Does what can be done without waiting. `is_taking` says whether what older generations give is
    /// this process's to take, `is_over` that it never will be again.
    pub(crate) fn step(&mut self, is_taking: bool, is_over: bool, poller: &Poller) {
        if let Some(giver) = &mut self.giver
            && !giver.step(&self.desk, &mut self.buffer, poller)
        {
            self.give_up(poller);
        }
        self.step_takers(is_taking, is_over, poller);
        // What is still this process's own once that is said is to be gone on with.
        if is_over && self.takers.is_empty() {
            self.desk.close();
        }
    }

    fn step_takers(&mut self, is_taking: bool, is_over: bool, poller: &Poller) {
        if self.takers.is_empty() {
            return;
        }
        let subscriptions = if is_taking { self.desk.subscriptions() } else { Vec::new() };
        let (desk, buffer) = (&self.desk, &mut self.buffer);
        self.takers.retain_mut(|taker| {
            for (name, versions) in &subscriptions {
                if !taker.told.contains(name) {
                    taker.told.insert(name.clone());
                    let (oldest, newest) = (*versions.start(), *versions.end());
                    taker.say(&ToGiver::Takes { name: name.clone(), oldest, newest }, Vec::new());
                }
            }
            // What is said late is said before more is heard: it waits in no memory.
            taker.flush(desk);
            if is_taking && taker.unsent.is_empty() {
                taker.receive(desk, buffer);
            }
            let is_done = taker.unsent.is_empty() && (taker.is_closed || is_over);
            if is_done {
                poller.remove(&*taker.channel);
            } else {
                taker.register(is_taking, poller);
            }
            !is_done
        });
    }

    /// The successor, and whoever came after it, is gone: what it has not taken comes back.
    fn give_up(&mut self, poller: &Poller) {
        let Some(giver) = self.giver.take() else { return };
        poller.remove(&giver.channel);
        let reason = "the successor is gone";
        self.desk.never(reason);
        for leaving in giver.away.into_values().flatten() {
            self.desk.free_slots(1);
            leaving.stays(reason.to_owned());
        }
    }
}

impl Giver {
    /// Returns whether there is somebody at the other end.
    fn step(&mut self, desk: &Desk, buffer: &mut Vec<u8>, poller: &Poller) -> bool {
        if !self.receive(desk, buffer) {
            return false;
        }
        if self.retry.is_none_or(|at| at <= Instant::now()) {
            self.retry = None;
            while self.send(desk) {}
        }
        let waits = self.unsent.is_some() && self.retry.is_none();
        let interest = if waits { Interest::ReadWrite } else { Interest::Read };
        if interest != std::mem::replace(&mut self.interest, interest)
            && let Err(error) = poller.modify(&self.channel, interest)
        {
            tracing::warn!(%error, "the way to the successor is not watched any more");
        }
        true
    }

    fn receive(&mut self, desk: &Desk, buffer: &mut Vec<u8>) -> bool {
        buffer.resize(MAX_BYTES, 0);
        for _ in 0..FRAMES_PER_STEP {
            let message = match self.channel.receive::<0>(buffer) {
                Ok(Received::Frame { bytes, .. }) => decode::<ToGiver>(&buffer[..bytes]),
                Ok(Received::Empty) => return true,
                Ok(Received::Closed) => return false,
                Err(error) => {
                    tracing::warn!(%error, "the way to the successor fails");
                    return false;
                }
            };
            match message {
                Ok(ToGiver::Takes { name, oldest, newest }) => desk.takes(name, oldest..=newest),
                Ok(ToGiver::Taken { frame, refused }) => self.taken(frame, refused, desk),
                // A later version may have more to say.
                Err(Violation::UnknownMessage { name }) => {
                    tracing::debug!(name, "the successor says what is not understood");
                }
                Err(violation) => {
                    tracing::warn!(%violation, "the successor does not say which connections it has");
                }
            }
        }
        true
    }

    fn taken(&mut self, frame: u32, refused: Vec<Refused>, desk: &Desk) {
        let Some(away) = self.away.remove(&frame) else { return };
        let mut refused: BTreeMap<u32, String> =
            refused.into_iter().map(|refused| (refused.index, refused.reason)).collect();
        desk.free_slots(away.len());
        for (index, leaving) in (0..).zip(away) {
            match refused.remove(&index) {
                Some(reason) => leaving.stays(reason),
                None => leaving.left(),
            }
        }
    }

    /// Sends a frame, if there is anything to send; returns whether there may be more.
    fn send(&mut self, desk: &Desk) -> bool {
        let number = match self.unsent.take() {
            Some(number) => number,
            None => {
                let boarded = board(desk);
                if boarded.is_empty() {
                    return false;
                }
                self.last_frame = self.last_frame.wrapping_add(1);
                self.away.insert(self.last_frame, boarded);
                self.last_frame
            }
        };
        let Some(boarded) = self.away.get(&number) else { return true };
        let mut batch = Batch::default();
        boarded.iter().for_each(|leaving| add(&mut batch, leaving));
        let frame = match batch.into_frame(number, self.generation) {
            Ok(frame) => frame,
            Err(violation) => {
                let refused = (0..)
                    .zip(boarded)
                    .map(|(index, _)| Refused { index, reason: violation.to_string() });
                let refused = refused.collect();
                self.taken(number, refused, desk);
                return true;
            }
        };
        let descriptors: Vec<_> = boarded
            .iter()
            .flat_map(|leaving| {
                [Some(leaving.fd.as_fd()), leaving.memory.as_ref().map(AsFd::as_fd)]
            })
            .flatten()
            .collect();
        match self.channel.send(&frame, &descriptors) {
            // If the other end is closed, that will be received.
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => false,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.unsent = Some(number);
                false
            }
            Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                self.unsent = Some(number);
                self.retry = Some(Instant::now() + QUOTA_PAUSE);
                false
            }
            Err(error) => {
                let reason = format!("the kernel refused to send it: {error}");
                let all = 0..u32::try_from(boarded.len()).unwrap_or(u32::MAX);
                let refused = all.map(|index| Refused { index, reason: reason.clone() }).collect();
                self.taken(number, refused, desk);
                true
            }
        }
    }
}

/// What fits a frame of what wants to leave.
fn board(desk: &Desk) -> Vec<Leaving> {
    let (mut batch, mut boarded) = (Batch::default(), Vec::new());
    while let Some(leaving) = desk.board(|moving| batch.has_room_for(moving)) {
        add(&mut batch, &leaving);
        boarded.push(leaving);
    }
    boarded
}

fn add(batch: &mut Batch, leaving: &Leaving) {
    let Leaving { moving, baggage: Baggage { unread, state }, .. } = leaving;
    let inline: &[&[u8]] = if moving.apart { &[] } else { &[unread, state] };
    batch.push(moving.clone(), inline);
}

impl Taker {
    fn say(&mut self, message: &ToGiver, arrivals: Vec<(Name, Arrival)>) {
        // It fails for what is too long for a frame, and none of these is.
        if let Ok(frame) = encode(message) {
            self.unsent.push_back(Word { frame, arrivals });
        }
    }

    /// Says what is to be said. Only then are the connections this process's own.
    fn flush(&mut self, desk: &Desk) {
        while let Some(word) = self.unsent.pop_front() {
            match self.channel.send(&word.frame, &[]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent.push_front(word);
                    return;
                }
                Ok(()) => desk.deliver(word.arrivals),
                // A giver that is gone does not need to hear it.
                Err(e) if is_gone(&e) => desk.deliver(word.arrivals),
                // One that is not goes on with them when it finds the way closed.
                Err(error) => {
                    let generation = self.generation;
                    tracing::warn!(generation, %error, "connections are not taken any more");
                    self.unsent.clear();
                    self.is_closed = true;
                }
            }
        }
    }

    fn receive(&mut self, desk: &Desk, buffer: &mut Vec<u8>) {
        buffer.resize(MAX_BYTES, 0);
        while self.unsent.is_empty() && !self.is_closed {
            match self.channel.receive::<MAX_DESCRIPTORS>(buffer) {
                Ok(Received::Frame { bytes, descriptors, .. }) => {
                    match decode_for_taker(&buffer[..bytes]) {
                        Ok((message, payload)) => self.take(message, payload, descriptors, desk),
                        Err(violation) => {
                            let generation = self.generation;
                            tracing::warn!(generation, %violation, "connections are not taken");
                            // It has the connections of that frame, and is not to wait for ever.
                            self.is_closed = true;
                        }
                    }
                }
                Ok(Received::Empty) => return,
                Ok(Received::Closed) => self.is_closed = true,
                Err(error) => {
                    let generation = self.generation;
                    tracing::warn!(generation, %error, "connections are not taken any more");
                    self.is_closed = true;
                }
            }
        }
    }

    fn take(&mut self, message: ToTaker, payload: &[u8], fds: Vec<OwnedFd>, desk: &Desk) {
        let ToTaker::Connections { frame, generation, connections } = message;
        // The kernel leaves out the last ones if this process may not have more.
        let (mut fds, mut inline) = (fds.into_iter(), payload);
        let (mut arrivals, mut refused) = (Vec::new(), Vec::new());
        for (index, moving) in (0..).zip(connections) {
            let bytes;
            (bytes, inline) = inline.split_at(moving.inline_bytes());
            let fd = fds.next();
            let memory = if moving.apart { fds.next() } else { None };
            match unpack(&moving, fd, memory, bytes, desk) {
                Ok((fd, baggage)) => {
                    let (version, guard) = (moving.version, desk.guard());
                    let arrival = Arrival { baggage, version, generation, fd, guard };
                    arrivals.push((moving.name, arrival));
                }
                Err(reason) => refused.push(Refused { index, reason }),
            }
        }
        if let Some(Refused { reason, .. }) = refused.first() {
            let count = refused.len();
            tracing::warn!(generation, count, reason, "connections are not taken");
        }
        self.say(&ToGiver::Taken { frame, refused }, arrivals);
        self.flush(desk);
    }

    fn register(&mut self, is_taking: bool, poller: &Poller) {
        let interest = match (is_taking, self.unsent.is_empty()) {
            (true, true) => Some(Interest::Read),
            (_, false) => Some(Interest::Write),
            (false, true) => None,
        };
        let before = std::mem::replace(&mut self.interest, interest);
        let changed = match (before, interest) {
            (None, Some(interest)) => poller.add(&*self.channel, interest),
            (Some(before), Some(now)) if before != now => poller.modify(&*self.channel, now),
            (Some(_), None) => {
                poller.remove(&*self.channel);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = changed {
            tracing::warn!(%error, "connections of an older generation are not taken any more");
        }
    }
}

/// Whether this is the error of a socket of which the other end is closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What is this process's to go on with.
///
/// # Errors
///
/// Why it is not, for people.
fn unpack(
    moving: &Moving,
    fd: Option<OwnedFd>,
    memory: Option<OwnedFd>,
    inline: &[u8],
    desk: &Desk,
) -> Result<(OwnedFd, Baggage), String> {
    desk.check(moving)?;
    let fd = fd.ok_or("this process may have no more open files (RLIMIT_NOFILE)")?;
    let mapping;
    let bytes = if moving.apart {
        let memory = memory.ok_or("this process may have no more open files (RLIMIT_NOFILE)")?;
        mapping = memfd::map_sealed(memory.as_fd(), moving.bytes() as u64)
            .map_err(|error| format!("what comes with it cannot be read: {error}"))?;
        &*mapping
    } else {
        inline
    };
    let (unread, state) = bytes.split_at(moving.unread as usize);
    Ok((fd, Baggage { unread: unread.to_vec(), state: state.to_vec() }))
}

/// The number of the generation that has the other end.
fn generation_of(name: &Name) -> Option<u64> {
    name.as_str().strip_prefix(PREFIX)?.parse().ok()
}
