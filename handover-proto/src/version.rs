//! Protocol versions and how two ends agree on one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The newest version of the protocol that this crate speaks.
pub const VERSION: Version = Version(1);

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The versions that one end speaks: all from the oldest to the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest one.
    pub oldest: Version,
    /// The newest one.
    pub newest: Version,
}

impl Versions {
    /// What this crate speaks.
    pub const OURS: Self = Self { oldest: Version(1), newest: VERSION };

    /// The newest version that both speak, if there is one.
    pub fn agree(self, other: Self) -> Option<Version> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest && newest >= other.oldest).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(oldest: u32, newest: u32) -> Versions {
        Versions { oldest: Version(oldest), newest: Version(newest) }
    }

    #[test]
    fn ends_agree_on_the_newest_common_version() {
        assert_eq!(versions(1, 3).agree(versions(2, 5)), Some(Version(3)));
        assert_eq!(versions(2, 5).agree(versions(1, 3)), Some(Version(3)));
        assert_eq!(versions(1, 1).agree(versions(1, 9)), Some(Version(1)));
    }

    #[test]
    fn ends_without_a_common_version_do_not_agree() {
        assert_eq!(versions(1, 1).agree(versions(2, 2)), None);
        assert_eq!(versions(4, 5).agree(versions(1, 3)), None);
    }

    #[test]
    fn a_range_that_is_upside_down_agrees_with_nothing() {
        assert_eq!(versions(3, 1).agree(versions(1, 3)), None);
    }
}
