//! How connections change hands, through a pair of seqpacket sockets of their own.
//!
//! A process that drains has one end, whoever serves the other. A frame is a message as on the
//! channel, and for [`ToTaker::Connections`] the bytes that come with the connections after it:
//! `{..}` NUL bytes. A connection belongs to whoever has drained it, the giver, until the taker says
//! `taken`, or the giver is gone: then the frames that it has sent are the taker's.

use serde::{Deserialize, Serialize};

use crate::{MAX_FRAME_BYTES, Message, Name, Violation, decode, encode};

/// The most connections in one frame; as many descriptors again may come with them.
pub const MAX_CONNECTIONS_PER_FRAME: usize = 64;

/// The most bytes of one connection that travel in the frame; more are in a memfd of their own.
pub const MAX_INLINE_BYTES: usize = 8 * 1024;

/// The most bytes after the message in one frame.
const MAX_PAYLOAD_BYTES: usize = 32 * 1024;

/// The most bytes that come with one connection: what was read and not used, and its state.
pub const MAX_CONNECTION_BYTES: usize = 16 * 1024 * 1024;

/// What a process that drains says to whoever takes its connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToTaker {
    /// Connections; the frame carries the descriptor of each, and after it that of its memfd, if it
    /// has one.
    Connections {
        /// The number to be answered.
        frame: u32,
        /// The generation that had them.
        generation: u64,
        /// What each of them is.
        connections: Vec<Moving>,
    },
}

/// What whoever takes connections says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToGiver {
    /// Connections of that name are welcome from here on.
    Takes {
        /// The name.
        name: Name,
        /// The oldest version of the state that can be read.
        oldest: u32,
        /// The newest one.
        newest: u32,
    },
    /// The connections of that frame have another owner now, but for these.
    Taken {
        /// The number of the frame.
        frame: u32,
        /// What the giver keeps.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        refused: Vec<Refused>,
    },
}

/// A connection on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moving {
    /// Who is to go on with it.
    pub name: Name,
    /// The application's version of its state.
    pub version: u32,
    /// How many bytes were read from it and not used.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unread: u32,
    /// How many bytes of state there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub state: u32,
    /// Whether those bytes are in a memfd, and not in the frame.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
}

/// A connection that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Refused {
    /// Its place in the frame.
    pub index: u32,
    /// Why, for people.
    pub reason: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Message for ToTaker {
    const TYPES: &'static [&'static str] = &["connections"];

    fn name(&self) -> &'static str {
        match self {
            Self::Connections { .. } => "connections",
        }
    }
}

impl Message for ToGiver {
    const TYPES: &'static [&'static str] = &["takes", "taken"];

    fn name(&self) -> &'static str {
        match self {
            Self::Takes { .. } => "takes",
            Self::Taken { .. } => "taken",
        }
    }
}

impl Moving {
    /// How many bytes come with it.
    pub fn bytes(&self) -> usize {
        self.unread as usize + self.state as usize
    }

    /// How many of them are in the frame.
    pub fn inline_bytes(&self) -> usize {
        if self.apart { 0 } else { self.bytes() }
    }

    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        1 + usize::from(self.apart)
    }
}

/// A frame of connections that is being put together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    connections: Vec<Moving>,
    payload: Vec<u8>,
    name_bytes: usize,
}

impl Batch {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether one more would fit.
    pub fn has_room_for(&self, moving: &Moving) -> bool {
        self.connections.is_empty()
            || (self.connections.len() < MAX_CONNECTIONS_PER_FRAME
                && self.payload.len() + moving.inline_bytes() <= MAX_PAYLOAD_BYTES
                && self.name_bytes + moving.name.as_str().len() <= MAX_FRAME_BYTES / 16)
    }

    /// Adds one, with the bytes that travel in the frame.
    pub fn push(&mut self, moving: Moving, inline: &[&[u8]]) {
        self.name_bytes += moving.name.as_str().len();
        self.connections.push(moving);
        inline.iter().for_each(|bytes| self.payload.extend_from_slice(bytes));
    }

    /// The frame.
    ///
    /// # Errors
    ///
    /// As [`encode`].
    pub fn into_frame(self, frame: u32, generation: u64) -> Result<Vec<u8>, Violation> {
        let Self { connections, payload, .. } = self;
        let mut bytes = encode(&ToTaker::Connections { frame, generation, connections })?;
        if !payload.is_empty() {
            bytes.push(0);
            bytes.extend_from_slice(&payload);
        }
        Ok(bytes)
    }
}

/// Reads a frame for the taker: the message, and what comes after it.
///
/// # Errors
///
/// The [`Violation`] that the frame is, also if it is not as long as it says.
pub fn decode_for_taker(frame: &[u8]) -> Result<(ToTaker, &[u8]), Violation> {
    let end = frame.iter().position(|byte| *byte == 0).unwrap_or(frame.len());
    let (json, payload) = frame.split_at(end);
    let payload = payload.get(1..).unwrap_or_default();
    let message = decode(json)?;
    let ToTaker::Connections { connections, .. } = &message;
    if connections.len() > MAX_CONNECTIONS_PER_FRAME {
        return Err(Violation::TooMany { what: "connections in a frame" });
    }
    let malformed = |why: &str| Violation::Malformed {
        message: Some(message.name().to_owned()),
        why: why.to_owned(),
    };
    let mut inline = 0_usize;
    for moving in connections {
        if moving.bytes() > MAX_CONNECTION_BYTES {
            return Err(malformed("too many bytes come with a connection"));
        }
        inline += moving.inline_bytes();
    }
    if inline != payload.len() {
        return Err(malformed("other bytes come with it than it says"));
    }
    Ok((message, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moving(name: &str, unread: u32, state: u32) -> Moving {
        let apart = (unread + state) as usize > MAX_INLINE_BYTES;
        Moving { name: Name::new(name).unwrap(), version: 1, unread, state, apart }
    }

    #[test]
    fn what_comes_with_connections_is_read_as_it_was_written() {
        let mut batch = Batch::default();
        batch.push(moving("a", 3, 2), &[b"GET", b"\0\xff"]);
        batch.push(moving("b", 0, 0), &[]);
        batch.push(moving("c", 90_000, 0), &[]);
        let frame = batch.clone().into_frame(7, 2).unwrap();
        let (message, payload) = decode_for_taker(&frame).unwrap();
        let ToTaker::Connections { frame, generation, connections } = message;
        assert_eq!((frame, generation), (7, 2));
        assert_eq!(connections, batch.connections);
        assert_eq!(payload, b"GET\0\xff");
        assert_eq!(connections.iter().map(Moving::descriptors).collect::<Vec<_>>(), [1, 1, 2]);
    }

    #[test]
    fn a_full_batch_fits_a_frame_and_a_socket_buffer() {
        let long = "\"".repeat(crate::MAX_NAME_BYTES);
        for (name, unread) in [(long.as_str(), 0), ("n", 600), ("n", 8192)] {
            let mut batch = Batch::default();
            let next = moving(name, unread, 0);
            let bytes = vec![b'x'; next.inline_bytes()];
            while batch.has_room_for(&next) {
                batch.push(next.clone(), &[&bytes]);
            }
            assert!(batch.connections.len() >= 4, "{}", batch.connections.len());
            let frame = batch.into_frame(u32::MAX, u64::MAX).unwrap();
            assert!(frame.len() <= 100 * 1024, "{}", frame.len());
            decode_for_taker(&frame).unwrap();
        }
    }

    #[test]
    fn a_frame_that_is_not_as_long_as_it_says_is_refused() {
        let mut batch = Batch::default();
        batch.push(moving("a", 3, 0), &[b"GET"]);
        let frame = batch.into_frame(1, 1).unwrap();
        for cut in [&frame[..frame.len() - 1], &[&frame[..], b"x"].concat(), &frame[..8], b""] {
            assert!(decode_for_taker(cut).is_err(), "{}", String::from_utf8_lossy(cut));
        }
    }

    #[test]
    fn what_a_later_version_says_can_be_read() {
        let read = |frame: &[u8]| decode::<ToGiver>(frame);
        let taken = read(br#"{"type":"taken","frame":1,"moon":"full"}"#).unwrap();
        assert_eq!(taken, ToGiver::Taken { frame: 1, refused: Vec::new() });
        let unknown = read(br#"{"type":"moonrise"}"#).unwrap_err();
        assert_eq!(unknown, Violation::UnknownMessage { name: "moonrise".into() });
    }
}
