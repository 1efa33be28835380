//! The engine under systemd: who is the main process, and what is kept in its fd store.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::{Ending, Engine, Stage};
use crate::error::{ClaimErrorKind, Error, ErrorKind};
use crate::state::Provider;
use crate::sys::spawn::Parent;
use crate::systemd::{Heard, Passed, Standing, Store};

/// What systemd's fd store does not take.
enum Misfit {
    Name(String),
    Number { needed: u64, max: u64 },
}

impl Engine {
    /// Takes what systemd has passed to this process.
    pub(super) fn take_passed(&mut self, passed: Passed) {
        let Passed { sockets, stored } = passed;
        for (name, fd) in sockets {
            if let Err(error) = self.registry.inherit_activated(&name, fd) {
                tracing::warn!(%name, %error, "systemd has passed too much by this name");
            }
        }
        self.supervision.found(&stored);
        if stored.sockets.is_empty() && stored.states.is_empty() {
            return;
        }
        let (sockets, states) = (stored.sockets.len(), stored.states.len());
        tracing::info!(sockets, states, "recovering from the fd store");
        self.is_recovery = true;
        for (item, fd) in stored.sockets {
            if self.registry.has_inherited(&item.name) {
                let name = item.name;
                tracing::warn!(%name, "a .socket unit has the name of a socket in the fd store: that goes");
            } else {
                self.registry.inherit(item, fd);
            }
        }
        self.early_states = stored.states;
    }

    /// Whether all that is to be kept can be.
    pub(super) fn check_store(&mut self) -> Result<(), Error> {
        self.find_what_does_not_fit().map_err(|misfit| {
            let kind = match misfit {
                Misfit::Name(name) => ErrorKind::FdStoreName { name },
                Misfit::Number { needed, max } => ErrorKind::FdStoreTooSmall { needed, max },
            };
            self.refuse(kind.to_string());
            self.error(kind)
        })
    }

    /// The same for a socket that was claimed just now, if this process serves.
    pub(crate) fn check_room_in_store(&self) -> Result<(), ClaimErrorKind> {
        if self.stage != Stage::Serving {
            return Ok(());
        }
        self.find_what_does_not_fit().map_err(|misfit| match misfit {
            Misfit::Name(name) => ClaimErrorKind::FdStoreName { name },
            Misfit::Number { needed, max } => ClaimErrorKind::FdStoreTooSmall { needed, max },
        })
    }

    fn find_what_does_not_fit(&self) -> Result<(), Misfit> {
        let Some(store) = self.supervision.store() else { return Ok(()) };
        let endpoints = self.registry.endpoints();
        let own: Vec<_> = endpoints.iter().filter(|endpoint| !endpoint.activated).collect();
        let providers = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let too_long = own.iter().find(|endpoint| !Store::takes(endpoint)).map(|it| &it.name);
        let mut states = providers.iter().map(|provider| &provider.name);
        if let Some(name) = too_long.or_else(|| states.find(|name| !Store::takes_state(name))) {
            return Err(Misfit::Name(name.to_string()));
        }
        let sockets = own.len() + self.registry.later().len();
        match store.lacks(sockets, providers.len()) {
            Some((needed, max)) => Err(Misfit::Number { needed, max }),
            None => Ok(()),
        }
    }

    /// Keeps what this process has in the fd store, and nothing else, if that is its to do.
    pub(crate) fn fill_store(&mut self) {
        // Told that it is the main process when it stops already: what is there is for the next one.
        if self.stage > Stage::Serving {
            return;
        }
        let Some(store) = self.supervision.own_store().cloned() else { return };
        let mut before = self.supervision.take_stored_before();
        let providers = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let provided = providers.iter().filter(|_| self.supervision.store().is_some());
        let states = Store::names_of([], provided.map(|provider| &provider.name));
        drop(providers);
        let later = Store::names_of(&self.registry.later(), []);
        before.retain(|name| !states.contains(name) && !later.contains(name));
        store.keep(&self.registry.endpoints(), &before);
    }

    /// The provider of that name, where its state goes, and how large it may be.
    #[cfg_attr(
        not(all(feature = "systemd-notify", feature = "systemd-sockets")),
        expect(dead_code, reason = "without an fd store nothing is saved")
    )]
    pub(crate) fn to_save(&self, name: &str) -> (Option<Arc<Provider>>, Option<Arc<Store>>, u64) {
        let providers = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        let provider = providers.iter().find(|provider| provider.name.as_str() == name).cloned();
        (provider, self.supervision.store_to_save().cloned(), self.config.max_state_bytes)
    }

    /// This process serves.
    pub(super) fn serve_supervised(&mut self) {
        self.supervision.serving(Instant::now());
        self.fill_store();
    }

    /// systemd takes this process for the main one.
    pub(super) fn announced(&mut self) {
        let now = Instant::now();
        if !self.supervision.announced(now) {
            return;
        }
        self.fill_store();
        if self.stage == Stage::Draining && self.ending == Some(Ending::Stopped) {
            let left = self.drain_deadline.map(|at| at.saturating_duration_since(now));
            self.supervision.stopping(self.in_flight.active(), left.unwrap_or_default());
        }
        // What was asked for meanwhile can be done.
        self.wake.set();
    }

    /// Whose child a successor is, unless the application has said. Of a process that is no child of its
    /// own systemd learns the end too late, and on a stop it does not wait for it. The first process of
    /// a PID namespace has no parent in it, and clone(2) would refuse.
    pub(super) fn successor_parent(&self) -> Parent {
        let is_first = std::process::id() == 1;
        if self.supervision.is_main() && !is_first { Parent::Ours } else { Parent::Us }
    }

    /// The successor serves for good: systemd is told.
    pub(super) fn announce(&mut self) {
        let Some(attempt) = self.attempt.as_ref().filter(|attempt| attempt.is_own()) else {
            return;
        };
        let (generation, pid, id) = (attempt.generation(), attempt.pid(), attempt.process_id());
        self.supervision.announce(generation, pid, id, &self.poller);
    }

    pub(super) fn step_supervision(&mut self) {
        let now = Instant::now();
        let standing = match self.stage {
            Stage::Draining if self.ending == Some(Ending::Stopped) => Standing::Stopping {
                in_flight: self.in_flight.active(),
                left: self
                    .drain_deadline
                    .map_or_else(Default::default, |at| at.saturating_duration_since(now)),
            },
            Stage::Draining | Stage::Done | Stage::Failed => Standing::Leaving,
            _ if self.upgrade_is_under_way() => Standing::Upgrading,
            _ => Standing::Settled,
        };
        let older = self.lines.len() + usize::from(self.confirmed && self.link.is_some());
        let was_done = self.supervision.is_done();
        match self.supervision.step(standing, older, now, &self.poller) {
            Some(Heard::OfSuccessor) => {
                if let Some(attempt) = &mut self.attempt {
                    attempt.announced(&self.poller);
                }
            }
            Some(Heard::Nothing) => self.announced(),
            None => {}
        }
        if !was_done && self.supervision.is_done() {
            // A drain may have waited for it.
            self.wake.set();
        }
    }
}
