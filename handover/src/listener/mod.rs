//! Listeners and other sockets that stay while processes come and go.

mod address;
mod bind;
mod blocking;
mod connection;
mod endpoint;
mod retire;

pub use address::{Address, AddressError, Bind, DEFAULT_BACKLOG, FromSystemd, MAX_UNIX_PATH_BYTES};
pub use blocking::{
    SeqpacketStream, TcpListener, UdpSocket, UnixDatagram, UnixListener, UnixSeqpacketListener,
};
pub use connection::Connection;

pub(crate) use bind::{Bound, Kind, address_of, bind, has_address, serves_address};
pub(crate) use endpoint::{Attempted, Endpoint};

/// A socket that can be claimed by name: the listeners and datagram sockets of this crate, with and
/// without Tokio.
pub trait Claim: sealed::Claim {}

pub(crate) mod sealed {
    use std::io;
    use std::sync::Arc;

    use super::{Endpoint, Kind};

    pub trait Claim: Sized {
        #[doc(hidden)]
        const KIND: Kind;

        #[doc(hidden)]
        fn from_endpoint(endpoint: Arc<Endpoint>) -> io::Result<Self>;
    }
}
