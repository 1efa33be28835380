//! Names of listeners, descriptors and states.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::MAX_NAME_BYTES;

/// The name of a listener, descriptor or state: 1 to [`MAX_NAME_BYTES`] bytes of UTF-8 without
/// control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

impl Name {
    /// Makes a name of the text.
    ///
    /// # Errors
    ///
    /// If the text is empty, too long, or has control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if text.is_empty() {
            Err(InvalidName::Empty)
        } else if text.len() > MAX_NAME_BYTES {
            Err(InvalidName::TooLong { bytes: text.len() })
        } else if text.chars().any(char::is_control) {
            Err(InvalidName::Control)
        } else {
            Ok(Self(text))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text cannot be a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidName {
    /// It has no character.
    Empty,
    /// It is longer than [`MAX_NAME_BYTES`].
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// It has a control character.
    Control,
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a name must not be empty"),
            Self::TooLong { bytes } => {
                write!(f, "a name may have {MAX_NAME_BYTES} bytes, this one has {bytes}")
            }
            Self::Control => write!(f, "a name must not have control characters"),
        }
    }
}

impl std::error::Error for InvalidName {}
