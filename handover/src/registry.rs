//! What this process has by name: inherited, claimed, and to be handed over.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use handover_proto::{Item, Name};

use crate::drain::InFlight;
use crate::error::ClaimErrorKind;
use crate::gate::Stance;
use crate::listener::{Address, Bind, Bound, Endpoint, Kind, bind, has_address};
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
    /// Declared for a claim after `ready()`.
    later: bool,
}

/// Something to be handed over.
#[derive(Debug)]
pub(crate) enum Held {
    Endpoint(Arc<Endpoint>),
    Other(Arc<OwnedFd>),
    /// The line to an older generation.
    Line(Arc<Channel>),
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Endpoint(endpoint) => endpoint.as_fd(),
            Self::Other(fd) => fd.as_fd(),
            Self::Line(channel) => channel.as_fd(),
        }
    }
}

impl Registry {
    pub(crate) fn inherit(&mut self, item: Item, fd: OwnedFd) {
        let Item { name, address, shared } = item;
        self.inherited.insert(name, Inherited { fd: Arc::new(fd), address, shared, later: false });
    }

    /// Names of what was inherited and nobody has claimed.
    pub(crate) fn unclaimed(&self) -> Vec<String> {
        self.inherited.iter().filter(|(_, i)| !i.later).map(|(name, _)| name.to_string()).collect()
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
        let address = how.address.clone().map_err(ClaimErrorKind::Address)?;
        kind.check(&address)?;
        let name = name.map_or_else(|| kind.default_name(&address), str::to_owned);
        let name = Name::new(name).map_err(ClaimErrorKind::Name)?;
        self.check_free(&name)?;
        let bound = match self.take_inherited(&name, kind, &address) {
            Some(bound) => bound,
            None => {
                let inherited: Vec<_> = self.inherited.values().map(|i| i.fd.as_fd()).collect();
                bind(kind, &address, how, &inherited, stance)?
            }
        };
        if self.settled {
            // Of this name, but with another address: it was kept for a claim that now comes to
            // something else, and a name can be handed over once only.
            self.inherited.remove(&name);
        }
        let (asked, in_flight) = (address.to_string(), Arc::clone(in_flight));
        let endpoint = Arc::new(Endpoint::new(name.clone(), asked, bound, stance, in_flight));
        self.endpoints.insert(name, Arc::downgrade(&endpoint));
        Ok(endpoint)
    }

    /// Claims another descriptor, if it was inherited.
    pub(crate) fn take_descriptor(
        &mut self,
        name: &str,
    ) -> Result<Option<Descriptor>, ClaimErrorKind> {
        let name = Name::new(name).map_err(ClaimErrorKind::Name)?;
        self.check_free(&name)?;
        let Some(inherited) = self.inherited.remove(&name) else { return Ok(None) };
        self.taken_over.push(name.clone());
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
        self.check_free(&name)?;
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
            let kept = inherited.later && !endpoints.contains_key(name);
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
            };
            (item, Held::Endpoint(endpoint))
        });
        let descriptors = self.descriptors.iter().filter_map(|(name, fd)| {
            Some((
                Item { name: name.clone(), address: None, shared: false },
                Held::Other(fd.upgrade()?),
            ))
        });
        let later = self.inherited.iter().map(|(name, inherited)| {
            let (address, shared) = (inherited.address.clone(), inherited.shared);
            let item = Item { name: name.clone(), address, shared };
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

    fn check_free(&self, name: &Name) -> Result<(), ClaimErrorKind> {
        let endpoint = self.endpoints.get(name).is_some_and(|e| e.strong_count() > 0);
        let descriptor = self.descriptors.get(name).is_some_and(|d| d.strong_count() > 0);
        if endpoint || descriptor { Err(ClaimErrorKind::NameTaken) } else { Ok(()) }
    }

    /// Finds the inherited socket of that name, if it still has the address that is asked for;
    /// else one of another name that has it. A name that moved is bound anew by the caller.
    fn take_inherited(&mut self, name: &Name, kind: Kind, address: &Address) -> Option<Bound> {
        let fits = |inherited: &Inherited| {
            sys::socket::facts(inherited.fd.as_fd()).is_ok_and(|facts| kind.fits(facts))
        };
        let asked = address.to_string();
        let same_name = self.inherited.get(name).filter(|inherited| {
            let same = inherited.address.as_ref() == Some(&asked);
            fits(inherited) && (same || has_address(inherited.fd.as_fd(), address))
        });
        let found = match same_name {
            Some(_) => name.clone(),
            None => self
                .inherited
                .iter()
                .find(|(_, i)| fits(i) && has_address(i.fd.as_fd(), address))
                .map(|(other, _)| other.clone())?,
        };
        let inherited = self.inherited.remove(&found)?;
        self.taken_over.push(found);
        // While it is in `inherited` there is no other owner, but for an upgrade under way, when
        // nothing can be claimed.
        let fd = Arc::try_unwrap(inherited.fd).ok()?;
        Some(Bound { fd, unheard: None, shared: inherited.shared, inherited: true })
    }
}
