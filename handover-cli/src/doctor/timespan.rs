//! Times as [systemd.time(7)](https://man7.org/linux/man-pages/man7/systemd.time.7.html) reads them.

use std::fmt;
use std::time::Duration;

/// How long something may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Span {
    Of(Duration),
    Infinite,
}

/// What the units stand for, in microseconds.
const UNITS: [(&[&str], u64); 9] = [
    (&["usec", "us", "µs", "μs"], 1),
    (&["msec", "ms"], 1_000),
    (&["seconds", "second", "sec", "s"], 1_000_000),
    (&["minutes", "minute", "min", "m"], 60_000_000),
    (&["hours", "hour", "hr", "h"], 3_600_000_000),
    (&["days", "day", "d"], 86_400_000_000),
    (&["weeks", "week", "w"], 604_800_000_000),
    (&["months", "month", "M"], 2_629_800_000_000),
    (&["years", "year", "y"], 31_557_600_000_000),
];

/// A number without a unit counts seconds.
const SECOND_US: u64 = 1_000_000;

/// Digits after the point that can make a difference of a microsecond to a year.
const MAX_FRACTION_DIGITS: usize = 18;

impl Span {
    /// Reads a time; `None` if systemd would not.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim();
        if rest == "infinity" {
            return Some(Self::Infinite);
        }
        if rest.is_empty() {
            return None;
        }
        let mut total_us = 0_u64;
        while !rest.is_empty() {
            let (us, after) = term(rest)?;
            total_us = total_us.checked_add(us)?;
            rest = after;
        }
        Some(Self::Of(Duration::from_micros(total_us)))
    }

    /// For settings where nothing means for ever.
    pub(super) fn zero_is_infinite(self) -> Self {
        if self == Self::Of(Duration::ZERO) { Self::Infinite } else { self }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Infinite => f.write_str("infinity"),
            Self::Of(time) if time.subsec_nanos() == 0 => write!(f, "{}s", time.as_secs()),
            Self::Of(time) => write!(f, "{}us", time.as_micros()),
        }
    }
}

/// A number and its unit, and what is after them and after the space behind.
fn term(text: &str) -> Option<(u64, &str)> {
    let (whole, rest) = split(text, |c| c.is_ascii_digit());
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split(rest, |c| c.is_ascii_digit()),
        None => ("", rest),
    };
    let has_point = text[whole.len()..].starts_with('.');
    if (whole.is_empty() && fraction.is_empty()) || (has_point && fraction.is_empty()) {
        return None;
    }
    let (unit, rest) = split(rest.trim_start(), char::is_alphabetic);
    let unit_us = match unit {
        "" => SECOND_US,
        _ => UNITS.iter().find(|(names, _)| names.contains(&unit))?.1,
    };
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let us = whole.checked_mul(unit_us)?.checked_add(part(fraction, unit_us))?;
    Some((us, rest.trim_start()))
}

/// So much of a unit.
fn part(fraction: &str, unit_us: u64) -> u64 {
    let digits = fraction.bytes().take(MAX_FRACTION_DIGITS);
    let (value, scale) = digits.fold((0_u128, 1_u128), |(value, scale), digit| {
        (value * 10 + u128::from(digit - b'0'), scale * 10)
    });
    let us = value * u128::from(unit_us) / scale;
    u64::try_from(us).expect("less than a unit")
}

fn split(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_systemd_reads_them() {
        for (text, millis) in [
            ("90", 90_000),
            ("1min 30s", 90_000),
            ("1min30s", 90_000),
            ("1 min 30", 90_000),
            ("1.5h", 5_400_000),
            ("1.5", 1_500),
            (".5s", 500),
            ("2500ms", 2_500),
            ("1m", 60_000),
            ("1M", 2_629_800_000),
            ("3000us", 3),
            ("3000µs", 3),
            ("0", 0),
            ("1y 2w 1d", 31_557_600_000 + 15 * 86_400_000),
        ] {
            let expected = Span::Of(Duration::from_millis(millis));
            assert_eq!(Span::parse(text), Some(expected), "{text}");
        }
        assert_eq!(Span::parse("infinity"), Some(Span::Infinite));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            " ",
            "s",
            "-1",
            "1x",
            "1.",
            "1.s",
            "1,5s",
            "infinity 1s",
            "99999999999999999y",
            "1s x",
        ] {
            assert_eq!(Span::parse(text), None, "{text}");
        }
    }

    #[test]
    fn for_ever_is_the_longest() {
        assert!(Span::Infinite > Span::Of(Duration::MAX));
        assert_eq!(Span::parse("0").unwrap().zero_is_infinite(), Span::Infinite);
    }
}
