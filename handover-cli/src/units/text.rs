//! The text of a unit, as it grows.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// The text of a unit.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a section.
    pub(super) fn section(&mut self, name: &str) -> &mut Self {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        self.push(format_args!("{gap}[{name}]"))
    }

    /// Says why the next line is as it is. A comment has a line of its own in a unit.
    pub(super) fn why(&mut self, reason: impl Display) -> &mut Self {
        self.push(format_args!("# {reason}"))
    }

    /// Sets something.
    pub(super) fn set(&mut self, name: &str, value: impl Display) -> &mut Self {
        self.push(format_args!("{name}={value}"))
    }

    /// Turns something on.
    pub(super) fn yes(&mut self, name: &str) -> &mut Self {
        self.set(name, "yes")
    }

    /// Leaves a line empty.
    pub(super) fn gap(&mut self) -> &mut Self {
        self.push(format_args!(""))
    }

    pub(super) fn finish(self) -> String {
        self.0
    }

    fn push(&mut self, line: std::fmt::Arguments<'_>) -> &mut Self {
        writeln!(self.0, "{line}").expect("a string takes what is written to it");
        self
    }
}

/// A time as [systemd.time(7)](https://man7.org/linux/man-pages/man7/systemd.time.7.html) has it.
pub(super) fn span(time: Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{}s", time.as_secs()),
        millis if time.as_secs() == 0 => format!("{millis}ms"),
        millis => format!("{}s {millis}ms", time.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_systemd_reads_them() {
        assert_eq!(span(Duration::from_secs(90)), "90s");
        assert_eq!(span(Duration::from_millis(1500)), "1s 500ms");
        assert_eq!(span(Duration::from_millis(20)), "20ms");
    }
}
