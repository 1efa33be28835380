//! What systemd says, in variables and in names, if anybody may have written it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use handover_proto::{MAX_DESCRIPTORS, Name};

use super::activation::{parse_count, parse_names};
use super::store::Entry;
use crate::sys::notify::NotifySocket;

/// The first line is `LISTEN_FDS`, the second `LISTEN_FDNAMES`, the third `NOTIFY_SOCKET`.
///
/// There is one name for each descriptor, none is empty, and there are no more than may be handed over.
pub fn listen_fds(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n').map(OsStr::from_bytes);
    let (count, names, socket) = (lines.next(), lines.next(), lines.next());
    if let Some(count) = count.and_then(parse_count) {
        assert!((1..=MAX_DESCRIPTORS as usize).contains(&count));
        // To make names for all there may be takes the time of a hundred inputs.
        let count = count.min(1000);
        let parsed = parse_names(names, count);
        assert_eq!(parsed.len(), count);
        assert!(parsed.iter().all(|name| !name.is_empty() && !name.contains(':')));
        let given = names.map(OsStr::to_string_lossy).unwrap_or_default();
        for (parsed, given) in parsed.iter().zip(given.split(':')) {
            assert!(parsed == given || given.is_empty());
        }
        for name in parsed.iter().filter(|name| Entry::parse(name).is_none()) {
            // Refused or not: it does not panic, and what is refused is told.
            let _ = Name::new(name.as_str()).map_err(|error| error.to_string());
        }
    }
    if let Some(socket) = socket {
        // Nobody listens there: what matters is that it is an error and nothing worse.
        assert!(socket.as_bytes().starts_with(b"/run") || NotifySocket::connect(socket).is_err());
    }
}

/// Reads each line as the name of something that is kept in the fd store.
///
/// What is taken for ours is kept by just that name: by another one it could not be taken out again.
pub fn stored_names(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(text) = std::str::from_utf8(line) else { continue };
        let Some(entry) = Entry::parse(text) else { continue };
        assert_eq!(entry.fd_name(), text);
        assert!(text.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b':'));
    }
}
