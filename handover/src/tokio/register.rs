//! Registering a descriptor with the runtime.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers something that owns its descriptor for as long as it lives.
///
/// # Errors
///
/// If this is not called in a runtime, where `AsyncFd` would panic.
//
// The safe constructor is deprecated, from tokio 1.54, for types whose `AsRawFd` may change its
// answer. Ours own what they answer with. Its unsafe successor would have to stand in `sys`, which
// knows no runtime, and would ask for that release of tokio.
#[allow(deprecated)]
pub(super) fn register<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(io::Error::other("there is no Tokio runtime here"));
    }
    AsyncFd::with_interest(inner, interest)
}
