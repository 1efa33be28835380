//! Durations and sizes.

use std::fmt;
use std::time::Duration;

use indicatif::BinaryBytes;

/// `1.20 GiB`.
pub(in crate::operate) fn bytes(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}

/// How long it is until something, in milliseconds: rounded up, so that it ends with 1 s.
#[derive(Clone, Copy, Debug)]
pub(in crate::operate) struct Left(pub(in crate::operate) u64);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        seconds(f, self.0.div_ceil(1000))
    }
}

/// How long something has been going on, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(in crate::operate) struct Ago(pub(in crate::operate) u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            millis @ ..10_000 => write!(f, "{}.{} s", millis / 1000, millis % 1000 / 100),
            millis => seconds(f, millis / 1000),
        }
    }
}

/// How long something took, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(in crate::operate) struct Took(pub(in crate::operate) u64);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros @ ..1_000 => write!(f, "{micros} µs"),
            micros @ 1_000..1_000_000 => write!(f, "{:.1} ms", micros as f64 / 1e3),
            micros @ 1_000_000..60_000_000 => write!(f, "{:.2} s", micros as f64 / 1e6),
            micros => seconds(f, micros / 1_000_000),
        }
    }
}

/// The two largest units.
fn seconds(f: &mut fmt::Formatter<'_>, seconds: u64) -> fmt::Result {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let rounded = match seconds {
        ..MINUTE => return write!(f, "{seconds} s"),
        MINUTE..HOUR => seconds,
        HOUR..DAY => seconds - seconds % MINUTE,
        // humantime knows months and years, which are no round numbers of days.
        _ => return write!(f, "{}days {}h", seconds / DAY, seconds % DAY / HOUR),
    };
    write!(f, "{}", humantime::format_duration(Duration::from_secs(rounded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_countdown_ends_with_one_second_and_not_with_none() {
        let left = [10_000, 9_999, 1_001, 1_000, 1, 0].map(|millis| Left(millis).to_string());
        assert_eq!(left, ["10 s", "10 s", "2 s", "1 s", "1 s", "0 s"]);
    }

    #[test]
    fn ages_have_the_two_largest_units() {
        for (seconds, text) in [
            (0, "0.0 s"),
            (9, "9.0 s"),
            (59, "59 s"),
            (200, "3m 20s"),
            (3600, "1h"),
            (7 * 3600 + 125, "7h 2m"),
            (400 * 86_400 + 3 * 3600, "400days 3h"),
        ] {
            assert_eq!(Ago(seconds * 1000).to_string(), text);
        }
        assert_eq!(Ago(1_290).to_string(), "1.2 s");
    }

    #[test]
    fn what_took_microseconds_is_not_shown_as_nothing() {
        assert_eq!(Took(250).to_string(), "250 µs");
        assert_eq!(Took(1_250).to_string(), "1.2 ms");
        assert_eq!(Took(1_256_000).to_string(), "1.26 s");
        assert_eq!(Took(90_000_000).to_string(), "1m 30s");
    }

    #[test]
    fn sizes_are_told_in_powers_of_two() {
        assert_eq!(bytes(1_288_490_189), "1.20 GiB");
        assert_eq!(bytes(100), "100 B");
    }
}
