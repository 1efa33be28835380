//! Every bound of the protocol, by name.

use std::time::Duration;

/// The longest frame, in bytes. Well below the default of `net.core.wmem_default`, 212 992, so that
/// a frame always fits an empty socket buffer (socket(7)).
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// The most descriptors in one frame. The kernel takes 253 (`SCM_MAX_FD`), but counts what is in
/// flight against the sender's soft `RLIMIT_NOFILE`, over all its processes: a small batch, acked
/// before the next, stays below any sensible limit.
pub const MAX_FDS_PER_FRAME: usize = 64;

/// The most bytes of names and addresses in one frame, as JSON escapes them.
pub(crate) const MAX_BATCH_BYTES: usize = 16 * 1024;

/// The longest name of a listener, descriptor or state, in bytes of UTF-8.
pub const MAX_NAME_BYTES: usize = 255;

/// The longest free text (progress, reasons), in bytes; longer ones are cut by the sender.
pub const MAX_TEXT_BYTES: usize = 4096;

/// The most listeners and other descriptors in one handover.
pub const MAX_DESCRIPTORS: u32 = 65_536;

/// The most states, early and late ones each, in one handover.
pub const MAX_STATES: u32 = 1024;

/// The most time that one `Progress` adds to the ready timeout.
pub const MAX_EXTENSION: Duration = Duration::from_secs(60 * 60);

/// How long a successor that must go may take to do so by itself before it is killed.
pub const ABORT_GRACE: Duration = Duration::from_secs(1);

/// How long a successor waits for a silent predecessor that has not welcomed it, or that is in the
/// middle of the transfer.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The most answers to inquiries that wait to be sent; the newest are kept.
pub const MAX_UNSENT_REPORTS: usize = 16;

/// How many pings there are in the time that a successor on probation has to answer one.
pub(crate) const PINGS_PER_TIMEOUT: u32 = 4;

/// How long a text becomes at most when JSON escapes it.
pub(crate) fn escaped_bytes(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' => 2,
        0..=0x1f => r"\u0000".len(),
        0x20..=0xff => 1,
    };
    text.bytes().map(escaped).sum()
}

/// Cuts a text to [`MAX_TEXT_BYTES`], at a character's border.
pub(crate) fn bounded(mut text: String) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
