//! Until when to wait, and how.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

/// How long [`soon`] is. Far beyond what anything takes, since machines that run tests are noisy
/// and a test that passes never waits for it.
const SOON: Duration = Duration::from_secs(20);

/// The pause between two looks of [`recheck`].
const RECHECK_INTERVAL: Duration = Duration::from_millis(2);

/// Returns the usual deadline: 20 seconds from now.
pub fn soon() -> Instant {
    Instant::now() + SOON
}

/// Looks again until `probe` finds something; `None` if it has not by `deadline`.
///
/// Only for facts that come without an event, such as most of `/proc`: where there is a line, an
/// end of file or a pidfd to wait on, wait on that. The probe is always tried at least once.
pub fn recheck<T>(deadline: Instant, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(RECHECK_INTERVAL);
    }
}

/// Waits until one of `fds` is readable or at its end; false if none is by `deadline`.
pub(crate) fn wait_readable<F: AsFd>(fds: &[F], deadline: Instant) -> bool {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    // A signal ends poll(2) early; the deadline is absolute, so the time left is counted anew.
    let ready = retry_on_intr(|| poll(&mut polled, Some(&timespec(left(deadline)))));
    ready.expect("poll(2) of our own fds does not fail") > 0
}

/// Returns the time until `deadline`, zero once it has passed.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn timespec(duration: Duration) -> Timespec {
    duration.try_into().expect("a time until a deadline fits a timespec")
}

#[cfg(test)]
mod tests {
    use std::io::{Write as _, pipe};

    use super::*;

    #[test]
    fn recheck_tries_once_even_after_the_deadline() {
        assert_eq!(recheck(Instant::now(), || Some(1)), Some(1));
        assert_eq!(recheck(Instant::now(), || None::<u8>), None);
    }

    #[test]
    fn readable_on_data_and_on_end_of_file_only() {
        let (reader, mut writer) = pipe().unwrap();
        assert!(!wait_readable(&[&reader], Instant::now()));
        writer.write_all(b"x").unwrap();
        assert!(wait_readable(&[&reader], soon()));

        let (reader, writer) = pipe().unwrap();
        drop(writer);
        assert!(wait_readable(&[&reader], soon()));
    }
}
