//! What the subject was started with.

use std::path::PathBuf;
use std::time::Duration;

use handover::Builder;
use handover_testkit::{recheck, soon};

/// One state that is handed over: `NAME:VERSION:HOW` on the command line.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) how: How,
}

/// How a state is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Write,
    Place,
    Mixed,
    Json,
    Empty,
    /// So many bytes in place, every page touched.
    Large(u64),
    /// So many bytes, written in pieces.
    Long(u64),
}

/// The settings, by their names on the command line.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    folder: PathBuf,
    pub(crate) early: Vec<Wanted>,
    pub(crate) late: Vec<Wanted>,
    pub(crate) threads: usize,
    /// Started by another subject, only to say who it is.
    pub(crate) nested: bool,
    max_state: Option<u64>,
    ready: Option<Duration>,
    commit: Option<Duration>,
    drain: Option<Duration>,
}

impl Settings {
    pub(crate) fn read() -> Self {
        let mut arguments = std::env::args().skip(1);
        let folder = arguments.next().expect("a folder").into();
        let mut settings = Self { folder, threads: 2, ..Self::default() };
        for argument in arguments {
            let (name, value) = argument.split_once('=').expect("NAME=VALUE");
            let time = || Some(Duration::from_millis(value.parse().expect("milliseconds")));
            match name {
                "early" => settings.early.push(Wanted::parse(value)),
                "late" => settings.late.push(Wanted::parse(value)),
                "threads" => settings.threads = value.parse().expect("a number"),
                "nested" => settings.nested = true,
                "max-state" => settings.max_state = Some(value.parse().expect("a number")),
                "ready" => settings.ready = time(),
                "commit" => settings.commit = time(),
                "drain" => settings.drain = time(),
                _ => panic!("no such setting: {name}"),
            }
        }
        settings
    }

    pub(crate) fn apply(&self, mut builder: Builder) -> Builder {
        if let Some(bytes) = self.max_state {
            builder = builder.max_state_bytes(bytes);
        }
        if let Some(timeout) = self.ready {
            builder = builder.ready_timeout(timeout);
        }
        if let Some(timeout) = self.commit {
            builder = builder.commit_timeout(timeout);
        }
        if let Some(timeout) = self.drain {
            builder = builder.drain_timeout(timeout);
        }
        builder
    }

    /// Waits for a file in the folder.
    pub(crate) fn wait_for_file(&self, name: &str) {
        let path = self.folder.join(name);
        let found = recheck(soon(), || path.exists().then_some(()));
        found.expect("the test writes it");
    }

    /// What this process does differently, if it is a successor.
    pub(crate) fn instructions(&self, is_successor: bool) -> Vec<String> {
        if !is_successor {
            return Vec::new();
        }
        let text = std::fs::read_to_string(self.folder.join("successor")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Wanted {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(':');
        let mut next = || parts.next().expect("NAME:VERSION:HOW");
        let (name, version) = (next().to_owned(), next().parse().expect("a number"));
        let bytes = |digits: &str| digits.parse().expect("a number");
        let how = match next() {
            "write" => How::Write,
            "place" => How::Place,
            "mixed" => How::Mixed,
            "json" => How::Json,
            "empty" => How::Empty,
            other => match other.strip_prefix("large") {
                Some(digits) => How::Large(bytes(digits)),
                None => How::Long(bytes(other.strip_prefix("long").expect("a way to write"))),
            },
        };
        Self { name, version, how }
    }
}
