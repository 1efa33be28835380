//! Inputs for fuzz targets, the same ones in every run.

use std::fs;
use std::path::Path;

/// The longest input that is made, in bytes: a bit more than the longest frame or line.
const MAX_BYTES: usize = 80 * 1024;

/// How many changes one input differs by at most.
const MAX_CHANGES: usize = 4;

/// What is put where something else was: borders of numbers, and what begins or ends something.
const TOKENS: &[&[u8]] = &[
    b"-1",
    b"0",
    b"1",
    b"255",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e9",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b"\"\"",
    b"\\u0000",
    b"\xff",
    b"\xc3\xa4",
    b"\0",
    b"\n",
    b":",
    b"|",
    b"%",
    b"%2",
    b"+3",
    b" ",
];

/// Gives a target each file of a corpus, and then so many inputs that are made from those.
///
/// They are made by a generator with a fixed seed: bytes are changed, cut out, doubled and taken from
/// another file, and lines likewise. It is no fuzzer, for it learns nothing of what an input
/// reaches; it keeps what a fuzzer has found from coming back. An input on which the target panics is
/// printed, to be put into the corpus.
///
/// # Panics
///
/// If the target does, or if there is no corpus.
#[track_caller]
pub fn feed(corpus: &Path, made: usize, target: impl Fn(&[u8])) {
    let mut files: Vec<_> = fs::read_dir(corpus)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<_, _>>())
        .unwrap_or_else(|error| panic!("no corpus {}: {error}", corpus.display()));
    // The order of a directory differs between machines.
    files.sort();
    let read = |path| fs::read(path).expect("a file of the corpus can be read");
    let seeds: Vec<Vec<u8>> = files.iter().map(read).collect();
    assert!(!seeds.is_empty(), "{} is empty", corpus.display());
    for seed in &seeds {
        try_on(seed, &target);
    }
    let mut random = Random(0);
    for _ in 0..made {
        try_on(&random.input(&seeds), &target);
    }
}

fn try_on(input: &[u8], target: impl Fn(&[u8])) {
    let shown = ShownIfItPanics(input);
    target(input);
    drop(shown);
}

struct ShownIfItPanics<'a>(&'a [u8]);

impl Drop for ShownIfItPanics<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the target panicked on b\"{}\"", self.0.escape_ascii());
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("below a usize")
    }

    /// A number below the bound that is mostly small: what is long takes long.
    fn rarely_large(&mut self, bound: usize) -> usize {
        let below = if self.below(32) == 0 { bound } else { bound / 3 };
        self.below(below)
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// A part of something.
    fn part<'a>(&mut self, of: &'a [u8]) -> &'a [u8] {
        let from = self.below(of.len() + 1);
        let most = (of.len() - from).min(64);
        &of[from..from + self.below(most + 1)]
    }

    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let seeds: Vec<&[u8]> = seeds.iter().map(Vec::as_slice).collect();
        let mut input = self.pick(&seeds).to_vec();
        for _ in 0..=self.below(MAX_CHANGES) {
            let other = self.pick(&seeds);
            if self.below(2) == 0 {
                self.change_bytes(&mut input, other);
            } else {
                self.change_lines(&mut input, other);
            }
            input.truncate(MAX_BYTES);
        }
        input
    }

    fn change_bytes(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.below(input.len() + 1);
        let end = at + self.below((input.len() - at).min(16) + 1);
        match self.below(7) {
            0 if at < input.len() => input[at] = self.next() as u8,
            1 if at < input.len() => input[at] ^= 1 << self.below(8),
            2 => input.truncate(at),
            3 => drop(input.drain(at..end)),
            4 => drop(input.splice(at..end, self.part(other).iter().copied())),
            5 => {
                let run = [self.next() as u8].repeat(1 << self.rarely_large(17));
                input.splice(at..at, run);
            }
            _ => drop(input.splice(at..end, self.pick(TOKENS).iter().copied())),
        }
    }

    fn change_lines(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let theirs: Vec<&[u8]> = other.split(|byte| *byte == b'\n').collect();
        let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        let at = self.below(lines.len());
        match self.below(5) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at]),
            2 => lines.insert(at, self.pick(&theirs)),
            3 => {
                let with = self.below(lines.len());
                lines.swap(at, with);
            }
            _ => lines.extend(std::iter::repeat_n(lines[at], 1 << self.rarely_large(11))),
        }
        *input = lines.join(&b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::Folder;

    #[test]
    fn a_target_gets_each_file_and_the_same_inputs_in_every_run() {
        let folder = Folder::create();
        folder.write("b", "two\nlines");
        folder.write("a", "one line");
        let run = || {
            let inputs = RefCell::new(Vec::new());
            feed(folder.path(), 500, |input| inputs.borrow_mut().push(input.to_vec()));
            inputs.into_inner()
        };
        let inputs = run();
        assert_eq!(inputs[..2], [b"one line".to_vec(), b"two\nlines".to_vec()]);
        assert_eq!(inputs.len(), 502);
        assert_eq!(inputs, run());
        let different: std::collections::BTreeSet<_> = inputs.iter().collect();
        assert!(different.len() > 300, "{}", different.len());
    }
}
