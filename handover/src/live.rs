//! Connections that change hands: a connection does not have to end because its process does.
//!
//! A process that was replaced can give the connections that it still has to its successor, each with
//! the bytes that it has read and not used, and a state of the application's own. To the client nothing
//! happens. It takes both sides:
//!
//! - Whoever drains waits with [`Departures::slot`] until a connection may go, in each connection's task
//!   or thread, beside what that does otherwise. When the slot comes at a quiet point, with nothing half
//!   read or half written, the connection is [sent](Departure::send). Otherwise the slot is dropped, and
//!   another one asked for later.
//! - Whoever serves says with [`Handle::arrivals`](crate::Handle::arrivals) what it takes, and goes on
//!   with each [`Arrival`].
//!
//! Connections go once the successor serves for good: after the commit, or where there is
//! [probation](crate::Builder::probation), after its end. They go in batches, a limited number at a time, so
//! that none of them stands still for long. What the successor refuses comes [back](Returned), and drains
//! as it would have. On a stop nothing goes.
//!
//! A connection always has one owner. It is the giver's until the successor has said that it has it, and
//! the successor says so before its application sees it. If the successor dies before, it comes back; if the
//! giver dies, what it has sent is the successor's. Whoever dies takes with it what it had, as a crash
//! does.
//!
//! [`Handle::predecessor_gone`](crate::Handle::predecessor_gone) comes when all that the predecessor gave is among
//! the arrivals.
//!
//! What only one process has cannot go: TLS, a half-written answer, more than
//! [`MAX_CONNECTION_BYTES`] of unread bytes and state. Such connections drain.
//!
//! ```no_run
//! use std::net::TcpStream;
//!
//! use handover::live::{Baggage, Departures};
//! use handover::{Connection, Handle};
//!
//! # fn serve(connection: Connection<TcpStream>, unread: Vec<u8>) {}
//! /// In a successor: goes on with the connections of its predecessor.
//! fn take(handle: &Handle) -> Result<(), handover::ClaimError> {
//!     let mut arrivals = handle.arrivals("chat", 1..=1)?;
//!     std::thread::spawn(move || {
//!         while let Some(arrival) = arrivals.wait() {
//!             if let Ok((connection, baggage)) = arrival.into_connection::<TcpStream>() {
//!                 serve(connection, baggage.unread);
//!             }
//!         }
//!     });
//!     Ok(())
//! }
//!
//! /// At a quiet point of a connection, in a process that drains.
//! fn give(departures: &Departures, connection: Connection<TcpStream>, unread: Vec<u8>) {
//!     let Ok(departure) = departures.slot().wait() else { return };
//!     let baggage = Baggage { unread, state: b"name=ada".to_vec() };
//!     if let Err(back) = departure.send(connection, baggage).wait() {
//!         eprintln!("it stays here: {back}");
//!     }
//! }
//! ```

pub(crate) mod desk;
pub(crate) mod exchange;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use handover_proto::Name;
pub use handover_proto::moving::MAX_CONNECTION_BYTES;

use crate::drain::Guard;
use crate::listener::Connection;
use crate::watch::block_on;
use desk::{Desk, Kept, Leaving, Place, Reply};

/// A stream that can change hands. Whoever implements it for another type of stream has nothing of it in
/// memory that the other process would miss.
pub trait Movable: Sized {
    /// Gives up the stream, out of any runtime, and leaves the connection open.
    ///
    /// Not by way of halves that shut the connection down when they are dropped, as those of Tokio's
    /// `into_split` do.
    ///
    /// # Errors
    ///
    /// If it cannot be taken out: the connection is lost.
    fn into_fd(self) -> io::Result<OwnedFd>;

    /// Makes a stream of a connection that has arrived.
    ///
    /// # Errors
    ///
    /// If it cannot be made, for want of a runtime say.
    fn from_fd(fd: OwnedFd) -> io::Result<Self>;
}

impl Movable for TcpStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.into())
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stream = Self::from(fd);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

impl Movable for UnixStream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(self.into())
    }

    fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stream = Self::from(fd);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }
}

/// What goes along with a connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// What was read from it and not used: the successor is to take it for the next that it reads.
    pub unread: Vec<u8>,
    /// What the application wants to know of it; the version is that of [`Handle::departures`](crate::Handle::departures).
    pub state: Vec<u8>,
}

/// What clients have sent is not for logs.
impl fmt::Debug for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unread, state } = self;
        let (unread, state) = (unread.len(), state.len());
        f.debug_struct("Baggage")
            .field("unread_bytes", &unread)
            .field("state_bytes", &state)
            .finish()
    }
}

/// The way out for connections of one name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Departures {
    desk: Arc<Desk>,
    name: Name,
    version: u32,
}

impl Departures {
    pub(crate) fn new(desk: &Arc<Desk>, name: Name, version: u32) -> Self {
        Self { desk: Arc::clone(desk), name, version }
    }

    /// Comes when a connection may go. That is never as long as this process serves, nor if its successor
    /// never asks for this name: what is to drain instead after a time needs a timeout.
    pub fn slot(&self) -> Slot {
        Slot { departures: self.clone(), place: Place::default() }
    }

    /// Whether none will ever go from here, of whatever name.
    #[cfg(feature = "http")]
    pub(crate) fn is_over(&self) -> bool {
        self.desk.is_over()
    }
}

/// When a connection may go: a future, and for threads [`wait`](Self::wait).
///
/// Fails when none will ever go from here: on a stop, when the successor is gone or does not know this
/// version of the state. It can a moment before [`Handle::draining`](crate::Handle::draining) comes, and
/// [`Handle::ending`](crate::Handle::ending) tells why.
#[derive(Debug)]
#[must_use = "it does nothing unless it is awaited"]
pub struct Slot {
    departures: Departures,
    place: Place,
}

impl Slot {
    /// Waits for it.
    ///
    /// # Errors
    ///
    /// If none will ever go from here.
    pub fn wait(self) -> Result<Departure, NoDeparture> {
        block_on(self)
    }
}

impl Future for Slot {
    type Output = Result<Departure, NoDeparture>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { departures, place } = &mut *self;
        let slot = departures.desk.poll_slot(&departures.name, departures.version, place, cx);
        slot.map(|granted| match granted {
            Ok(()) => Ok(Departure { departures: departures.clone(), is_used: false }),
            Err(reason) => Err(NoDeparture { reason }),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.departures.desk.leave(&self.departures.name, &mut self.place);
    }
}

/// Why no connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDeparture {
    reason: String,
}

impl fmt::Display for NoDeparture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for NoDeparture {}

/// Leave for one connection to go. There are only so many at a time: send it soon, or drop this.
#[derive(Debug)]
#[must_use = "others wait for it"]
pub struct Departure {
    departures: Departures,
    is_used: bool,
}

impl Departure {
    /// Sends the connection to the successor. It is to be at a quiet point: what was read of it is used
    /// or in the baggage, what was to be written is written.
    ///
    /// It goes whether or not the outcome is awaited; one that comes back to nobody is closed.
    pub fn send<S: Movable>(mut self, connection: Connection<S>, baggage: Baggage) -> Sent<S> {
        let desk = Arc::clone(&self.departures.desk);
        let (stream, guard) = connection.into_parts();
        let fd = match stream.into_fd() {
            Ok(fd) => fd,
            Err(error) => {
                let (reason, connection) = (error.to_string(), Err(error));
                return Sent(Sending::Back(Some(Returned { connection, baggage, reason })));
            }
        };
        let Departures { name, version, .. } = self.departures.clone();
        match Leaving::new(name, version, fd, guard, baggage) {
            Ok(leaving) => {
                self.is_used = true;
                let reply = Arc::clone(&leaving.reply);
                desk.depart(leaving);
                Sent(Sending::Away(reply))
            }
            Err(kept) => Sent(Sending::Back(Some(Returned::of(*kept)))),
        }
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        if !self.is_used {
            self.departures.desk.free_slots(1);
        }
    }
}

/// The outcome of [`Departure::send`]: a future, and for threads [`wait`](Self::wait).
#[derive(Debug)]
#[must_use = "a connection that comes back is closed if nobody takes it"]
pub struct Sent<S>(Sending<S>);

#[derive(Debug)]
enum Sending<S> {
    Away(Arc<Reply>),
    /// It could not even be sent; taken out when that is told.
    Back(Option<Returned<S>>),
}

impl<S: Movable> Sent<S> {
    /// Waits for it.
    ///
    /// # Errors
    ///
    /// The connection, if the successor does not take it.
    pub fn wait(self) -> Result<(), Returned<S>> {
        block_on(self)
    }
}

// Nothing in it is pinned.
impl<S> Unpin for Sent<S> {}

impl<S: Movable> Future for Sent<S> {
    type Output = Result<(), Returned<S>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Sending::Away(reply) => reply.poll(cx).map_err(Returned::of),
            Sending::Back(returned) => {
                returned.take().map_or(Poll::Pending, |back| Poll::Ready(Err(back)))
            }
        }
    }
}

/// A connection that the successor did not take.
#[derive(Debug)]
#[non_exhaustive]
pub struct Returned<S> {
    /// The connection as it was; or why it is lost, if it could not be brought back into the runtime.
    pub connection: io::Result<Connection<S>>,
    /// What went along.
    pub baggage: Baggage,
    /// Why it was not taken, for people.
    pub reason: String,
}

impl<S: Movable> Returned<S> {
    fn of(kept: Kept) -> Self {
        let Kept { fd, guard, baggage, reason } = kept;
        let connection = S::from_fd(fd).map(|stream| Connection::new(stream, guard));
        Self { connection, baggage, reason }
    }
}

impl<S> fmt::Display for Returned<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the successor did not take the connection: {}", self.reason)
    }
}

/// The connections of one name that older generations give, as they come.
#[derive(Debug)]
pub struct Arrivals {
    desk: Arc<Desk>,
    name: Name,
}

impl Arrivals {
    pub(crate) fn new(desk: &Arc<Desk>, name: Name) -> Self {
        Self { desk: Arc::clone(desk), name }
    }

    /// The next one; `None` when this process takes no more: it drains. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Arrival> {
        poll_fn(|cx| self.desk.poll_arrival(&self.name, cx)).await
    }

    /// The same for a thread, which it blocks.
    pub fn wait(&mut self) -> Option<Arrival> {
        block_on(poll_fn(|cx| self.desk.poll_arrival(&self.name, cx)))
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.desk.unsubscribe(&self.name);
    }
}

/// A connection that an older generation has given to this process.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrival {
    /// What came along.
    pub baggage: Baggage,
    /// The version of the state.
    pub version: u32,
    /// The generation that had it before.
    pub generation: u64,
    fd: OwnedFd,
    guard: Guard,
}

impl Arrival {
    /// Makes a stream of it, beside what came along. It counts as in flight, as a connection that was
    /// accepted does.
    ///
    /// # Errors
    ///
    /// As [`Movable::from_fd`]; the connection is closed.
    pub fn into_connection<S: Movable>(self) -> io::Result<(Connection<S>, Baggage)> {
        let stream = S::from_fd(self.fd)?;
        Ok((Connection::new(stream, self.guard), self.baggage))
    }
}
