//! Taking a listener out of service without resetting what it has queued.
//!
//! Closing the last copy of a listener resets what waits in its queue and what is half-way through
//! its handshake. So nothing new is let in first, then everything is accepted that is queued or
//! still completes its handshake, and only then the listener is closed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::drain::Entry;
use crate::sys::handshakes::{self, Handshake, Handshakes};
use crate::sys::socket::{self, Barrier};

/// How often to look whether handshakes have completed. The kernel tells nobody; the completed ones are told by
/// the listener itself.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How long to wait for handshakes where the kernel does not say how many there are.
const QUIET: Duration = Duration::from_millis(200);

/// How long to wait for handshakes at most: time for two lost packets. There are always some that
/// nobody means to complete where the network is hostile.
const HANDSHAKES_TIMEOUT: Duration = Duration::from_secs(5);

/// The retirement of one socket. It is kept for as long as the socket is open: the barrier may be
/// asked for connections up to its end.
#[derive(Debug)]
pub(crate) struct Retirement {
    /// Keeps the drain waiting, until everything is accepted.
    entry: Option<Entry>,
    barrier: Option<Barrier>,
    /// The address, of a TCP listener.
    address: Option<SocketAddr>,
    /// The handshakes that were half done at the first look and may be still. Later ones are not
    /// ours, but of others who listen on the port.
    handshakes: Option<HashSet<Handshake>>,
    /// That it was looked for the last time: none was left, or time was up.
    looked: bool,
    begun: Instant,
    /// What is looked at has to be later than this: the barrier, or the last look.
    since: Instant,
}

impl Retirement {
    /// Lets nothing new in from here on.
    pub(crate) fn begin(fd: BorrowedFd<'_>, entry: Entry) -> Self {
        let begun = Instant::now();
        let mut retirement = Self {
            entry: Some(entry),
            barrier: None,
            address: None,
            handshakes: None,
            looked: false,
            begun,
            since: begun,
        };
        let Ok(facts) = socket::facts(fd) else { return retirement };
        if !facts.listening {
            return retirement;
        }
        if facts.domain == socket2::Domain::UNIX {
            if let Err(error) = socket::refuse_new(fd) {
                tracing::warn!(%error, "a Unix listener retires without refusing new connections");
            }
            return retirement;
        }
        retirement.address =
            socket2::SockRef::from(&fd).local_addr().ok().and_then(|address| address.as_socket());
        match socket::drop_new(fd) {
            Ok(barrier) => retirement.barrier = Some(barrier),
            Err(error) => tracing::warn!(
                %error,
                "a listener retires without a barrier: connections that arrive at its very end \
                 are reset"
            ),
        }
        retirement.since = Instant::now();
        retirement
    }

    /// To be called with each connection that is accepted from here on.
    pub(crate) fn admit(&self, connection: BorrowedFd<'_>) {
        if let Some(barrier) = &self.barrier {
            barrier.admit(connection);
        }
    }

    /// Does not keep the drain waiting any more.
    pub(crate) fn give_up(&mut self) {
        self.entry = None;
    }

    /// To be called when the queue was found empty: when to look again, `None` if it was for good.
    pub(crate) fn look_again(&mut self, now: Instant) -> Option<Instant> {
        let again = self.next_look(now);
        if again.is_none() {
            self.give_up();
        }
        again
    }

    fn next_look(&mut self, now: Instant) -> Option<Instant> {
        let address = self.address?;
        if self.looked {
            return None;
        }
        let patience = match handshakes::with(address, self.since) {
            Handshakes::HalfDone(found) => {
                let left = match self.handshakes.take() {
                    Some(mut left) => {
                        left.retain(|handshake| found.contains(handshake));
                        left
                    }
                    None => found,
                };
                let patience = if left.is_empty() { Duration::ZERO } else { HANDSHAKES_TIMEOUT };
                self.handshakes = Some(left);
                patience
            }
            Handshakes::Unknown => QUIET,
            Handshakes::Later(at) => return Some(at),
        };
        self.since = Instant::now();
        if now >= self.begun + patience {
            // Some may have completed between the look into the queue and this one.
            self.looked = true;
            return Some(now);
        }
        Some(now + LOOK_AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::sync::Arc;

    use handover_proto::Name;
    use handover_testkit::{is_root, recheck, skip, soon};

    use super::*;
    use crate::drain::InFlight;
    use crate::gate::Stance;
    use crate::listener::bind::{Kind, bind};
    use crate::listener::endpoint::{Attempted, Endpoint};
    use crate::sys::poll::Wake;
    use crate::sys::socket::Blocking;

    #[test]
    fn whoever_is_about_to_accept_when_another_finds_the_end_is_told_of_the_end() {
        let address = "127.0.0.1:0".parse().unwrap();
        let bound = bind(Kind::Tcp, &address, "127.0.0.1:0".into(), &[], Stance::Open).unwrap();
        let in_flight = Arc::new(InFlight::new(Arc::new(Wake::new().unwrap())));
        let name = Name::new("web").unwrap();
        let endpoint = Endpoint::new(name, address.to_string(), bound, Stance::Open, in_flight);
        endpoint.use_it();
        endpoint.retire();

        // What is in there happens between the look at the stance and the call of accept(2).
        let attempted = endpoint.receive(|fd| {
            while !matches!(endpoint.accept(Blocking::No)?, Attempted::Ended) {}
            socket::accept(fd.as_fd(), Blocking::No).map(|accepted| (0, accepted))
        });

        assert!(matches!(attempted, Ok(Attempted::Ended)), "{:?}", attempted.err());
    }

    #[test]
    fn what_came_during_the_last_look_for_handshakes_is_accepted_although_time_is_up() {
        if !is_root() {
            skip!(
                "what_came_during_the_last_look_for_handshakes_is_accepted_although_time_is_up",
                "only root may attach a packet filter"
            );
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let client = client.unwrap();
        // It takes no bytes of any packet, so its handshake stays half done.
        client.attach_filter(&[socket2::SockFilter::new(0x06, 0, 0, 0)]).unwrap();
        client.set_nonblocking(true).unwrap();
        client.connect(&address.into()).unwrap_err();
        let asked = Instant::now();
        let half_open = || match handshakes::with(address, asked) {
            Handshakes::HalfDone(found) => (found.len() == 1).then_some(()),
            Handshakes::Unknown | Handshakes::Later(_) => None,
        };
        recheck(soon(), half_open).expect("its handshake begins");
        let in_flight = Arc::new(InFlight::new(Arc::new(Wake::new().unwrap())));
        let mut retirement = Retirement::begin(listener.as_fd(), in_flight.enter());

        let (early, late) = (retirement.begun, retirement.begun + HANDSHAKES_TIMEOUT);
        assert!(retirement.look_again(early).unwrap() > early);
        let is_last = |retirement: &mut Retirement| {
            let again = retirement.look_again(late);
            // Unless it was looked so short a time ago that it is too early to look again.
            (again == Some(late)).then_some(())
        };
        recheck(soon(), || is_last(&mut retirement)).expect("the queue is to be looked at again");
        assert_eq!(retirement.look_again(late), None);
    }
}
