//! Descriptors that systemd has started this process with (sd_listen_fds(3)).

use std::ffi::OsStr;
use std::os::fd::{OwnedFd, RawFd};

use handover_proto::{MAX_DESCRIPTORS, Name};

use super::store::{Entry, Stored};
use crate::sys::environment::take;
use crate::sys::inherited::adopt;
use crate::sys::process::own_pidfd_id;

/// The number of the first one (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// What has no name is called so.
const UNNAMED: &str = "unknown";

/// What systemd has passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// In the order in which it passes them: by unit, and in a unit as its lines are.
    pub(crate) sockets: Vec<(Name, OwnedFd)>,
    /// What a generation before has left there.
    pub(crate) stored: Stored,
}

impl Passed {
    /// Takes over what was passed to this process, and the variables that say so, so that no other
    /// process believes them.
    pub(crate) fn take() -> Self {
        if !cfg!(feature = "systemd-sockets") || !is_for_this_process() {
            return Self::default();
        }
        let [count, names] = ["LISTEN_FDS", "LISTEN_FDNAMES"].map(take);
        for name in ["LISTEN_PID", "LISTEN_PIDFDID"] {
            let _ = take(name);
        }
        let Some(count) = count.as_deref().and_then(parse_count) else { return Self::default() };
        let mut passed = Self::default();
        for (number, name) in (FIRST..).zip(parse_names(names.as_deref(), count)) {
            match adopt(number) {
                Some(fd) => passed.add(name, fd),
                None => {
                    tracing::warn!(number, name, "systemd says that it has passed this: it has not")
                }
            }
        }
        passed
    }

    fn add(&mut self, name: String, fd: OwnedFd) {
        if let Some(entry) = Entry::parse(&name) {
            return self.stored.add(entry, fd);
        }
        match Name::new(&*name) {
            Ok(name) => self.sockets.push((name, fd)),
            Err(error) => tracing::warn!(name, %error, "systemd has passed something by this name"),
        }
    }
}

/// Whether the variables are about this process, and not about one that it descends from.
fn is_for_this_process() -> bool {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if number("LISTEN_PID") != Some(u64::from(std::process::id())) {
        return false;
    }
    // A number of the process that is not used again (systemd 259 and newer).
    match (number("LISTEN_PIDFDID"), own_pidfd_id()) {
        (Some(theirs), Some(ours)) => theirs == ours,
        (Some(_), None) | (None, _) => true,
    }
}

/// How many were passed, if that is a number that can be.
pub(super) fn parse_count(text: &OsStr) -> Option<usize> {
    let count = text.to_str()?.parse::<u32>().ok()?;
    (1..=MAX_DESCRIPTORS).contains(&count).then_some(count as usize)
}

/// As many names as descriptors.
pub(super) fn parse_names(text: Option<&OsStr>, count: usize) -> Vec<String> {
    let text = text.map(OsStr::to_string_lossy).unwrap_or_default();
    let given = text.split(':').filter(|_| !text.is_empty());
    let named = |name: &str| if name.is_empty() { UNNAMED } else { name }.to_owned();
    given.map(named).chain(std::iter::repeat_with(|| UNNAMED.into())).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_names_as_descriptors() {
        let names = |text: Option<&str>, count| parse_names(text.map(OsStr::new), count);
        assert_eq!(names(Some("http:https"), 2), ["http", "https"]);
        assert_eq!(names(Some("http:https"), 1), ["http"]);
        assert_eq!(names(Some("http::"), 4), ["http", "unknown", "unknown", "unknown"]);
        assert_eq!(names(Some(""), 1), ["unknown"]);
        assert_eq!(names(None, 2), ["unknown", "unknown"]);
    }

    #[test]
    fn a_count_is_a_plain_number_within_bounds() {
        let count = |text: &str| parse_count(OsStr::new(text));
        assert_eq!(count("1"), Some(1));
        assert_eq!(count("65536"), Some(65_536));
        for text in ["", "0", "-1", "65537", "99999999999", "1 ", "x"] {
            assert_eq!(count(text), None, "{text}");
        }
    }
}
