//! What was measured, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::{GIB, HEAPS};

/// The ways to start a process, with what is timed of each.
const WAYS: [(&str, &str, &[&str]); 3] = [
    ("posix_spawn", "posix_spawn", &["in the call", "to its first word"]),
    ("fork", "fork + exec", &["in the call", "to its first word"]),
    ("upgrade", "upgrade", &["in the call", "to its first word", "in total"]),
];

/// Times by way, what is timed of it, and heap.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<(String, usize, u64), Vec<Duration>>);

impl Samples {
    /// Takes a line of a service down, if it is a sample.
    pub(crate) fn take(&mut self, heap_bytes: u64, line: &str) {
        let mut words = line.split(' ');
        if words.next() != Some("sample") {
            return;
        }
        let way = words.next().unwrap_or_default();
        for (what, word) in words.enumerate() {
            let time = Duration::from_nanos(word.parse().expect("nanoseconds"));
            self.0.entry((way.to_owned(), what, heap_bytes)).or_default().push(time);
        }
    }

    fn share(&self, way: &str, what: usize, heap: u64, share: f64) -> f64 {
        let mut times = self.0.get(&(way.to_owned(), what, heap)).cloned().unwrap_or_default();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        times.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<12} {:<18} {:>6} {:>4} {:>10} {:>21} {:>8} {:>8}",
            "", "", "heap", "n", "median", "p10 to p90", "of 0", "of floor"
        )?;
        for (way, shown, timed) in WAYS {
            for (what, name) in timed.iter().enumerate() {
                for heap in HEAPS {
                    let n = self.0.get(&(way.to_owned(), what, heap)).map_or(0, Vec::len);
                    let at = |share| self.share(way, what, heap, share);
                    let none = self.share(way, what, 0, 0.5);
                    // An upgrade does more than start a process: it is held against the latter.
                    let floor = self.share("posix_spawn", what.min(1), heap, 0.5);
                    writeln!(
                        f,
                        "{shown:<12} {name:<18} {:>2} GiB {n:>4} {:>7.3} ms {:>7.3} to {:>7.3} ms \
                         {:>7.2}x {:>7.2}x",
                        heap / GIB,
                        at(0.5),
                        at(0.1),
                        at(0.9),
                        at(0.5) / none,
                        at(0.5) / floor,
                    )?;
                }
            }
        }
        Ok(())
    }
}
