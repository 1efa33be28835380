//! The waiter: the same step that the blocking one calls, in a task.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::register::register;
use crate::drain::Drained;
use crate::engine::{Ending, Shared, Stage};
use crate::error::{Error, ErrorKind};
use crate::running::{Handle, Until, Upgrade};
use crate::sys::poll::is_readable;
use crate::{Guard, Handover};

/// Says that this process is initialised, waits for the predecessor's commit, and serves.
///
/// As [`Handover::ready`], for a Tokio runtime: from here on a task of it acts upon signals and
/// makes upgrades.
///
/// # Errors
///
/// As there, and if this is not called in a runtime.
///
/// # Panics
///
/// As `tokio::io::unix::AsyncFd` does in a runtime without an I/O driver, and later as `tokio::time`
/// does in one without a time driver: build it with `enable_all`.
pub async fn ready(handover: Handover) -> Result<Running, Error> {
    let waiter = Waiter::new(handover.shared())
        .map_err(|source| io_error(handover.shared(), "to register with the runtime", source))?;
    handover.shared().lock().ready()?;
    let stage = waiter.drive(|stage| stage != Stage::Committing).await?;
    let (handle, started) = handover.outcome(stage)?.into_parts();
    let task = tokio::spawn(async move {
        // The library counts as started for as long as somebody drives it.
        let _started = started;
        waiter.drive(|stage| stage >= Stage::Done).await
    });
    Ok(Running { handle, task })
}

/// A process that serves, in a Tokio runtime.
#[derive(Debug)]
#[must_use = "what is in flight is lost if the process exits before `drain` returns"]
pub struct Running {
    handle: Handle,
    task: JoinHandle<Result<Stage, Error>>,
}

impl Running {
    /// A handle to this process for other tasks and threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The number of this generation. The first one is 1.
    pub fn generation(&self) -> u64 {
        self.handle.generation()
    }

    /// Whether this process was started to replace a predecessor.
    pub fn is_successor(&self) -> bool {
        self.handle.is_successor()
    }

    /// Counts something as in flight: a drain waits for it.
    pub fn guard(&self) -> Guard {
        self.handle.guard()
    }

    /// Asks for an upgrade, as the upgrade signal does; await it for the verdict.
    pub fn upgrade(&self) -> Upgrade {
        self.handle.upgrade()
    }

    /// Comes when this process must not accept any more.
    pub fn draining(&self) -> Until {
        self.handle.draining()
    }

    /// Comes when no older generation runs any more; at once where there was none.
    pub fn predecessor_gone(&self) -> Until {
        self.handle.predecessor_gone()
    }

    /// Serves until this process must not accept any more, and says why.
    pub async fn wait(&self) -> Ending {
        self.handle.draining().await;
        let status = &self.handle.shared().status;
        status.look(|status| status.ending).unwrap_or(Ending::Stopped)
    }

    /// Serves until this process must not accept any more, and then until nothing is in flight, for
    /// the drain timeout, or for a second stop signal. Then the process is to exit; what is in
    /// flight is cut by that.
    ///
    /// # Errors
    ///
    /// If the runtime shuts down.
    pub async fn drain(self) -> Result<Drained, Error> {
        match self.task.await {
            Ok(outcome) => outcome?,
            Err(error) => {
                let source = std::io::Error::other(error);
                return Err(io_error(self.handle.shared(), "to go on waiting", source));
            }
        };
        Ok(self.handle.shared().status.look(|status| status.drained).unwrap_or_default())
    }
}

struct Waiter {
    fd: AsyncFd<Descriptor>,
}

/// The engine, as something with a descriptor.
struct Descriptor(Arc<Shared>);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd().as_fd().as_raw_fd()
    }
}

impl Waiter {
    fn new(shared: &Arc<Shared>) -> std::io::Result<Self> {
        Ok(Self { fd: register(Descriptor(Arc::clone(shared)), Interest::READABLE)? })
    }

    async fn drive(&self, arrived: impl Fn(Stage) -> bool) -> Result<Stage, Error> {
        let shared = &self.fd.get_ref().0;
        loop {
            let (stage, deadline) = shared.step();
            if arrived(stage) {
                return Ok(stage);
            }
            // The runtime tells of changes only: what the step has left over is seen here.
            if is_readable(shared.fd()) {
                tokio::task::yield_now().await;
                continue;
            }
            let readable = match deadline {
                None => self.fd.readable().await,
                Some(at) => match tokio::time::timeout_at(at.into(), self.fd.readable()).await {
                    Ok(readable) => readable,
                    Err(_) => continue,
                },
            };
            // Cleared before the step, so that nothing that comes during it is missed.
            readable.map_err(|source| io_error(shared, "to wait", source))?.clear_ready();
        }
    }
}

fn io_error(shared: &Shared, doing: &'static str, source: std::io::Error) -> Error {
    shared.lock().error(ErrorKind::Io { doing, source })
}
