//! Durations as people type them.

use std::time::Duration;

/// Reads a duration that is not zero, such as `10s`.
///
/// # Errors
///
/// What is wrong with the text, for people.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        return Err("must be longer than nothing, such as 10s".to_owned());
    }
    Ok(duration)
}
