//! The protocol's time, from the system's monotonic clock.

use std::time::Instant;

use handover_proto::Time;

/// Translates between the two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn time(self, at: Instant) -> Time {
        Time::from_origin(at.saturating_duration_since(self.origin))
    }

    /// A time that is too far away for the system is as good as a year.
    pub(crate) fn instant(self, time: Time) -> Instant {
        const YEAR: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 60 * 60);
        self.origin.checked_add(time.since_origin()).unwrap_or_else(|| Instant::now() + YEAR)
    }
}
