//! What this process owes systemd: who the main process is, signs of life, and time to do things.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use handover_proto::Item;
use handover_proto::control::Event;

use super::Environment;
use super::notifier::{Notifier, Voice};
use super::status::StatusText;
use super::store::{Store, Stored};
use crate::sys::poll::{self, Interest, Poller, Wake};
use crate::sys::time::monotonic;

/// How often systemd is given a sign while something is under way that takes its time.
const TICK: Duration = Duration::from_secs(1);

/// How much more time is asked for with each of them. A process that hangs gives none, and is late
/// when what it had is used up.
const EXTENSION: Duration = Duration::from_secs(5);

/// How many signs of life there are in the time in which systemd wants one.
const PINGS_PER_TIMEOUT: u32 = 3;

/// How long a process that has announced its successor waits for systemd to have heard it.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process that serves waits to be announced by its predecessor.
const ANNOUNCEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What systemd takes this process for.
#[derive(Debug)]
enum Role {
    /// The main process of the service: what it says counts.
    Main,
    /// A successor that its predecessor has not announced, until when at most. It is unlimited while
    /// it does not serve, and on probation.
    Awaiting { until: Option<Instant> },
    /// It has announced its successor, and waits for systemd to have heard that.
    Announcing { barrier: Option<OwnedFd>, until: Instant },
    /// It was the main process.
    Former,
}

/// What this process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It serves, or gets ready to, and nothing else is under way.
    Settled,
    /// An upgrade is under way.
    Upgrading,
    /// The service stops.
    Stopping { in_flight: u64, left: Duration },
    /// It finishes what it has accepted; another process serves.
    Leaving,
}

/// This process and systemd. Does nothing where that does not listen.
#[derive(Debug)]
pub(crate) struct Supervision {
    notifier: Option<Arc<Notifier>>,
    role: Role,
    /// `READY=1` was said.
    serves: bool,
    status: StatusText,
    /// The last one that was said.
    told: String,
    watchdog: Option<Watchdog>,
    /// When the next sign is due while something is under way.
    tick: Option<Instant>,
    store: Option<Arc<Store>>,
    /// What may be in the store and not this process's any more.
    stored_before: Vec<String>,
}

/// What comes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// systemd knows the successor.
    OfSuccessor,
    /// Nothing from the predecessor: this process counts as announced.
    Nothing,
}

#[derive(Debug)]
struct Watchdog {
    timeout: Duration,
    next: Option<Instant>,
}

impl Watchdog {
    fn interval(&self) -> Duration {
        (self.timeout / PINGS_PER_TIMEOUT).max(Duration::from_millis(1))
    }
}

impl Supervision {
    /// Begins. A successor is not the main process before it was announced.
    pub(crate) fn new(
        environment: Environment,
        is_successor: bool,
        uses_store: bool,
        generation: u64,
        wake: &Arc<Wake>,
    ) -> Self {
        let socket = environment.notify_socket;
        let notifier = socket.and_then(|address| {
            let voice = if is_successor { Voice::Expected } else { Voice::Main };
            let notifier = Notifier::connect(&address, voice, wake);
            let unheard = |error: &_| {
                let address = address.display();
                tracing::warn!(%address, %error, "systemd cannot be told how this service is");
            };
            notifier.inspect_err(unheard).ok().map(Arc::new)
        });
        let max = environment.fd_store_max;
        let store = notifier
            .as_ref()
            .filter(|_| uses_store || max > 0)
            .map(|notifier| Arc::new(Store::new(Arc::clone(notifier), max, uses_store)));
        Self {
            role: if is_successor { Role::Awaiting { until: None } } else { Role::Main },
            serves: false,
            status: StatusText::new(generation),
            told: String::new(),
            watchdog: environment
                .watchdog
                .filter(|_| notifier.is_some())
                .map(|timeout| Watchdog { timeout, next: None }),
            tick: None,
            notifier,
            store,
            stored_before: Vec::new(),
        }
    }

    /// Whether systemd listens: the successor has to be a child of its own.
    pub(crate) fn is_active(&self) -> bool {
        self.notifier.is_some()
    }

    /// Whether systemd takes this process for the main one.
    pub(crate) fn is_main(&self) -> bool {
        self.notifier.as_ref().is_some_and(|notifier| notifier.is_main())
    }

    /// The fd store, if the application wants it and it is there.
    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref().filter(|store| store.is_used())
    }

    /// The fd store, wanted or not, if it is this process's to change.
    pub(crate) fn own_store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref().filter(|_| self.is_main() && self.serves)
    }

    /// Takes over what a predecessor knew of the store, if it is that.
    pub(crate) fn inherit(&self, item: &Item, fd: OwnedFd) -> Option<OwnedFd> {
        Store::inherit(self.store.as_deref(), item, fd)
    }

    /// What was found in the store at the start: which names it has, and where states are.
    pub(crate) fn found(&mut self, stored: &Stored) {
        self.stored_before(stored.names.clone());
        if let Some(store) = &self.store {
            store.recall(stored.places.clone());
        }
    }

    /// Remembers names in the store that others have put there.
    pub(crate) fn stored_before(&mut self, names: Vec<String>) {
        self.stored_before.extend(names);
    }

    /// The fd store, for a process that serves: it may not be its to change yet, or any more.
    pub(crate) fn store_to_save(&self) -> Option<&Arc<Store>> {
        self.store().filter(|_| self.serves)
    }

    /// Those names, once.
    pub(crate) fn take_stored_before(&mut self) -> Vec<String> {
        std::mem::take(&mut self.stored_before)
    }

    /// The number of this process's generation is known.
    pub(crate) fn numbered(&mut self, generation: u64) {
        self.status = StatusText::new(generation);
    }

    /// Initialisation goes on, and may take that much longer.
    pub(crate) fn initialising(&mut self, what: &str, more: Option<Duration>) {
        self.status.initialising(what);
        if !self.serves
            && let Some(notifier) = &self.notifier
        {
            let more = more.map_or_else(String::new, extension);
            notifier.say(format!("STATUS={}{more}", self.status.render()), None);
        }
    }

    /// This process serves.
    pub(crate) fn serving(&mut self, now: Instant) {
        let is_first = !std::mem::replace(&mut self.serves, true);
        if is_first && matches!(self.role, Role::Main) {
            self.introduce(now);
        }
    }

    /// Nobody takes back over from this process: its predecessor is about to announce it.
    pub(crate) fn confirmed(&mut self, now: Instant) {
        if let Role::Awaiting { until } = &mut self.role {
            *until = now.checked_add(ANNOUNCEMENT_TIMEOUT);
        }
    }

    /// Whether the predecessor has still to announce this process: until then it could not announce
    /// another itself.
    pub(crate) fn is_awaiting(&self) -> bool {
        self.is_active() && matches!(self.role, Role::Awaiting { .. })
    }

    /// systemd takes this process for the main one, as far as is known. Returns whether that is new.
    pub(crate) fn announced(&mut self, now: Instant) -> bool {
        if !matches!(self.role, Role::Awaiting { .. }) {
            return false;
        }
        self.role = Role::Main;
        if let Some(notifier) = &self.notifier {
            notifier.become_main();
        }
        if self.serves {
            self.introduce(now);
        }
        true
    }

    /// Says that this process serves, and gives signs of life from here on.
    fn introduce(&mut self, now: Instant) {
        self.told = self.status.render();
        if let Some(notifier) = &self.notifier {
            notifier.say(format!("READY=1\nSTATUS={}", self.told), None);
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.next = Some(now);
        }
    }

    /// Says that the successor is the main process from here on.
    ///
    /// `RELOADING=1` comes only now, when nothing can go wrong any more: said earlier, and with a
    /// successor that fails, systemd 254 and 257 would wait for ever. Pid and readiness are one message:
    /// after the first one this process is not listened to.
    pub(crate) fn announce(
        &mut self,
        generation: u64,
        pid: u32,
        pidfd_id: Option<u64>,
        poller: &Poller,
    ) {
        let Some(notifier) = self.notifier.as_ref().filter(|notifier| notifier.is_main()) else {
            return;
        };
        let identity = pidfd_id.map_or_else(String::new, |id| format!("MAINPIDFDID={id}\n"));
        let words = [
            format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic().as_micros()),
            format!("MAINPID={pid}\n{identity}READY=1\nSTATUS=generation {generation} serves"),
        ];
        let barrier = notifier.say_last(words).and_then(|barrier| {
            poller.add(&barrier, Interest::HangUp)?;
            Ok(barrier)
        });
        let barrier = barrier.inspect_err(
            |error| tracing::warn!(%error, "systemd is not asked whether it has heard"),
        );
        let patience = if barrier.is_ok() { BARRIER_TIMEOUT } else { Duration::ZERO };
        let until = Instant::now() + patience;
        self.role = Role::Announcing { barrier: barrier.ok(), until };
    }

    /// The service stops: for good, as far as systemd is concerned.
    pub(crate) fn stopping(&mut self, in_flight: u64, left: Duration) {
        self.status.stopping(in_flight, left);
        if let Some(notifier) = &self.notifier {
            self.told = self.status.render();
            notifier.say(format!("STOPPING=1\nSTATUS={}", self.told), None);
        }
    }

    /// Something has happened.
    pub(crate) fn follow(&mut self, event: &Event) {
        self.status.follow(event);
    }

    /// When to come back if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let role = match &self.role {
            Role::Awaiting { until } => *until,
            Role::Announcing { until, .. } => Some(*until),
            Role::Main | Role::Former => None,
        };
        let watchdog = self.watchdog.as_ref().and_then(|watchdog| watchdog.next);
        let own = [self.tick, watchdog].into_iter().flatten().min().filter(|_| self.is_main());
        let notifier = self.notifier.as_ref()?;
        [role, own, notifier.deadline()].into_iter().flatten().min()
    }

    /// Does what can be done without waiting; so many older generations drain.
    pub(crate) fn step(
        &mut self,
        standing: Standing,
        older: usize,
        now: Instant,
        poller: &Poller,
    ) -> Option<Heard> {
        let notifier = self.notifier.clone()?;
        let heard = match &mut self.role {
            Role::Awaiting { until: Some(until) } if now >= *until => {
                tracing::warn!("no word from the predecessor that systemd knows this process");
                Some(Heard::Nothing)
            }
            Role::Announcing { barrier, until } => {
                let is_heard = barrier.as_ref().is_some_and(|barrier| {
                    poll::look(&[barrier.as_fd()]).is_ok_and(|found| found[0].hung_up)
                });
                if !notifier.is_flushed() {
                    // What is not in systemd's queue would be lost with this process.
                    *until = now + BARRIER_TIMEOUT;
                    None
                } else if is_heard || now >= *until {
                    if !is_heard {
                        tracing::warn!("systemd does not say that it knows the successor");
                    }
                    barrier.iter().for_each(|barrier| poller.remove(barrier));
                    self.role = Role::Former;
                    Some(Heard::OfSuccessor)
                } else {
                    None
                }
            }
            Role::Main | Role::Awaiting { .. } | Role::Former => None,
        };
        self.keep_time(standing, now, &notifier);
        self.status.set_older(older);
        if self.serves && notifier.is_main() {
            let line = self.status.render();
            if line != self.told && notifier.hint(&format!("STATUS={line}")) {
                self.told = line;
            }
        }
        notifier.flush(poller);
        if let Some(store) = self.own_store() {
            store.catch_up();
        }
        heard
    }

    /// Asks for more time while something is under way, and tells how that stands.
    fn keep_time(&mut self, standing: Standing, now: Instant, notifier: &Notifier) {
        if matches!(standing, Standing::Settled | Standing::Leaving) {
            self.tick = None;
            return;
        }
        let tick = *self.tick.get_or_insert(now + TICK);
        if now < tick {
            return;
        }
        self.tick = Some(now + TICK);
        if let Standing::Stopping { in_flight, left } = standing {
            self.status.stopping(in_flight, left);
        }
        if self.watchdog.is_none() {
            notifier.hint(extension(EXTENSION).trim_start());
        }
    }

    /// Whether a sign of life is due; the next one is, after a while. Returns it, and where to give it.
    ///
    /// For systemd more time is more time for the watchdog as well: so it is asked for together with
    /// the sign of life, and for no longer than that is good for.
    pub(crate) fn ping_due(&mut self, now: Instant) -> Option<(Arc<Notifier>, String)> {
        let notifier = self.notifier.as_ref().filter(|notifier| notifier.is_main())?;
        let watchdog = self.watchdog.as_mut()?;
        watchdog.next.filter(|next| now >= *next)?;
        watchdog.next = now.checked_add(watchdog.interval());
        let more = self.tick.map_or_else(String::new, |_| extension(watchdog.timeout));
        Some((Arc::clone(notifier), format!("WATCHDOG=1{more}")))
    }

    /// Whether this process may exit when its time is over: not with what makes its successor known.
    pub(crate) fn may_go(&self) -> bool {
        !matches!(self.role, Role::Announcing { .. })
    }

    /// Whether everything was said that has to be before this process may exit.
    pub(crate) fn is_done(&self) -> bool {
        let is_flushed = self.notifier.as_ref().is_none_or(|notifier| notifier.is_flushed());
        is_flushed && self.may_go()
    }
}

/// Asks for that much more time.
fn extension(time: Duration) -> String {
    format!("\nEXTEND_TIMEOUT_USEC={}", time.as_micros())
}
