//! What systemd passes to this process, and what it is told in return.
//!
//! ```text
//!   LISTEN_FDS ────► activation ──► registry        (sockets of .socket units)
//!                        └────────► store           (what a generation before a crash has left)
//!   engine ─► supervision ─┬─ status                (what `systemctl status` shows)
//!                          └─► notifier ──► NOTIFY_SOCKET
//!   registry, states ─► store ─┘
//! ```
//!
//! systemd hears one process of a service, its *main process* (`NotifyAccess=main`, the default). The
//! first generation is it from the start; later ones become it when their predecessor has announced
//! them. Who is not, is silent. Where the variables are not set nothing of this does anything.

#![cfg_attr(
    not(all(feature = "systemd-notify", feature = "systemd-sockets")),
    allow(dead_code, reason = "half of it is of no use without the other half")
)]

mod activation;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod notifier;
mod status;
mod store;
mod supervision;

use std::ffi::OsString;
use std::time::Duration;

pub(crate) use activation::Passed;
pub use store::Saved;
pub(crate) use store::{Kept, Store};
pub(crate) use supervision::{Heard, Standing, Supervision};

/// What the variables say of the service manager.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    /// Where it hears (`NOTIFY_SOCKET`, sd_notify(3)).
    pub(crate) notify_socket: Option<OsString>,
    /// How often it wants to hear, at the least (`WATCHDOG_USEC`, sd_watchdog_enabled(3)).
    pub(crate) watchdog: Option<Duration>,
    /// How many descriptors it keeps (`FDSTORE`, systemd 254 and newer).
    pub(crate) fd_store_max: u64,
}

impl Environment {
    /// Reads it. A predecessor has put in order what names a process.
    pub(crate) fn read(is_successor: bool) -> Self {
        if !cfg!(feature = "systemd-notify") {
            return Self::default();
        }
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let own = u64::from(std::process::id());
        // Releases before this one have left the number of the first process there.
        let is_ours = is_successor || number("WATCHDOG_PID").is_none_or(|pid| pid == own);
        let notify_socket = std::env::var_os("NOTIFY_SOCKET").filter(|text| !text.is_empty());
        if notify_socket.is_none() && number("SYSTEMD_EXEC_PID") == Some(own) {
            tracing::warn!(
                "systemd does not listen to this service, and will take an upgrade for its end: \
                 write Type=notify or Type=notify-reload in the unit"
            );
        }
        Self {
            notify_socket,
            watchdog: number("WATCHDOG_USEC")
                .filter(|usec| is_ours && *usec > 0)
                .map(Duration::from_micros),
            fd_store_max: number("FDSTORE").unwrap_or(0),
        }
    }
}
