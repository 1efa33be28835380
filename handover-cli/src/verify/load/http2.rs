//! Clients that have several requests under way on one HTTP/2 connection.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::{Scene, Ticket};
use crate::verify::http2::{Connection, Failure};
use crate::verify::loss::{Kind, Loss};
use crate::verify::tally::Kept;

/// A client with one connection at a time on which new requests are sent; those that the service is
/// about to end finish what they have.
pub(super) struct Client {
    scene: Arc<Scene>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    current: Option<Connection>,
    /// The current one and those before it, which end with the client at the latest.
    drivers: JoinSet<()>,
}

impl Client {
    pub(super) fn new(scene: Arc<Scene>) -> Self {
        Self { scene, connections: Mutex::default() }
    }

    /// Sends one request after the other, beside the other slots of the client.
    pub(super) async fn slot(self: Arc<Self>, mut queue: mpsc::UnboundedReceiver<Ticket>) {
        while let Some(ticket) = queue.recv().await {
            let fate = timeout_at(self.scene.deadline(ticket.due), self.ask()).await;
            self.scene.account(ticket.due, fate.unwrap_or_else(|_| Err(Loss::timed_out())));
        }
    }

    /// Sends a request, and again for as long as nobody has processed it.
    async fn ask(&self) -> Result<String, Loss> {
        // A service that is replaced may refuse a request here and there, and not one so often.
        const MAX_ATTEMPTS: u32 = 10;
        let mut is_disowned = false;
        for _ in 0..MAX_ATTEMPTS {
            let connection = self.connection().await?;
            if is_disowned {
                self.scene.tally.sent_again();
            }
            let request = self.scene.target.http2_request();
            match connection.exchange(request, &self.scene.target.identity).await {
                Ok(verdict) => return verdict,
                Err(Failure::Lost(loss)) => return Err(loss),
                Err(Failure::Unsent) => is_disowned = false,
                Err(Failure::Unprocessed) => is_disowned = true,
            }
        }
        let why = format!("the service took it in none of {MAX_ATTEMPTS} attempts");
        Err(Loss::new(Kind::Other, why))
    }

    /// The connection on which requests are to be sent.
    async fn connection(&self) -> Result<Connection, Loss> {
        let mut connections = self.connections.lock().await;
        if let Some(current) = connections.current.as_ref().filter(|current| !current.is_over()) {
            return Ok(current.clone());
        }
        let stream = self.scene.target.connect().await;
        let stream = stream.map_err(|error| Loss::connecting(&error))?;
        let (connection, driver) = Connection::open(stream).await?;
        let tally = Arc::clone(&self.scene.tally);
        while connections.drivers.try_join_next().is_some() {}
        connections.drivers.spawn(driver.run(move |close| tally.closed(Kept::Http2, close)));
        connections.current = Some(connection.clone());
        Ok(connection)
    }
}
