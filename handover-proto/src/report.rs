//! What a generation says of itself.

use serde::{Deserialize, Serialize};

use crate::limits::bounded;

/// What a generation says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// Its number.
    pub generation: u64,
    /// Its process, as it sees itself.
    pub pid: u32,
    /// The version that the application gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How much is in flight.
    pub in_flight: u64,
    /// How long that may still take, in milliseconds, if it drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_left_ms: Option<u64>,
    /// How long ago it began what it is doing, serving or draining, in milliseconds.
    pub age_ms: u64,
    /// Its resident memory in bytes, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl Report {
    /// The same, with the version cut to the length of a text.
    pub(crate) fn bounded(mut self) -> Self {
        self.version = self.version.map(bounded);
        self
    }
}
