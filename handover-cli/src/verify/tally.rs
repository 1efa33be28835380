//! What became of every request, and who answered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::loss::{Kind, Loss, LostByKind};
use super::timeline::Timeline;

/// The kinds of clients that ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    NewConnection,
    KeepAlive,
    Http2,
    Stream,
}

/// Clients whose connections are meant to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    KeepAlive,
    Http2,
}

/// How the service closed a connection that was meant to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// By `Connection: close` on the answer before, or by GOAWAY.
    Announced,
    Unannounced,
}

/// A request, and the instant from which its latency counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    pub(crate) at: Instant,
    pub(crate) lane: Lane,
}

/// Counts every request once when it is due, and once more when its fate is known.
///
/// It also decides when an upgrade has happened. Only new connections tell, because one that was
/// accepted before the upgrade is rightly served by the old process until it ends. An upgrade has
/// happened when a request on a new connection, due after the upgrade was asked for, is answered by a
/// process that did not answer new connections since the upgrade before. So a service of several
/// processes counts as changed with its first new process, and names may come back in later upgrades.
#[derive(Debug)]
pub(crate) struct Tally {
    counts: Mutex<Counts>,
    changes: watch::Sender<u32>,
}

/// The sums.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) requests: ByLane,
    pub(crate) answered: u64,
    pub(crate) lost: LostByKind,
    /// The first reason of each kind.
    pub(crate) first_reasons: BTreeMap<Kind, String>,
    /// Of the connections in `closes`, those of HTTP/1 that had no request when they ended unannounced.
    pub(crate) idle_closed: u64,
    pub(crate) closes: Closes,
    /// How often a request was sent again that the service had not processed.
    pub(crate) sent_again: u64,
    pub(crate) streams_open_at_end: u64,
    pub(crate) latency: Latency,
    pub(crate) answerers: HashSet<String>,
    /// Kept only if somebody wants to see it.
    pub(crate) timeline: Option<Timeline>,
    epoch: Epoch,
    windows: Windows,
}

/// Requests that were due, by who asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ByLane {
    pub(crate) new_connection: u64,
    pub(crate) keep_alive: u64,
    pub(crate) http2: u64,
    pub(crate) stream: u64,
}

/// Connections that the service closed though they were meant to last, by who held them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closes {
    pub(crate) keep_alive: ClosesOfKind,
    pub(crate) http2: ClosesOfKind,
}

/// How many were announced, and how many were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClosesOfKind {
    pub(crate) announced: u64,
    pub(crate) unannounced: u64,
}

/// Latencies of answers in microseconds, from the instant due to the last byte.
#[derive(Debug)]
pub(crate) struct Latency {
    pub(crate) total: Histogram<u64>,
    /// Of requests that were under way at any moment of an upgrade or of the half second after it.
    pub(crate) upgrade: Histogram<u64>,
    pub(crate) rest: Histogram<u64>,
}

/// Who answered new connections since the last change.
#[derive(Debug, Default)]
struct Epoch {
    began: Option<Instant>,
    answers: HashMap<String, u64>,
    latest: Option<(Instant, String)>,
    asked: Option<Instant>,
}

/// The last span of time that counts as an upgrade.
#[derive(Debug, Default)]
struct Windows {
    latest: Option<(Instant, Option<Instant>)>,
}

/// How long after the change was seen an upgrade may still show in the latencies.
pub(crate) const SETTLING_TIME: Duration = Duration::from_millis(500);

/// More names than this are not kept apart: by then the name is no name of a process.
const MAX_ANSWERERS: usize = 10_000;

impl Tally {
    /// Starts counting for a service that `answerer` was just found to serve.
    pub(crate) fn new(answerer: &str) -> Self {
        let mut counts = Counts::new();
        counts.epoch.begin(Instant::now(), answerer);
        counts.epoch.latest = Some((Instant::now(), answerer.to_owned()));
        Self { counts: Mutex::new(counts), changes: watch::Sender::new(0) }
    }

    /// Keeps the course of things as well.
    pub(crate) fn with_timeline(self, timeline: Timeline) -> Self {
        self.counts().timeline = Some(timeline);
        self
    }

    pub(crate) fn due(&self, lane: Lane) {
        *self.counts().requests.slot(lane) += 1;
    }

    /// Counts an answer whose last byte has just come.
    pub(crate) fn answered(&self, due: Due, identity: String) {
        let now = Instant::now();
        let mut counts = self.counts();
        counts.answered += 1;
        let in_upgrade = counts.windows.overlaps(due.at);
        let latency = now.duration_since(due.at);
        counts.latency.record(latency, in_upgrade);
        if let Some(timeline) = &mut counts.timeline {
            timeline.answered(due.at, latency, &identity);
        }
        let changed = due.lane == Lane::NewConnection && counts.epoch.answer(due.at, &identity);
        if changed {
            counts.windows.close(now + SETTLING_TIME);
            counts.epoch.begin(now, &identity);
            if let Some(timeline) = &mut counts.timeline {
                timeline.upgrade_seen(now);
            }
        }
        if counts.answerers.len() < MAX_ANSWERERS {
            counts.answerers.insert(identity);
        }
        drop(counts);
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Counts a stream that was read to its proper end, or was still open when the load ended.
    /// Its length is the service's choice, so that it is no latency.
    pub(crate) fn streamed(&self, open_at_end: bool) {
        let mut counts = self.counts();
        counts.answered += 1;
        counts.streams_open_at_end += u64::from(open_at_end);
    }

    pub(crate) fn lost(&self, due: Due, loss: Loss) {
        let mut counts = self.counts();
        if let Some(timeline) = &mut counts.timeline {
            timeline.lost(due, Instant::now(), &loss);
        }
        counts.lost.add(loss.kind, 1);
        counts.first_reasons.entry(loss.kind).or_insert_with(|| loss.why.into_owned());
    }

    /// Counts a connection that the service closed though it was meant to last.
    pub(crate) fn closed(&self, kept: Kept, close: Close) {
        *self.counts().closes.slot(kept, close) += 1;
    }

    /// Counts a connection of HTTP/1 that ended unannounced when it had no request.
    pub(crate) fn idle_closed(&self) {
        self.counts().idle_closed += 1;
        self.closed(Kept::KeepAlive, Close::Unannounced);
    }

    /// Counts that a request goes out once more, because the service has not processed it.
    pub(crate) fn sent_again(&self) {
        self.counts().sent_again += 1;
    }

    /// Notes that an upgrade is asked for; the receiver gets a new value when it has happened.
    pub(crate) fn upgrade_asked(&self) -> watch::Receiver<u32> {
        let mut changes = self.changes.subscribe();
        let now = Instant::now();
        let mut counts = self.counts();
        counts.epoch.asked = Some(now);
        counts.windows.open(now);
        if let Some(timeline) = &mut counts.timeline {
            timeline.upgrade_asked(now);
        }
        changes.mark_unchanged();
        changes
    }

    /// Notes that the upgrade was given up.
    pub(crate) fn upgrade_given_up(&self) {
        let mut counts = self.counts();
        let now = Instant::now();
        counts.epoch.asked = None;
        counts.windows.close(now + SETTLING_TIME);
        if let Some(timeline) = &mut counts.timeline {
            timeline.upgrade_given_up(now);
        }
    }

    /// The process that answered the youngest request on a new connection.
    pub(crate) fn latest_answerer(&self) -> Option<String> {
        self.counts().epoch.latest.as_ref().map(|(_, identity)| identity.clone())
    }

    /// Says whether nearly every answer bears another name, as a counter or a clock would.
    pub(crate) fn names_no_process(&self) -> bool {
        const ENOUGH: usize = 64;
        let counts = self.counts();
        let names = counts.epoch.answers.len();
        let answers = counts.epoch.answers.values().sum::<u64>();
        names >= ENOUGH && names as u64 * 2 > answers
    }

    /// Answered and lost so far.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let counts = self.counts();
        (counts.answered, counts.lost.sum())
    }

    /// Closes the books: a request without a fate is counted as lost.
    pub(crate) fn close(&self) -> Counts {
        let mut counts = std::mem::replace(&mut *self.counts(), Counts::new());
        let known = counts.answered + counts.lost.sum();
        let missing = counts.requests.sum().saturating_sub(known);
        if missing > 0 {
            counts.lost.add(Kind::Other, missing);
            let why = "not accounted for, which is a fault of this command".to_owned();
            counts.first_reasons.entry(Kind::Other).or_insert(why);
        }
        counts
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Counters stay counters, whoever panicked between two of them.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn new() -> Self {
        Self {
            requests: ByLane::default(),
            answered: 0,
            lost: LostByKind::default(),
            first_reasons: BTreeMap::new(),
            idle_closed: 0,
            closes: Closes::default(),
            sent_again: 0,
            streams_open_at_end: 0,
            latency: Latency { total: histogram(), upgrade: histogram(), rest: histogram() },
            answerers: HashSet::new(),
            timeline: None,
            epoch: Epoch::default(),
            windows: Windows::default(),
        }
    }
}

impl ByLane {
    pub(crate) fn sum(self) -> u64 {
        self.new_connection + self.keep_alive + self.http2 + self.stream
    }

    fn slot(&mut self, lane: Lane) -> &mut u64 {
        match lane {
            Lane::NewConnection => &mut self.new_connection,
            Lane::KeepAlive => &mut self.keep_alive,
            Lane::Http2 => &mut self.http2,
            Lane::Stream => &mut self.stream,
        }
    }
}

impl Closes {
    pub(crate) fn sum(self) -> u64 {
        self.keep_alive.sum() + self.http2.sum()
    }

    fn slot(&mut self, kept: Kept, close: Close) -> &mut u64 {
        let of_kind = match kept {
            Kept::KeepAlive => &mut self.keep_alive,
            Kept::Http2 => &mut self.http2,
        };
        match close {
            Close::Announced => &mut of_kind.announced,
            Close::Unannounced => &mut of_kind.unannounced,
        }
    }
}

impl ClosesOfKind {
    pub(crate) fn sum(self) -> u64 {
        self.announced + self.unannounced
    }
}

impl Latency {
    fn record(&mut self, latency: Duration, in_upgrade: bool) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.total.saturating_record(micros);
        let part = if in_upgrade { &mut self.upgrade } else { &mut self.rest };
        part.saturating_record(micros);
    }
}

impl Epoch {
    /// Takes note of an answer; true if it shows that the upgrade has happened.
    fn answer(&mut self, due: Instant, identity: &str) -> bool {
        if self.latest.as_ref().is_none_or(|(latest, _)| *latest <= due) {
            self.latest = Some((due, identity.to_owned()));
        }
        if let Some(asked) = self.asked {
            // A request that was due before the asking may be answered by either side.
            return due >= asked && !self.answers.contains_key(identity);
        }
        // A straggler from before the last change does not tell who serves since.
        let is_of_epoch = self.began.is_none_or(|began| due >= began);
        if is_of_epoch && self.answers.len() < MAX_ANSWERERS {
            *self.answers.entry(identity.to_owned()).or_default() += 1;
        }
        false
    }

    fn begin(&mut self, now: Instant, identity: &str) {
        self.began = Some(now);
        self.asked = None;
        self.answers = HashMap::from([(identity.to_owned(), 1)]);
    }
}

impl Windows {
    fn open(&mut self, start: Instant) {
        self.latest = Some((start, None));
    }

    fn close(&mut self, end: Instant) {
        if let Some((_, latest_end)) = &mut self.latest {
            *latest_end = Some(end);
        }
    }

    /// Says whether a request that was due then and is answered now touches an upgrade.
    ///
    /// The last window suffices: it has begun by now, so that a request which touches an earlier one
    /// and not the last cannot be answered after the last has begun.
    fn overlaps(&self, due: Instant) -> bool {
        self.latest.is_some_and(|(_, end)| end.is_none_or(|end| due <= end))
    }
}

fn histogram() -> Histogram<u64> {
    // From 1 µs to an hour, to a tenth of a percent.
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(tally: &Tally, at: Instant, name: &str) {
        tally.due(Lane::NewConnection);
        tally.answered(Due { at, lane: Lane::NewConnection }, name.to_owned());
    }

    #[test]
    fn a_name_that_did_not_serve_since_the_last_change_is_a_change() {
        let tally = Tally::new("1");
        for name in ["2", "1", "2"] {
            let changes = tally.upgrade_asked();
            answer(&tally, Instant::now(), name);
            assert!(changes.has_changed().unwrap(), "{name}");
        }
    }

    #[test]
    fn an_answer_to_a_request_from_before_the_asking_proves_nothing() {
        let tally = Tally::new("1");
        let before = Instant::now();
        let changes = tally.upgrade_asked();
        answer(&tally, before, "2");
        assert!(!changes.has_changed().unwrap());
        answer(&tally, Instant::now(), "2");
        assert!(changes.has_changed().unwrap());
    }

    #[test]
    fn the_other_workers_of_one_generation_are_no_change() {
        let tally = Tally::new("1");
        ["1", "2", "3"].into_iter().for_each(|name| answer(&tally, Instant::now(), name));
        let changes = tally.upgrade_asked();
        ["3", "1", "2"].into_iter().for_each(|name| answer(&tally, Instant::now(), name));
        assert!(!changes.has_changed().unwrap());
    }

    #[test]
    fn a_kept_connection_answered_by_another_process_is_no_change() {
        let tally = Tally::new("1");
        let changes = tally.upgrade_asked();
        tally.answered(Due { at: Instant::now(), lane: Lane::KeepAlive }, "2".to_owned());
        assert!(!changes.has_changed().unwrap());
    }

    #[test]
    fn latencies_are_told_apart_by_the_upgrade_they_touch() {
        let tally = Tally::new("1");
        let before = Instant::now();
        answer(&tally, before, "1");
        let _changes = tally.upgrade_asked();
        answer(&tally, before, "1");
        answer(&tally, Instant::now(), "2");
        let settled = Instant::now() + SETTLING_TIME * 2;
        answer(&tally, settled, "2");
        let latency = tally.close().latency;
        assert_eq!((latency.upgrade.len(), latency.rest.len(), latency.total.len()), (2, 2, 4));
    }

    #[test]
    fn a_request_without_a_fate_is_lost() {
        let tally = Tally::new("1");
        tally.due(Lane::KeepAlive);
        assert_eq!(tally.close().lost.other, 1);
    }

    #[test]
    fn a_counter_is_no_name_of_a_process() {
        let tally = Tally::new("1");
        (0..100).for_each(|number| answer(&tally, Instant::now(), &number.to_string()));
        assert!(tally.names_no_process());
    }
}
