//! What this process has by name: inherited, claimed, and to be handed over.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use handover_proto::{InvalidName, Item, Name};

use crate::drain::InFlight;
use crate::error::ClaimErrorKind;
use crate::gate::Stance;
use crate::listener::{
    Address, AddressError, Bind, Bound, Endpoint, FromSystemd, Kind, address_of, bind, has_address,
    serves_address,
};
use crate::sys;
use crate::sys::channel::Channel;

/// What the names of the library's own things begin with.
pub(crate) const RESERVED_PREFIX: &str = "handover:";

/// A descriptor that is handed over by name: a file, a pipe, a connected socket.
///
/// Successors get the same open file description: its position and its flags are shared. Dropping
/// the last clone closes it and takes it out of later handovers.
#[derive(Clone, Debug)]
pub struct Descriptor(Arc<OwnedFd>);

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Everything that has a name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inherited: BTreeMap<Name, Inherited>,
    endpoints: BTreeMap<Name, Weak<Endpoint>>,
    descriptors: BTreeMap<Name, Weak<OwnedFd>>,
    /// Those of them that a service manager has passed.
    activated_descriptors: BTreeSet<Name>,
    /// The names, as the predecessor knows them, of what was taken over.
    taken_over: Vec<Name>,
    /// Whether the predecessor has been told of them.
    settled: bool,
}

#[derive(Debug)]
struct Inherited {
    fd: Arc<OwnedFd>,
    /// The address that was asked for, if it is a listener or other named socket.
    address: Option<String>,
    /// Somebody outside the service may have it as well.
    shared: bool,
    /// A service manager has passed it to this generation or an older one, and has it as well.
    activated: bool,
    /// Declared for a claim after `ready()`.
    later: bool,
}

/// What is claimed.
struct Wanted<'a> {
    name: &'a Name,
    kind: Kind,
    /// Any, if none.
    address: Option<&'a Address>,
    from: FromSystemd,
}

/// Something to be handed over.
#[derive(Debug)]
pub(crate) enum Held {
    Endpoint(Arc<Endpoint>),
    Other(Arc<OwnedFd>),
    /// An end of a channel of the library's own.
    Channel(Arc<Channel>),
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Endpoint(endpoint) => endpoint.as_fd(),
            Self::Other(fd) => fd.as_fd(),
            Self::Channel(channel) => channel.as_fd(),
        }
    }
}

impl Registry {
    pub(crate) fn inherit(&mut self, item: Item, fd: OwnedFd) {
        let Item { name, address, shared, activated } = item;
        let (fd, later) = (Arc::new(fd), false);
        self.inherited.insert(name, Inherited { fd, address, shared, activated, later });
    }

    /// Takes what a service manager has passed under that name, which need not be the only one.
    pub(crate) fn inherit_activated(
        &mut self,
        name: &Name,
        fd: OwnedFd,
    ) -> Result<(), InvalidName> {
        let mut number = 1;
        let mut own_name = name.clone();
        while self.inherited.contains_key(&own_name) {
            number += 1;
            own_name = numbered(name, number)?;
        }
        let address = address_of(fd.as_fd()).map(|address| address.to_string());
        let item = Item { address, shared: true, activated: true, name: own_name };
        self.inherit(item, fd);
        Ok(())
    }

    /// Whether there is something by that name that nobody has claimed.
    pub(crate) fn has_inherited(&self, name: &Name) -> bool {
        self.inherited.contains_key(name)
    }

    /// The sockets that wait for a claim after `ready()` and are this service's own.
    pub(crate) fn later(&self) -> Vec<Item> {
        let waits = self.inherited.iter().filter(|(_, inherited)| {
            inherited.later && !inherited.activated && inherited.address.is_some()
        });
        let item = |(name, inherited): (&Name, &Inherited)| Item {
            address: inherited.address.clone(),
            ..Item::new(name.clone())
        };
        waits.map(item).collect()
    }

    /// What a service manager has passed and nobody has claimed so far.
    pub(crate) fn unclaimed_activated(&self) -> Vec<String> {
        self.inherited
            .iter()
            .filter(|(_, i)| i.activated)
            .map(|(name, _)| name.to_string())
            .collect()
    }

    /// Names of what was inherited from a predecessor and nobody has claimed.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        let lost = self.inherited.iter().filter(|(_, i)| !i.later && !i.activated);
        lost.map(|(name, _)| name.to_string()).collect()
    }

    /// Keeps what is inherited under this name for a claim after `ready()`. Returns whether there
    /// is anything.
    pub(crate) fn keep_for_later(&mut self, name: &str) -> bool {
        let found = self.inherited.iter_mut().find(|(inherited, _)| inherited.as_str() == name);
        found.map(|(_, inherited)| inherited.later = true).is_some()
    }

    /// Claims or binds a socket.
    pub(crate) fn claim(
        &mut self,
        name: Option<&str>,
        kind: Kind,
        how: Bind,
        stance: Stance,
        in_flight: &Arc<InFlight>,
    ) -> Result<Arc<Endpoint>, ClaimErrorKind> {
        let address = match &how.address {
            Ok(address) => Some(address.clone()),
            // Whatever the service manager has by that name.
            Err(AddressError::NoneGiven) if name.is_some() && how.from == FromSystemd::Only => None,
            Err(error) => return Err(ClaimErrorKind::Address(error.clone())),
        };
        if let Some(address) = &address {
            kind.check(address)?;
        }
        let name = match (name, &address) {
            (Some(name), _) => name.to_owned(),
            (None, Some(address)) => kind.default_name(address),
            (None, None) => return Err(ClaimErrorKind::Address(AddressError::NoneGiven)),
        };
        let name = Name::new(name).map_err(ClaimErrorKind::Name)?;
        let from = how.from;
        let wanted = Wanted { name: &name, kind, address: address.as_ref(), from };
        let found = self.find(&wanted)?;
        let own_name = match &found {
            Some(found) if rank(found, &name).is_some() && self.is_free(found) => found.clone(),
            Some(_) | None => self.vacant(&name, kind)?,
        };
        let bound = match (found.and_then(|found| self.take_inherited(found)), &address) {
            (Some(bound), _) => bound,
            (None, Some(address)) => {
                // What a service manager has is not retired, and so does not make room.
                let inherited = self.inherited.values().filter(|inherited| !inherited.activated);
                let inherited: Vec<_> = inherited.map(|inherited| inherited.fd.as_fd()).collect();
                bind(kind, address, how, &inherited, stance)?
            }
            (None, None) => return Err(ClaimErrorKind::Address(AddressError::NoneGiven)),
        };
        if bound.activated {
            // Both have the flag from here; the manager never reads from it.
            sys::socket::set_nonblocking(bound.fd.as_fd())
                .map_err(|source| ClaimErrorKind::Io { doing: "O_NONBLOCK", source })?;
        }
        if self.settled {
            // Of this name, but with another address: it was kept for a claim that now comes to
            // something else, and a name can be handed over once only.
            self.inherited.remove(&own_name);
        }
        let asked = address.or_else(|| address_of(bound.fd.as_fd()));
        let asked = asked.map_or_else(String::new, |address| address.to_string());
        let in_flight = Arc::clone(in_flight);
        let endpoint = Arc::new(Endpoint::new(own_name.clone(), asked, bound, stance, in_flight));
        self.endpoints.insert(own_name, Arc::downgrade(&endpoint));
        Ok(endpoint)
    }

    /// Whether a service manager has passed another socket of that name and kind.
    #[cfg(feature = "systemd-sockets")]
    pub(crate) fn has_activated(&self, name: &str, kind: Kind) -> bool {
        let Ok(name) = Name::new(name) else { return false };
        let (address, from) = (None, FromSystemd::Only);
        self.find(&Wanted { name: &name, kind, address, from }).is_ok_and(|found| found.is_some())
    }

    /// Claims another descriptor, if it was inherited.
    pub(crate) fn take_descriptor(
        &mut self,
        name: &str,
    ) -> Result<Option<Descriptor>, ClaimErrorKind> {
        let name = Name::new(name).map_err(ClaimErrorKind::Name)?;
        if !self.is_free(&name) {
            return Err(ClaimErrorKind::NameTaken);
        }
        let Some(inherited) = self.inherited.remove(&name) else { return Ok(None) };
        self.taken_over.push(name.clone());
        if inherited.activated {
            self.activated_descriptors.insert(name.clone());
        }
        self.descriptors.insert(name, Arc::downgrade(&inherited.fd));
        Ok(Some(Descriptor(inherited.fd)))
    }

    /// Adds a descriptor that was made.
    pub(crate) fn add_descriptor(
        &mut self,
        name: &str,
        fd: OwnedFd,
    ) -> Result<Descriptor, ClaimErrorKind> {
        let name = Name::new(name).map_err(ClaimErrorKind::Name)?;
        if !self.is_free(&name) {
            return Err(ClaimErrorKind::NameTaken);
        }
        let fd = Arc::new(fd);
        self.descriptors.insert(name, Arc::downgrade(&fd));
        Ok(Descriptor(fd))
    }

    /// What the predecessor is told to be taken over; closes what is not.
    pub(crate) fn settle(&mut self) -> Vec<Name> {
        self.settled = true;
        let mut claimed = std::mem::take(&mut self.taken_over);
        let endpoints = &self.endpoints;
        self.inherited.retain(|name, inherited| {
            // A name that is in use by now has moved to another address.
            let kept = inherited.later || inherited.activated;
            let kept = kept && !endpoints.contains_key(name);
            if kept {
                claimed.push(name.clone());
            }
            kept
        });
        claimed
    }

    /// All that a successor is to get now.
    pub(crate) fn inventory(&mut self) -> Vec<(Item, Held)> {
        self.endpoints.retain(|_, endpoint| endpoint.strong_count() > 0);
        self.descriptors.retain(|_, descriptor| descriptor.strong_count() > 0);
        let endpoints = self.endpoints().into_iter().map(|endpoint| {
            let item = Item {
                name: endpoint.name.clone(),
                address: Some(endpoint.asked.clone()),
                shared: endpoint.shared,
                activated: endpoint.activated,
            };
            (item, Held::Endpoint(endpoint))
        });
        let descriptors = self.descriptors.iter().filter_map(|(name, fd)| {
            let activated = self.activated_descriptors.contains(name);
            let item = Item { activated, shared: activated, ..Item::new(name.clone()) };
            Some((item, Held::Other(fd.upgrade()?)))
        });
        let later = self.inherited.iter().map(|(name, inherited)| {
            let Inherited { shared, activated, .. } = *inherited;
            let address = inherited.address.clone();
            let item = Item { name: name.clone(), address, shared, activated };
            (item, Held::Other(Arc::clone(&inherited.fd)))
        });
        endpoints.chain(descriptors).chain(later).collect()
    }

    /// The sockets that the application has.
    pub(crate) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.values().filter_map(Weak::upgrade).collect()
    }

    /// Lets go of what the application has not claimed.
    pub(crate) fn forget_inherited(&mut self) {
        self.inherited.clear();
    }

    /// Finds what is inherited and wanted: of that name, else of another name and with the very
    /// address. What moved to another address is bound anew by the caller.
    fn find(&self, wanted: &Wanted<'_>) -> Result<Option<Name>, ClaimErrorKind> {
        let Wanted { name, kind, address, from } = *wanted;
        let asked = address.map(ToString::to_string);
        let is_allowed = |inherited: &Inherited| match from {
            FromSystemd::IfThere => true,
            FromSystemd::Only => inherited.activated,
            FromSystemd::Never => !inherited.activated,
        };
        let fits = |inherited: &Inherited| {
            sys::socket::facts(inherited.fd.as_fd()).is_ok_and(|facts| kind.fits(facts))
        };
        let is_at = |inherited: &Inherited| {
            address.is_none_or(|address| {
                let fd = inherited.fd.as_fd();
                has_address(fd, address) || (inherited.activated && serves_address(fd, address))
            })
        };
        let same_name = || {
            let called = self.inherited_as(name);
            called.filter(|(_, _, i)| is_allowed(i))
        };
        let found = same_name()
            .filter(|(_, _, i)| fits(i) && ((asked.is_some() && i.address == asked) || is_at(i)))
            .min_by_key(|(rank, _, _)| *rank);
        if let Some((_, found, _)) = found {
            return Ok(Some(found.clone()));
        }
        // The unit and the program want different things: neither is to be guessed at.
        let others: Vec<_> = same_name().filter(|(_, _, i)| i.activated).collect();
        if !others.is_empty() {
            let passed =
                others.iter().map(|(_, _, inherited)| show(inherited.fd.as_fd())).collect();
            return Err(ClaimErrorKind::OtherSocketPassed { passed });
        }
        if address.is_some()
            && let Some((found, _)) =
                self.inherited.iter().find(|(_, i)| is_allowed(i) && fits(i) && is_at(i))
        {
            return Ok(Some(found.clone()));
        }
        match from {
            FromSystemd::Only => {
                Err(ClaimErrorKind::NoSocketPassed { passed: self.unclaimed_activated() })
            }
            FromSystemd::IfThere | FromSystemd::Never => Ok(None),
        }
    }

    /// What is inherited and called so, with its number among them. There may be thousands of others, which are not
    /// looked at.
    fn inherited_as(&self, name: &Name) -> impl Iterator<Item = (u32, &Name, &Inherited)> {
        let first = self.inherited.get_key_value(name);
        // If that is no name, being too long, nothing is called so.
        let numbered = Name::new(format!("{name}#")).ok();
        let numbered = numbered.into_iter().flat_map(move |start| {
            let from = self.inherited.range(start.clone()..);
            from.take_while(move |(found, _)| found.as_str().starts_with(start.as_str()))
        });
        first
            .into_iter()
            .chain(numbered)
            .filter_map(move |(found, inherited)| Some((rank(found, name)?, found, inherited)))
    }

    fn take_inherited(&mut self, found: Name) -> Option<Bound> {
        let inherited = self.inherited.remove(&found)?;
        self.taken_over.push(found);
        let Inherited { fd, shared, activated, .. } = inherited;
        // While it is in `inherited` there is no other owner, but for an upgrade under way, when
        // nothing can be claimed.
        let fd = Arc::try_unwrap(fd).ok()?;
        Some(Bound { fd, unheard: None, shared, activated, inherited: true })
    }

    /// Nothing that is in use has the name.
    fn is_free(&self, name: &Name) -> bool {
        let endpoint = self.endpoints.get(name).is_some_and(|e| e.strong_count() > 0);
        let descriptor = self.descriptors.get(name).is_some_and(|d| d.strong_count() > 0);
        !endpoint && !descriptor
    }

    /// The name that a socket of that name and kind gets when it is bound: sockets of different kinds
    /// may be called the same, and are handed over under names of their own.
    fn vacant(&self, name: &Name, kind: Kind) -> Result<Name, ClaimErrorKind> {
        for number in 1.. {
            let numbered = numbered(name, number).map_err(ClaimErrorKind::Name)?;
            let holder = self.endpoints.get(&numbered).and_then(Weak::upgrade);
            if holder.is_some_and(|holder| holder.kind() != Some(kind)) {
                continue;
            }
            return if self.is_free(&numbered) {
                Ok(numbered)
            } else {
                Err(ClaimErrorKind::NameTaken)
            };
        }
        Err(ClaimErrorKind::NameTaken)
    }
}

/// The name of the socket of that number among those that are called the same.
fn numbered(name: &Name, number: u32) -> Result<Name, InvalidName> {
    if number == 1 { Ok(name.clone()) } else { Name::new(format!("{name}#{number}")) }
}

/// Which one it is among those that are called the same, if it is one of them.
fn rank(name: &Name, called: &Name) -> Option<u32> {
    match name.as_str().strip_prefix(called.as_str())? {
        "" => Some(1),
        number => number.strip_prefix('#')?.parse().ok(),
    }
}

/// What a socket is, for people.
fn show(fd: BorrowedFd<'_>) -> String {
    let kind = sys::socket::facts(fd).ok().and_then(Kind::of).map_or("other", Kind::label);
    match address_of(fd) {
        Some(address) => format!("{kind} {address}"),
        None => kind.to_owned(),
    }
}
