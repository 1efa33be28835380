//! systemd's file descriptor store: what outlives a crash of the service.
//!
//! systemd keeps duplicates of descriptors by name, and passes them to the next process it starts
//! (systemd.service(5), `FileDescriptorStoreMax=`). Here they are all sockets that this service has
//! bound, and states that the application has saved. A name says all that there is to know of what it
//! names, so that there is no second record which could be older or newer:
//!
//! ```text
//! handover|socket|ADDRESS|NAME      ADDRESS as it was asked for
//! handover|state|SLOT|NAME          SLOT 0 or 1: the new one is there before the old one goes
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Seek as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use handover_proto::{Item, Name};

use super::notifier::Notifier;
use crate::drain::InFlight;
use crate::listener::Endpoint;
use crate::registry::Held;
use crate::state::{Provider, State, StateError, Trailer, write_one};
use crate::sys::memfd;

/// The longest name of a descriptor, in bytes (`FDNAME_MAX` of systemd).
const MAX_FD_NAME_BYTES: usize = 255;

const PREFIX: &str = "handover";

/// How many descriptors a state takes at most: for a moment the old one is there with the new one, and
/// with one more if this process was told of another place than where it is.
const PER_STATE: u64 = 3;

/// The name by which a successor is told where states are.
const PLACES: &str = "handover:stored";

/// The most bytes that are read of that.
const MAX_PLACES_BYTES: u64 = 4 << 20;

/// Where a state was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Saved {
    /// systemd has it: whoever is started after a crash gets it.
    InFdStore,
    /// In this process, until systemd knows it as the main one (its predecessor is about to announce it, or
    /// can still take back over), or takes what it is told. A crash before that finds what was saved before.
    Later,
    /// Nowhere: the service does not use the fd store, or does not run under systemd, or this process
    /// does not serve.
    Nowhere,
}

/// Something that is kept, by its name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Socket {
        name: Name,
        /// As in [`Item::address`].
        asked: String,
    },
    State {
        name: Name,
        slot: Slot,
    },
}

/// One of two places for a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Slot {
    #[default]
    First,
    Second,
}

impl Slot {
    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::First, Self::Second].into_iter().find(|slot| slot.number() == number)
    }
}

impl Entry {
    /// Reads a name. One that says the same in other letters is not ours: what is there under it could
    /// not be taken out under [`fd_name`](Self::fd_name).
    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::parse_parts(text).filter(|entry| entry.fd_name() == text)
    }

    fn parse_parts(text: &str) -> Option<Self> {
        let mut parts = text.split('|');
        if parts.next()? != PREFIX {
            return None;
        }
        let (kind, what) = (parts.next()?, unescape(parts.next()?)?);
        let name = Name::new(unescape(parts.next()?)?).ok()?;
        match (kind, parts.next()) {
            ("socket", None) => Some(Self::Socket { name, asked: what }),
            ("state", None) => {
                Some(Self::State { name, slot: Slot::of_number(what.parse().ok()?)? })
            }
            _ => None,
        }
    }

    /// The name that systemd keeps it by.
    pub(super) fn fd_name(&self) -> String {
        match self {
            Self::Socket { name, asked } => {
                format!("{PREFIX}|socket|{}|{}", escape(asked), escape(name.as_str()))
            }
            Self::State { name, slot } => {
                let slot = slot.number();
                format!("{PREFIX}|state|{slot}|{}", escape(name.as_str()))
            }
        }
    }
}

/// systemd takes printable ASCII but for the colon; the rest is of the form here.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | b':' | b'|' | 0..=0x20 | 0x7f.. => {
                // Writing to a string does not fail.
                let _ = write!(escaped, "%{byte:02x}");
            }
            _ => escaped.push(byte.into()),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((plain, escaped)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        bytes.push(u8::from_str_radix(escaped.get(..2)?, 16).ok()?);
        rest = escaped.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

/// What was found in the store at the start of this process.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) sockets: Vec<(Item, OwnedFd)>,
    pub(crate) states: Vec<State>,
    /// The names of all of it.
    pub(crate) names: Vec<String>,
    /// Where the states are.
    pub(super) places: BTreeMap<Name, Slot>,
}

impl Stored {
    pub(super) fn add(&mut self, entry: Entry, fd: OwnedFd) {
        self.names.push(entry.fd_name());
        match entry {
            Entry::Socket { name, asked } => {
                let item = Item { address: Some(asked), ..Item::new(name) };
                let same = self.sockets.iter_mut().find(|(other, _)| *other == item);
                match same {
                    // One of them may have been taken out of service, and not out of the store.
                    Some(other) if is_listening(&fd) => *other = (item, fd),
                    Some(_) => {}
                    None => self.sockets.push((item, fd)),
                }
            }
            Entry::State { name, slot } => match State::recover(name.clone(), fd) {
                Ok(state) => self.add_state(state, slot),
                Err(error) => tracing::warn!(%name, %error, "a state in the fd store is lost"),
            },
        }
    }

    /// Of two of a name the newer one counts: a crash came before the other was removed.
    fn add_state(&mut self, state: State, slot: Slot) {
        let same = self.states.iter().position(|other| other.name() == state.name());
        if same.is_some_and(|index| self.states[index].saved() >= state.saved()) {
            return;
        }
        same.map(|index| self.states.swap_remove(index));
        self.places.insert(state.name_as().clone(), slot);
        self.states.push(state);
    }
}

/// The store, as the process sees it that may change it.
#[derive(Debug)]
pub(crate) struct Store {
    notifier: Arc<Notifier>,
    /// How many descriptors it takes.
    max: u64,
    /// The application wants it. If not, what others have left there is taken out.
    is_used: bool,
    /// Held while a state is written and put there, one after the other. Not by the waiter: what is
    /// called meanwhile is the application's.
    saving: Mutex<()>,
    states: Mutex<States>,
}

/// The states that are saved.
#[derive(Debug, Default)]
struct States {
    /// Where they are, as far as this process knows.
    places: BTreeMap<Name, Slot>,
    /// Those that systemd gets once it hears this process.
    later: BTreeMap<Name, OwnedFd>,
}

impl Store {
    pub(super) fn new(notifier: Arc<Notifier>, max: u64, is_used: bool) -> Self {
        Self { notifier, max, is_used, saving: Mutex::default(), states: Mutex::default() }
    }

    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    /// What a successor is to know: a save that comes in between makes it untrue, and no harm.
    pub(crate) fn inventory(&self) -> Option<(Item, Held)> {
        let states = self.states();
        let numbers = states.places.iter().map(|(name, slot)| (name, slot.number()));
        let bytes = serde_json::to_vec(&numbers.collect::<BTreeMap<_, _>>()).ok()?;
        let memory = memfd::of_bytes(PLACES, &bytes).ok()?;
        Some((Item::new(Name::new(PLACES).ok()?), Held::Other(Arc::new(memory))))
    }

    /// Takes what a predecessor knew over, if it is that.
    pub(super) fn inherit(store: Option<&Self>, item: &Item, fd: OwnedFd) -> Option<OwnedFd> {
        if item.name.as_str() != PLACES {
            return Some(fd);
        }
        if let Some(store) = store {
            let mut file = std::fs::File::from(fd);
            // All generations share the position.
            let numbers: Option<BTreeMap<Name, u8>> = file
                .rewind()
                .ok()
                .and_then(|()| serde_json::from_reader(file.take(MAX_PLACES_BYTES)).ok());
            let numbers = numbers.unwrap_or_default().into_iter();
            store.recall(
                numbers.filter_map(|(name, n)| Some((name, Slot::of_number(n)?))).collect(),
            );
        }
        None
    }

    /// States are there.
    pub(super) fn recall(&self, places: BTreeMap<Name, Slot>) {
        self.states().places = places;
    }

    /// How many descriptors are needed and how many there may be, if that is too few.
    pub(crate) fn lacks(&self, sockets: usize, states: usize) -> Option<(u64, u64)> {
        let needed = (sockets as u64) + PER_STATE * (states as u64);
        (needed > self.max).then_some((needed, self.max))
    }

    /// Whether a socket can be kept: systemd's own need not be, and names have a limit.
    pub(crate) fn takes(endpoint: &Endpoint) -> bool {
        socket_name(endpoint).len() <= MAX_FD_NAME_BYTES
    }

    /// Whether a state of that name can be kept.
    pub(crate) fn takes_state(name: &Name) -> bool {
        let entry = Entry::State { name: name.clone(), slot: Slot::First };
        entry.fd_name().len() <= MAX_FD_NAME_BYTES
    }

    /// Keeps these sockets, and of what was kept before by those names only what is one of them.
    /// Each name of those is there as often as it was found.
    pub(crate) fn keep(&self, endpoints: &[Arc<Endpoint>], before: &[String]) {
        let ours = endpoints.iter().filter(|endpoint| self.is_used && !endpoint.activated);
        let mut named: BTreeMap<String, _> = ours.map(|one| (socket_name(one), one)).collect();
        let mut seen = BTreeSet::new();
        for name in before {
            // What is there twice is not this one alone, and what is not would never leave.
            let is_again = !seen.insert(name);
            if is_again || !named.contains_key(name) {
                self.remove(name);
            }
        }
        named.retain(|_, endpoint| !endpoint.is_kept());
        for (name, endpoint) in named {
            // The fd is told by its file description: one that is kept is not kept twice.
            match endpoint.as_fd().try_clone_to_owned() {
                Ok(fd) => {
                    self.add(&name, fd);
                }
                Err(error) => tracing::error!(name, %error, "a socket is not in the fd store"),
            }
            endpoint.kept_as(Kept { notifier: Arc::clone(&self.notifier), name });
        }
        self.catch_up();
    }

    /// Puts there what has waited for systemd to hear this process, or to take what it was told.
    pub(crate) fn catch_up(&self) {
        let mut states = self.states();
        if !states.later.is_empty() && self.notifier.is_main() && self.notifier.is_flushed() {
            for (name, fd) in std::mem::take(&mut states.later) {
                self.put(&mut states, name, fd);
            }
        }
    }

    /// The names by which older generations may have kept these sockets and states.
    pub(crate) fn names_of<'a>(
        sockets: impl IntoIterator<Item = &'a Item>,
        states: impl IntoIterator<Item = &'a Name>,
    ) -> Vec<String> {
        let sockets = sockets.into_iter().filter_map(|item| {
            let asked = item.address.clone().filter(|_| !item.activated)?;
            Some(Entry::Socket { name: item.name.clone(), asked })
        });
        let states = states.into_iter().flat_map(|name| {
            [Slot::First, Slot::Second].map(|slot| Entry::State { name: name.clone(), slot })
        });
        sockets.chain(states).map(|entry| entry.fd_name()).collect()
    }

    /// Writes a state and keeps it in the place of the one before.
    pub(crate) fn save(
        &self,
        provider: &Provider,
        in_flight: &Arc<InFlight>,
        max_bytes: u64,
    ) -> Result<Saved, StateError> {
        // Until the end: what is written first is not to replace what is written later.
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.notifier.is_main() && !self.notifier.is_expected() {
            return Ok(Saved::Nowhere);
        }
        let sealed =
            write_one(provider, in_flight, max_bytes, Some(Trailer::now(provider.version)))?;
        let mut states = self.states();
        // A queue that systemd does not empty is not to grow with each save.
        if self.notifier.is_expected() || (self.notifier.is_main() && !self.notifier.is_flushed()) {
            states.later.insert(sealed.name, sealed.fd);
            return Ok(Saved::Later);
        }
        // It may have handed over meanwhile.
        let is_put = self.put(&mut states, sealed.name, sealed.fd);
        Ok(if is_put { Saved::InFdStore } else { Saved::Nowhere })
    }

    /// Puts a state in the place of the one before; returns whether.
    fn put(&self, states: &mut States, name: Name, fd: OwnedFd) -> bool {
        let slot = states.places.entry(name.clone()).or_default();
        *slot = slot.other();
        let entry = |slot| Entry::State { name: name.clone(), slot };
        let is_put = self.add(&entry(*slot).fd_name(), fd);
        self.remove(&entry(slot.other()).fd_name());
        is_put
    }

    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether systemd is told.
    fn add(&self, name: &str, fd: OwnedFd) -> bool {
        // Without FDPOLL=0 systemd lets go of a socket when it sees an error or hang-up on it.
        self.notifier.say(format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0"), Some(fd))
    }

    fn remove(&self, name: &str) {
        self.notifier.say(format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }
}

fn is_listening(fd: &OwnedFd) -> bool {
    crate::sys::socket::facts(fd.as_fd()).is_ok_and(|facts| facts.listening)
}

fn socket_name(endpoint: &Endpoint) -> String {
    let (name, asked) = (endpoint.name.clone(), endpoint.asked.clone());
    Entry::Socket { name, asked }.fd_name()
}

/// That a socket is in the store.
#[derive(Debug)]
pub(crate) struct Kept {
    notifier: Arc<Notifier>,
    name: String,
}

impl Kept {
    /// Takes it out of the store, if that is this process's to do.
    pub(crate) fn remove(&self) {
        self.notifier.say(format!("FDSTOREREMOVE=1\nFDNAME={}", self.name), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let asked = ["127.0.0.1:80", "[::]:443", "/run/a|b%c d.sock", "@äbstract", ""];
        for text in asked {
            let name = Name::new("handover:control").unwrap();
            let entry = Entry::Socket { name, asked: text.into() };
            let fd_name = entry.fd_name();
            assert_eq!(Entry::parse(&fd_name), Some(entry), "{fd_name}");
            let is_taken = |byte| (0x21..0x7f).contains(&byte) && byte != b':';
            assert!(fd_name.bytes().all(is_taken), "{fd_name}");
        }
        for slot in [Slot::First, Slot::Second] {
            let entry = Entry::State { name: Name::new("täble 1").unwrap(), slot };
            assert_eq!(Entry::parse(&entry.fd_name()), Some(entry));
        }
    }

    #[test]
    fn other_names_are_not_ours() {
        for text in [
            "http",
            "stored",
            "handover",
            "handover|socket",
            "handover|socket|a",
            "handover|socket|a|b|c",
            "handover|socket|a|",
            "handover|state|2|a",
            "handover|state||a",
            "handover|file|a|b",
            "handover|socket|%|a",
            "handover|socket|%zz|a",
            "handover|socket|%ff|a",
            "handover|socket|%61|a",
            "handover|socket|%3A|a",
            "handover|socket|%+f|a",
            "handover|socket|a b|a",
            "handover|state|00|a",
            "handover|state|+1|a",
            "",
        ] {
            assert_eq!(Entry::parse(text), None, "{text}");
        }
    }
}
