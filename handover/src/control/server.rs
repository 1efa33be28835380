//! The service's end of the control socket.
//!
//! It never waits: [`Server::step`] does what can be done, the engine's poller tells when there is
//! more, and [`Server::deadline`] when there is although nothing comes. A client has one request
//! under way at a time; the next one is read when the final answer is written.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connection::{Connection, Phase};
use super::output;
use super::permission::{Peer, Policy};
use super::request::Asked;
use super::{Answer, ErrorCode, Request, TimedEvent};
use crate::gate::Stance;
use crate::listener::{Attempted, Endpoint};
use crate::sys::poll::{self, Interest, Poller, Readiness};
use crate::sys::process::Process;
use crate::sys::socket::Blocking;

/// The most clients at a time. When there are as many, the one that has been idle for longest makes
/// room for a new one; if all of them wait for an answer, the new one is told
/// [`ErrorCode::TooManyClients`].
pub const MAX_CONTROL_CLIENTS: usize = 64;

/// The most clients that were told to go and have not gone yet.
const MAX_LEAVING_CLIENTS: usize = 64;

/// The most clients that are accepted in one step: a flood must not keep the engine from anything else.
const ACCEPTS_PER_STEP: usize = 16;

/// How long to wait before the poller is asked again, when it is short of something.
const REGISTER_PAUSE: Duration = Duration::from_secs(1);

/// How often the same trouble is logged at most.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// The control socket and its clients.
#[derive(Debug)]
pub(crate) struct Server {
    endpoint: Arc<Endpoint>,
    poller: Arc<Poller>,
    policy: Policy,
    clients: BTreeMap<ClientId, Connection>,
    last_id: u64,
    /// Whether the poller tells of new clients.
    is_listening: bool,
    /// When to look for new clients again: not before, and whatever the socket says.
    rest: Option<Instant>,
    /// When to look for new clients at the latest.
    look_again: Option<Instant>,
    /// The socket is of no use any more.
    is_broken: bool,
    /// Nothing more is done for anybody.
    is_finishing: bool,
    forbidden: Complaint,
    too_many: Complaint,
}

/// A client, for as long as it is connected; never given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(u64);

/// What has come of clients.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A client asks for something, and waits for a final answer.
    Request { client: ClientId, request: Asked, peer: Peer },
    /// A client is gone whose request was not finally answered.
    Gone { client: ClientId },
}

impl Server {
    /// The server at this socket. It accepts while the gate lets it.
    pub(crate) fn new(endpoint: Arc<Endpoint>, policy: Policy, poller: Arc<Poller>) -> Self {
        Self {
            endpoint,
            poller,
            policy,
            clients: BTreeMap::new(),
            last_id: 0,
            is_listening: false,
            rest: None,
            look_again: None,
            is_broken: false,
            is_finishing: false,
            forbidden: Complaint::default(),
            too_many: Complaint::default(),
        }
    }

    /// Does what can be done without waiting.
    ///
    /// `Request`s for events are subscribed by this, and wait for no answer.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<Incoming> {
        self.accept(now);
        self.dismiss_if_finishing(now);
        let mut incoming = Vec::new();
        let ready = self.readiness();
        for ((client, connection), ready) in self.clients.iter_mut().zip(ready) {
            let Some(request) = connection.step(ready, now) else { continue };
            connection.follows = request == Asked::Ours(Request::Events {});
            let (client, peer) = (*client, connection.peer);
            incoming.push(Incoming::Request { client, request, peer });
        }
        self.dismiss_if_finishing(now);
        self.clients.retain(|client, connection| match connection.phase() {
            Phase::Over { orphaned } => {
                if orphaned {
                    incoming.push(Incoming::Gone { client: *client });
                }
                false
            }
            Phase::Idle { .. } | Phase::Busy | Phase::Answered { .. } | Phase::Leaving { .. } => {
                true
            }
        });
        self.listen(now);
        incoming
    }

    /// Sends an answer to the request of a client. One that is no event is the final one: from
    /// then on the client may ask again.
    ///
    /// Whoever calls this outside of the engine's step wakes the waiter: the deadline may be
    /// another. A client that is gone gets nothing, and whoever asked for it hears of it in `step`.
    pub(crate) fn answer(&mut self, client: ClientId, answer: &Answer) {
        self.send(client, answer, None);
    }

    /// The same, and the descriptor goes with the first byte of the line. It is closed here then, and if
    /// the client is gone.
    pub(crate) fn answer_with(&mut self, client: ClientId, answer: &Answer, descriptor: OwnedFd) {
        self.send(client, answer, Some(descriptor));
    }

    /// Has a client see all events until the final answer to its request.
    pub(crate) fn follow(&mut self, client: ClientId) {
        if let Some(connection) = self.clients.get_mut(&client)
            && connection.phase() == Phase::Busy
        {
            connection.follows = true;
        }
    }

    /// Tells everybody who follows.
    pub(crate) fn publish(&mut self, event: &TimedEvent) {
        let mut followers = self.clients.values_mut().filter(|client| client.follows).peekable();
        if followers.peek().is_none() {
            return;
        }
        let line = output::line(&Answer::Event(event.clone()));
        let now = Instant::now();
        followers.for_each(|client| client.tell(event, &line, now));
    }

    /// The process that a client is.
    ///
    /// # Errors
    ///
    /// If the client or its process is gone, or has no number here.
    pub(crate) fn process(&self, client: ClientId) -> io::Result<Process> {
        self.clients.get(&client).ok_or(io::ErrorKind::NotFound)?.process()
    }

    /// When to step although nothing comes: at once, if it has passed.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let turned = (self.is_listening != self.wants_to_listen()).then(Instant::now);
        let clients = self.clients.values().filter_map(Connection::deadline);
        turned.into_iter().chain(self.rest).chain(self.look_again).chain(clients).min()
    }

    /// Whether every final answer has been written. This comes true, within
    /// [`CONTROL_WRITE_TIMEOUT`](super::CONTROL_WRITE_TIMEOUT).
    pub(crate) fn is_flushed(&self) -> bool {
        !self.clients.values().any(|client| matches!(client.phase(), Phase::Answered { .. }))
    }

    /// From here on nobody can ask anything: this process will not serve any more. What was asked
    /// can still be answered, and events be told.
    pub(crate) fn finish(&mut self) {
        self.is_finishing = true;
        self.dismiss_if_finishing(Instant::now());
    }

    fn send(&mut self, client: ClientId, answer: &Answer, descriptor: Option<OwnedFd>) {
        let now = Instant::now();
        if let Some(connection) = self.clients.get_mut(&client) {
            connection.answer(answer, descriptor, now);
        }
        self.dismiss_if_finishing(now);
    }

    fn dismiss_if_finishing(&mut self, now: Instant) {
        if self.is_finishing {
            let message = "this process does not serve any more: connect again to ask";
            for client in self.clients.values_mut() {
                client.dismiss_idle(ErrorCode::NotServing, message, now);
            }
        }
    }

    /// What the clients are ready for, in their order.
    fn readiness(&self) -> Vec<Readiness> {
        let descriptors: Vec<_> = self.clients.values().map(AsFd::as_fd).collect();
        poll::look(&descriptors).unwrap_or_else(|_| {
            // Out of memory: to try to read and write is as good, it waits for nothing.
            let all = Readiness { readable: true, writable: true, hung_up: false };
            vec![all; descriptors.len()]
        })
    }

    fn accept(&mut self, now: Instant) {
        if self.rest.is_some_and(|until| now < until) {
            return;
        }
        (self.rest, self.look_again) = (None, None);
        for _ in 0..ACCEPTS_PER_STEP {
            if !self.wants_to_listen() {
                return;
            }
            match self.endpoint.accept(Blocking::No) {
                // An operator is nothing that a drain waits for.
                Ok(Attempted::Taken((stream, _), guard)) => {
                    drop(guard);
                    self.admit(stream, now);
                }
                Ok(Attempted::Empty | Attempted::Paused | Attempted::Ended) => return,
                Ok(Attempted::Until(at)) => {
                    self.look_again = Some(at);
                    return;
                }
                Ok(Attempted::NotBefore(at)) => {
                    self.rest = Some(at);
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "the control socket is broken: nobody can connect");
                    self.is_broken = true;
                }
            }
        }
    }

    /// Takes a new client in, or tells it why not.
    fn admit(&mut self, stream: OwnedFd, now: Instant) {
        let connection = Peer::of(stream.as_fd()).and_then(|peer| {
            let allowed = self.policy.allows(peer, stream.as_fd());
            Ok((Connection::new(stream, peer, &self.poller, now)?, allowed))
        });
        let (mut connection, allowed) = match connection {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "a control client cannot be listened to");
                return;
            }
        };
        if !allowed {
            self.forbidden.say(now, |times| {
                tracing::warn!(peer = %connection.peer, times, "a control client is not allowed to ask");
            });
            let message = format!(
                "{} may not ask: only the user of the service and root may, and the group that \
                 the service names",
                connection.peer
            );
            connection.dismiss(ErrorCode::Forbidden, message, now);
        } else if !self.make_room(now) {
            let message =
                format!("there are {MAX_CONTROL_CLIENTS} clients that wait for answers: try later");
            connection.dismiss(ErrorCode::TooManyClients, message, now);
        }
        self.last_id += 1;
        self.clients.insert(ClientId(self.last_id), connection);
        self.limit_leaving();
    }

    /// Sees to it that there is room for one more client, if it can.
    fn make_room(&mut self, now: Instant) -> bool {
        let (mut clients, mut longest_idle) = (0, None);
        for client in self.clients.values_mut() {
            match client.phase() {
                Phase::Idle { since } => {
                    clients += 1;
                    if longest_idle.as_ref().is_none_or(|(longest, _)| since < *longest) {
                        longest_idle = Some((since, client));
                    }
                }
                Phase::Busy | Phase::Answered { .. } => clients += 1,
                Phase::Leaving { .. } | Phase::Over { .. } => {}
            }
        }
        if clients < MAX_CONTROL_CLIENTS {
            return true;
        }
        self.too_many.say(now, |times| {
            tracing::warn!(clients, times, "too many clients at the control socket");
        });
        let Some((_, client)) = longest_idle else { return false };
        let message =
            format!("there are {MAX_CONTROL_CLIENTS} other clients: connect again to ask");
        client.dismiss(ErrorCode::TooManyClients, message, now);
        true
    }

    /// Who was told to go and takes too much time over it goes at once, when there are too many.
    fn limit_leaving(&mut self) {
        let leaving = |(_, client): &(&ClientId, &Connection)| {
            matches!(client.phase(), Phase::Leaving { .. })
        };
        if self.clients.iter().filter(leaving).count() > MAX_LEAVING_CLIENTS
            && let Some((oldest, _)) = self.clients.iter().find(leaving)
        {
            let oldest = *oldest;
            self.clients.remove(&oldest);
        }
    }

    /// Whether new clients are this process's to accept.
    fn wants_to_listen(&self) -> bool {
        match self.endpoint.gate().stance() {
            Stance::Open | Stance::Retiring => !self.is_broken && self.rest.is_none(),
            Stance::Paused | Stance::Ended => false,
        }
    }

    /// Has the poller tell of new clients, or not: it tells for as long as there are any.
    fn listen(&mut self, now: Instant) {
        let wanted = self.wants_to_listen();
        if wanted == self.is_listening {
            return;
        }
        if !wanted {
            self.poller.remove(&*self.endpoint);
        } else if let Err(error) = self.poller.add(&*self.endpoint, Interest::Read) {
            tracing::error!(%error, "the control socket cannot be waited for");
            self.rest = now.checked_add(REGISTER_PAUSE);
            return;
        }
        self.is_listening = wanted;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.poller.remove(&*self.endpoint);
    }
}

/// One kind of trouble, for the log.
#[derive(Debug, Default)]
struct Complaint {
    said: Option<Instant>,
    /// How often there was trouble since.
    times: u64,
}

impl Complaint {
    /// Logs it, with how often it has happened since it was logged last; or not, if that was a short
    /// while ago.
    fn say(&mut self, now: Instant, log: impl FnOnce(u64)) {
        self.times += 1;
        if self.said.is_none_or(|said| now.saturating_duration_since(said) >= LOG_PAUSE) {
            log(self.times);
            *self = Self { said: Some(now), times: 0 };
        }
    }
}

#[cfg(test)]
mod tests;
