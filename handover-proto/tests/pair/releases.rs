//! What another release of the protocol's crate would be like, as far as the wire tells.
//!
//! There is one version of the protocol, so what a later one would say is made up here: the machines are
//! those of version 1, told to speak another number, and an accent is put on what they send.

use handover_proto::*;

/// A release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) versions: Versions,
    pub(crate) accent: Accent,
}

/// How what it sends differs from version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accent {
    None,
    /// Every object has fields that version 1 does not know.
    Fields,
    /// Before its messages of these names there is one that version 1 does not know.
    Message {
        before: &'static [&'static str],
    },
}

/// The name of that message.
pub(crate) const UNKNOWN: &str = "moonrise";

pub(crate) const V1: Release = release(1, 1, Accent::None);
pub(crate) const V1_WITH_FIELDS: Release = release(1, 1, Accent::Fields);
pub(crate) const V2: Release = release(2, 2, Accent::None);
pub(crate) const V1_AND_V2: Release = release(1, 2, Accent::None);

/// Says what version 1 does not know as soon as the other end has said anything.
pub(crate) const V1_WITH_MESSAGES: Release =
    release(1, 1, Accent::Message { before: &["descriptors", "ack"] });

pub(crate) const fn release(oldest: u32, newest: u32, accent: Accent) -> Release {
    Release { versions: Versions { oldest: Version(oldest), newest: Version(newest) }, accent }
}

impl Accent {
    /// The frames that are sent in the place of one, without the descriptors of that, which go with the
    /// last.
    pub(crate) fn put_on(self, message: &str, frame: Vec<u8>) -> Vec<Vec<u8>> {
        match self {
            Self::Fields => {
                let frame = String::from_utf8(frame).expect("JSON");
                // No name or text of these tests has a brace in it.
                let frame = frame.replace('{', r#"{"moon":{"phase":["full",1.5,null]},"#);
                vec![frame.replace(",}", "}").into_bytes()]
            }
            Self::Message { before } if before.contains(&message) => {
                vec![format!(r#"{{"type":"{UNKNOWN}","phase":"full"}}"#).into_bytes(), frame]
            }
            Self::None | Self::Message { .. } => vec![frame],
        }
    }
}
