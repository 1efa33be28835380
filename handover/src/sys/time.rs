//! Clocks that other processes read as well (clock_gettime(2)).

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The clock of `std::time::Instant`, from its origin.
pub(crate) fn monotonic() -> Duration {
    duration(clock_gettime(ClockId::Monotonic))
}

/// The time since the system was booted, suspension included.
pub(crate) fn since_boot() -> Duration {
    duration(clock_gettime(ClockId::Boottime))
}

fn duration(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
