//! The limit of open files, of which every connection takes one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit of open files before and after raising it; `None` stands for no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenFiles {
    pub(crate) before: Option<u64>,
    /// How many connections may be open at once.
    pub(crate) usable: Option<u64>,
}

/// Raises the soft limit to the hard one: the usual 1024 are a second's worth of connections.
pub(crate) fn raise() -> OpenFiles {
    // The standard streams, the runtime's own, and those of COMMAND.
    const RESERVED: u64 = 64;
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // If the kernel refuses, the old limit simply stays, and bounds the load.
    let _ = setrlimit(Resource::Nofile, raised);
    let now = getrlimit(Resource::Nofile).current;
    OpenFiles { before: limit.current, usable: now.map(|now| now.saturating_sub(RESERVED)) }
}
