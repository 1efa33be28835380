//! `axum::serve` on our listeners.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::Listener;

use super::{TcpListener, UnixListener};
use crate::listener::{Address, Connection};

/// How long to leave a listener alone that is of no more use. Nothing better can be done: the trait
/// knows no error.
const BROKEN_PAUSE: Duration = Duration::from_secs(1);

/// When this generation must not accept any more, the listener is closed and `accept` waits for
/// ever: the server's task does nothing then, and the connections live on in tasks of their own.
impl Listener for TcpListener {
    type Io = Connection<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match Self::accept(self).await {
                Ok(Some(accepted)) => return accepted,
                Ok(None) => {
                    self.0.close();
                    return pending().await;
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match Self::local_addr(self)? {
            Address::Inet(address) => Ok(address),
            Address::Path(_) | Address::Abstract(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// As for [`TcpListener`]. The address is the listener's: clients have none as a rule.
impl Listener for UnixListener {
    type Io = Connection<tokio::net::UnixStream>;
    type Addr = Address;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let address = Self::local_addr(self).unwrap_or(Address::Abstract(Vec::new()));
        loop {
            match Self::accept(self).await {
                Ok(Some(connection)) => return (connection, address),
                Ok(None) => {
                    self.0.close();
                    return pending().await;
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Address> {
        Self::local_addr(self)
    }
}

async fn pause(error: &io::Error) {
    tracing::error!(%error, "the listener is of no more use");
    tokio::time::sleep(BROKEN_PAUSE).await;
}
