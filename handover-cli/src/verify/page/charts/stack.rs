//! Layers on top of each other: one for each process that answered, and what was lost above them.

use std::collections::BTreeMap;
use std::fmt;

use super::Column;
use crate::verify::timeline::Process;

/// What a layer counts, from bottom to top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    Answered(Process),
    Lost,
}

/// A layer over columns that lie side by side.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) layer: Layer,
    first_column: usize,
    /// The corners of the upper edge, in seconds and requests per second.
    pub(super) tops: Vec<(f64, f64)>,
    bottoms: Vec<(f64, f64)>,
}

impl Run {
    /// The polygon around it.
    pub(super) fn outline(&self) -> Vec<(f64, f64)> {
        self.tops.iter().copied().chain(self.bottoms.iter().rev().copied()).collect()
    }

    fn push(&mut self, column: &Column<'_>, low: f64, high: f64) {
        self.tops.extend([(column.from, high), (column.to, high)]);
        self.bottoms.extend([(column.from, low), (column.to, low)]);
    }

    fn len(&self) -> usize {
        self.tops.len() / 2
    }

    /// The edges of its n-th column.
    fn edges(&self, nth: usize) -> (f64, f64) {
        (self.bottoms[nth * 2].1, self.tops[nth * 2].1)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(process) => write!(f, "{}", process.0),
            Self::Lost => write!(f, "lost"),
        }
    }
}

pub(super) fn runs(columns: &[Column<'_>]) -> Vec<Run> {
    let mut open: BTreeMap<Layer, Run> = BTreeMap::new();
    let mut done = Vec::new();
    for (number, column) in columns.iter().enumerate() {
        let mut low = 0.0;
        for (layer, rate) in layers(column) {
            let high = low + rate;
            let is_continued = |run: &Run| run.first_column + run.len() == number;
            if !open.get(&layer).is_some_and(is_continued) {
                let run = Run { layer, first_column: number, tops: vec![], bottoms: vec![] };
                done.extend(open.insert(layer, run));
            }
            open.entry(layer).and_modify(|run| run.push(column, low, high));
            low = high;
        }
    }
    done.extend(open.into_values());
    done
}

/// The number of each process, in the middle of the longest time in which it gave most answers.
///
/// Left out where there is no room for it.
pub(super) fn labels<'a>(
    runs: &'a [Run],
    columns: &[Column<'_>],
    end: f64,
    width: u32,
    top: f64,
) -> Vec<(&'a Run, (f64, f64))> {
    const ROOM: f64 = 20.0;
    let totals: Vec<f64> = columns.iter().map(|column| total(column)).collect();
    let mut best: BTreeMap<Layer, (f64, &Run, (f64, f64))> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.layer != Layer::Lost) {
        let has_most = |nth: usize| {
            let (low, high) = run.edges(nth);
            high - low > totals[run.first_column + nth] / 2.0 && high - low > top / 10.0
        };
        let mut nth = 0;
        while nth < run.len() {
            let stretch = (nth..run.len()).take_while(|nth| has_most(*nth)).count();
            if stretch > 0 {
                let (from, to) = (run.tops[nth * 2].0, run.tops[(nth + stretch) * 2 - 1].0);
                let (low, high) = run.edges(nth + stretch / 2);
                let place = (f64::midpoint(from, to), f64::midpoint(low, high));
                let has_room = (to - from) / end * f64::from(width) >= ROOM;
                let is_longer = best.get(&run.layer).is_none_or(|(long, ..)| to - from > *long);
                if has_room && is_longer {
                    best.insert(run.layer, (to - from, run, place));
                }
            }
            nth += stretch.max(1);
        }
    }
    best.into_values().map(|(_, run, place)| (run, place)).collect()
}

fn layers<'a>(column: &'a Column<'_>) -> impl Iterator<Item = (Layer, f64)> + 'a {
    let seconds = column.to - column.from;
    let answered =
        column.bucket.answered.iter().map(|(process, count)| (Layer::Answered(*process), *count));
    let lost = (column.bucket.lost > 0).then_some((Layer::Lost, column.bucket.lost));
    answered.chain(lost).map(move |(layer, count)| (layer, count as f64 / seconds))
}

fn total(column: &Column<'_>) -> f64 {
    layers(column).map(|(_, rate)| rate).sum()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::verify::timeline::Timeline;

    #[test]
    fn layers_lie_on_each_other_and_end_with_their_process() {
        let began = Instant::now();
        let mut timeline = Timeline::new(began, "a");
        // 20 ms each: one column with a, one with both, one with b, and a comes back.
        for (at, name) in [(0, "a"), (20, "a"), (21, "b"), (40, "b"), (60, "a"), (79, "a")] {
            timeline.answered(began + Duration::from_millis(at), Duration::ZERO, name);
        }
        let buckets = timeline.buckets(100);
        let columns = super::super::columns(&buckets);
        let runs = runs(&columns);

        let shape = |run: &Run| (run.layer.to_string(), run.first_column, run.len());
        let mut shapes: Vec<_> = runs.iter().map(shape).collect();
        shapes.sort();
        let named = |name: &str, first, len| (name.to_owned(), first, len);
        assert_eq!(shapes, [named("1", 0, 2), named("1", 3, 1), named("2", 1, 2)]);

        let b = runs.iter().find(|run| run.layer == Layer::Answered(Process(2))).unwrap();
        let rounded = |(low, high): (f64, f64)| (low.round(), high.round());
        assert_eq!(rounded(b.edges(0)), (50.0, 100.0), "on top of a");
        assert_eq!(rounded(b.edges(1)), (0.0, 50.0));
        assert_eq!(b.outline().len(), 8);
    }
}
