//! A bound socket of this service: one for each name, shared by its wrapper and the registry.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use handover_proto::Name;
use handover_proto::control::ListenerReport;

use super::address::Address;
use super::bind::{Bound, Kind};
use super::retire::Retirement;
use crate::drain::{Guard, InFlight};
use crate::gate::{Gate, Stance};
use crate::sys;
use crate::sys::file::Identity;
use crate::sys::socket::{Accepted, Blocking, Trouble};
use crate::systemd::Kept;

/// How long to leave a listener alone when this process is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub struct Endpoint {
    pub(crate) name: Name,
    /// The address that was asked for, as text.
    pub(crate) asked: String,
    /// Somebody outside the service may have the socket as well: it is never taken out of service.
    pub(crate) shared: bool,
    /// A service manager has passed it, and has it as well.
    pub(crate) activated: bool,
    /// The predecessor has it as well.
    pub(crate) inherited: bool,
    fd: OwnedFd,
    /// The socket's place in the file system, to be removed with it.
    path: Option<(PathBuf, Identity)>,
    gate: Arc<Gate>,
    in_flight: Arc<InFlight>,
    /// The backlog with which to listen once this process serves. Unset for what listens already,
    /// or never does.
    unheard: Mutex<Option<i32>>,
    /// Set for good when the socket is to take nothing new any more.
    retirement: Mutex<Option<Retirement>>,
    /// Whether `retirement` has to be looked at.
    retires: AtomicBool,
    /// Whether anybody takes anything here.
    in_use: AtomicBool,
    /// Whether somebody may take things without us.
    is_cloned: AtomicBool,
    /// systemd has it in its store, and is to have it for as long as it is in service.
    kept: OnceLock<Kept>,
}

/// What an attempt to take something from the socket came to.
pub(crate) enum Attempted<T> {
    /// Here it is.
    Taken(T, Guard),
    /// Nothing is there: wait for the socket or the gate.
    Empty,
    /// Nothing can be taken before then, whatever the socket says.
    NotBefore(Instant),
    /// Nothing is there: look again when the socket says so, and at that time at the latest.
    Until(Instant),
    /// Not now: wait for the gate.
    Paused,
    /// Nothing will ever come.
    Ended,
}

impl Endpoint {
    pub(crate) fn new(
        name: Name,
        asked: String,
        bound: Bound,
        stance: Stance,
        in_flight: Arc<InFlight>,
    ) -> Self {
        let Bound { fd, unheard, shared, activated, inherited } = bound;
        let path = if shared { None } else { place(&fd) };
        Self {
            name,
            asked,
            shared,
            activated,
            inherited,
            fd,
            path,
            gate: Arc::new(Gate::new(stance)),
            in_flight,
            unheard: Mutex::new(unheard),
            retirement: Mutex::new(None),
            retires: AtomicBool::new(false),
            in_use: AtomicBool::new(false),
            is_cloned: AtomicBool::new(false),
            kept: OnceLock::new(),
        }
    }

    /// Whether systemd has it in its store, by this process.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.get().is_some()
    }

    /// systemd has it in its store.
    pub(crate) fn kept_as(&self, kept: Kept) {
        // Once is enough: the name does not change.
        let _ = self.kept.set(kept);
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The address that the socket has.
    pub(crate) fn local_address(&self) -> io::Result<Address> {
        let address = socket2::SockRef::from(&self.fd).local_addr()?;
        Address::of_socket(&address).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// What operators are told of it.
    pub(crate) fn report(&self) -> ListenerReport {
        let queue = sys::socket::queue(self.fd.as_fd());
        ListenerReport {
            name: self.name.to_string(),
            address: self.local_address().map_or_else(|_| self.asked.clone(), |it| it.to_string()),
            kind: self.kind().map_or("unknown", Kind::label).to_owned(),
            queued: queue.map(|queue| queue.queued),
            backlog: queue.and_then(|queue| queue.backlog),
        }
    }

    /// What it is, if it is of a kind of ours.
    pub(crate) fn kind(&self) -> Option<Kind> {
        sys::socket::facts(self.fd.as_fd()).ok().and_then(Kind::of)
    }

    /// Whether it listens, if it ever does.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_heard(&self) -> bool {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Whatever comes is taken, from here on.
    pub(crate) fn open(&self) {
        let unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(backlog) = unheard
            && let Err(error) = socket2::SockRef::from(&self.fd).listen(backlog)
        {
            tracing::error!(name = %self.name, %error, "cannot listen: somebody else does");
        }
        self.gate.turn(Stance::Open);
    }

    /// Nothing more is taken; what is queued is another generation's.
    pub(crate) fn end(&self) {
        if let Some(retirement) = self.retirement().as_mut() {
            retirement.give_up();
        }
        self.gate.turn(Stance::Ended);
    }

    /// A descriptor of the same socket, for somebody who does without us.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        let clone = self.fd.try_clone()?;
        let retirement = self.retirement();
        self.is_cloned.store(true, Ordering::SeqCst);
        let is_left_to_the_clone = retirement.is_some() && !self.in_use.load(Ordering::SeqCst);
        drop(retirement);
        if is_left_to_the_clone {
            self.end();
        }
        Ok(clone)
    }

    /// Nothing new comes; what is queued is taken, then the endpoint has ended.
    pub(crate) fn retire(&self) {
        let mut retirement = self.retirement();
        if retirement.is_some() || self.gate.stance() == Stance::Ended {
            return;
        }
        if self.shared {
            // What is queued is theirs, too.
            drop(retirement);
            return self.end();
        }
        self.remove_path();
        let listens = || sys::socket::facts(self.fd.as_fd()).is_ok_and(|facts| facts.listening);
        if !self.in_use.load(Ordering::SeqCst)
            && (self.is_cloned.load(Ordering::SeqCst) || !listens())
        {
            // Nobody has ever taken anything from it: a clone is used in its place, or it only sends.
            // Nobody would tell us of the end of what is queued.
            drop(retirement);
            return self.end();
        }
        // Before the barrier: who accepts what came through it has to know.
        self.retires.store(true, Ordering::SeqCst);
        *retirement = Some(Retirement::begin(self.fd.as_fd(), self.in_flight.enter()));
        drop(retirement);
        self.gate.turn(Stance::Retiring);
    }

    /// Takes a connection.
    ///
    /// # Errors
    ///
    /// Only what is wrong with the listener itself. What is wrong with a connection, and what
    /// passes, never ends a service.
    pub(crate) fn accept(&self, blocking: Blocking) -> io::Result<Attempted<Accepted>> {
        self.take(|fd| {
            let accepted = sys::socket::accept(fd, blocking)?;
            if self.retires.load(Ordering::SeqCst)
                && let Some(retirement) = &*self.retirement()
            {
                retirement.admit(accepted.0.as_fd());
            }
            Ok(accepted)
        })
    }

    /// Somebody wants what comes to the socket.
    pub(crate) fn use_it(&self) {
        // Looked at first: to write is to take it from the other threads that accept here.
        if !self.in_use.load(Ordering::SeqCst) {
            self.in_use.store(true, Ordering::SeqCst);
        }
    }

    /// Takes a datagram, by this call.
    pub(crate) fn receive<A>(
        &self,
        receive: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, A)>,
    ) -> io::Result<Attempted<(usize, A)>> {
        self.take(receive)
    }

    fn take<T>(
        &self,
        mut take: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<Attempted<T>> {
        self.use_it();
        let entry = self.in_flight.enter();
        let _pass = self.gate.pass(|| self.in_flight.wake());
        loop {
            let retiring = match self.gate.stance() {
                Stance::Paused => return Ok(Attempted::Paused),
                Stance::Ended => return Ok(Attempted::Ended),
                Stance::Open => false,
                Stance::Retiring => true,
            };
            match take(self.fd.as_fd()) {
                Ok(taken) => return Ok(Attempted::Taken(taken, entry.guard())),
                Err(e) => match Trouble::of(&e) {
                    Trouble::Nothing if retiring => {}
                    Trouble::Nothing => return Ok(Attempted::Empty),
                    Trouble::ThisOne => continue,
                    Trouble::Exhausted => {
                        tracing::warn!(name = %self.name, error = %e, "cannot accept for a while");
                        return Ok(Attempted::NotBefore(Instant::now() + EXHAUSTED_PAUSE));
                    }
                    // Another thread found the end of it, and closed it after our look.
                    Trouble::Socket if self.gate.stance() == Stance::Ended => {
                        return Ok(Attempted::Ended);
                    }
                    Trouble::Socket => return Err(e),
                },
            }
            let now = Instant::now();
            match self.retirement().as_mut().and_then(|retirement| retirement.look_again(now)) {
                Some(at) if at <= now => {}
                Some(at) => return Ok(Attempted::Until(at)),
                None => {
                    // In this order: a thread whose accept fails because of the close sees why.
                    self.gate.turn(Stance::Ended);
                    // Whoever still holds the listener must not keep clients waiting at it.
                    sys::socket::close_for_all(self.fd.as_fd());
                    return Ok(Attempted::Ended);
                }
            }
        }
    }

    fn retirement(&self) -> MutexGuard<'_, Option<Retirement>> {
        self.retirement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_path(&self) {
        if let Some((path, identity)) = &self.path
            && Identity::of_link(path) == Some(*identity)
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
        }
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where the socket is in the file system, if it is.
fn place(socket: &OwnedFd) -> Option<(PathBuf, Identity)> {
    let address = socket2::SockRef::from(socket).local_addr().ok()?;
    // The working directory may be another one by the time of the removal.
    let path = std::path::absolute(address.as_pathname()?).ok()?;
    let identity = Identity::of_link(&path)?;
    Some((path, identity))
}

/// Tokio registers what has a number.
impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Endpoint {
    /// A listener that is dropped while it serves goes for good, and its path with it. In any
    /// other stance the path belongs to another generation, or will.
    fn drop(&mut self) {
        if self.gate.stance() == Stance::Open {
            if let Some(kept) = self.kept.get() {
                kept.remove();
            }
            self.remove_path();
        }
    }
}

#[cfg(test)]
mod tests {
    use handover_testkit::Folder;

    use super::*;
    use crate::listener::{Bind, bind};
    use crate::sys::poll::Wake;

    fn report(kind: Kind, bind_to: Bind) -> ListenerReport {
        let address = bind_to.address.clone().unwrap();
        let in_flight = Arc::new(InFlight::new(Arc::new(Wake::new().unwrap())));
        let bound = bind(kind, &address, bind_to, &[], Stance::Open).unwrap();
        let (name, asked) = (Name::new("web").unwrap(), address.to_string());
        Endpoint::new(name, asked, bound, Stance::Open, in_flight).report()
    }

    #[test]
    fn a_report_names_kind_address_and_queue() {
        let folder = Folder::create();
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let of_path = |kind, word: &str, backlog: Option<u64>| {
            let told = report(kind, Bind::to(path(word)).backlog(9));
            let expected = ListenerReport {
                name: "web".into(),
                address: path(word),
                kind: word.into(),
                queued: backlog.map(|_| 0),
                backlog,
            };
            assert_eq!(told, expected);
        };
        of_path(Kind::UnixStream, "unix", Some(9));
        of_path(Kind::UnixSeqpacket, "unix-seqpacket", Some(9));
        of_path(Kind::UnixDatagram, "unix-datagram", None);

        let tcp = report(Kind::Tcp, Bind::to("127.0.0.1:0").backlog(9));
        assert!(!tcp.address.ends_with(":0"), "{tcp:?}");
        assert_eq!((&*tcp.kind, tcp.queued, tcp.backlog), ("tcp", Some(0), Some(9)));
        let udp = report(Kind::Udp, "[::1]:0".into());
        assert_eq!((&*udp.kind, udp.queued, udp.backlog), ("udp", None, None));
        let name = format!("@handover-report-{}", std::process::id());
        assert_eq!(report(Kind::UnixStream, (&name).into()).address, name);
    }
}
