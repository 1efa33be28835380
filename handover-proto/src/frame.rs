//! The wire format: one JSON object a frame, limited in length, refused by name.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{MAX_FRAME_BYTES, Message};

/// Writes a message as a frame.
///
/// # Errors
///
/// [`Violation::TooLong`] if the frame would exceed [`MAX_FRAME_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, Violation> {
    let frame = serde_json::to_vec(message).map_err(|e| Violation::Malformed {
        message: Some(message.name().into()),
        why: e.to_string(),
    })?;
    if frame.len() > MAX_FRAME_BYTES {
        return Err(Violation::TooLong { bytes: frame.len() });
    }
    Ok(frame)
}

/// Reads a frame.
///
/// Fields that this version does not know are ignored; a message that it does not know is refused
/// by its name, so that the log of either side says what the other one wanted.
///
/// # Errors
///
/// The [`Violation`] that the frame is.
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, Violation> {
    #[derive(Deserialize)]
    struct Tag<'a> {
        #[serde(rename = "type", borrow)]
        name: Cow<'a, str>,
    }
    if frame.len() > MAX_FRAME_BYTES {
        return Err(Violation::TooLong { bytes: frame.len() });
    }
    let malformed = |why: String| Violation::Malformed { message: None, why };
    if !is_object(frame) {
        return Err(malformed("not a JSON object".into()));
    }
    let tag: Tag<'_> = serde_json::from_slice(frame).map_err(|e| malformed(e.to_string()))?;
    if !M::TYPES.contains(&&*tag.name) {
        return Err(Violation::UnknownMessage { name: tag.name.chars().take(64).collect() });
    }
    serde_json::from_slice(frame).map_err(|e| Violation::Malformed {
        message: Some(tag.name.into_owned()),
        why: e.to_string(),
    })
}

/// Whether the bytes begin as an object does. To serde, an array of the fields' values would do.
fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().first() == Some(&b'{')
}

/// What the predecessor leaves in the channel before it starts the successor.
///
/// The successor compares the token with the one in its environment before it reads anything: a
/// descriptor of the right number that is some other socket stays untouched. Means the same in
/// every version of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preamble {
    /// The secret of this one handover.
    pub token: String,
    /// The number of the successor's generation.
    pub generation: u64,
}

impl Preamble {
    /// The longest preamble, in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Writes the preamble.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::json!({ "token": self.token, "generation": self.generation })
            .to_string()
            .into_bytes()
    }

    /// Reads a preamble, if that is what the bytes are.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > Self::MAX_BYTES || !is_object(bytes) {
            return None;
        }
        serde_json::from_slice(bytes).ok()
    }
}

/// How the peer, or something between us, broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Violation {
    /// The frame exceeds [`MAX_FRAME_BYTES`].
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The frame is not a message.
    Malformed {
        /// The type it claims to be, if it says one.
        message: Option<String>,
        /// What is wrong with it.
        why: String,
    },
    /// The message is of a type that this version does not know.
    UnknownMessage {
        /// The type.
        name: String,
    },
    /// The message does not belong here.
    OutOfOrder {
        /// The message.
        message: &'static str,
        /// What the receiver was doing.
        during: &'static str,
    },
    /// The frame came with another number of descriptors than it says.
    DescriptorCount {
        /// What it says.
        expected: usize,
        /// What came.
        received: usize,
    },
    /// The kernel dropped descriptors of the frame (`MSG_CTRUNC`): the receiver's `RLIMIT_NOFILE`
    /// is too low for what is handed over.
    Truncated,
    /// More of something than the protocol allows.
    TooMany {
        /// Of what.
        what: &'static str,
    },
    /// A frame was acked that was not outstanding.
    UnexpectedAck {
        /// Its number.
        frame: u32,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { bytes } => {
                write!(f, "a frame of {bytes} bytes, more than the {MAX_FRAME_BYTES} allowed")
            }
            Self::Malformed { message: Some(name), why } => {
                write!(f, "a malformed message \"{name}\": {why}")
            }
            Self::Malformed { message: None, why } => write!(f, "not a message: {why}"),
            Self::UnknownMessage { name } => write!(f, "an unknown message \"{name}\""),
            Self::OutOfOrder { message, during } => {
                write!(f, "the message \"{message}\" does not belong in {during}")
            }
            Self::DescriptorCount { expected, received } => {
                write!(f, "{received} descriptors came with a frame that says {expected}")
            }
            Self::Truncated => write!(
                f,
                "descriptors were dropped on the way: the receiver's limit of open files \
                 (RLIMIT_NOFILE) is too low"
            ),
            Self::TooMany { what } => write!(f, "too many {what}"),
            Self::UnexpectedAck { frame } => {
                write!(f, "frame {frame} was acked, but is not outstanding")
            }
        }
    }
}

impl std::error::Error for Violation {}
