//! One process, two pids: inside the box and on the host.

use std::fs;
use std::path::PathBuf;

use super::Systemd;
use crate::process::{Pid, all};

/// The pid namespace of a box, known by its inode.
#[derive(Debug)]
pub(super) struct PidNamespace {
    /// What `/proc/PID/ns/pid` links to: `pid:[4026531836]`.
    name: PathBuf,
}

impl PidNamespace {
    /// Returns that of a process; `None` if it is gone.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        Some(Self { name: fs::read_link(format!("/proc/{pid}/ns/pid")).ok()? })
    }

    fn has(&self, pid: Pid) -> bool {
        Self::of(pid).is_some_and(|namespace| namespace.name == self.name)
    }
}

impl Systemd {
    /// Returns the pid on the host of a process inside; `None` if there is no such process.
    ///
    /// A process in a pid namespace of its own, as of a service with `PrivatePIDs=`, is not found.
    pub fn host_pid(&self, inside: Pid) -> Option<Pid> {
        // Few processes have that number inside of anything, so it is the first to be compared.
        let found = |&pid: &Pid| pid_inside(pid) == Some(inside) && self.pids.has(pid);
        all().into_iter().find(found)
    }

    /// Returns the pid inside of a process on the host; `None` if it is not inside, or gone.
    ///
    /// As for [`host_pid`](Self::host_pid), a process in yet another namespace is not inside.
    pub fn inside_pid(&self, host: Pid) -> Option<Pid> {
        if self.pids.has(host) { pid_inside(host) } else { None }
    }

    /// Returns the pids on the host of all processes inside, zombies among them, lowest first.
    pub fn processes(&self) -> Vec<Pid> {
        let mut pids = all();
        pids.retain(|&pid| self.pids.has(pid));
        pids
    }
}

/// Returns the pid of a process in its innermost namespace, see `NSpid` in
/// [proc_pid_status(5)](https://man7.org/linux/man-pages/man5/proc_pid_status.5.html).
fn pid_inside(pid: Pid) -> Option<Pid> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_ascii_whitespace().next_back()?.parse().ok()
}
