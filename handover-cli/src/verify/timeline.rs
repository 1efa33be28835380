//! The course of a test: who answered when, how fast, and what was lost, in bounded memory.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::loss::Loss;
use super::tally::{Due, Lane};

/// What happened over time, each request at the instant it was due.
///
/// Requests are not kept but counted in buckets, whose width doubles whenever the test outgrows them.
#[derive(Debug)]
pub(crate) struct Timeline {
    began: Instant,
    buckets: Buckets,
    processes: HashMap<String, Process>,
    pub(crate) losses: Vec<LostRequest>,
    /// How many were lost after those that are listed.
    pub(crate) losses_not_listed: u64,
    pub(crate) upgrades: Vec<Mark>,
}

/// Equal spans of time, from the start of the test.
#[derive(Clone, Debug)]
pub(crate) struct Buckets {
    pub(crate) width: Duration,
    /// The last may be wider or less wide than the others, up to the half.
    pub(crate) all: Vec<Bucket>,
    /// The latest instant that was counted.
    pub(crate) end: Duration,
}

/// The requests that were due in one span of time.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub(crate) answered: BTreeMap<Process, u64>,
    pub(crate) lost: u64,
    /// In microseconds, to a tenth.
    pub(crate) latency: Histogram<u32>,
}

/// The number of an answering process, from 1, in order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process(pub(crate) u32);

/// A request without a proper answer.
#[derive(Clone, Debug)]
pub(crate) struct LostRequest {
    pub(crate) due: Duration,
    /// When it was known to be lost.
    pub(crate) ended: Duration,
    pub(crate) lane: Lane,
    pub(crate) loss: Loss,
}

/// An upgrade, from the asking to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) asked: Duration,
    pub(crate) end: End,
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Seen(Duration),
    GivenUp(Duration),
    /// The test ended first.
    Open,
}

/// Where an instant lies among the upgrades, which are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Before { upgrade: usize, left: Duration },
    During { upgrade: usize, since_asked: Duration },
    After { upgrade: usize, since_end: Duration, was_seen: bool },
    NoUpgrade,
}

const FIRST_WIDTH: Duration = Duration::from_millis(20);
/// A bucket takes some 2 kB, most of it for the latencies.
const MAX_BUCKETS: usize = 512;
/// Later ones share the last number: by then a picture cannot tell them apart.
const MAX_PROCESSES: u32 = 2_000;
const MAX_LISTED: usize = 200;

impl Timeline {
    /// Begins, with `answerer` as the first process.
    pub(crate) fn new(began: Instant, answerer: &str) -> Self {
        Self {
            began,
            buckets: Buckets { width: FIRST_WIDTH, all: Vec::new(), end: Duration::ZERO },
            processes: HashMap::from([(answerer.to_owned(), Process(1))]),
            losses: Vec::new(),
            losses_not_listed: 0,
            upgrades: Vec::new(),
        }
    }

    pub(crate) fn answered(&mut self, due: Instant, latency: Duration, identity: &str) {
        let process = self.process(identity);
        let bucket = self.buckets.at(due.saturating_duration_since(self.began));
        *bucket.answered.entry(process).or_default() += 1;
        bucket.latency.saturating_record(micros(latency));
    }

    pub(crate) fn lost(&mut self, due: Due, now: Instant, loss: &Loss) {
        let since_began = |at: Instant| at.saturating_duration_since(self.began);
        let (lane, loss) = (due.lane, loss.clone());
        let lost = LostRequest { due: since_began(due.at), ended: since_began(now), lane, loss };
        self.buckets.at(lost.at()).lost += 1;
        if self.losses.len() < MAX_LISTED {
            self.losses.push(lost);
        } else {
            self.losses_not_listed += 1;
        }
    }

    pub(crate) fn upgrade_asked(&mut self, now: Instant) {
        let asked = now.saturating_duration_since(self.began);
        self.upgrades.push(Mark { asked, end: End::Open });
    }

    pub(crate) fn upgrade_seen(&mut self, now: Instant) {
        self.end_upgrade(End::Seen(now.saturating_duration_since(self.began)));
    }

    pub(crate) fn upgrade_given_up(&mut self, now: Instant) {
        self.end_upgrade(End::GivenUp(now.saturating_duration_since(self.began)));
    }

    /// The buckets, put together so that there are no more than `at_most`.
    pub(crate) fn buckets(&self, at_most: usize) -> Buckets {
        let mut buckets = self.buckets.clone();
        buckets.join(buckets.all.len().div_ceil(at_most.max(1)).max(1));
        buckets.join_the_stub();
        buckets
    }

    /// Says where an instant lies: in an upgrade, or else by the nearest end of one.
    pub(crate) fn place(&self, at: Duration) -> Place {
        let begun = self.upgrades.partition_point(|mark| mark.asked <= at);
        let before = self.upgrades.get(begun).map(|next| (next.asked - at, begun + 1));
        let Some(last) = begun.checked_sub(1).and_then(|last| self.upgrades.get(last)) else {
            return before
                .map_or(Place::NoUpgrade, |(left, upgrade)| Place::Before { upgrade, left });
        };
        let (end, was_seen) = match last.end {
            End::Seen(end) => (end, true),
            End::GivenUp(end) => (end, false),
            End::Open => (Duration::MAX, false),
        };
        match (at.checked_sub(end), before) {
            (None, _) => Place::During { upgrade: begun, since_asked: at - last.asked },
            (Some(since_end), Some((left, upgrade))) if left < since_end => {
                Place::Before { upgrade, left }
            }
            (Some(since_end), _) => Place::After { upgrade: begun, since_end, was_seen },
        }
    }

    fn process(&mut self, identity: &str) -> Process {
        if let Some(process) = self.processes.get(identity) {
            return *process;
        }
        let next = Process(self.processes.len() as u32 + 1);
        if next.0 < MAX_PROCESSES {
            self.processes.insert(identity.to_owned(), next);
        }
        next
    }

    fn end_upgrade(&mut self, end: End) {
        // A stop may come between the answer that shows an upgrade and the waiting for it.
        if let Some(mark) = self.upgrades.last_mut().filter(|mark| mark.end == End::Open) {
            mark.end = end;
        }
    }
}

impl LostRequest {
    /// Where it belongs on the line of time: a stream to the instant it broke, any other request to
    /// the instant it was due.
    pub(crate) fn at(&self) -> Duration {
        match self.lane {
            Lane::Stream => self.ended,
            Lane::NewConnection | Lane::KeepAlive | Lane::Http2 => self.due,
        }
    }
}

impl Buckets {
    /// How many requests were counted.
    pub(crate) fn requests(&self) -> u64 {
        let of_bucket = |bucket: &Bucket| bucket.answered.values().sum::<u64>() + bucket.lost;
        self.all.iter().map(of_bucket).sum()
    }

    fn at(&mut self, instant: Duration) -> &mut Bucket {
        while self.index(instant) >= MAX_BUCKETS {
            self.join(2);
        }
        let index = self.index(instant);
        if index >= self.all.len() {
            self.all.resize_with(index + 1, Bucket::new);
        }
        self.end = self.end.max(instant);
        &mut self.all[index]
    }

    fn index(&self, instant: Duration) -> usize {
        usize::try_from(instant.as_nanos() / self.width.as_nanos()).unwrap_or(usize::MAX)
    }

    /// Makes one of each `count` buckets.
    fn join(&mut self, count: usize) {
        let joined = self.all.chunks_mut(count).map(|buckets| {
            let (first, others) = buckets.split_first_mut().expect("a chunk is not empty");
            let mut sum = std::mem::replace(first, Bucket::new());
            others.iter().for_each(|other| sum.add(other));
            sum
        });
        self.all = joined.collect();
        self.width = self.width.saturating_mul(count as u32);
    }

    /// Adds the last bucket to the one before if the test ended in its first half: it is too short to
    /// tell a rate.
    fn join_the_stub(&mut self) {
        let Some(last) = self.all.len().checked_sub(1).filter(|last| *last > 0) else { return };
        if self.end.saturating_sub(self.width * last as u32) < self.width / 2 {
            let stub = self.all.pop().expect("there are two");
            self.all[last - 1].add(&stub);
        }
    }
}

impl Bucket {
    fn new() -> Self {
        // From 1 µs to an hour. One digit draws a line well, and keeps a bucket small.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000, 1);
        Self {
            answered: BTreeMap::new(),
            lost: 0,
            latency: latency.expect("the bounds are in order"),
        }
    }

    fn add(&mut self, other: &Self) {
        for (process, count) in &other.answered {
            *self.answered.entry(*process).or_default() += count;
        }
        self.lost += other.lost;
        self.latency.add(&other.latency).expect("all have the same bounds");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::loss::Kind;

    const MS: Duration = Duration::from_millis(1);

    fn timeline() -> (Instant, Timeline) {
        let began = Instant::now();
        (began, Timeline::new(began, "a"))
    }

    fn lose(timeline: &mut Timeline, lane: Lane, due: Instant, ended: Instant) {
        timeline.lost(Due { at: due, lane }, ended, &Loss::new(Kind::Cut, "why"));
    }

    #[test]
    fn processes_are_numbered_as_they_appear() {
        let (began, mut timeline) = timeline();
        for identity in ["a", "b", "a", "c"] {
            timeline.answered(began, MS, identity);
        }
        let buckets = timeline.buckets(100);
        let counts: Vec<_> = buckets.all[0].answered.iter().map(|(p, n)| (p.0, *n)).collect();
        assert_eq!(counts, [(1, 2), (2, 1), (3, 1)]);
    }

    #[test]
    fn a_request_counts_when_it_was_due_however_late_its_answer() {
        let (began, mut timeline) = timeline();
        timeline.answered(began + 90 * MS, MS, "a");
        timeline.answered(began + 10 * MS, 500 * MS, "a");
        let buckets = timeline.buckets(100);
        let counts: Vec<_> = buckets.all.iter().map(|bucket| bucket.latency.len()).collect();
        assert_eq!(counts, [1, 0, 0, 0, 1]);
        assert!(buckets.all[0].latency.max() >= 500_000);
    }

    #[test]
    fn a_test_that_outgrows_its_buckets_loses_no_count() {
        let (began, mut timeline) = timeline();
        let hours = 3;
        for second in 0..hours * 3600 {
            timeline.answered(began + Duration::from_secs(second), MS, "a");
        }
        assert!(timeline.buckets.all.len() <= MAX_BUCKETS);
        for at_most in [1, 7, 100, 1000] {
            let buckets = timeline.buckets(at_most);
            assert!(buckets.all.len() <= at_most);
            assert!(buckets.width * (buckets.all.len() as u32 + 1) > buckets.end);
            let total = buckets.all.iter().map(|bucket| bucket.answered[&Process(1)]).sum::<u64>();
            assert_eq!(total, hours * 3600);
            assert_eq!(buckets.all.iter().map(|b| b.latency.len()).sum::<u64>(), hours * 3600);
        }
    }

    #[test]
    fn no_more_names_and_losses_are_kept_than_a_picture_can_show() {
        let (began, mut timeline) = timeline();
        for number in 0..u64::from(MAX_PROCESSES) * 2 {
            timeline.answered(began, MS, &number.to_string());
            lose(&mut timeline, Lane::KeepAlive, began, began);
        }
        assert!(timeline.buckets(1).all[0].answered.len() <= MAX_PROCESSES as usize);
        assert_eq!(timeline.losses.len(), MAX_LISTED);
        let lost = u64::from(MAX_PROCESSES) * 2;
        assert_eq!(timeline.losses.len() as u64 + timeline.losses_not_listed, lost);
        assert_eq!(timeline.buckets(1).all[0].lost, lost);
    }

    #[test]
    fn a_stream_is_lost_when_it_breaks_and_another_request_when_it_was_due() {
        let (began, mut timeline) = timeline();
        for lane in [Lane::NewConnection, Lane::KeepAlive, Lane::Stream] {
            lose(&mut timeline, lane, began + MS, began + 70 * MS);
        }
        let lost: Vec<_> = timeline.buckets(100).all.iter().map(|bucket| bucket.lost).collect();
        assert_eq!(lost, [2, 0, 0, 1]);
    }

    #[test]
    fn an_instant_is_placed_by_the_nearest_upgrade() {
        let (began, mut timeline) = timeline();
        assert_eq!(timeline.place(MS), Place::NoUpgrade);
        timeline.upgrade_asked(began + 100 * MS);
        timeline.upgrade_seen(began + 120 * MS);
        timeline.upgrade_asked(began + 200 * MS);
        timeline.upgrade_given_up(began + 220 * MS);
        timeline.upgrade_asked(began + 300 * MS);

        let place = |ms| timeline.place(ms * MS);
        assert_eq!(place(90), Place::Before { upgrade: 1, left: 10 * MS });
        assert_eq!(place(105), Place::During { upgrade: 1, since_asked: 5 * MS });
        let after = |upgrade, ms, was_seen| Place::After { upgrade, since_end: ms * MS, was_seen };
        assert_eq!(place(130), after(1, 10, true));
        assert_eq!(place(190), Place::Before { upgrade: 2, left: 10 * MS });
        assert_eq!(place(221), after(2, 1, false));
        assert_eq!(place(900), Place::During { upgrade: 3, since_asked: 600 * MS });
    }

    #[test]
    fn what_is_seen_after_it_was_given_up_stays_given_up() {
        let (began, mut timeline) = timeline();
        timeline.upgrade_asked(began);
        timeline.upgrade_given_up(began + MS);
        timeline.upgrade_seen(began + 2 * MS);
        assert_eq!(timeline.upgrades, [Mark { asked: Duration::ZERO, end: End::GivenUp(MS) }]);
    }
}
