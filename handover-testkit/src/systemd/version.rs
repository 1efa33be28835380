//! Which systemd there is.

use std::fmt;

/// A version of systemd that tests can boot, and the Debian suite that it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemdVersion {
    /// Of Debian 12, by way of its backports.
    V254,
    /// Of Debian 13.
    V257,
    /// Of Debian testing (forky), which moves: it may be a later one.
    V262,
}

impl SystemdVersion {
    /// Every version, the oldest first.
    pub const ALL: [Self; 3] = [Self::V254, Self::V257, Self::V262];

    /// Returns the major version.
    pub fn major(self) -> u32 {
        match self {
            Self::V254 => 254,
            Self::V257 => 257,
            Self::V262 => 262,
        }
    }

    /// Returns the Debian suite that has it.
    pub fn suite(self) -> &'static str {
        match self {
            Self::V254 => "bookworm-backports",
            Self::V257 => "trixie",
            Self::V262 => "forky",
        }
    }

    /// Compares with what the booted systemd says of itself: `systemd 257 (257.13-1~deb13u1)`.
    pub(super) fn check(self, told: &str) -> Result<(), String> {
        let major = told.split_ascii_whitespace().nth(1).and_then(|word| word.parse().ok());
        if major == Some(self.major()) {
            return Ok(());
        }
        let other = format!("{} has `{told}`, not {self}", self.suite());
        if self != Self::V262 {
            return Err(other);
        }
        eprintln!("{other}: tested with that");
        Ok(())
    }
}

impl fmt::Display for SystemdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "systemd {}", self.major())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_refused_except_where_the_suite_moves() {
        assert_eq!(SystemdVersion::V257.check("systemd 257 (257.13-1~deb13u1)"), Ok(()));
        let error = SystemdVersion::V254.check("systemd 252 (252.1)").unwrap_err();
        assert!(error.contains("252") && error.contains("not systemd 254"), "{error}");
        assert_eq!(SystemdVersion::V262.check("systemd 263 (263~rc1-1)"), Ok(()));
    }
}
