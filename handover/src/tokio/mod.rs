//! Listeners, datagram sockets and the waiter for Tokio.
//!
//! Everything else is the same as without a runtime: [`Handover::listen`](crate::Handover::listen)
//! makes the sockets of this module, and [`ready`] takes the place of
//! [`Handover::ready`](crate::Handover::ready). The runtime needs its I/O and time drivers
//! (`enable_all`), as everything in `tokio::net` and `tokio::time` does.

#[cfg(feature = "axum")]
mod axum;
mod connection;
mod events;
mod movable;
mod register;
mod socket;
mod waiter;

pub use connection::SeqpacketStream;
pub use socket::{
    Incoming, TcpListener, UdpSocket, UnixDatagram, UnixListener, UnixSeqpacketListener,
};
pub use waiter::{Running, ready};
