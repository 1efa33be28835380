//! The result, on stdout.

use std::io::{self, Write};

/// Writes full lines.
pub(super) fn print(lines: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines.as_bytes())?;
    stdout.flush()
}

/// Writes one line.
pub(super) fn print_line(line: &str) -> io::Result<()> {
    print(&format!("{line}\n"))
}
